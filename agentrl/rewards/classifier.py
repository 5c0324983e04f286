"""A transformers classifier as outcome and process reward model, computed in batches.

Axes in names: B rows, T columns, D hidden, N places that are read, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agentrl.batch import plan
from agentrl.chat import Chat
from agentrl.errors import ConfigError, DataError, unknown
from agentrl.logprob import bare_model
from agentrl.rewards.batched import Batched
from agentrl.rewards.steps import COMBINED, Combine
from agentrl.types import Sample

Asked = tuple[Sequence[int], Sequence[int]]
"""Token ids, and the indices of those at which the model is read."""


class SequenceClassifier:
    """A transformers sequence or token classifier as `RewardModel` and `ProcessModel`.

    It reads ids of its own tokenizer (`agentrl.rewards.heard`). A decoder is read at the last
    token, whatever that is (transformers itself looks for the last one that is not fill, and so
    misses an end token that is used as fill), or at the last token of each step; an encoder as its
    own forward pass says. With one label the score is its logit, with two (bad, good) the log-odds
    of good: its sigmoid is a probability either way. Requests made at one time are computed
    together, sorted by length, filled up on the right, in micro-batches of `batch_tokens`.
    `chat` is its own tokenizer and template, where they are known.

    A process reward model that was trained to be read at a `step_token` (`<extra_0>` of
    Qwen2.5-Math-PRM, arXiv 2501.07301; Math-Shepherd's, arXiv 2312.08935) gets one behind each step
    of a path and is read at all of them in one pass. If it is a language model, `labels` are the
    tokens of a bad and of a good step ("-" and "+" in Math-Shepherd), and the score is the log-odds
    of the good one against the bad one. What it says of a whole path is its steps' probabilities,
    by `combine` (`agentrl.rewards.steps.COMBINED`).

    Raises ConfigError for a model with more labels, one that is no classifier (without `labels`),
    and tokens that it does not have.
    """

    def __init__(
        self,
        model: Any,
        *,
        batch_tokens: int = 8192,
        chat: Chat | None = None,
        step_token: str | None = None,
        labels: tuple[str, str] | None = None,
        combine: Combine = "product",
    ) -> None:
        bare = bare_model(model)
        if combine not in COMBINED:
            raise unknown("way to combine steps", combine, COMBINED)
        self.step_token, self.combine = step_token, combine
        self._marker: list[int] = []
        self._labels: list[int] | None = None
        if step_token is not None:
            self._marker = _token(chat, step_token, "step_token")
        if labels is not None:
            self._labels = _two_labels(bare, chat, step_token, labels)
        else:
            _check_head(bare)
        self.model, self.batch_tokens, self.chat = model.eval(), batch_tokens, chat
        config = bare.config.get_text_config()
        self._vocabulary = config.vocab_size
        self._longest = getattr(config, "max_position_embeddings", None)
        self._batched: Batched[Asked, list[float]] = Batched(self._compute)

    async def reward(self, token_ids: Sequence[int]) -> float:
        """The score of the whole sequence. Raises DataError for ids that the model cannot read."""
        return (await self.steps(token_ids, [len(token_ids) - 1]))[0]

    async def steps(self, token_ids: Sequence[int], ends: Sequence[int]) -> list[float]:
        """The score at each of `ends`, the indices of the steps' last tokens; with a step token, at
        the one that is put behind each of them.

        Raises DataError for ids that the model cannot read, ConfigError for several steps where the
        model scores whole sequences alone.
        """
        self._check(token_ids, ends)
        return await self._batched(self._marked(token_ids, ends))

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The score of each sequence, at once. Raises as `reward` does."""
        asked: list[Asked] = [(ids, [len(ids) - 1]) for ids in sequences]
        for ids, ends in asked:
            self._check(ids, ends)
        return [found[0] for found in self._compute([self._marked(*one) for one in asked])]

    def _marked(self, ids: Sequence[int], ends: Sequence[int]) -> Asked:
        """With the step token behind each step, and where these stand."""
        if not self._marker:
            return ids, ends
        made: list[int] = []
        places, begin = [], 0
        for end in ends:
            made += [*ids[begin : end + 1], *self._marker]
            places.append(len(made) - 1)
            begin = end + 1
        return made, places

    def _check(self, ids: Sequence[int], ends: Sequence[int]) -> None:
        if not len(ids):
            raise DataError("there is no token to score")
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            raise DataError(
                f"token ids from {min(ids)} to {max(ids)} are not of the reward model's vocabulary "
                f"of {self._vocabulary}: another tokenizer made them"
            )
        n = len(ids) + len(ends) * len(self._marker)
        if self._longest is not None and n > self._longest:
            raise DataError(
                f"{n} tokens are more than the reward model's context of {self._longest}; "
                "leave longer answers out (max_tokens), or take another reward model"
            )
        if not ends or not all(a < b for a, b in pairwise([-1, *ends, len(ids)])):
            raise DataError(
                f"steps end at tokens 0 to {len(ids) - 1}, one after the other, not at {list(ends)}"
            )
        if list(ends) != [len(ids) - 1] and not self._reads_tokens:
            raise ConfigError(
                f"{type(bare_model(self.model)).__name__} scores whole sequences alone; steps need "
                "a decoder or a token classifier"
            )

    @property
    def _reads_tokens(self) -> bool:
        bare = bare_model(self.model)
        return (
            self._labels is not None
            or hasattr(bare, "score")
            or type(bare).__name__.endswith("ForTokenClassification")
        )

    def _compute(self, asked: Sequence[Asked]) -> list[list[float]]:
        found: list[list[float]] = [[] for _ in asked]
        samples = [Sample(ids, [0.0] * len(ids)) for ids, _ in asked]
        with torch.inference_mode():
            for rows in plan(samples, self.batch_tokens, "padded"):
                chosen = [i for row in rows for i in row]
                scores = self._read([asked[i] for i in chosen]).tolist()
                for i in chosen:
                    n = len(asked[i][1])
                    found[i], scores = scores[:n], scores[n:]
        return found

    def _read(self, asked: Sequence[Asked]) -> Tensor:
        """[N]: the scores at all places of these sequences, one sequence after the other."""
        bare, device = bare_model(self.model), self.model.device
        rows = [torch.tensor(list(ids)) for ids, _ in asked]
        ids_BT = pad_sequence(rows, batch_first=True).to(device)
        inputs = {"input_ids": ids_BT}
        if len({len(row) for row in rows}) > 1:
            seen = [torch.ones_like(row) for row in rows]
            inputs["attention_mask"] = pad_sequence(seen, batch_first=True).to(device)
        row_N = torch.tensor([b for b, (_, ends) in enumerate(asked) for _ in ends], device=device)
        at_N = torch.tensor([end for _, ends in asked for end in ends], device=device)
        if self._labels is not None:
            hidden_BTD = bare.base_model(**inputs, use_cache=False)[0]
            logits_NL = bare.get_output_embeddings()(hidden_BTD[row_N, at_N])[:, self._labels]
        elif hasattr(bare, "score"):
            hidden_BTD = bare.base_model(**inputs, use_cache=False)[0]
            logits_NL = bare.score(hidden_BTD[row_N, at_N])
        else:
            logits = self.model(**inputs).logits
            logits_NL = logits[row_N, at_N] if logits.ndim == 3 else logits
        scores_N: Tensor = logits_NL[:, -1].float()
        return scores_N if logits_NL.shape[1] == 1 else scores_N - logits_NL[:, 0].float()


def _check_head(bare: Any) -> None:
    """Raise ConfigError for a model that is no classifier, or has more than two labels."""
    labels = getattr(bare.config, "num_labels", 1)
    if labels not in (1, 2):
        raise ConfigError(
            f"a reward model has one label (its score) or two (bad, good), not {labels}"
        )
    if not hasattr(bare, "score") and not hasattr(bare, "classifier"):
        raise ConfigError(
            f"{type(bare).__name__} is no classifier: load a reward model with "
            "AutoModelForSequenceClassification or AutoModelForTokenClassification, or name the "
            "tokens that a language model says of a bad and a good step (labels)"
        )


def _two_labels(
    bare: Any, chat: Chat | None, step_token: str | None, labels: tuple[str, str]
) -> list[int]:
    """The ids of the tokens for bad and good. Raises ConfigError where they cannot be read."""
    if step_token is None or bare.get_output_embeddings() is None:
        raise ConfigError(
            "labels are tokens that a language model says at a step token: give step_token, and a "
            "model with a language head"
        )
    found = [_token(chat, label, "label")[-1] for label in labels]
    if len(set(found)) != 2:
        raise ConfigError(f"labels are two different tokens, bad and good, not {labels}")
    return found


def _token(chat: Chat | None, text: str, what: str) -> list[int]:
    """What `text` is in the model's own tokens. Raises ConfigError without any."""
    if chat is None:
        raise ConfigError(f"a {what} is of the reward model's own tokenizer: give its chat")
    ids = chat.encode(text, trusted=True)
    if not ids:
        raise ConfigError(f"{what} {text!r} is no token of the reward model's tokenizer")
    return ids

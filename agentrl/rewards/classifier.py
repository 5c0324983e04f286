"""A transformers classifier as outcome and process reward model, computed in batches.

Axes in names: B rows, T columns, D hidden, N places that are read, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agentrl.batch import plan
from agentrl.chat import Chat
from agentrl.errors import ConfigError, DataError
from agentrl.logprob import bare_model
from agentrl.rewards.batched import Batched
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

    Raises ConfigError for a model with more labels, or one that is no classifier.
    """

    def __init__(self, model: Any, *, batch_tokens: int = 8192, chat: Chat | None = None) -> None:
        bare = bare_model(model)
        labels = getattr(bare.config, "num_labels", 1)
        if labels not in (1, 2):
            raise ConfigError(
                f"a reward model has one label (its score) or two (bad, good), not {labels}"
            )
        if not hasattr(bare, "score") and not hasattr(bare, "classifier"):
            raise ConfigError(
                f"{type(bare).__name__} is no classifier: load a reward model with "
                "AutoModelForSequenceClassification or AutoModelForTokenClassification"
            )
        self.model, self.batch_tokens, self.chat = model.eval(), batch_tokens, chat
        config = bare.config.get_text_config()
        self._vocabulary = config.vocab_size
        self._longest = getattr(config, "max_position_embeddings", None)
        self._batched: Batched[Asked, list[float]] = Batched(self._compute)

    async def reward(self, token_ids: Sequence[int]) -> float:
        """The score of the whole sequence. Raises DataError for ids that the model cannot read."""
        return (await self.steps(token_ids, [len(token_ids) - 1]))[0]

    async def steps(self, token_ids: Sequence[int], ends: Sequence[int]) -> list[float]:
        """The score at each of `ends`, the indices of the steps' last tokens.

        Raises DataError for ids that the model cannot read, ConfigError for several steps where the
        model scores whole sequences alone.
        """
        self._check(token_ids, ends)
        return await self._batched((token_ids, ends))

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """The score of each sequence, at once. Raises as `reward` does."""
        asked: list[Asked] = [(ids, [len(ids) - 1]) for ids in sequences]
        for ids, ends in asked:
            self._check(ids, ends)
        return [found[0] for found in self._compute(asked)]

    def _check(self, ids: Sequence[int], ends: Sequence[int]) -> None:
        if not len(ids):
            raise DataError("there is no token to score")
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            raise DataError(
                f"token ids from {min(ids)} to {max(ids)} are not of the reward model's vocabulary "
                f"of {self._vocabulary}: another tokenizer made them"
            )
        if self._longest is not None and len(ids) > self._longest:
            raise DataError(
                f"{len(ids)} tokens are more than the reward model's context of {self._longest}; "
                "leave longer answers out (max_tokens), or take another reward model"
            )
        if not ends or not all(0 <= end < len(ids) for end in ends):
            raise DataError(f"steps end at tokens 0 to {len(ids) - 1}, not at {list(ends)}")
        if list(ends) != [len(ids) - 1] and not self._reads_tokens:
            raise ConfigError(
                f"{type(bare_model(self.model)).__name__} scores whole sequences alone; steps need "
                "a decoder or a token classifier"
            )

    @property
    def _reads_tokens(self) -> bool:
        bare = bare_model(self.model)
        return hasattr(bare, "score") or type(bare).__name__.endswith("ForTokenClassification")

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
        if hasattr(bare, "score"):
            hidden_BTD = bare.base_model(**inputs, use_cache=False)[0]
            logits_NL = bare.score(hidden_BTD[row_N, at_N])
        else:
            logits = self.model(**inputs).logits
            logits_NL = logits[row_N, at_N] if logits.ndim == 3 else logits
        scores_N: Tensor = logits_NL[:, -1].float()
        return scores_N if logits_NL.shape[1] == 1 else scores_N - logits_NL[:, 0].float()

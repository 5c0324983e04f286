"""Training a reward model: a language model's layers and a head of one number.

It is trained as a value head is (`agentrl.train.online`), which reads the hidden state before a
token: so a path gets one more token, which is never looked at, and the value before it is the score
of the path. What answers share, their prompt at least, is computed once where the layout is a tree.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agentrl import losses
from agentrl.batch import Batch
from agentrl.errors import ConfigError, DataError
from agentrl.logprob import bare_model, read_head
from agentrl.losses.reward_model import ranking
from agentrl.train.export import export, merged
from agentrl.train.loop import TrainResult, train
from agentrl.train.online import value_head
from agentrl.train.schedule import TrainConfig
from agentrl.train.step import Part, Score
from agentrl.train.sums import Row
from agentrl.types import Pair, Sample

RIGHT, MARGIN, UNIT = "right", "margin", "unit"
"""Keys of `Sample.meta`: whether an answer is right; what a goal notes about its samples."""

READ_BEFORE = 0
"""The token that follows a path; no path looks at it, so any will do."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The goal of a reward model: right answers above wrong ones, chosen above rejected ones.

    The data are `Pair`s (Bradley and Terry), or `Sample`s with `meta["task"]` and `meta["right"]`,
    of which all with one task are compared with each other (the list loss of Qwen2.5-Math, arXiv
    2409.12122). The whole path is read, whatever its weights are.
    """

    @property
    def needs_reference(self) -> bool:
        """There is no reference policy."""
        return False

    @property
    def described(self) -> list[Any]:
        """See `agentrl.train.objective.Goal`."""
        return ["reward", {}]

    def units(self, data: Sequence[Sample] | Sequence[Pair]) -> list[list[Sample]]:
        """Pairs, or the answers to a prompt, each with the token that its score is read before.

        A prompt whose answers are all right or all wrong says nothing and is left out. Raises
        DataError if there is nothing to compare, or a sample lacks what is read.
        """
        groups: dict[Any, list[tuple[Sample, bool, float]]] = {}
        ones: list[Sample | Pair] = list(data)
        for i, one in enumerate(ones):
            if isinstance(one, Pair):
                groups[i] = [(one.chosen, True, one.margin), (one.rejected, False, one.margin)]
            elif "task" not in one.meta or RIGHT not in one.meta:
                raise DataError(
                    f"sample {i} lacks meta['task'] or meta['{RIGHT}']; make such rows with "
                    "agentrl select answers, or give pairs"
                )
            else:
                groups.setdefault(one.meta["task"], []).append((one, bool(one.meta[RIGHT]), 0.0))
        told = [
            group for group in groups.values() if len({is_right for _, is_right, _ in group}) > 1
        ]
        if not told:
            raise DataError(
                "no prompt has a right and a wrong answer, so there is nothing to learn; collect "
                "more answers a prompt (--samples), at temperature 1"
            )
        return [[_read(*one, unit) for one in group] for unit, group in enumerate(told)]

    def denominator(self, samples: Sequence[Sample], units: int) -> float:
        """The number of prompts, or pairs."""
        return float(units)

    def part(self, samples: Sequence[Sample], pairs: Sequence[Pair]) -> Part:
        """The loss of a micro-batch, from the value head."""
        told = {
            "units": [s.meta[UNIT] for s in samples],
            "right": [s.meta[RIGHT] for s in samples],
            "margins": [s.meta[MARGIN] for s in samples],
        }

        def part(score: Score, batch: Batch, denominator: float) -> losses.LossOutput:
            values_BT = score(batch).values_BT
            if values_BT is None:
                raise ConfigError("a reward model is trained with a head: use train_reward")
            return ranking(values_BT, batch, denominator, **told)

        return part


def _read(sample: Sample, is_right: bool, margin: float, unit: int) -> Sample:
    n = len(sample.token_ids)
    if not n:
        raise DataError("an answer has no token")
    meta = {**sample.meta, RIGHT: is_right, MARGIN: margin, UNIT: unit}
    return Sample([*sample.token_ids, READ_BEFORE], [0.0] * n + [1.0], meta=meta)


def train_reward(
    model: nn.Module,
    data: Sequence[Sample] | Sequence[Pair],
    config: TrainConfig | None = None,
    out_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callable[[Row], None]] = (),
) -> TrainResult:
    """Train the causal language model `model` to a reward model on `data` (see `Ranking`).

    `result.model` is a transformers sequence classifier with one label, an adapter merged into it;
    all scores are 0 at first. Metrics: `accuracy`, `margin` and `score` besides the usual ones.
    Raises ConfigError for an architecture without sequence classifier; else as `train` does.
    """
    config = config or TrainConfig(epochs=1)
    if config.shard:
        raise ConfigError("a reward model cannot be trained with shard=True; use lora or one GPU")
    empty_classifier(model)
    head = value_head(model, bias=False)
    weight = read_head(model).weight_VD
    if weight is not bare_model(model).get_input_embeddings().weight:
        weight.requires_grad_(False)  # no score depends on it
    result = train(
        model,
        data,
        Ranking(),
        config,
        out_dir=out_dir,
        resume=resume,
        progress=progress,
        callbacks=callbacks,
        value_head=head,
    )
    return replace(result, model=as_classifier(merged(result.model), head))


def empty_classifier(model: nn.Module) -> Any:
    """A sequence classifier with one label and the architecture of `model`, without memory for its
    weights. Raises ConfigError if transformers has none."""
    import transformers

    config = copy.deepcopy(bare_model(model).config)
    config.num_labels = 1
    try:
        with torch.device("meta"):
            made: Any = transformers.AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ConfigError(
            f"transformers has no sequence classifier for {config.model_type!r}, so it cannot be a "
            "reward model; take another language model"
        ) from error
    if not hasattr(made, "score") or type(made.score) is not nn.Linear:
        raise ConfigError(f"{type(made).__name__} has no head 'score' that is one linear layer")
    return made


def as_classifier(model: nn.Module, head: nn.Linear) -> Any:
    """`model`'s layers (the very same) with `head` for its score."""
    bare, made = bare_model(model), empty_classifier(model)
    setattr(made, made.base_model_prefix, bare.base_model)
    made.score.weight = nn.Parameter(head.weight.detach().to(bare.dtype))
    return made.requires_grad_(True).eval()


def export_reward(
    model: Any, out_dir: str | Path, tokenizer: Any = None, card: Mapping[str, Any] | None = None
) -> Path:
    """Write a reward model for `AutoModelForSequenceClassification.from_pretrained`.

    transformers scores the last token that is not fill, so the folder's tokenizer fills up with a
    token that ends no answer. Raises as `agentrl.train.export` does.
    """
    writer = copy.deepcopy(getattr(tokenizer, "hf", tokenizer))
    if writer is not None:
        ends = getattr(tokenizer, "eos_ids", {writer.eos_token_id})
        if writer.pad_token_id is None or writer.pad_token_id in ends:
            known = zip(writer.all_special_ids, writer.all_special_tokens, strict=True)
            writer.pad_token = next((text for i, text in known if i not in ends), None)
        model.config.pad_token_id = writer.pad_token_id
    return export(model, out_dir, writer, card=card)

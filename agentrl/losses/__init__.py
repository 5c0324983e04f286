"""Losses: pure functions `(logprobs_BT, batch, denominator) -> LossOutput`, a file a family.

`LOSSES` has all of them by name. They differ in what they are a mean over, which `denominator`
counts over the samples of an optimizer step: weights, samples, or pairs. Options are keyword
arguments: `make("dpo", beta=0.05)` binds and checks them.

Preference losses are functions of `PairScores`; in `LOSSES` stands what `on_pairs` makes of them:
a loss of a batch in which chosen and rejected samples alternate (`samples_of`, and `groups_of` to
plan micro-batches), with the further options `pairs` (the step's, for margins and label flips),
`reference_free`, `divergence` (of f-DPO) and `members`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor

from agentrl.batch import Batch, trainable_weight
from agentrl.errors import ConfigError, unknown
from agentrl.losses import policy_gradient, preference, reference_free
from agentrl.losses.base import Loss, LossOutput
from agentrl.losses.kto import kto, kto_kl
from agentrl.losses.pairs import (
    Divergence,
    PairScores,
    groups_of,
    pair_scores,
    samples_of,
)
from agentrl.losses.policy_gradient import Extras
from agentrl.losses.sft import dft, poft, sft, sft_rows
from agentrl.options import types_checked
from agentrl.pairing import suffix_only
from agentrl.types import Pair, Sample

AnyLoss = Callable[..., LossOutput]
"""A `Loss` with options, some of which may have no default."""

PairLoss = Callable[..., LossOutput]
"""`(pairs: PairScores, denominator: float, **options) -> LossOutput`"""


ON_PAIRS = {"pairs", "reference_free", "divergence", "members"}
"""The options that `on_pairs` adds."""
GIVEN = {"pairs", "members"}
"""Those of them that training fills in."""


def on_pairs(loss: PairLoss, members: int = 2) -> AnyLoss:
    """A loss of pairs as a loss of a batch of their samples, taking the same options."""

    @functools.wraps(loss)
    def of_batch(
        logprobs_BT: Tensor,
        batch: Batch,
        denominator: float,
        *,
        pairs: Sequence[Pair] | None = None,
        reference_free: bool = False,
        divergence: Divergence | None = None,
        members: int = members,
        **options: Any,
    ) -> LossOutput:
        scores = pair_scores(logprobs_BT, batch, pairs, members)
        scores = scores.reference_free() if reference_free else scores
        scores = scores if divergence is None else scores.under(divergence)
        return loss(scores, denominator, **options)

    return of_batch


OVER_WEIGHTS: dict[str, AnyLoss] = {
    "sft": sft,
    "dft": dft,
    "dapo": policy_gradient.dapo,
    "cispo": policy_gradient.cispo,
    "ppo": policy_gradient.ppo,
}
OVER_SAMPLES: dict[str, AnyLoss] = {
    "sft_rows": sft_rows,
    "poft": poft,
    "kto": kto,
    "reinforce": policy_gradient.reinforce,
    "rloo": policy_gradient.rloo,
    "grpo": policy_gradient.grpo,
    "dr_grpo": policy_gradient.dr_grpo,
    "gspo": policy_gradient.gspo,
}
OVER_PAIRS: dict[str, AnyLoss] = {
    "dpo": on_pairs(preference.dpo),
    "robust_dpo": on_pairs(preference.robust_dpo),
    "dpo_norm": on_pairs(preference.dpo_norm),
    "ipo": on_pairs(preference.ipo),
    "hinge": on_pairs(preference.hinge),
    "rpo": on_pairs(preference.rpo),
    "exo": on_pairs(preference.exo),
    "nca": on_pairs(preference.nca),
    "bco": on_pairs(preference.bco),
    "sppo": on_pairs(preference.sppo),
    "apo_zero": on_pairs(preference.apo_zero),
    "apo_down": on_pairs(preference.apo_down),
    "discopop": on_pairs(preference.discopop),
    "cpo": on_pairs(reference_free.cpo),
    "simpo": on_pairs(reference_free.simpo),
    "orpo": on_pairs(reference_free.orpo),
    "asft": on_pairs(reference_free.asft),
    "tpo": on_pairs(reference_free.tpo, members=3),
    "tpo_l": on_pairs(reference_free.tpo_l, members=3),
}
LOSSES: dict[str, AnyLoss] = OVER_WEIGHTS | OVER_SAMPLES | OVER_PAIRS

Unit = Literal["weights", "samples", "pairs"]

WITH_REFERENCE = {"kto", *OVER_PAIRS} - {"cpo", "simpo", "orpo", "asft", "tpo", "tpo_l"}
"""Losses that read `Batch.ref_logprobs_BT` (policy gradients do as well, if given a KL)."""


def get(name: str) -> Loss:
    """The loss called `name` with its defaults.

    Raises ConfigError, with the nearest name, if there is none, or if it has an option without a
    default (`make` gives it one).
    """
    return make(name)


def make(name: str, **options: Any) -> Loss:
    """The loss called `name` with `options` bound.

    Raises ConfigError for an unknown name or option, a value of another type, or an option without
    a default that is missing.
    """
    own = options_of(name)
    known = set(own) | (ON_PAIRS if name in OVER_PAIRS else set())
    for option in options:
        if option not in known:
            raise unknown(f"option of loss {name!r}:", option, known - GIVEN)
    missing = [n for n, p in own.items() if p.default is p.empty and n not in options]
    if missing:
        raise ConfigError(f"loss {name!r} needs a value for {', '.join(missing)}: use losses.make")
    mine = {option: value for option, value in options.items() if option in own}
    options |= types_checked(f"loss {name!r}", LOSSES[name], mine)
    return functools.partial(LOSSES[name], **options) if options else LOSSES[name]


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """The loss's own keyword options. Raises ConfigError for an unknown name."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def name_of(loss: AnyLoss) -> str | None:
    """The name of a loss that `get` or `make` gave, None for any other function."""
    bare = loss.func if isinstance(loss, functools.partial) else loss
    return next((name for name, known in LOSSES.items() if known is bare), None)


def group_size(name: str) -> int:
    """How many samples of the loss called `name` belong together: 2 for pairs, 3 with a gold
    answer, 1 for all other losses."""
    if unit(name) != "pairs":
        return 1
    return 3 if name in ("tpo", "tpo_l") else 2


def unit(name: str) -> Unit:
    """What the loss called `name` is a mean over."""
    if name not in LOSSES:
        raise unknown("loss", name, LOSSES)
    if name in OVER_WEIGHTS:
        return "weights"
    return "samples" if name in OVER_SAMPLES else "pairs"


def denominator(name: str, samples: Sequence[Sample], members: int | None = None) -> float:
    """What the loss called `name` divides by, for an optimizer step of `samples`.

    `members` is how many samples make a pair (by default 3 for TPO with its gold answer, else 2).
    """
    of = unit(name)
    if of == "weights":
        return math.fsum(trainable_weight(s) for s in samples)
    if of == "samples":
        return float(len(samples))
    return float(len(groups_of(samples, members or group_size(name))))


__all__ = [
    "LOSSES",
    "WITH_REFERENCE",
    "AnyLoss",
    "Extras",
    "Loss",
    "LossOutput",
    "PairLoss",
    "PairScores",
    "denominator",
    "dft",
    "get",
    "group_size",
    "groups_of",
    "kto",
    "kto_kl",
    "make",
    "name_of",
    "on_pairs",
    "options_of",
    "pair_scores",
    "poft",
    "samples_of",
    "sft",
    "sft_rows",
    "suffix_only",
    "unit",
]

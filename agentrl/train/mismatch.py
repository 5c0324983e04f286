"""The sampler is not the trainer: importance weights for what it sampled.

An engine computes the same weights with other kernels, and often in another precision, so that its
distribution q is not the trainer's p. A policy gradient on samples from q is that of p if every
token is weighted by p/q ("Your efficient RL framework secretly brings you off-policy RL training",
Yao et al. 2025, where the weights are per token and truncated; per sequence and masked ones: "When
speed kills stability", Liu et al. 2025). Then the loss's own ratio, of p after to p before the
update, starts at 1.

| name | the weight of a token |
|---|---|
| `token` | p/q of the token: little variance, and a bias, as it leaves out what came before |
| `sequence` | p/q of the whole sample: no bias before it is limited, variance grows with length |
| `geometric` | the geometric mean of p/q over the sample |

Truncated, a weight is at most `cap`; masked (`token_masked` and so on), a weight outside
[1/cap, cap] is 0: what sampler and trainer disagree on by so much teaches nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from agentrl.errors import ConfigError
from agentrl.train.step import Trainer
from agentrl.train.sums import Row
from agentrl.types import Sample

Correction = Literal[
    "none", "token", "sequence", "geometric", "token_masked", "sequence_masked", "geometric_masked"
]
HIGHEST = 700.0
"""exp of more is no float."""


def log_ratios(own: Sequence[float], sample: Sample, level: str) -> list[float]:
    """log p/q for each token of `sample` at a level: `own` are p's log-probabilities, the sample's
    are q's. 0 at tokens of weight 0."""
    sampled = sample.logprobs or ()
    gaps = [p - q if w else 0.0 for p, q, w in zip(own, sampled, sample.weights, strict=True)]
    if level == "token":
        return gaps
    count = sum(w > 0 for w in sample.weights)
    whole = math.fsum(gaps) / (count if level == "geometric" and count else 1)
    return [whole if w else 0.0 for w in sample.weights]


def limited(ratio: float, cap: float, masked: bool) -> float:
    """The weight for a raw ratio."""
    if masked:
        return ratio if 1 / cap <= ratio <= cap else 0.0
    return min(ratio, cap)


def weighted(
    samples: Sequence[Sample],
    own: Sequence[Sequence[float]],
    correction: Correction,
    cap: float,
) -> tuple[list[Sample], Row]:
    """The samples with their advantages times the weights and with the trainer's log-probabilities
    `own` (a number for every token of each); and metrics of the raw ratios, over weighted tokens.

    `mismatch_ratio`, `_min`, `_max`: the raw ratios' mean and ends. `mismatch_limited`: the part of
    them that was cut or masked. `mismatch_kl`: KL(q || p) in nats a token (the estimator k3).
    `logprob_diff`, `logprob_diff_max`: |log p - log q|.
    """
    level, _, kind = correction.partition("_")
    made, raw, gaps = [], [], []
    for sample, nats in zip(samples, own, strict=True):
        logs = log_ratios(nats, sample, level)
        ratios = [math.exp(min(x, HIGHEST)) for x in logs]
        weights = [limited(r, cap, kind == "masked") for r in ratios]
        advantages = [a * w for a, w in zip(sample.advantages or (), weights, strict=True)]
        made.append(replace(sample, advantages=advantages, logprobs=list(nats)))
        counts = [t for t, w in enumerate(sample.weights) if w]
        raw += [ratios[t] for t in counts]
        gaps += [log_ratios(nats, sample, "token")[t] for t in counts]
    cut = [r for r in raw if limited(r, cap, kind == "masked") != r]
    n = max(len(raw), 1)
    sizes = [abs(g) for g in gaps]
    return made, {
        "mismatch_ratio": math.fsum(raw) / n,
        "mismatch_ratio_min": min(raw, default=1.0),
        "mismatch_ratio_max": max(raw, default=1.0),
        "mismatch_limited": len(cut) / n,
        "mismatch_kl": math.fsum(math.expm1(min(g, HIGHEST)) - g for g in gaps) / n,
        "logprob_diff": math.fsum(sizes) / n,
        "logprob_diff_max": max(sizes, default=0.0),
    }


def corrected(
    samples: Sequence[Sample], trainer: Trainer, correction: Correction, cap: float
) -> tuple[list[Sample], Row]:
    """`weighted` with the trainer as it is now, which takes a forward pass over the samples; "none"
    leaves them as they are, and measures nothing."""
    if correction == "none" or not samples:
        return list(samples), {}
    own = trainer.table(samples, lambda scores: scores.logprobs_BT)
    return weighted(samples, own, correction, cap)


def check(correction: str, cap: float) -> None:
    """Raise ConfigError for what cannot be."""
    if correction not in get_args(Correction):
        raise ConfigError(f"mismatch={correction!r}: one of {', '.join(get_args(Correction))}")
    if not cap > 1:
        raise ConfigError(f"mismatch_cap={cap}: it is above 1, the weight where nothing differs")

"""From pairs of samples to what a preference loss reads.

The samples of a step stand in the order chosen, rejected, chosen, rejected, ... (`samples_of`), or
in threes with a gold answer for TPO, so sample i belongs to pair i // 2. All members of a pair must
be in the same micro-batch. Axes in names: B rows, T columns, P pairs of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from agentrl.batch import Batch
from agentrl.errors import ConfigError, DataError, unknown
from agentrl.losses.sequences import sample_sums
from agentrl.pairing import FLIP, length_desensitised, shared_prefix, suffix_only, visit_flip
from agentrl.types import Pair, Sample

Divergence = Literal["reverse_kl", "forward_kl", "js", "alpha"]


@dataclass(frozen=True, slots=True)
class PairScores:
    """Log-probabilities of P pairs, summed over each answer's tokens by weight (nats, `[P]`).

    `*_tokens_P` are the sums of weights, for means. `ref_*_P` are the reference policy's, without
    gradient, None where the samples had none. `margin_P` is `Pair.margin`; `flip_P` the probability
    of a wrong label, None where no pair has its own. `gold_P`, `gold_tokens_P`: the third member,
    where there is one.
    """

    chosen_P: Tensor
    rejected_P: Tensor
    chosen_tokens_P: Tensor
    rejected_tokens_P: Tensor
    ref_chosen_P: Tensor | None = None
    ref_rejected_P: Tensor | None = None
    margin_P: Tensor | None = None
    flip_P: Tensor | None = None
    gold_P: Tensor | None = None
    gold_tokens_P: Tensor | None = None

    @property
    def chosen_mean_P(self) -> Tensor:
        """Mean log-probability of the chosen answers' tokens."""
        return self.chosen_P / self.chosen_tokens_P

    @property
    def rejected_mean_P(self) -> Tensor:
        """Mean log-probability of the rejected answers' tokens."""
        return self.rejected_P / self.rejected_tokens_P

    def log_ratios(self) -> tuple[Tensor, Tensor]:
        """log(policy / reference) of chosen and of rejected answers.

        Raises ConfigError if there are no reference log-probabilities.
        """
        if self.ref_chosen_P is None or self.ref_rejected_P is None:
            raise ConfigError(
                "this loss compares with a reference policy: set Sample.ref_logprobs on every "
                "sample, or pass reference_free=True"
            )
        return self.chosen_P - self.ref_chosen_P, self.rejected_P - self.ref_rejected_P

    def under(self, divergence: Divergence, alpha: float = 0.5) -> PairScores:
        """The pairs with f'(t) in place of each log-ratio log t: DPO under another divergence.

        f-DPO, arXiv 2309.16240: `reverse_kl` is log t itself, `forward_kl` 1 - 1/t, `js`
        log(2t / (t + 1)), `alpha` (t^(alpha-1) - 1) / (alpha - 1). For losses of the difference of
        two rewards; the metrics are then of f' as well. Raises ConfigError for an unknown name.
        """
        if divergence not in _SCORES:
            raise unknown("divergence", divergence, _SCORES)
        chosen_P, rejected_P = (_SCORES[divergence](r, alpha) for r in self.log_ratios())
        return replace(self, chosen_P=chosen_P, rejected_P=rejected_P).reference_free()

    def reference_free(self) -> PairScores:
        """The same pairs under a reference that finds everything equally likely."""
        zeros_P = torch.zeros_like(self.chosen_P)
        return replace(self, ref_chosen_P=zeros_P, ref_rejected_P=zeros_P)


def _alpha_score(log_ratio_P: Tensor, alpha: float) -> Tensor:
    # bounded where exp would overflow float32; alpha = 1 is the limit log t
    if abs(alpha - 1) < 1e-6:
        return log_ratio_P
    return torch.expm1(((alpha - 1) * log_ratio_P).clamp(max=80)) / (alpha - 1)


_SCORES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda r, _: r,
    "forward_kl": lambda r, _: -torch.expm1(-r),
    "js": lambda r, _: math.log(2) + F.logsigmoid(r),
    "alpha": _alpha_score,
}


def samples_of(pairs: Sequence[Pair], gold: Sequence[Sample] | None = None) -> list[Sample]:
    """The samples of a step in the order that `pair_scores` reads; with `gold` in threes."""
    if gold is None:
        return [sample for pair in pairs for sample in (pair.chosen, pair.rejected)]
    return [s for p, g in zip(pairs, gold, strict=True) for s in (p.chosen, p.rejected, g)]


def groups_of(samples: Sequence[Sample], members: int = 2) -> list[list[int]]:
    """The indices of each pair's samples, for `agentrl.batch.plan`, which keeps them together."""
    if len(samples) % members:
        raise ValueError(f"{len(samples)} samples do not make groups of {members}")
    return [list(range(i, i + members)) for i in range(0, len(samples), members)]


def pair_scores(
    logprobs_BT: Tensor, batch: Batch, pairs: Sequence[Pair] | None = None, members: int = 2
) -> PairScores:
    """Sum log-probabilities over the answers of each pair in the batch, in the pairs' order.

    `pairs` are the whole step's: they give margins and label-flip probabilities (without them
    there are none). `members` is 3 where a gold answer follows each pair. Raises DataError if the
    members of a pair are not all in this batch, or an answer has no token with a weight.
    """
    place = {sample: segment for segment, sample in enumerate(batch.samples)}
    numbers = sorted({sample // members for sample in batch.samples})
    for number in numbers:
        if any(number * members + k not in place for k in range(members)):
            raise DataError(f"pair {number} is split: keep its samples in one micro-batch")
    sums_S = sample_sums(batch.weights_BT * logprobs_BT, batch)
    tokens_S = sample_sums(batch.weights_BT, batch)
    ref_S = None
    if batch.ref_logprobs_BT is not None:
        ref_S = sample_sums(batch.weights_BT * batch.ref_logprobs_BT, batch).detach()
    rows = [
        torch.tensor([place[n * members + k] for n in numbers], device=sums_S.device)
        for k in range(members)
    ]
    if not bool((tokens_S > 0).all()):
        raise DataError("an answer of a pair has no token with a weight; leave the pair out")
    own = None if pairs is None else [pairs[n] for n in numbers]
    flips = own is not None and any(FLIP in p.meta for p in own)
    return PairScores(
        sums_S[rows[0]],
        sums_S[rows[1]],
        tokens_S[rows[0]],
        tokens_S[rows[1]],
        None if ref_S is None else ref_S[rows[0]],
        None if ref_S is None else ref_S[rows[1]],
        None if own is None else sums_S.new_tensor([p.margin for p in own]),
        sums_S.new_tensor([p.meta.get(FLIP, 0.0) for p in own or ()]) if flips else None,
        sums_S[rows[2]] if members == 3 else None,
        tokens_S[rows[2]] if members == 3 else None,
    )


__all__ = [
    "FLIP",
    "Divergence",
    "PairScores",
    "groups_of",
    "length_desensitised",
    "pair_scores",
    "samples_of",
    "shared_prefix",
    "suffix_only",
    "visit_flip",
]

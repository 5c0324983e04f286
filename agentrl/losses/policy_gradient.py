"""Policy gradients on tokens with advantages: REINFORCE to PPO, as one family.

All read `batch.advantages_BT` (made by `agentrl.credit`, constants here) and, but for REINFORCE,
the ratio of the policy to the one that sampled, whose log-probabilities are `batch.logprobs_BT`
(None: strictly on-policy, the ratio is 1 and has a gradient). They must be of the distribution that
was really sampled from: with top-p or top-k the ratio is off by the mass that was cut away.
They differ in three things:

| loss | the ratio | what is clipped | mean over |
|---|---|---|---|
| reinforce | none | nothing | samples, of sums over tokens |
| rloo | of a whole sample | the ratio | samples |
| grpo | of a token | the ratio | samples, of means over tokens |
| dr_grpo | of a token | the ratio | samples, of sums over tokens divided by a constant |
| dapo | of a token | the ratio, further up than down | tokens |
| gspo | geometric mean over a sample | the ratio | samples, of means over tokens |
| cispo | of a token, held constant | the weight, not the gradient | tokens |
| ppo | of a token | the ratio | tokens |

A mean over the tokens of each sample (GRPO) weighs a token of a short answer more: wrong long
answers are punished less a token than wrong short ones (Dr. GRPO, arXiv 2503.20783, section 3).

Weights other than 0 and 1 weigh tokens. Every ratio metric is raw, before any clipping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agentrl.batch import Batch
from agentrl.losses.base import LossOutput
from agentrl.losses.kl import LossKL, kl_estimate, kl_in_loss
from agentrl.losses.sequences import (
    check_denominator,
    required,
    sample_means,
    sample_sums,
    spread,
)

Level = Literal["token", "sample", "geometric"]
Mean = Literal["tokens", "samples", "sums"]


@dataclass(frozen=True, slots=True)
class Extras:
    """What can be added to any of these losses.

    `kl_coef` times the KL to the reference (`batch.ref_logprobs_BT`), estimated by `kl`
    (see `agentrl.losses.kl`; a tensor [B, T] gives each token its own coefficient), and
    `entropy_coef` times the entropy `entropy_BT` (nats, with gradient), which is subtracted. Both
    are averaged as the loss itself is.
    """

    kl_coef: float | Tensor = 0.0
    kl: LossKL = "k2"
    entropy_coef: float = 0.0
    entropy_BT: Tensor | None = None


PLAIN = Extras()


def reinforce(
    logprobs_BT: Tensor, batch: Batch, denominator: float, *, extras: Extras = PLAIN
) -> LossOutput:
    """`-advantage * logprob`, summed over a sample's tokens, averaged over samples.

    The plain policy gradient (Williams 1992), unbiased on-policy whatever the lengths. SCoRe's
    loss (arXiv 2409.12917) is this one with advantages per turn. `denominator`: samples.
    """
    advantages_BT = required(batch.advantages_BT, "advantages")
    return _finish(-advantages_BT * logprobs_BT, None, logprobs_BT, batch, denominator, extras)


def rloo(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    extras: Extras = PLAIN,
) -> LossOutput:
    """A sample is one action: clipped ratio of whole samples times a leave-one-out advantage.

    Ahmadian et al., arXiv 2402.14740. On-policy its gradient is REINFORCE's; a KL penalty belongs
    in its reward. Advantages that differ by turn are taken token by token. `denominator`: samples.
    """
    clip = (clip_low, clip_high)
    return _clip_loss(logprobs_BT, batch, denominator, extras, clip, "sample", "samples")


def grpo(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    extras: Extras = PLAIN,
) -> LossOutput:
    """Clipped token ratios, averaged over each sample's tokens, then over samples.

    DeepSeekMath, arXiv 2402.03300, equation 3. `dual_clip` bounds the ratio from above where the
    advantage is negative (TRL's `delta`, arXiv 2505.07291). `denominator`: samples.
    """
    clip = (clip_low, clip_high)
    return _clip_loss(logprobs_BT, batch, denominator, extras, clip, "token", "samples", dual_clip)


def dr_grpo(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    max_tokens: float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    extras: Extras = PLAIN,
) -> LossOutput:
    """GRPO without its length bias: sums over tokens, divided by the constant `max_tokens`.

    ArXiv 2503.20783, section 3.2; its advantages are not divided by a standard deviation either
    (`credit.group_relative(std=False)`). `denominator`: samples.
    """
    check_denominator(max_tokens, "max_tokens")
    clip = (clip_low, clip_high)
    return _clip_loss(
        logprobs_BT, batch, denominator, extras, clip, "token", "sums", length=max_tokens
    )


def dapo(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    extras: Extras = PLAIN,
) -> LossOutput:
    """Clipped token ratios, the upper bound further away, averaged over all tokens of the step.

    DAPO, arXiv 2503.14476, equation 8. Its other parts stand elsewhere: groups of one reward are
    dropped and truncated samples treated by `agentrl.credit`. `denominator`: the sum of weights.
    """
    clip = (clip_low, clip_high)
    return _clip_loss(logprobs_BT, batch, denominator, extras, clip, "token", "tokens", dual_clip)


def gspo(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    extras: Extras = PLAIN,
) -> LossOutput:
    """One clipped ratio a sample: the geometric mean of its tokens' ratios.

    GSPO, arXiv 2507.18071, equation 5; in the token form of its equation 13, which is the same for
    one advantage a sample and also takes advantages that differ by turn. `denominator`: samples.
    """
    clip = (clip_low, clip_high)
    return _clip_loss(logprobs_BT, batch, denominator, extras, clip, "geometric", "samples")


def cispo(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    cap: float = 5.0,
    extras: Extras = PLAIN,
) -> LossOutput:
    """REINFORCE with the token's ratio, at most `cap` and held constant, as weight; mean of tokens.

    MiniMax-M1, arXiv 2506.13585: no token loses its gradient. `cap` is the largest
    ratio itself (TRL's `epsilon_high`), not its distance from 1. `denominator`: the sum of weights.
    """
    advantages_BT = required(batch.advantages_BT, "advantages")
    ratio = _Ratio.of(logprobs_BT, batch, "token")
    weight_BT = ratio.raw_BT.detach().clamp(max=cap)
    loss_BT = -weight_BT * advantages_BT * logprobs_BT
    return _finish(
        loss_BT, ratio, logprobs_BT, batch, denominator, extras, "tokens", (None, cap - 1)
    )


def ppo(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    extras: Extras = PLAIN,
) -> LossOutput:
    """Clipped token ratios times advantages from a value head (`agentrl.losses.values`).

    PPO, arXiv 1707.06347, equation 7, averaged over tokens (`denominator`: the sum of weights).
    ReFT (arXiv 2401.08967) averages over each sample's tokens first, then over samples: that is
    `grpo` given the same advantages.
    """
    clip = (clip_low, clip_high)
    return _clip_loss(logprobs_BT, batch, denominator, extras, clip, "token", "tokens")


@dataclass(frozen=True, slots=True)
class _Ratio:
    """`raw_BT` is pi / pi_old at the loss's level, with gradient; `log_BT` that of each token."""

    raw_BT: Tensor
    log_BT: Tensor

    @classmethod
    def of(cls, logprobs_BT: Tensor, batch: Batch, level: Level) -> _Ratio:
        """1 where the weight is 0. Levels above the token are spread over the sample's tokens so
        that the mean over them has the gradient of the sample's one ratio."""
        old_BT = logprobs_BT.detach() if batch.logprobs_BT is None else batch.logprobs_BT
        log_BT = torch.where(batch.weights_BT > 0, logprobs_BT - old_BT, 0.0)
        if level == "token":
            return cls(_exp(log_BT), log_BT)
        held_BT, step_BT = log_BT.detach(), log_BT - log_BT.detach()
        if level == "geometric":
            whole_BT = spread(sample_means(held_BT, batch), batch)
        else:
            whole_BT = spread(sample_sums(held_BT, batch), batch)
            step_BT = step_BT * spread(sample_sums((batch.weights_BT > 0).float(), batch), batch)
        whole_BT = torch.where(batch.weights_BT > 0, whole_BT, 0.0)
        return cls(_exp(whole_BT + step_BT), log_BT)


def _exp(log_BT: Tensor) -> Tensor:
    """exp, at most e^80: infinity times a gradient of 0 would be NaN where a bound holds anyway."""
    return log_BT.clamp(max=80.0).exp()


def _clip_loss(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    extras: Extras,
    clip: tuple[float, float],
    level: Level,
    mean: Mean,
    dual: float | None = None,
    length: float = 1.0,
) -> LossOutput:
    """The mean of `-min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)`."""
    advantages_BT = required(batch.advantages_BT, "advantages")
    ratio = _Ratio.of(logprobs_BT, batch, level)
    free_BT = ratio.raw_BT if dual is None else ratio.raw_BT.clamp(max=dual)
    bounded_BT = ratio.raw_BT.clamp(1 - clip[0], 1 + clip[1])
    loss_BT = -torch.minimum(free_BT * advantages_BT, bounded_BT * advantages_BT)
    return _finish(loss_BT, ratio, logprobs_BT, batch, denominator, extras, mean, clip, length)


def _average(values_BT: Tensor, batch: Batch, denominator: float, mean: Mean) -> Tensor:
    """The micro-batch's part of the mean over the step."""
    if mean == "samples":
        return sample_means(values_BT, batch).sum() / denominator
    return (batch.weights_BT * values_BT).sum() / denominator


def _finish(
    loss_BT: Tensor,
    ratio: _Ratio | None,
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    extras: Extras,
    mean: Mean = "sums",
    clip: tuple[float | None, float] | None = None,
    length: float = 1.0,
) -> LossOutput:
    """Average, add the extras, and measure. Metrics are means over tokens, or over samples of
    their means over tokens, as `denominator` counts tokens or samples. `length` divides the loss
    and the extras only."""
    check_denominator(denominator, "denominator")
    measured: Mean = "tokens" if mean == "tokens" else "samples"

    def average(values_BT: Tensor) -> Tensor:
        return _average(values_BT, batch, denominator * length, mean)

    def metric(values_BT: Tensor) -> Tensor:
        return _average(values_BT.detach(), batch, denominator, measured)

    loss = average(loss_BT)
    metrics, maxima = {"policy_loss": loss.detach()}, {}
    if ratio is not None:
        log_BT, raw_BT = ratio.log_BT.detach(), ratio.raw_BT.detach()
        metrics["ratio"] = metric(raw_BT)
        metrics["kl_old"] = metric(torch.expm1(log_BT) - log_BT)  # k3 of KL(old, new)
        trained_BT = torch.where(batch.weights_BT > 0, raw_BT, 0.0)
        maxima = {"ratio_max": trained_BT.max(), "log_ratio_abs_max": log_BT.abs().max()}
        if clip is not None:
            metrics |= {k: metric(v) for k, v in _clip_flags(raw_BT, batch, *clip).items()}
    if isinstance(extras.kl_coef, Tensor) or extras.kl_coef != 0:
        ref_BT = required(batch.ref_logprobs_BT, "ref_logprobs")
        ref_BT = torch.where(batch.weights_BT > 0, ref_BT, logprobs_BT.detach())
        log_BT = logprobs_BT - logprobs_BT.detach() if ratio is None else ratio.log_BT
        kl_BT = kl_in_loss(logprobs_BT, ref_BT, log_BT, extras.kl)
        loss = loss + average(extras.kl_coef * kl_BT)
        metrics["kl_ref"] = metric(kl_estimate(logprobs_BT, ref_BT, "k3"))
    if extras.entropy_BT is not None:
        loss = loss - extras.entropy_coef * average(extras.entropy_BT)
        metrics["entropy"] = metric(extras.entropy_BT)
    return LossOutput(loss, metrics, maxima)


def _clip_flags(raw_BT: Tensor, batch: Batch, low: float | None, high: float) -> dict[str, Tensor]:
    """Which tokens stand beyond a bound on the side where their advantage pushes: they have no
    gradient (in CISPO: a smaller one)."""
    advantages_BT = required(batch.advantages_BT, "advantages")
    flags = {"clip_high": ((raw_BT > 1 + high) & (advantages_BT > 0)).float()}
    if low is not None:
        flags["clip_low"] = ((raw_BT < 1 - low) & (advantages_BT < 0)).float()
    return flags

"""Importance weights: correct for samples drawn from another policy than the one that is trained.

A rollout engine's log-probabilities differ from the trainer's (kernels, precision, older weights).
Multiply the weights into the advantages, `replace(batch, advantages_BT=batch.advantages_BT * w)`:
every loss of `agentrl.losses.policy_gradient` is linear in them while w is positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agentrl.batch import Batch
from agentrl.errors import unknown
from agentrl.losses.sequences import sample_means, sample_sums, spread


@dataclass(frozen=True, slots=True)
class ImportanceWeights:
    """`weights_BT` without gradient, 0 where there is no loss; `metrics` of the raw weights.

    The metrics are of this batch alone: mean, least and largest raw weight, the share of tokens
    that the bounds changed, and the effective sample size as a share of the tokens.
    """

    weights_BT: Tensor
    metrics: dict[str, Tensor]


def importance_weights(
    logprobs_BT: Tensor,
    behaviour_BT: Tensor,
    batch: Batch,
    *,
    level: Literal["token", "sample", "geometric"] = "token",
    mode: Literal["truncate", "mask"] = "truncate",
    cap: float = 2.0,
    floor: float = 0.0,
) -> ImportanceWeights:
    """Ratios of the trained policy to the one that sampled, bounded.

    `logprobs_BT` are the trainer's own (nats, of the weights that start the step), `behaviour_BT`
    those of the distribution really sampled from, top-p and top-k included: where sampling was
    truncated and the log-probabilities were not, every ratio is off by the mass cut away.

    `level`: each token's ratio (biased, little variance), the product over a sample (unbiased,
    variance grows with its length), or the geometric mean of it (neither; a trust region). `mode`:
    `truncate` bounds ratios above `cap` to it (truncated importance sampling), `mask` gives weight
    0 to those above `cap` or below `floor`. Truncation is biased towards the behaviour policy,
    masking towards the tokens on which the two agree.
    """
    trained_BT = batch.weights_BT > 0
    log_BT = torch.where(trained_BT, (logprobs_BT - behaviour_BT).detach(), 0.0)
    if level == "sample":
        log_BT = spread(sample_sums(log_BT, batch), batch)
    elif level == "geometric":
        log_BT = spread(sample_means(log_BT, batch), batch)
    elif level != "token":
        raise unknown("importance level", level, ("token", "sample", "geometric"))
    raw_BT = log_BT.exp()
    beyond_BT = raw_BT > cap
    if mode == "truncate":
        bounded_BT = raw_BT.clamp(max=cap)
    elif mode == "mask":
        beyond_BT = beyond_BT | (raw_BT < floor)
        bounded_BT = torch.where(beyond_BT, 0.0, raw_BT)
    else:
        raise unknown("importance mode", mode, ("truncate", "mask"))
    raw_N, beyond_N = raw_BT[trained_BT], beyond_BT[trained_BT]
    metrics = {
        "importance_mean": raw_N.mean(),
        "importance_min": raw_N.min(),
        "importance_max": raw_N.max(),
        "importance_bounded": beyond_N.float().mean(),
        "importance_ess": raw_N.sum().square() / (raw_N.square().sum() * len(raw_N)),
    }
    return ImportanceWeights(torch.where(trained_BT, bounded_BT, 0.0), metrics)

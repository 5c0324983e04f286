"""KTO: preference learning from single answers marked good or bad, no pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentrl.batch import Batch
from agentrl.losses.base import LossOutput
from agentrl.losses.sequences import check_denominator, of_samples, required, sample_sums


def kto(
    logprobs_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    desirable: Sequence[bool],
    kl: float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> LossOutput:
    """`w (1 - sigmoid(beta (r - kl)))` for good answers, `w (1 - sigmoid(beta (kl - r)))` for bad.

    ArXiv 2402.01306; r is the answer's log-ratio to the reference.
    `desirable[i]` is the mark of the step's sample i, `kl` the step's reference point (`kto_kl`), a
    constant; with `kl=0` this is APO-zero of single answers (arXiv 2408.06266). Averaged over the
    step's samples (`denominator`). Weights should make the two kinds count alike: desirable_weight
    * n_good / (undesirable_weight * n_bad) between 1 and 4/3. Metrics: `chosen_change` and
    `rejected_change` (sums of r over good and over bad answers, divided by `denominator`).
    """
    check_denominator(denominator, "number of samples")
    ref_BT = required(batch.ref_logprobs_BT, "ref_logprobs")
    ratio_S = sample_sums(batch.weights_BT * (logprobs_BT - ref_BT), batch)
    good_S = of_samples(desirable, batch, ratio_S)
    sign_S = 2 * good_S - 1
    weights_S = good_S * desirable_weight + (1 - good_S) * undesirable_weight
    losses_S = weights_S * torch.sigmoid(-beta * sign_S * (ratio_S - kl))
    metrics = {
        "chosen_change": (good_S * ratio_S.detach()).sum() / denominator,
        "rejected_change": ((1 - good_S) * ratio_S.detach()).sum() / denominator,
    }
    return LossOutput(losses_S.sum() / denominator, metrics)


def kto_kl(log_ratios: Sequence[float]) -> float:
    """KTO's reference point: the mean log-ratio of answers to *other* prompts, at least 0.

    Pair each prompt with another one's answer and take log(policy / reference) of those answers,
    over the whole step. TRL takes it over each micro-batch and bounds each at 0, so that there the
    loss depends on how a step is split, upwards for small micro-batches.
    """
    if not log_ratios:
        raise ValueError("the reference point of KTO needs at least one mismatched answer")
    return max(0.0, sum(log_ratios) / len(log_ratios))

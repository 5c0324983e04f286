"""The loss of a value head, for PPO."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from agentrl.batch import Batch
from agentrl.losses.base import LossOutput
from agentrl.losses.sequences import check_denominator, sample_means


def value_loss(
    values_BT: Tensor,
    old_values_BT: Tensor,
    returns_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    clip: float | None = 0.2,
    mean: Literal["tokens", "samples"] = "tokens",
) -> LossOutput:
    """Half the squared error of the values, not moved further than `clip` from the old ones.

    `max((v - R)^2, (clip(v, v_old - c, v_old + c) - R)^2) / 2`, the larger of the two so that the
    bound only ever takes gradient away (as in OpenAI's PPO2 and in ReFT, arXiv 2401.08967, which
    adds 5 times this loss to the policy's and uses `mean="samples"`). `values_BT` (with gradient),
    `old_values_BT` and `returns_BT` are in units of reward, read where `batch.weights_BT` is not 0.
    `denominator` is the sum of weights, or the number of samples for `mean="samples"`. Metrics:
    `value_error` (the squared error, unclipped), `value_clipped` (raw: how many moved too far).
    """
    check_denominator(denominator, "denominator")
    trained_BT = batch.weights_BT > 0
    old_BT = torch.where(trained_BT, old_values_BT, 0.0)
    new_BT = torch.where(trained_BT, values_BT, 0.0)
    wanted_BT = torch.where(trained_BT, returns_BT, 0.0)
    error_BT = (new_BT - wanted_BT).square()
    worst_BT, far_BT = error_BT, torch.zeros_like(error_BT)
    if clip is not None:
        near_BT = old_BT + (new_BT - old_BT).clamp(-clip, clip)
        worst_BT = torch.maximum(error_BT, (near_BT - wanted_BT).square())
        far_BT = ((new_BT - old_BT).abs() > clip).float()

    def average(x_BT: Tensor) -> Tensor:
        if mean == "samples":
            return sample_means(x_BT, batch).sum() / denominator
        return (batch.weights_BT * x_BT).sum() / denominator

    loss = average(worst_BT) / 2
    metrics = {"value_error": average(error_BT.detach()), "value_clipped": average(far_BT)}
    return LossOutput(loss, metrics)

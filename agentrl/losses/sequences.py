"""Between tokens and samples: sums and means over each sample of a batch.

Every token belongs to one sample (`batch.segment_ids_BT`), so these are the same for padded and
for packed rows. Axes in names: B rows, T columns, S samples of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from agentrl.batch import Batch
from agentrl.errors import ConfigError


def sample_sums(values_BT: Tensor, batch: Batch) -> Tensor:
    """`[S]`: the sum of `values_BT` over each sample's tokens, fill left out."""
    inside_BT = batch.segment_ids_BT >= 0
    sums_S = values_BT.new_zeros(len(batch.samples))
    return sums_S.index_add(0, batch.segment_ids_BT[inside_BT], values_BT[inside_BT])


def sample_means(values_BT: Tensor, batch: Batch) -> Tensor:
    """`[S]`: the mean of `values_BT` over each sample, weighted by `batch.weights_BT`.

    A sample without any weight has mean 0.
    """
    weights_S = sample_sums(batch.weights_BT, batch)
    sums_S = sample_sums(batch.weights_BT * values_BT, batch)
    return sums_S / torch.where(weights_S > 0, weights_S, 1.0)


def spread(values_S: Tensor, batch: Batch) -> Tensor:
    """`[B, T]`: each sample's value at each of its tokens, 0 on fill."""
    values_BT = values_S[batch.segment_ids_BT.clamp(min=0)]
    return torch.where(batch.segment_ids_BT >= 0, values_BT, 0.0)


def of_samples(values: Sequence[float], batch: Batch, like: Tensor) -> Tensor:
    """`[S]`: the entries of a list over the step's samples that belong to this batch.

    `like` gives the dtype and the device.
    """
    return torch.tensor([values[i] for i in batch.samples], dtype=like.dtype, device=like.device)


def required(values_BT: Tensor | None, name: str) -> Tensor:
    """`values_BT`, or ConfigError saying that the loss reads `Sample.<name>`."""
    if values_BT is None:
        raise ConfigError(f"this loss reads {name}, which the samples lack: set Sample.{name}")
    return values_BT


def check_denominator(denominator: float, what: str) -> None:
    """ValueError if `denominator` is not positive."""
    if not denominator > 0:
        raise ValueError(f"the {what} of a step must be positive, not {denominator}")

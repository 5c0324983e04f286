"""Masked thought: hide part of the answer from the model that learns to write it."""

from __future__ import annotations

import torch
from torch import Tensor

from agentrl.batch import Batch
from agentrl.errors import ConfigError


def masked_rate(step: int, steps: int, peak: float = 0.4, warmup: float = 0.66) -> float:
    """Masked thought's rate at a step from 0: linear up to `peak` over the first `warmup` of the
    steps, then `peak` (arXiv 2403.02178)."""
    ramp = warmup * steps
    return peak if ramp <= 0 else peak * min(1.0, step / ramp)


def masked_inputs(batch: Batch, rate: float, mask_id: int, generator: torch.Generator) -> Tensor:
    """`input_ids_BT` with tokens that carry loss replaced by `mask_id` with probability `rate`.

    MFT, arXiv 2403.02178: only what the model reads changes, and only in the answer; labels, and
    what is attended to, stay as they are: `scorer(batch, input_ids_BT=masked_inputs(...))`. Prompt
    and tool output are never masked. Draw anew for every step (a mask made once teaches less), from
    a `generator` on the batch's device whose state the checkpoint keeps. Raises ConfigError for a
    rate outside 0 to 1, or where samples share tokens (a tree): what one of them hides, another
    reads.
    """
    if not 0 <= rate <= 1:
        raise ConfigError(f"the rate of masked thought is from 0 to 1, not {rate}")
    if batch.trie is not None:
        raise ConfigError("masked thought needs rows of their own: use layout='padded' or 'packed'")
    ids_BT = batch.input_ids_BT
    drawn_BT = torch.rand(ids_BT.shape, generator=generator, device=ids_BT.device)
    hidden_BT = (batch.weights_BT > 0) & (drawn_BT < rate)
    return torch.where(hidden_BT, mask_id, ids_BT)

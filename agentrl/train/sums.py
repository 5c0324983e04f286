"""The metrics of a step: sums over its micro-batches, wherever these were computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from agentrl.losses import LossOutput

Row = dict[str, float]
"""One step's metrics, as in metrics.jsonl."""


@dataclass(frozen=True, slots=True)
class Found:
    """One process's part of a step's metrics. `broken` is a micro-batch's loss that is not finite,
    with the names of its samples."""

    sums: Row
    maxima: Row
    computed: int
    broken: tuple[float, list[int]] | None


@dataclass(slots=True)
class Sums:
    """Gathers the losses and metrics of micro-batches, on their device until the step is `done`."""

    totals: dict[str, list[Tensor]] = field(default_factory=dict)
    maxima: dict[str, list[Tensor]] = field(default_factory=dict)
    names: list[list[int]] = field(default_factory=list)
    computed: int = 0

    def add(self, out: LossOutput, computed: int, names: list[int]) -> None:
        """A micro-batch of the samples `names`, for which `computed` tokens were computed."""
        for name, value in {"loss": out.loss.detach(), **out.metrics}.items():
            self.totals.setdefault(name, []).append(value)
        for name, value in out.maxima.items():
            self.maxima.setdefault(name, []).append(value)
        self.names.append(names)
        self.computed += computed

    def done(self) -> Found:
        """This process's part as numbers."""
        broken = None
        if "loss" in self.totals:
            losses_M = torch.stack(self.totals["loss"])
            if not losses_M.isfinite().all():
                at = int((~losses_M.isfinite()).nonzero()[0])
                broken = (losses_M[at].item(), sorted(self.names[at]))
        sums = {name: torch.stack(parts).sum().item() for name, parts in self.totals.items()}
        maxima = {name: torch.stack(parts).max().item() for name, parts in self.maxima.items()}
        return Found(sums, maxima, self.computed, broken)


def merged(parts: Sequence[Found], step: int) -> Row:
    """The metrics of all processes. Raises FloatingPointError for a loss that is not finite."""
    for part in parts:
        if part.broken is not None:
            loss, names = part.broken
            raise FloatingPointError(
                f"the loss of step {step} is {loss}, in the micro-batch of samples {names}. The "
                "weights were not changed. Look at those samples' weights, or lower lr"
            )
    row: Row = {}
    for name in (name for part in parts for name in part.sums):
        row[name] = math.fsum(part.sums.get(name, 0.0) for part in parts)
    for name in (name for part in parts for name in part.maxima):
        row[name] = max(part.maxima[name] for part in parts if name in part.maxima)
    return row | {"tokens_computed": sum(part.computed for part in parts)}

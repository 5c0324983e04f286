"""Claims: what a paper says, shown or not shown on a tiny model, with intervals over seeds.

`agentrl reproduce NAME --seeds 5`. Each module here has a `CLAIM`, whose `run(seed, folder)` trains
the claim's arms through the same recipes, rollouts and selectors as everybody's runs, and returns
each arm's metrics. What a claim says is a list of effects: one arm's metric above (or below)
another's. An effect is shown if the 95 % interval of the paired difference over seeds lies on the
right side of zero. What did not come out is published in the same table.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentrl.errors import ConfigError, DataError, unknown

Metrics = Mapping[str, Mapping[str, float]]
"""Arm to metric to value, of one seed."""

Verdict = Literal["shown", "sign only", "not shown", "one seed"]

# Student's t at 97.5 %, for 1 to 30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Effect:
    """`left` minus `right` (each `arm.metric`; no `right` compares with 0) has `sign`.

    With `margin`, that `left` is worse by no more than that (nothing was hurt).
    """

    says: str
    left: str
    right: str = ""
    sign: Literal[1, -1] = 1
    margin: float = 0.0

    def difference(self, metrics: Metrics) -> float:
        """Of one seed. Raises DataError if the run has no such metric."""
        return _value(metrics, self.left) - (_value(metrics, self.right) if self.right else 0.0)


@dataclass(frozen=True, slots=True)
class Claim:
    """`says` is the paper's claim, `task` what stands for it here, `run` makes one seed's arms."""

    name: str
    paper: str
    says: str
    task: str
    effects: Sequence[Effect]
    run: Callable[[int, Path], Metrics]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % t-interval; without a second seed the interval is empty."""

    mean: float
    half: float | None
    n: int

    def __str__(self) -> str:
        if self.half is None:
            return f"{self.mean:.3f}"
        return f"{self.mean:.3f} ± {self.half:.3f}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of `values` and half the width of its 95 % interval by Student's t."""
    n = len(values)
    mean = statistics.fmean(values)
    if n < 2:
        return Estimate(mean, None, n)
    t = _T[n - 2] if n - 2 < len(_T) else 1.96
    return Estimate(mean, t * statistics.stdev(values) / math.sqrt(n), n)


def verdict(effect: Effect, runs: Sequence[Metrics]) -> tuple[Estimate, Verdict]:
    """The paired difference over the seeds, and whether it shows the effect."""
    found = estimate([effect.difference(metrics) for metrics in runs])
    signed = effect.sign * found.mean + effect.margin
    if found.half is None:
        return found, "one seed"
    if signed - found.half > 0:
        return found, "shown"
    return found, "sign only" if signed > 0 else "not shown"


def _value(metrics: Metrics, name: str) -> float:
    arm, _, metric = name.partition(".")
    try:
        return float(metrics[arm][metric])
    except KeyError:
        have = ", ".join(f"{a}.{m}" for a, values in metrics.items() for m in values)
        raise DataError(f"the run has no {name!r}; it has {have}") from None


def names() -> list[str]:
    """The claims there are."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")


def get(name: str) -> Claim:
    """The claim called `name`. Raises ConfigError, suggesting the nearest, if there is none."""
    if name not in names():
        raise unknown("claim", name, names())
    claim: Claim = importlib.import_module(f"{__name__}.{name}").CLAIM
    if claim.name != name:
        raise ConfigError(f"agentrl/claims/{name}.py holds a claim named {claim.name!r}")
    return claim

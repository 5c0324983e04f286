"""Intervals of means over problems, by the bootstrap, and tests of paired differences.

Problems are what is drawn: several attempts at one problem are averaged before, so that they are
not taken for independent. A column is a metric, a row a problem; NaN is a problem for which the
metric does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from agentrl.errors import unknown
from agentrl.evaluate.accuracy import wilson

Values = npt.NDArray[np.float64]
Method = Literal["bca", "percentile"]

RESAMPLES = 2000
_CELLS = 1 << 22  # of one block of resampled counts

_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over `n` problems with its interval; None over no problem."""

    value: float | None
    low: float
    high: float
    n: int

    def to_json(self, name: str = "value") -> dict[str, Any]:
        """The mean under `name`, `ci95` and `n`."""
        value = None if self.value is None else round(self.value, 4)
        return {name: value, "ci95": [round(self.low, 4), round(self.high, 4)], "n": self.n}


def bootstrap(
    values_NM: npt.ArrayLike,
    *,
    lowest: float = 0.0,
    highest: float = 1.0,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bca",
) -> list[Estimate]:
    """The mean of each column with its bootstrap interval, problems resampled with replacement.

    `bca` corrects for bias and skewness (Efron 1987), `percentile` does not. All columns share the
    resamples. A column whose values are all equal says nothing about its spread: there the interval
    reaches as far as a share of problems that could have gone unseen (Wilson's bound of none in n)
    might move the mean, with values between `lowest` and `highest`.
    """
    if method not in ("bca", "percentile"):
        raise unknown("bootstrap method", method, ("bca", "percentile"))
    values = np.asarray(values_NM, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    there = ~np.isnan(values)
    drawn_RM = _resampled_means(np.where(there, values, 0.0), there, resamples, seed)
    found = []
    for column, present, drawn in zip(values.T, there.T, drawn_RM.T, strict=True):
        own = column[present]
        if not own.size:
            found.append(Estimate(None, lowest, highest, 0))
        elif np.ptp(own) <= 1e-12:
            unseen, value = wilson(0, own.size)[1], float(own[0])
            low, high = value + unseen * (lowest - value), value + unseen * (highest - value)
            found.append(Estimate(value, low, high, own.size))
        else:
            tail = (1 - level) / 2
            ranks = _bca_ranks(own, drawn, tail) if method == "bca" else (tail, 1 - tail)
            low, high = np.nanquantile(drawn, ranks)
            found.append(Estimate(float(own.mean()), float(low), float(high), own.size))
    return found


def _resampled_means(
    values_NM: Values, there_NM: npt.NDArray[np.bool_], resamples: int, seed: int
) -> Values:
    """The mean of every column in every resample, [R, M]; NaN where none of a column was drawn."""
    n, random = len(values_NM), np.random.default_rng(seed)
    blocks, block = [], max(1, _CELLS // max(n, 1))
    for start in range(0, resamples if n else 0, block):
        rows = min(block, resamples - start)
        drawn = random.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            blocks.append(counts @ values_NM / (counts @ there_NM))
    return np.concatenate(blocks) if blocks else np.full((1, values_NM.shape[1]), np.nan)


def _bca_ranks(own: Values, drawn: Values, tail: float) -> tuple[float, float]:
    """Where in the resampled means a BCa interval ends (Efron 1987, equation 2.3)."""
    mean, finite = float(own.mean()), drawn[~np.isnan(drawn)]
    below = (finite < mean - 1e-12).mean() + 0.5 * (abs(finite - mean) <= 1e-12).mean()
    edge = 0.5 / len(finite)
    bias = _NORMAL.inv_cdf(float(min(max(below, edge), 1 - edge)))
    off = own - mean
    skew = float((off**3).sum() / (6 * (off**2).sum() ** 1.5))  # the jackknife's, for a mean

    def rank(p: float) -> float:
        z = bias + _NORMAL.inv_cdf(p)
        return float(_NORMAL.cdf(bias + z / (1 - skew * z)))

    return rank(tail), rank(1 - tail)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value that problems which only one of two got right are as often a's as
    b's (McNemar's test by the binomial distribution); 1 without any such problem."""
    n, few = only_a + only_b, min(only_a, only_b)
    tail = term = 1  # n over i, summed for i = 0 to few; whole numbers, so that nothing underflows
    for i in range(few):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def permutation(differences_N: npt.ArrayLike, *, draws: int = 10_000, seed: int = 0) -> float:
    """The two-sided p-value that the mean of paired differences is 0, by flipping their signs.

    Exact where at most 14 differences are not 0; otherwise (1 + as far) / (1 + draws) of seeded
    flips, which is never 0. NaN pairs are left out.
    """
    values = np.asarray(differences_N, dtype=np.float64)
    values = values[~np.isnan(values) & (values != 0)]
    if not values.size:
        return 1.0
    seen, near = abs(values.sum()), 1e-9 * abs(values).sum()
    if values.size <= 14:
        bits = np.arange(1 << values.size)[:, None] >> np.arange(values.size) & 1
        return float((abs((2.0 * bits - 1) @ values) >= seen - near).mean())
    random, far, block = np.random.default_rng(seed), 0, max(1, _CELLS // values.size)
    for start in range(0, draws, block):
        flips = random.integers(0, 2, size=(min(block, draws - start), values.size))
        far += int((abs((2.0 * flips - 1) @ values) >= seen - near).sum())
    return (1 + far) / (1 + draws)

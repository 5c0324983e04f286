"""Two evaluations of the same problems, problem by problem."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from agentrl.errors import DataError
from agentrl.evaluate.accuracy import final
from agentrl.evaluate.intervals import RESAMPLES, Values, bootstrap, mcnemar, permutation
from agentrl.evaluate.turns import SCORED_BY, limits, read, table
from agentrl.record import Tree


def compare(
    a: Iterable[Tree], b: Iterable[Tree], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """By how much `b` is better than `a` on the problems that both attempted.

    For every metric of `turn_metrics` that both have: `a`, `b`, their `difference` b - a, `ci95` by
    the paired bootstrap over problems, `p` by the permutation test, `n` problems. Where a problem
    is simply right or wrong, also `only_a` and `only_b` (problems that only one got right) and
    `mcnemar`, the exact test of those. Problems that only one side has are counted and left out.
    Where reward models scored answers (`rm@k`, `weighted@k`), `reward_models` names those of `a`
    and of `b`.

    Nothing is corrected for looking at many metrics. Raises DataError without a common problem.
    """
    a, b = list(a), list(b)
    (ids_a, names_a, values_a), (ids_b, names_b, values_b) = table(read(a)), table(read(b))
    both = sorted({*ids_a} & {*ids_b})
    if not both:
        raise DataError("the two evaluations share no problem: their task ids are all different")
    names = [n for n in names_a if n in names_b]
    ours = _rows(ids_a, both, names_a, names, values_a)
    theirs = _rows(ids_b, both, names_b, names, values_b)
    rows = {
        name: row
        for i, name in enumerate(names)
        if (row := _compared(name, ours[:, i], theirs[:, i], resamples, seed)) is not None
    }
    judges = {"a": _judges(a), "b": _judges(b)}
    return {
        "problems": len(both),
        "only_in_a": len(ids_a) - len(both),
        "only_in_b": len(ids_b) - len(both),
        "metrics": rows,
        **({"reward_models": judges} if any(judges.values()) else {}),
    }


def _judges(trees: Iterable[Tree]) -> list[str]:
    """The names of the reward models that scored the answers."""
    known = (attempt.metrics.get(SCORED_BY) for _, attempt in final(trees))
    return sorted({str(name) for name in known if name is not None})


def _rows(
    ids: list[str], wanted: list[str], names: list[str], shown: list[str], values: Values
) -> Values:
    at, column = {id: i for i, id in enumerate(ids)}, {n: i for i, n in enumerate(names)}
    return values[[at[i] for i in wanted]][:, [column[n] for n in shown]]


def _compared(
    name: str, a_N: Values, b_N: Values, resamples: int, seed: int
) -> dict[str, Any] | None:
    there = ~np.isnan(a_N) & ~np.isnan(b_N)
    if not there.any():
        return None
    a_N, b_N = a_N[there], b_N[there]
    low, high = limits(name)
    span = high - low
    [found] = bootstrap(b_N - a_N, lowest=-span, highest=span, resamples=resamples, seed=seed)
    row: dict[str, Any] = {
        "a": round(float(a_N.mean()), 4),
        "b": round(float(b_N.mean()), 4),
        **found.to_json("difference"),
        "p": round(permutation(b_N - a_N, seed=seed), 5),
    }
    if low == 0 and np.isin(np.concatenate([a_N, b_N]), (0.0, 1.0)).all():
        only_a, only_b = int((a_N > b_N).sum()), int((b_N > a_N).sum())
        row |= {"only_a": only_a, "only_b": only_b, "mcnemar": round(mcnemar(only_a, only_b), 5)}
    return row

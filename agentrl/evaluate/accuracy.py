"""What the attempts say: accuracy with intervals, tool use, truncations and failures apart."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.errors import ConfigError
from agentrl.record import Tree
from agentrl.types import Attempt

Graded = tuple[Tree, Attempt]


def wilson(successes: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a proportion (95 % by default); (0, 1) for n = 0.

    An effective sample size need not be a whole number.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return low, high


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share with its 95 % interval. `effective` is how many independent trials `n` are worth."""

    successes: int
    n: int
    effective: float | None = None

    def to_json(self) -> dict[str, Any]:
        """`accuracy`, `ci95`, `n`; the accuracy of nothing is None."""
        worth = self.n if self.effective is None else self.effective
        low, high = wilson(self.successes * worth / self.n if self.n else 0, worth)
        share = round(self.successes / self.n, 4) if self.n else None
        return {"accuracy": share, "ci95": [round(low, 4), round(high, 4)], "n": self.n}


def effective_size(clusters: Iterable[tuple[int, int]]) -> float:
    """How many independent trials (successes, trials) by problem are worth (Kish's design effect).

    Attempts at one problem are alike: eight at each of 100 problems say less than 800 problems.
    p (1 - p) over the variance of the share between problems, never more than there are trials, nor
    less than there are problems; problems all right or all wrong count once each.
    """
    rows = list(clusters)
    n, problems = sum(n for _, n in rows), len(rows)
    p = sum(k for k, _ in rows) / n if n else 0.0
    spread = math.fsum((k - p * m) ** 2 for k, m in rows)
    if n == problems or p * (1 - p) == 0 or problems < 2:
        return float(problems)
    variance = spread / n**2 * problems / (problems - 1)
    worth = p * (1 - p) / variance if variance else math.inf
    return min(float(n), max(float(problems), worth))


def final(trees: Iterable[Tree]) -> list[Graded]:
    """The last attempt of each tree."""
    return [(t, t.attempts[-1]) for t in trees if t.attempts]


def of_round(trees: Iterable[Tree], number: int) -> list[Graded]:
    """The attempt after `number` hints, or the last one where fewer were used."""
    return [
        (t, next((a for a in t.attempts if a.metrics.get("round", 0) >= number), t.attempts[-1]))
        for t in trees
        if t.attempts
    ]


def right(attempt: Attempt) -> bool:
    """True for full reward. An attempt without a reward is not right."""
    return attempt.reward is not None and attempt.reward >= 1.0


def refuse_reference(attempts: Iterable[Attempt]) -> None:
    """Raise ConfigError if an attempt was made with the reference answer in view (a search guided
    by outcomes, or by a judge that is shown the answer): that is training data, no result."""
    if any(a.metrics.get("saw_reference") for a in attempts):
        raise ConfigError(
            "these attempts were searched with the reference answer in view, so they say nothing "
            "about the policy; evaluate a search with outcome=false and a judge that is not shown "
            "the reference"
        )


def summarize(graded: Sequence[Graded]) -> dict[str, Any]:
    """Accuracy with its interval, over all and by task kind.

    Attempts that failed in our hands (`error`) are left out and counted as `failed`; truncated
    ones count as graded (mostly wrong) and are counted as `truncated`. `tool_call_rate` is the
    share of attempts with at least one executed block or call, `tool_call_ci95` its interval.
    Several attempts at one task widen the intervals as far as they are alike (`effective_size`).
    Raises ConfigError for attempts that saw the reference answer.
    """
    refuse_reference(a for _, a in graded)
    valid = [(t, a) for t, a in graded if a.error is None]
    kinds = sorted({t.task.kind for t, _ in valid})
    by_kind = {k: [(t, a) for t, a in valid if t.task.kind == k] for k in kinds}
    tools = _proportion([(t, a.metrics.get("calls", 0) > 0) for t, a in valid])
    return {
        **_accuracy(valid),
        "tool_call_rate": tools["accuracy"],
        "tool_call_ci95": tools["ci95"],
        "truncated": sum(a.truncated for _, a in valid),
        "failed": len(graded) - len(valid),
        "mean_tokens": round(
            sum(a.metrics.get("sampled_tokens", 0) for _, a in valid) / max(len(valid), 1), 1
        ),
        "stop_reasons": dict(Counter(a.stop_reason for _, a in graded)),
        "by_kind": {k: _accuracy(rows) for k, rows in by_kind.items()},
    }


def _accuracy(rows: Sequence[Graded]) -> dict[str, Any]:
    return _proportion([(t, right(a)) for t, a in rows])


def _proportion(rows: Sequence[tuple[Tree, bool]]) -> dict[str, Any]:
    by_task: dict[str, list[bool]] = {}
    for tree, yes in rows:
        by_task.setdefault(tree.task.id, []).append(yes)
    worth = effective_size((sum(found), len(found)) for found in by_task.values())
    return Proportion(sum(yes for _, yes in rows), len(rows), worth).to_json()

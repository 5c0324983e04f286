"""iTool (arXiv 2501.09766): which data come first, and which the model is weakest at.

The warm-up goes from easy to hard (`difficulty`, `levels`). Then the answers that surprise the
model most, among those with calls and among those without (`deficient`), are searched for pairs
that pass `FILTERS` (`agentrl.select.pairs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from agentrl.errors import ConfigError, DataError
from agentrl.select.pairs import TINY, Filters
from agentrl.toolcalls import written_calls

FILTERS = Filters(gap=0.1, overlap=0.95, floor=-0.3, cap=None)
"""The pairs that the released code keeps: wherever there are siblings, as many as a tree has."""

CALL_TOKENS = 50


def difficulty(schema_tokens: int, calls: int) -> int:
    """How hard a task is: the tokens of its tools' descriptions, and 50 for each call of its
    answer. (The paper names such criteria and gives no formula; this one is ours.)"""
    return schema_tokens + CALL_TOKENS * calls


def levels(difficulties: Sequence[float], n: int = 3) -> list[list[int]]:
    """The indices in `n` levels of nearly equal size, the easiest first; of equal ones the first
    comes first. Fewer levels where there are fewer than `n`. Raises ConfigError for n below 1."""
    if n < 1:
        raise ConfigError(f"there is at least 1 level, not {n}")
    order = sorted(range(len(difficulties)), key=lambda i: (difficulties[i], i))
    cuts = [round(k * len(order) / n) for k in range(n + 1)]
    found = [order[a:b] for a, b in pairwise(cuts)]
    return [level for level in found if level]


def calls_in(answer: str) -> int:
    """How many tool calls an answer makes, in any notation that is read (`agentrl.toolcalls`).

    The released code takes an answer with a `)` for one with calls: it stands in sentences, too,
    and in no call in JSON.
    """
    return len(written_calls(answer))


def deficient(
    perplexities: Sequence[float],
    called: Sequence[bool],
    *,
    share: float = 0.3,
    most: float = math.inf,
) -> list[int]:
    """The indices of the `share` of highest perplexity among the answers with calls, and among
    those without, at least one of each kind that there is; the highest first.

    Answers above `most` do not take part: what surprises that much may be wrong. Raises ConfigError
    unless 0 < share <= 1; DataError for lengths that differ and for a perplexity that is nan.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share is above 0 and at most 1, not {share}")
    if len(perplexities) != len(called):
        raise DataError(f"{len(perplexities)} perplexities of {len(called)} answers")
    if any(math.isnan(p) for p in perplexities):
        raise DataError("a perplexity is nan: the model's log-probabilities are not finite")
    chosen: list[int] = []
    for kind in (True, False):
        ours = [i for i, c in enumerate(called) if c == kind and perplexities[i] <= most]
        n = max(1, math.floor(share * len(ours) + TINY))
        chosen += sorted(ours, key=lambda i: (-perplexities[i], i))[:n]
    return sorted(chosen, key=lambda i: (-perplexities[i], i))

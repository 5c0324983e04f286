"""The steps of an answer, and how what a process reward model says of them becomes one score."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

Combine = Literal["product", "min", "mean", "last"]
COMBINED: dict[str, Callable[[Sequence[float]], float]] = {
    "product": math.prod,
    "min": min,
    "mean": statistics.fmean,
    "last": lambda scores: scores[-1],
}
"""How the scores of steps, from 0 to 1, become one; the product gets smaller with every step."""

_STEP = re.compile(r"^[ \t]*Step \d+\b", re.MULTILINE)
_LINE = re.compile(r"^.*\S", re.MULTILINE)


def steps_of(text: str) -> list[str]:
    """The steps of a solution: its blocks that begin with "Step n", else its lines.

    Together they are the text: what stands before the first belongs to it, empty lines to the step
    before them.
    """
    starts = [m.start() for m in _STEP.finditer(text)] or [m.start() for m in _LINE.finditer(text)]
    if not starts:
        return []
    ends = [*starts[1:], len(text)]
    return [text[start:end] for start, end in zip([0, *starts[1:]], ends, strict=True)]


def log_odds(p: float) -> float:
    """The number whose sigmoid is `p`; finite, as far as a double goes, for 0 and 1."""
    p = min(max(p, 1e-300), 1 - 1e-16)
    return math.log(p) - math.log1p(-p)

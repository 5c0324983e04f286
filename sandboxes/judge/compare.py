"""Whether what came back is what was expected. Runs outside every sandbox, on plain values."""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from agentrl.errors import ConfigError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,4})?", re.ASCII)
_NUMBER_CHARS = 400


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two numbers may be apart, as `math.isclose` has it. Both 0: they must be equal."""

    rel: float = 0.0
    abs: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.rel < 1 and 0 <= self.abs < math.inf):
            raise ConfigError("rel_tol is in [0, 1), abs_tol is at least 0 and finite")

    def __bool__(self) -> bool:
        return bool(self.rel or self.abs)

    def close(self, a: Any, b: Any) -> bool:
        """Whether two numbers are equal within it; nan is close to nan only."""
        if a != a or b != b:
            return bool(a != a and b != b)
        if a == b or not self:
            return bool(a == b)
        if isinstance(a, complex) or isinstance(b, complex):
            z, w = complex(a), complex(b)
            return self.close(z.real, w.real) and self.close(z.imag, w.imag)
        return math.isclose(a, b, rel_tol=self.rel, abs_tol=self.abs)


def same(expected: Any, got: Any, exact: bool, tolerance: Tolerance) -> bool:
    """Whether two decoded values are equal.

    `exact`: the types must be the same at every depth (True is not 1, 1 is not 1.0); else numbers
    and containers are equal as Python's `==` has it. The tolerance holds for every number but the
    keys and items of dicts and sets.
    """
    try:
        return _same(expected, got, exact, tolerance)
    except (OverflowError, ArithmeticError, TypeError, ValueError):  # such as 10**400 beside 1.0
        return False


def _same(a: Any, b: Any, exact: bool, tolerance: Tolerance) -> bool:
    if exact and type(a) is not type(b):
        return False
    if isinstance(a, _NUMBERS) and isinstance(b, _NUMBERS):
        return tolerance.close(a, b)
    if isinstance(a, list | tuple | deque):
        return (
            type(a) is type(b)
            and len(a) == len(b)
            and all(_same(x, y, exact, tolerance) for x, y in zip(a, b, strict=True))
        )
    if isinstance(a, Counter) and isinstance(b, Counter) and not exact:
        return a == b
    if isinstance(a, dict):
        return isinstance(b, dict) and _same_dict(a, b, exact, tolerance)
    if isinstance(a, set | frozenset):
        if not isinstance(b, set | frozenset) or a != b:
            return False
        theirs = {y: y for y in b}
        return not exact or all(_same(x, theirs[x], True, tolerance) for x in a)
    return bool(a == b)


def _same_dict(a: Any, b: Any, exact: bool, tolerance: Tolerance) -> bool:
    if a.keys() != b.keys():
        return False
    if isinstance(a, OrderedDict) and isinstance(b, OrderedDict) and list(a) != list(b):
        return False
    if exact:
        theirs = {k: k for k in b}
        if not all(_same(k, theirs[k], True, Tolerance()) for k in a):
            return False
    return all(_same(a[k], b[k], exact, tolerance) for k in a)


_NUMBERS = (int, float, complex, Decimal, Fraction)


def same_text(checker: str, expected: str, got: str, tolerance: Tolerance) -> bool:
    """Whether a program's output is the expected one. `checker` is one of `TEXT_CHECKERS`."""
    if checker == "exact":
        return expected == got
    if checker == "lines":
        return _lines(expected) == _lines(got)
    wanted, found = expected.split(), got.split()
    if checker == "tokens":
        return wanted == found
    return len(wanted) == len(found) and all(
        a == b or (_number(a) and _number(b) and tolerance.close(float(a), float(b)))
        for a, b in zip(wanted, found, strict=True)
    )


TEXT_CHECKERS = ("lines", "exact", "tokens", "floats")
"""`lines`: equal but for white space at the ends of lines and blank lines at the end; `exact`:
every character; `tokens`: the same words, whatever is between them; `floats`: the same words,
numbers within the tolerance."""


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _number(token: str) -> bool:
    return len(token) <= _NUMBER_CHARS and _NUMBER.fullmatch(token) is not None

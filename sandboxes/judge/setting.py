"""What all modes of the judge share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from agentrl.errors import ConfigError
from agentrl.interfaces import Sandbox
from agentrl.types import CaseResult, Limits, Verdict
from sandboxes.judge.compare import Tolerance, same
from sandboxes.judge.guest import Guest

GOT_CHARS = 500

Equal = Literal["exact", "python"] | Callable[[Any, Any], bool]


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how to judge; the fields are the keyword arguments of `judge` for every mode."""

    box: Sandbox
    limits: Limits | None = None
    profile: Any = None
    timeout: float | None = None
    total_timeout: float = 120.0
    files: Mapping[str, bytes] = field(default_factory=dict)
    seed: int = 0
    isolate_cases: bool = False
    stop_early: bool = False
    started: float = field(default_factory=time.monotonic)

    def guest(self, driver: str) -> Guest:
        """A fresh session with a driver in it, not yet open."""
        return Guest(self.box, driver, self.limits, self.profile, self.timeout)

    def enough(self, found: Iterable[CaseResult]) -> str:
        """Why no further case is to be run; empty if one is."""
        if time.monotonic() - self.started > self.total_timeout:
            return f"the {self.total_timeout:g} s for all cases were up"
        return "a case had failed" if self.stop_early and not all(c.passed for c in found) else ""

    def shuffled(self, n: int) -> list[int]:
        """The order in which `n` cases are run."""
        order = list(range(n))
        Random(self.seed).shuffle(order)
        return order


_RANK = {"tampered": 0, "not_run": 2}  # which failure a verdict is named after


def not_run(name: str, why: str) -> CaseResult:
    """The result of a case that nothing was done for."""
    return CaseResult(name, False, "not_run", why)


def verdict(
    cases: list[CaseResult], setting: Setting, integrity: Literal["strong", "weak"] = "strong"
) -> Verdict:
    """The verdict on cases that have all been judged."""
    failed = [c for c in cases if not c.passed]
    first = sorted(failed, key=lambda c: _RANK.get(c.status, 1))
    worst = first[0] if first else None
    return Verdict(
        passed=not failed and bool(cases),
        status=worst.status if worst else "passed" if cases else "missing",
        cases=tuple(cases),
        integrity=integrity,
        detail=f"{worst.id}: {worst.detail}"[:2000] if worst else "",
        duration=time.monotonic() - setting.started,
    )


def equality(equal: Equal, tolerance: Tolerance) -> Callable[[Any, Any], bool]:
    """The comparison of an expected with a decoded value. Raises ConfigError for an unknown one."""
    if callable(equal):
        return lambda expected, got: equal(expected, got) is True
    if equal not in ("exact", "python"):
        raise ConfigError(f"equal is 'exact', 'python' or a function, not {equal!r}")
    return lambda expected, got: same(expected, got, equal == "exact", tolerance)


def shown(value: Any) -> str:
    """The repr of a decoded value, cut."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write integers of many thousand digits
        return f"a {type(value).__name__} with a huge integer"
    return text if len(text) <= GOT_CHARS else f"{text[:GOT_CHARS]}..."

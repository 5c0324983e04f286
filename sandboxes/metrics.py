"""What a sandbox has done so far: counts, and how long things took."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

_RECENT = 1024


@dataclass(frozen=True, slots=True)
class Timing:
    """How long something took, seconds. `count`, `mean` and `max` are of all times, `p50` and `p99`
    of the last 1024."""

    count: int
    mean: float
    max: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """A sandbox's numbers at one moment.

    Times: `wait` for a turn to execute, `spawn` of a session, `execute` (a call's duration), `kill`
    (until every process of a session was gone). `statuses` counts results by status,
    `failed_spawns` sessions that did not start, `reaped` those that ended because nobody used them,
    `recycled` the processes that sessions are clones of that were replaced in time.
    """

    wait: Timing
    spawn: Timing
    execute: Timing
    kill: Timing
    statuses: Mapping[str, int]
    tampered: int
    failed_spawns: int
    reaped: int
    recycled: int
    live: int
    spares: int
    running: int
    queued: int

    def to_json(self) -> dict[str, Any]:
        """The numbers as plain values."""
        return asdict(self)


class Clock:
    """Collects times of one kind."""

    def __init__(self) -> None:
        self._count = 0
        self._total = 0.0
        self._max = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def add(self, seconds: float) -> None:
        """Count one."""
        self._count += 1
        self._total += seconds
        self._max = max(self._max, seconds)
        self._recent.append(seconds)

    @contextlib.contextmanager
    def measure(self) -> Iterator[None]:
        """Count the time of the block, unless it raises."""
        start = time.monotonic()
        yield
        self.add(time.monotonic() - start)

    def read(self) -> Timing:
        """The numbers so far; all 0 without any."""
        if not self._count:
            return Timing(0, 0.0, 0.0, 0.0, 0.0)
        recent = sorted(self._recent)
        last = len(recent) - 1
        return Timing(
            self._count,
            self._total / self._count,
            self._max,
            recent[round(last * 0.5)],
            recent[round(last * 0.99)],
        )


@dataclass(slots=True)
class Meter:
    """What a sandbox counts while it works."""

    wait: Clock = field(default_factory=Clock)
    spawn: Clock = field(default_factory=Clock)
    execute: Clock = field(default_factory=Clock)
    kill: Clock = field(default_factory=Clock)
    statuses: Counter[str] = field(default_factory=Counter)
    failed_spawns: int = 0
    reaped: int = 0
    recycled: int = 0

    def read(self, *, live: int, spares: int, running: int, queued: int) -> Metrics:
        """The numbers at this moment."""
        return Metrics(
            wait=self.wait.read(),
            spawn=self.spawn.read(),
            execute=self.execute.read(),
            kill=self.kill.read(),
            statuses=dict(self.statuses),
            tampered=self.statuses["tampered"],
            failed_spawns=self.failed_spawns,
            reaped=self.reaped,
            recycled=self.recycled,
            live=live,
            spares=spares,
            running=running,
            queued=queued,
        )

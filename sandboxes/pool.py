"""Sharing a machine: turns to execute, sessions made ahead of need, and a circuit breaker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Generic, Protocol, TypeVar

from agentrl.errors import ConfigError, SandboxError
from sandboxes.metrics import Clock

TURNS_PER_CORE = 16
QUEUE = 10_000
_FAILURES = 5  # in a row, until the breaker opens
_COOL_S = 5.0
_RETRY_S = 1.0
_PAUSE_S = 0.003  # before a spare is replaced


def default_turns() -> int:
    """How many executions run at once unless told otherwise."""
    return TURNS_PER_CORE * len(os.sched_getaffinity(0))


class QueueFull(SandboxError):
    """Too many executions wait already."""


class Gate:
    """Lets at most `turns` executions run at once; the others wait in line, first come first.

    What holds a turn never waits for another one, so turns cannot deadlock.
    """

    def __init__(self, turns: int, queue: int, waits: Clock) -> None:
        """`queue` is the most that may wait. Raises ConfigError on numbers that cannot be."""
        if turns < 1:
            raise ConfigError(f"max_running must be at least 1, not {turns}")
        if queue < 0:
            raise ConfigError(f"queue must be at least 0, not {queue}")
        self.running = 0
        self.turns = turns
        self._queue = queue
        self._waits = waits
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """How many wait."""
        return len(self._line)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, and hold it in the block. Raises QueueFull if the line is."""
        start = time.monotonic()
        if self.running < self.turns:
            self.running += 1
        else:
            await self._stand_in_line()
        try:
            self._waits.add(time.monotonic() - start)
            yield
        finally:
            self._leave()

    async def _stand_in_line(self) -> None:
        if len(self._line) >= self._queue:
            raise QueueFull(
                f"the queue of executions is full: {self.running} run and {len(self._line)} wait. "
                "Ask for fewer at once, or raise max_running or queue"
            )
        place = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            await place  # whoever leaves gives its turn on
        except BaseException:
            if place in self._line:
                self._line.remove(place)
            else:  # cancelled just as it was its turn
                self._leave()
            raise

    def _leave(self) -> None:
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self.running -= 1


class Breaker:
    """Fails fast for a while after `_FAILURES` failures in a row, then lets one trial through."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0
        self._last = ""
        self._retry_at = 0.0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Around each attempt. Raises SandboxError at once while the breaker is open."""
        now = time.monotonic()
        if self._failures >= _FAILURES:
            if now < self._retry_at:
                raise SandboxError(
                    f"{self._what} failed {self._failures} times in a row, the last time because: "
                    f"{self._last}. The next attempt is in {self._retry_at - now:.1f} s"
                )
            self._retry_at = now + _COOL_S  # the others wait for this attempt's outcome
        try:
            yield
        except SandboxError as error:
            self._failures += 1
            self._last = str(error)
            self._retry_at = time.monotonic() + _COOL_S
            raise
        self._failures = 0


class Ready(Protocol):
    """What can be made ahead of need."""

    @property
    def dead(self) -> str | None:
        """Why it is of no use any more."""

    async def close(self) -> None:
        """Free it."""


R = TypeVar("R", bound=Ready)


class Spares(Generic[R]):
    """Keeps `size` fresh things ready and makes one more for each one taken.

    It waits a moment before that, so as not to take the processor from the one just taken.
    """

    def __init__(self, size: int, make: Callable[[], Awaitable[R]]) -> None:
        self._size = size
        self._make = make
        self._ready: deque[R] = deque()
        self._filler: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._ready)

    async def take(self) -> R | None:
        """A living one, which nobody else gets; None if there is none now."""
        while self._ready:
            one = self._ready.popleft()
            if one.dead is None:
                asyncio.get_running_loop().call_later(_PAUSE_S, self.fill)
                return one
            await one.close()
        self.fill()
        return None

    def fill(self) -> None:
        """Start making what is missing, in the background."""
        if len(self._ready) < self._size and (self._filler is None or self._filler.done()):
            self._filler = asyncio.get_running_loop().create_task(self._fill())

    async def _fill(self) -> None:
        while len(self._ready) < self._size:
            try:
                self._ready.append(await self._make())
            except SandboxError:  # who needs one meets the same, and is told
                await asyncio.sleep(_RETRY_S)
                return

    async def close(self) -> None:
        """Stop making, and free what is ready."""
        self._size = 0
        if self._filler is not None:
            self._filler.cancel()
            with contextlib.suppress(asyncio.CancelledError, SandboxError):
                await self._filler
        while self._ready:
            await self._ready.popleft().close()

"""One execution in a session: collects what it writes, and ends it at its limits."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from types import TracebackType

from agentrl.types import Limits
from sandboxes.embedded import tree
from sandboxes.embedded.handle import Handle
from sandboxes.output import OutputBuffer

GRACE_S = 0.3  # between asking the code to stop and killing the session
_CHUNK = 1 << 16
_DRAIN_BYTES = 1 << 20  # the most that a pipe holds
_WATCH_S = 0.25
_SHORT_S = 0.002  # what ends sooner has its output collected at its end only
_TICKS = os.sysconf("SC_CLK_TCK")


class Call:
    """Use as a context manager around the wait for an execution's end.

    `stop` asks the execution to end; what has not ended `GRACE_S` later is killed with the session.
    """

    def __init__(
        self,
        handle: Handle,
        streams: tuple[int, int],
        limits: Limits,
        wall_s: float,
        stop: Callable[[], None],
    ) -> None:
        self.handle = handle
        self.limits = limits
        self.wall_s = wall_s
        self.stop = stop
        self.out = OutputBuffer(limits.output_bytes)
        self.err = OutputBuffer(limits.output_bytes)
        self.timed_out = False
        self.interrupted = False
        self.flooded = False
        self.out_of_memory = False
        self.out_of_cpu = False
        self.duration = 0.0
        self.cpu = 0.0
        self.oom_kills = 0
        self._streams = dict(zip(streams, (self.out, self.err), strict=True))
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._started = 0.0
        self.started_ticks = 0.0  # since boot, as /proc counts

    def __enter__(self) -> Call:
        group = self.handle.group
        self.oom_kills = -group.oom_kills() if group else 0
        self.cpu = -self.handle.cpu()
        self._timer = self._loop.call_later(min(_SHORT_S, self.wall_s), self._attend)
        self._watch_timer = self._loop.call_later(_WATCH_S, self._start_watching)
        self.started_ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS
        self._started = time.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.duration = time.monotonic() - self._started
        self.cpu += self.handle.cpu()
        if self.handle.group is not None:
            self.oom_kills += self.handle.group.oom_kills()
        for timer in (self._timer, self._watch_timer):
            if timer is not None:
                timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        for fd in self._streams:
            self._loop.remove_reader(fd)
            self._drain(fd)
        if self.handle.dead is None and self.handle.may_have_spent():
            self._charge(self.handle.spent_s())

    def interrupt(self) -> None:
        """Ask the execution to end; it counts as stopped even if it does not."""
        self.interrupted = True
        self.stop()

    def _attend(self) -> None:
        for fd in self._streams:
            self._loop.add_reader(fd, self._readable, fd)
        left = self._started + self.wall_s - time.monotonic()
        self._timer = self._loop.call_later(left, self._deadline)

    def _deadline(self) -> None:
        self.timed_out = True
        self.stop()
        self._timer = self._loop.call_later(
            GRACE_S, self.handle.kill, "the code did not stop at its time limit"
        )

    def _readable(self, fd: int) -> None:
        self._read(fd)

    def _read(self, fd: int) -> int:
        """Take what is there, at most a chunk; 0 at the end and where there is nothing."""
        try:
            data = os.read(fd, _CHUNK)
        except (BlockingIOError, OSError):
            return 0
        if not data:
            self._loop.remove_reader(fd)
            return 0
        self._streams[fd].add(data)
        if self.out.total + self.err.total > self.limits.output_kill_bytes and not self.flooded:
            self.flooded = True
            self.handle.kill("the code wrote more than output_kill_bytes")
        return len(data)

    def _drain(self, fd: int) -> None:
        taken = 0
        while taken < _DRAIN_BYTES and (size := self._read(fd)):
            taken += size

    def _start_watching(self) -> None:
        self._watcher = self._loop.create_task(self._watch())

    async def _watch(self) -> None:
        """Look from time to time at what nothing else limits: the session's CPU time and, where no
        control group does, its memory."""
        handle = self.handle
        while handle.dead is None:
            if handle.group is None:
                used = await asyncio.to_thread(tree.memory_mb, handle.pid)
                if used > self.limits.memory_mb:
                    self.out_of_memory = True
                    handle.kill(f"the session used {used:.0f} MiB of {self.limits.memory_mb}")
                    return
            if handle.may_have_spent():
                self._charge(await asyncio.to_thread(handle.spent_s))
            await asyncio.sleep(_WATCH_S)

    def _charge(self, spent_s: float) -> None:
        if spent_s > self.limits.cpu_s and self.handle.dead is None:
            self.out_of_cpu = True
            self.handle.kill(over_budget(spent_s, self.limits))


def over_budget(spent_s: float, limits: Limits) -> str:
    """Why a session that spent so much CPU time ends."""
    return f"the session used {spent_s:.1f} s of CPU, of {limits.cpu_s:g} for all its calls"

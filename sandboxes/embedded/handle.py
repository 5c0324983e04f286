"""The host's end of one session's processes.

Two sockets: `facts` leads to the session's first process, which runs no foreign code and is
believed; `claims` leads to the interpreter, which is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agentrl.errors import EndedByCode, SandboxError, SessionDead
from agentrl.types import Limits
from sandboxes.embedded import cgroups, channels, plan, tree
from sandboxes.embedded.channels import Claim, Event, Fact, Gone
from sandboxes.embedded.inside import wire
from sandboxes.embedded.trace import Traced
from sandboxes.embedded.zygote import Zygote

_START_S = 20.0
_END_S = 5.0
_CORES = os.cpu_count() or 1
_COUNTED_FROM = 0.25  # of the CPU time that a session has: no need to look before
_LAST_CLAIMS = 4  # one is right, more are tampering: no need to count them

Freed = Callable[["Handle", float], None]


class Handle:
    """One live session. Made by `await Handle.open(...)`, freed by `await close()`.

    `dead` says why it ended, None while it lives, and `by_code` whether what ran in it did that;
    `ended` is the interpreter's wait status as its parent saw it.
    """

    def __init__(self, zygote: Zygote, limits: Limits, freed: Freed, *, warm: bool) -> None:
        self.zygote = zygote
        self.limits = limits
        self._freed = freed
        self._began = time.monotonic()
        self._warm = warm
        self.dead: str | None = None
        self.by_code = True
        self.ended: dict[str, Any] | None = None
        self.pid = 0  # of the session's first process
        self.worker_pid = 0
        self.group: cgroups.Group | None = None
        self.work = "/work"
        self.uid: int | None = None
        self.earlier_s = 0.0  # CPU seconds that the state it began in took
        self.over: str | None = None  # of what it had too much, if that ended it
        self._pidfd = -1
        self._worker_pidfd = -1
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._busy = True
        self._emptied = asyncio.Event()  # the other end of `facts` is closed
        self._closing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.facts: socket.socket
        self.claims: socket.socket
        self.stdout = self.stderr = -1
        self._refuses_descriptors = True

    @classmethod
    async def open(
        cls,
        zygote: Zygote,
        limits: Limits,
        *,
        warm: bool = False,
        freed: Freed = lambda *_: None,
    ) -> Handle:
        """A session whose interpreter waits for orders. Raises SandboxError.

        `warm`: it has run a cell of ours before. `freed` is called once every process of it is
        gone, with the seconds that took.
        """
        handle = cls(zygote, limits, freed, warm=warm)
        try:
            async with asyncio.timeout(_START_S):
                await handle._start()
        except BaseException as error:
            handle.kill("did not start")
            await asyncio.shield(handle.close())
            if isinstance(error, OSError):
                raise SandboxError(f"a session did not start: {error or 'too slow'}") from error
            raise
        handle._busy = False
        return handle

    async def _start(self) -> None:
        theirs = self._make_channels()
        try:
            if self.zygote.tier == "none":
                self.work = tempfile.mkdtemp(prefix="agentrl-")
            elif self.zygote.block is not None:
                self.uid, self.work = self.zygote.block.take()
            family = self.zygote.family
            if family is not None:
                memory = int(self.limits.memory_mb * (1 << 20))
                self.group = family.group(memory, self.limits.pids)
                theirs.append(self.group.entrance())
            order = plan.order_of(
                self.limits,
                cgroup=family is not None,
                work=self.work,
                warm=self._warm,
                uid=self.uid,
            )
            await self.zygote.spawn(order, theirs)
        finally:
            for fd in theirs:
                os.close(fd)
        await self._expect("ready", "up")

    def _make_channels(self) -> list[int]:
        """Open sockets and pipes; the descriptors of the other ends."""
        theirs: list[int] = []
        try:
            self.facts, far = channels.pair()
            theirs.append(far)
            self.claims, far = channels.pair()
            theirs.append(far)
            self._refuses_descriptors = channels.refuse_descriptors(self.claims)
            self.stdout, far = channels.pipe()
            theirs.append(far)
            self.stderr, far = channels.pipe()
            theirs.append(far)
        except OSError as error:
            for fd in theirs:
                os.close(fd)
            raise SandboxError(
                f"no descriptors left for another session ({error.strerror}): raise `ulimit -n`"
            ) from error
        self._loop.add_reader(self.facts, self._read_facts)
        self._loop.add_reader(self.claims, self._read_claims)
        return theirs

    async def _expect(self, *steps: str) -> None:
        """Wait until these steps of the start have been reported, in any order."""
        missing = set(steps)
        while missing:
            event = await self.next()
            message = None if isinstance(event, Gone) else event.message
            if message is None or not message.keys() & missing:
                why = (message or {}).get("failed") or self.zygote.dead or self.dead
                raise SandboxError(f"a session did not start: {why or event}")
            missing -= message.keys()

    def _read_facts(self) -> None:
        try:
            message, fds = wire.receive(self.facts)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        if message is None:
            self._loop.remove_reader(self.facts)
            if self.zygote.dead:
                self._mark_dead("its zygote died", by_code=False)
            self._mark_dead("its first process ended")
            self._emptied.set()
            self._push(Gone())
            return
        if "over" in message:
            self.over = message["over"]
            self.kill(f"the session had {self.over}")
        if "ready" in message:
            self._pidfd, self._worker_pidfd = fds
            self.pid = channels.pid_of(self._pidfd)
            self.worker_pid = channels.pid_of(self._worker_pidfd)
        elif message.get("ended") == 0:
            # What the interpreter said before its end counts as said before.
            self._read_claims(_LAST_CLAIMS)
            self.ended = message
            if not self._busy:
                self.kill("the interpreter ended between two calls")
        self._push(Fact(message))

    def _read_claims(self, most: int = 1) -> None:
        for _ in range(most):
            try:
                if not self._refuses_descriptors and channels.carries_descriptors(self.claims):
                    self._loop.remove_reader(self.claims)  # to take it would be to close them
                    self.kill("tampered: the code sent descriptors")
                    self._push(Claim(None))
                    return
                data = self.claims.recv(wire.MESSAGE_BYTES + 1024)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data and not channels.is_connected(self.claims):  # why, a fact will say
                self._loop.remove_reader(self.claims)
                return
            if not self._busy:
                self.kill("tampered: the code spoke for the interpreter between two calls")
                return
            self._push(Claim(channels.parse(data)))

    def _push(self, event: Event) -> None:
        self._events.append(event)
        if self._waiter is not None:
            _set(self._waiter)

    async def next(self) -> Event:
        """The next event."""
        while not self._events:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._events.popleft()

    async def answer(self, number: int) -> dict[str, Any]:
        """The first process's answer to order `number`. Raises SessionDead if the session ends."""
        while True:
            event = await self.next()
            if isinstance(event, Fact) and event.message.get("id") == number:
                return event.message
            if isinstance(event, Gone):
                raise self.death()
            if isinstance(event, Claim):
                self.kill("tampered: an answer to no call")

    def death(self) -> SessionDead:
        """The error of a call on a session that is dead."""
        return (EndedByCode if self.by_code else SessionDead)(ended(self.dead))

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """While a call is in progress events are queued for it; else the interpreter must be
        still. A call that is cancelled or fails halfway kills the session."""
        self._events.clear()
        self._busy = True
        try:
            yield
        except (ValueError, OSError):  # bad arguments: nothing was begun
            raise
        except BaseException:
            self.kill("a call was cancelled", by_code=False)
            raise
        finally:
            self._busy = False
            if self.ended is not None:
                self.kill("the interpreter ended")
            elif any(isinstance(event, Claim) for event in self._events):
                self.kill("tampered: an answer to no call")

    def send_fact(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Give the first process an order. Raises SandboxError."""
        try:
            wire.send(self.facts, message, fds)
        except OSError as error:
            raise SandboxError(f"the session does not listen: {error}") from error

    def send_claim(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Give the interpreter an order. If it no longer listens, the fact of its end follows."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            wire.send(self.claims, message, fds)

    def interrupt(self) -> None:
        """Send SIGINT to the interpreter."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._worker_pidfd, signal.SIGINT)

    def cpu(self) -> float:
        """CPU seconds of the interpreter so far (0 once it ended)."""
        try:
            return time.clock_gettime((~self.worker_pid << 3) | 2)
        except OSError:
            return 0.0

    def may_have_spent(self) -> bool:
        """Whether it is old enough to have used a good part of its CPU time, on all processors."""
        most_s = (time.monotonic() - self._began) * _CORES + self.earlier_s
        return most_s >= self.limits.cpu_s * _COUNTED_FROM

    def spent_s(self) -> float:
        """CPU seconds of all its processes since it began, over all calls, and of what led to the
        state it began in; nothing of its own counts once it ended."""
        counted = self.group.cpu_s() if self.group else None
        if counted is None:
            counted = tree.cpu_s(self.pid)
            if self.group is not None:
                self.group.count_cpu(counted)
        return counted + self.earlier_s

    def traced(self, *, kill: bool) -> Traced:
        """The interpreter, to be stopped; see `Traced`. Raises SandboxError if it has ended."""
        if self._worker_pidfd < 0:
            raise SandboxError(f"the session has ended: {self.dead}")
        return Traced(self.worker_pid, os.dup(self._worker_pidfd), kill=kill)

    def _mark_dead(self, why: str, *, by_code: bool = True) -> None:
        if self.dead is None:
            self.dead, self.by_code = why, by_code

    def kill(self, why: str, *, by_code: bool = True) -> None:
        """Kill every process of the session at once. The first reason given is kept."""
        self._mark_dead(why, by_code=by_code)
        if self._pidfd < 0:
            return
        if self.zygote.tier == "none":
            tree.kill_below(self.pid)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def close(self) -> None:
        """Kill, wait until every process is gone, and free everything. Twice is fine."""
        if self._closing is None:
            self.kill("closed")
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    def abandon(self) -> None:
        """Close in the background; from any thread, with or without a running loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is all that ran in it
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self.close()))

    async def _close(self) -> None:
        start = time.monotonic()
        if self.uid is not None:
            await self._free_user()
        for name in ("facts", "claims"):
            sock = getattr(self, name, None)
            if sock is not None:
                self._loop.remove_reader(sock)
                if name == "facts" or self._refuses_descriptors:
                    sock.close()
                else:  # descriptors in it may take as long to close as the code wants
                    threading.Thread(target=sock.close, daemon=True).start()
        for fd in (self.stdout, self.stderr, self._worker_pidfd):
            if fd >= 0:
                os.close(fd)
        self.stdout = self.stderr = self._worker_pidfd = -1
        if self._pidfd >= 0:
            await self._wait_gone()
            os.close(self._pidfd)
            self._pidfd = -1
        if self.group is not None:
            await asyncio.to_thread(self.group.remove)
        if self.zygote.tier == "none" and self.work != "/work":
            shutil.rmtree(self.work, ignore_errors=True)
        self._push(Gone())
        self._freed(self, time.monotonic() - start)

    async def _free_user(self) -> None:
        """Wait until the zygote has ended the processes of the session's user."""
        assert self.uid is not None
        assert self.zygote.block is not None
        with contextlib.suppress(OSError):
            self.facts.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._emptied.wait(), _END_S)
            self.zygote.block.give_back(self.uid)

    async def _wait_gone(self) -> None:
        gone = self._loop.create_future()
        self._loop.add_reader(self._pidfd, _set, gone)
        try:
            async with asyncio.timeout(_END_S):
                await gone
        except TimeoutError:
            pass
        finally:
            self._loop.remove_reader(self._pidfd)


def ended(why: str | None) -> str:
    """What a call is told on a session that has ended."""
    return f"the session has ended: {why}. Open another, or reset() it"


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)

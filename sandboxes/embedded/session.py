"""Sessions of the embedded backend."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Self

from agentrl.errors import EndedByCode, SandboxError, SessionDead, SnapshotRefused
from agentrl.types import ExecResult, Limits
from sandboxes.embedded import artifacts, snapshot
from sandboxes.embedded.arguments import checked, close_all, file_error, memfd, names, wall_s
from sandboxes.embedded.call import Call, over_budget
from sandboxes.embedded.channels import Claim, Fact, Gone
from sandboxes.embedded.handle import Handle, ended
from sandboxes.embedded.results import Ending, check_claim, of_call, of_full_queue, refused
from sandboxes.embedded.snapshot import Snapshot
from sandboxes.metrics import Meter
from sandboxes.pool import Gate, QueueFull

_INLINE_BYTES = 16 << 10  # longer sources travel by descriptor; JSON may need six times the space
_FILE_S = 20.0
_SWEEP_S = 1.0  # a result may not be later than this after its time limit


class EmbeddedSession:
    """One isolated, stateful interpreter; see `agentrl.interfaces.Session`.

    Calls on one session run one after the other. A call whose task is cancelled kills the session.
    Executions whose sandbox failed come back with status `infra`; file calls raise SandboxError
    then. Calls on a session that has ended raise SessionDead: EndedByCode if what ran in it did
    that.
    """

    def __init__(
        self,
        limits: Limits,
        acquire: Callable[[], Awaitable[Handle]],
        gate: Gate | None,
        meter: Meter,
        successor: Callable[[Snapshot], EmbeddedSession],
        start: Snapshot | None = None,
    ) -> None:
        """`acquire` gives a fresh handle; executions take turns at `gate` (None: no turns). It
        begins in the state `start` or, without, as new; `successor` makes one that begins so."""
        self.limits = limits
        self._acquire = acquire
        self._gate = gate
        self._meter = meter
        self._successor = successor
        self._start = start
        self._used = time.monotonic()
        self._handle: Handle | None = None
        self._lock = asyncio.Lock()
        self._call: Call | None = None
        self._number = 0
        self._why_closed = "it was not opened"
        self._death = SessionDead

    async def open(self) -> Self:
        """Start it. Raises SandboxError if that fails, SnapshotRefused if it is to begin in a state
        that cannot be had."""
        async with self._lock:
            if self._handle is None:
                handle = await self._acquire()
                if self._start is not None:
                    try:
                        await snapshot.begin(handle, self._start)
                    except BaseException:
                        await asyncio.shield(handle.close())
                        raise
                self._handle = handle
        return self

    async def snapshot(self) -> Snapshot:
        """The state that it is in, for new sessions to begin in; it goes on, as they do not see
        each other. See `agentrl.interfaces.Snapshots`."""
        async with self._turn() as (handle, _):
            try:
                return await snapshot.of(handle, self._acquire, self._successor)
            except (SnapshotRefused, SandboxError) as error:  # which would end it in here
                refusal = error
        raise refusal

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[tuple[Handle, int]]:
        """The living handle and a fresh call number, for one call at a time."""
        async with self._lock:
            handle = self._handle
            if handle is None:
                raise self._death(ended(self._why_closed))
            if handle.dead is not None:
                raise handle.death()
            self._number += 1
            try:
                with handle.busy():
                    yield handle, self._number
            finally:
                self._used = time.monotonic()

    async def _gated(self, work: Callable[[], Awaitable[ExecResult]]) -> ExecResult:
        """The result of an execution, when it is its turn. The turn comes before the lock: what
        holds the lock never waits for a turn."""
        try:
            async with self._gate.turn() if self._gate else contextlib.nullcontext():
                result = await work()
        except QueueFull as error:
            return of_full_queue(error, self._meter)
        self._meter.statuses[result.status] += 1
        self._meter.execute.add(result.duration)
        return result

    async def run(self, code: str, *, timeout: float | None = None) -> ExecResult:
        """Run a cell. `timeout` (seconds) defaults to `limits.wall_s`.

        Raises SessionDead if the session had ended before, ConfigError for a timeout that is none.
        """
        wall = wall_s(timeout, self.limits)
        return await self._gated(lambda: self._run(code, wall))

    async def _run(self, code: str, wall: float) -> ExecResult:
        async with self._turn() as (handle, number):
            source = code.encode("utf-8", "surrogatepass")
            if len(source) > self.limits.source_bytes:
                return refused(len(source), self.limits, handle.zygote.tier)
            order: dict[str, Any] = {"op": "cell", "id": number}
            fds = []
            if len(source) > _INLINE_BYTES:
                fds.append(memfd(source))
            else:
                order["code"] = code
            streams = (handle.stdout, handle.stderr)
            try:
                with Call(handle, streams, self.limits, wall, handle.interrupt) as self._call:
                    challenge = secrets.token_hex(8)
                    handle.send_claim(order, fds)
                    handle.send_claim({"op": "sync", "token": challenge})
                    ending = await self._settle(self._call, number, challenge)
            finally:
                close_all(fds)
            return await self._finish(self._call, ending)

    async def _settle(self, call: Call, number: int, challenge: str) -> Ending:
        """Wait for a cell's end.

        The interpreter answers the challenge after the cell, and before it says anything else: a
        forged answer is found out by the true one that follows.
        """
        handle, claim, late = call.handle, None, False
        fds: list[int] = []
        try:
            while True:
                event = await handle.next()
                if isinstance(event, Gone):
                    return Ending()
                if isinstance(event, Fact):
                    if event.message.get("ended") == 0:
                        return Ending(ended=event.message)
                elif claim is None:
                    claim, late = event.message, call.timed_out
                    problem = check_claim(claim, number, self.limits)
                    if problem is not None:
                        return Ending(tampered=problem)
                    assert claim is not None
                elif event.message != {"sync": challenge}:
                    return Ending(tampered="more than one answer")
                elif not fds and (fds := artifacts.hold(claim)):
                    challenge = secrets.token_hex(8)  # the displays come before its answer
                    handle.send_claim({"op": "sync", "token": challenge}, fds)
                else:
                    return Ending(claim=claim, late=late, artifacts=artifacts.take(claim, fds))
        finally:
            close_all(fds)

    async def _finish(self, call: Call, ending: Ending) -> ExecResult:
        """The result; the session ends unless it can go on."""
        self._call = None
        handle = call.handle
        stopped = call.timed_out or call.interrupted or call.oom_kills > 0
        if stopped and handle.dead is None:
            await self._sweep(handle, call)
        result = of_call(call, ending, handle.zygote.tier)
        if ending.tampered:
            handle.kill(f"tampered: {ending.tampered}")
        elif handle.ended is not None:
            handle.kill(result.detail or "the interpreter ended")
        return result

    async def _sweep(self, handle: Handle, call: Call) -> None:
        """Kill what an execution that was stopped left running."""
        self._number += 1
        order = {"op": "sweep", "id": self._number, "since": int(call.started_ticks)}
        try:
            async with asyncio.timeout(_SWEEP_S):
                handle.send_fact(order)
                answer = await handle.answer(self._number)
            if answer.get("size") != 0:
                handle.kill("what the code started could not be stopped")
        except (SandboxError, TimeoutError):
            handle.kill("it does not answer")

    async def program(
        self, path: str, args: Sequence[str] = (), *, stdin: bytes = b""
    ) -> ExecResult:
        """Run the Python file `path` (in /work) to its end; the session ends with it."""
        return await self._gated(lambda: self._program(path, args, stdin))

    async def _program(self, path: str, args: Sequence[str], stdin: bytes) -> ExecResult:
        async with self._turn() as (handle, number):
            full = os.path.join(handle.work, *names(path))
            order = {"op": "program", "id": number, "path": full, "args": checked(args)}
            fds = [memfd(stdin)]
            streams = (handle.stdout, handle.stderr)
            limits = self.limits
            try:
                with Call(handle, streams, limits, limits.wall_s, handle.interrupt) as self._call:
                    handle.send_claim(order, fds)
                    ending = await self._settle_program(self._call, number)
            finally:
                close_all(fds)
            return await self._finish(self._call, ending)

    async def _settle_program(self, call: Call, number: int) -> Ending:
        claim = None
        while True:
            event = await call.handle.next()
            if isinstance(event, Gone):
                return Ending()
            if isinstance(event, Claim):
                problem = check_claim(event.message, number, self.limits)
                if claim is not None or problem is not None:
                    return Ending(tampered=problem or "more than one answer")
                claim = event.message
            elif event.message.get("ended") == 0:
                return Ending(claim=claim, ended=event.message, late=call.timed_out)

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None
    ) -> ExecResult:
        """Run a command in /work. `timeout` (seconds) defaults to `limits.wall_s`.

        The command is no part of the interpreter: the session outlives it, whatever it does. What
        it leaves running in the background lives as long as the session. Raises SessionDead if the
        session had ended before, ConfigError for a timeout that is none, ValueError if `argv`
        cannot be one.
        """
        wall = wall_s(timeout, self.limits)
        argv = checked(argv)
        if not argv or not argv[0]:
            raise ValueError("argv names no command")
        return await self._gated(lambda: self._exec(argv, stdin, wall))

    async def _exec(self, argv: list[str], stdin: bytes, wall: float) -> ExecResult:
        async with self._turn() as (handle, number):
            out, out_far = os.pipe2(os.O_CLOEXEC)
            err, err_far = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(out, False)
            os.set_blocking(err, False)
            theirs = [memfd(stdin), out_far, err_far]

            def stop() -> None:
                with contextlib.suppress(SandboxError):
                    handle.send_fact({"op": "kill", "id": number})

            try:
                with Call(handle, (out, err), self.limits, wall, stop) as self._call:
                    try:
                        handle.send_fact({"op": "exec", "id": number, "argv": argv}, theirs)
                    finally:
                        close_all(theirs)
                    ending = await self._settle_command(self._call, number)
            finally:
                close_all([out, err])
            return await self._finish(self._call, ending)

    async def _settle_command(self, call: Call, number: int) -> Ending:
        while True:
            event = await call.handle.next()
            if isinstance(event, Gone):
                return Ending()
            if isinstance(event, Claim):
                return Ending(tampered="an answer to no call")
            if event.message.get("ended") == number:
                claim = {"status": "ok"}  # there is no interpreter to say more
                return Ending(claim=claim, ended=event.message, late=call.timed_out)

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file below /work, making directories.

        Raises ValueError for a path outside /work or through a link, OSError if it does not fit.
        """
        await self._file({"op": "write", "names": names(path)}, path, data)

    async def read_file(self, path: str) -> bytes:
        """Read a file below /work; links are not followed.

        Raises FileNotFoundError, ValueError for a path outside /work, through a link or to a file
        above `limits.download_bytes`.
        """
        return await self._file({"op": "read", "names": names(path)}, path, b"")

    async def _file(self, order: dict[str, Any], path: str, data: bytes) -> bytes:
        async with self._turn() as (handle, number):
            most = int(self.limits.download_bytes)
            fds = [memfd(data)]
            try:
                handle.send_fact(order | {"id": number, "most": most}, fds)
                async with asyncio.timeout(_FILE_S):
                    answer = await handle.answer(number)
                if "errno" in answer:
                    raise file_error(answer, path)
                if order["op"] == "write":
                    return b""
                if answer["size"] > most:
                    raise ValueError(f"{path!r} has {answer['size']} bytes; at most {most}")
                return os.pread(fds[0], answer["size"], 0)
            except TimeoutError as error:
                handle.kill("it does not answer")
                raise SandboxError(f"no answer about {path!r} within {_FILE_S:g} s") from error
            finally:
                close_all(fds)

    async def interrupt(self) -> None:
        """Stop the running cell or command: its result has status `timeout`, the state is kept.
        Without one nothing happens."""
        if self._call is not None:
            self._call.interrupt()

    async def reset(self) -> None:
        """A fresh interpreter and empty files. Works on a session that has ended, too."""
        async with self._lock:
            old, self._handle = self._handle, None
            if old is not None:
                await old.close()
            self._handle = await self._acquire()

    async def close(self) -> None:
        """End it and all its processes, a running call's too. Twice is fine."""
        if self._handle is not None:
            self._handle.kill("it was closed")  # ends a running call, which frees the lock
        async with self._lock:
            handle, self._handle = self._handle, None
            self._why_closed, self._death = "it was closed", SessionDead
            if handle is not None:
                await handle.close()

    def idle_s(self) -> float:
        """For how long nobody has used it, seconds; 0 while it is in use or has ended."""
        if self._handle is None or self._lock.locked():
            return 0.0
        return time.monotonic() - self._used

    def overspent(self) -> str | None:
        """Why it must end, if what it left running used up its CPU time between two calls."""
        handle = self._handle
        if handle is None or self._lock.locked() or not handle.may_have_spent():
            return None
        spent_s = handle.spent_s()
        return over_budget(spent_s, self.limits) if spent_s > self.limits.cpu_s else None

    async def expire(self, why: str, *, by_code: bool) -> None:
        """Close it because of its limits; later calls say so."""
        await self.close()
        self._why_closed, self._death = why, EndedByCode if by_code else SessionDead

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        if handle is not None:
            handle.abandon()

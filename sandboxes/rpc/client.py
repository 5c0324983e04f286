"""A sandbox that is served elsewhere, as the sandbox protocol."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, Self

from agentrl.errors import SandboxError, SessionDead
from agentrl.interfaces import Capabilities
from agentrl.types import ExecResult, Limits, Verdict
from sandboxes.judge import judge
from sandboxes.rpc import codec
from sandboxes.rpc.service import Answer

_CLOSE_S = 5.0


class Channel(Protocol):
    """A way to one service."""

    async def call(self, op: str, args: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Answer:
        """The service's answer, errors of the service raised as what they were there.

        Raises SandboxError if the service cannot be reached, or went away: the request may or may
        not have been carried out. Never waits for a service that is gone.
        """
        ...


class Fleet(Protocol):
    """Where sessions are served: one container, many, or servers."""

    async def open(self) -> Capabilities:
        """Start, or find, what serves. Raises SandboxError, IsolationError."""
        ...

    async def acquire(self) -> Channel:
        """A channel for one session or program. Raises SandboxError if none is to be had."""
        ...

    async def release(self, channel: Channel) -> None:
        """The session is over. Twice is fine."""
        ...

    async def close(self) -> None: ...


class ServedSession:
    """One interpreter in another place; see `agentrl.interfaces.Session`.

    A call whose task is cancelled kills the session. If the service is gone executions have status
    `infra`, and file calls raise SandboxError.
    """

    def __init__(
        self, fleet: Fleet, limits: Limits, profile: str | None = None, *, isolation: str = ""
    ) -> None:
        self.limits = limits
        self._fleet = fleet
        self._profile = profile
        self._channel: Channel | None = None
        self._name = ""
        self._dead = "it was not opened"
        self._death = SessionDead
        self._lock = asyncio.Lock()
        self._isolation = isolation

    async def open(self) -> Self:
        """Start it. Raises SandboxError if that fails."""
        async with self._lock:
            if self._channel is None:
                await self._start()
        return self

    async def _start(self) -> None:
        self._channel = await self._fleet.acquire()
        self._name, self._dead = secrets.token_hex(16), "it did not start"
        self._death = SessionDead
        limits = codec.limits_to_wire(self.limits)
        args = {"session": self._name, "limits": limits, "profile": self._profile}
        try:
            await self._channel.call("open", args)
        except BaseException:
            await asyncio.shield(self._let_go())
            raise
        self._dead = ""

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[Channel]:
        """The channel, for one call at a time. What cuts a call short kills the session."""
        async with self._lock:
            if self._channel is None or self._dead:
                raise self._death(f"the session has ended: {self._dead}. Open another, or reset()")
            try:
                yield self._channel
            except (ValueError, OSError):  # bad arguments: nothing was begun
                raise
            except SessionDead as error:
                self._dead, self._death = str(error), type(error)
                raise
            except BaseException as error:
                self._dead = self._dead or f"a call was cut short ({type(error).__name__})"
                await asyncio.shield(self._let_go())
                raise

    async def _execute(self, op: str, args: Mapping[str, Any], blob: bytes) -> ExecResult:
        try:
            async with self._turn() as channel:
                body, blobs = await channel.call(op, {"session": self._name, **args}, [blob])
                return codec.result_from_wire(body, blobs)
        except SessionDead:
            raise
        except SandboxError as error:
            return ExecResult("infra", detail=str(error), isolation=self._isolation)

    async def run(self, code: str, *, timeout: float | None = None) -> ExecResult:
        """Run a cell. `timeout` (seconds) defaults to `limits.wall_s`.

        Raises SessionDead if the session had ended before.
        """
        source = code.encode("utf-8", "surrogatepass")
        return await self._execute("run", {"timeout": timeout}, source)

    async def exec(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: float | None = None
    ) -> ExecResult:
        """Run a command in the session's directory. Raises SessionDead, ValueError."""
        words = argv if isinstance(argv, str) else list(argv)
        return await self._execute("exec", {"argv": words, "timeout": timeout}, stdin)

    async def write_file(self, path: str, data: bytes) -> None:
        """Write a file below the session's directory. Raises ValueError, OSError."""
        async with self._turn() as channel:
            await channel.call("write", {"session": self._name, "path": path}, [data])

    async def read_file(self, path: str) -> bytes:
        """Read a file below the session's directory. Raises FileNotFoundError, ValueError."""
        async with self._turn() as channel:
            _, blobs = await channel.call("read", {"session": self._name, "path": path})
            if len(blobs) != 1:
                raise SandboxError("an answer without the file")
            return blobs[0]

    async def interrupt(self) -> None:
        """Stop the running cell or command: its result has status `timeout`."""
        if self._channel is not None and not self._dead:
            await self._channel.call("interrupt", {"session": self._name})

    async def reset(self) -> None:
        """A fresh interpreter and empty files. Works on a session that has ended, too."""
        async with self._lock:
            await self._let_go()
            await self._start()

    async def _let_go(self) -> None:
        """Close the session where it is served, if that can still be reached."""
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._dead = self._dead or "it was closed"
        with contextlib.suppress(SandboxError, TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await channel.call("close", {"session": self._name})
        await self._fleet.release(channel)

    async def close(self) -> None:
        """End it and all its processes, a running call's too. Twice is fine."""
        if self._channel is not None and self._lock.locked():
            with contextlib.suppress(SandboxError):  # ends the running call, which frees the lock
                await self._channel.call("close", {"session": self._name})
        async with self._lock:
            await self._let_go()


class ServedSandbox:
    """A sandbox whose sessions are served by a fleet; see `agentrl.interfaces.Sandbox`."""

    def __init__(self, fleet: Fleet, limits: Limits, profile: str | None = None) -> None:
        self.limits = limits
        self.capabilities = Capabilities("", "", False, False, ())
        self._fleet = fleet
        self._profile = profile
        self._open = False

    async def open(self) -> Self:
        """Start it and make sure that it works. Raises SandboxError, IsolationError."""
        if not self._open:
            self.capabilities = await self._fleet.open()
            self._open = True
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def session(self, limits: Limits | None = None, *, profile: str | None = None) -> ServedSession:
        """A new session, not yet open."""
        return ServedSession(
            self._fleet,
            limits or self.limits,
            profile or self._profile,
            isolation=self.capabilities.isolation,
        )

    async def run(
        self,
        program: str,
        *,
        language: str = "python",
        args: Sequence[str] = (),
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
        profile: str | None = None,
    ) -> ExecResult:
        """Run a whole program once, in a session of its own, and end everything it started.

        A program touches nothing outside its session, so that one whose service went away is run
        once more, elsewhere if there is more than one. Raises ConfigError for an unknown language,
        ValueError for bad file names, SandboxError if no service is left.
        """
        held = dict(files or {})
        request = {
            "language": language,
            "args": list(args),
            "files": list(held),
            "limits": codec.limits_to_wire(limits or self.limits),
            "profile": profile or self._profile,
        }
        blobs = [program.encode("utf-8", "surrogatepass"), stdin, *held.values()]
        try:
            return await self._program(request, blobs)
        except SandboxError:
            return await self._program(request, blobs)

    async def _program(self, request: Mapping[str, Any], blobs: Sequence[bytes]) -> ExecResult:
        channel = await self._fleet.acquire()
        try:
            body, contents = await channel.call("program", request, blobs)
            return codec.result_from_wire(body, contents)
        finally:
            await asyncio.shield(self._fleet.release(channel))

    async def judge(self, program: str, cases: Any, **options: Any) -> Verdict:
        """Judge a program; see `sandboxes.judge.judge`."""
        return await judge(self, program, cases, **options)

    async def close(self) -> None:
        """End all sessions and free everything. Twice is fine."""
        self._open = False
        await self._fleet.close()

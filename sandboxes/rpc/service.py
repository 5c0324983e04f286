"""Serves a sandbox: requests in, answers out, whatever carries them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.errors import ConfigError, SandboxError, SessionDead, unknown
from agentrl.interfaces import Sandbox, Session
from agentrl.types import ExecResult
from sandboxes.rpc import codec

VERSION = 1
_NAME = re.compile("[0-9a-f]{32}")
Answer = tuple[dict[str, Any], list[bytes]]


@dataclass(slots=True)
class _Served:
    session: Session
    owner: str
    used: float = field(default_factory=time.monotonic)
    busy: int = 0


class Service:
    """Answers requests about one open sandbox and the sessions opened through it.

    A session that no request named for `idle_s` seconds is closed: its client is gone. Sessions
    have names that cannot be guessed, and answer only to the `owner` that opened them. At most
    `most_sessions` are open at a time.
    """

    def __init__(self, box: Sandbox, *, idle_s: float = 900.0, most_sessions: int = 4096) -> None:
        self.box = box
        self.idle_s = idle_s
        self.most_sessions = most_sessions
        self._sessions: dict[str, _Served] = {}
        self._opening: dict[str, bool] = {}  # name -> whether its client has let go meanwhile
        self._reaper: asyncio.Task[None] | None = None
        self._operations: dict[str, Callable[..., Awaitable[Answer]]] = {
            "hello": self._hello,
            "open": self._open,
            "run": self._run,
            "exec": self._exec,
            "write": self._write,
            "read": self._read,
            "interrupt": self._interrupt,
            "reset": self._reset,
            "close": self._close,
            "program": self._program,
            "touch": self._touch,
        }

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._sessions)

    @property
    def full(self) -> bool:
        """Whether opening another one is refused."""
        return len(self._sessions) + len(self._opening) >= self.most_sessions

    async def call(
        self, request: Mapping[str, Any], blobs: Sequence[bytes] = (), *, owner: str = ""
    ) -> Answer:
        """Carry out `request["op"]` with `request["args"]`; an error is an answer, too."""
        try:
            name = request.get("op")
            operation = self._operations.get(name) if isinstance(name, str) else None
            if operation is None:
                raise unknown("operation", str(name), self._operations)
            args = request.get("args") or {}
            try:
                return await operation(owner, list(blobs), **args)
            except TypeError as error:
                raise ConfigError(f"wrong arguments for {name!r}: {error}") from error
        except Exception as error:
            return {"failed": codec.error_to_wire(error)}, []

    async def _hello(self, owner: str, blobs: list[bytes]) -> Answer:
        capabilities = codec.capabilities_to_wire(self.box.capabilities)
        return {"version": VERSION, "capabilities": capabilities, "sessions": self.sessions}, []

    async def _open(
        self,
        owner: str,
        blobs: list[bytes],
        session: str,
        limits: Mapping[str, Any] | None = None,
        profile: str | None = None,
    ) -> Answer:
        """The client chooses the name, so that it can close, or open again, what it got no answer
        about."""
        known = self._sessions.get(session)
        if known is not None and known.owner == owner:
            return {}, []
        if self.full:
            raise SandboxError(f"{self.most_sessions} sessions are open: close some, or serve more")
        if not _NAME.fullmatch(session) or session in self._sessions or session in self._opening:
            raise ConfigError("a session's name must be 32 random hexadecimal digits")
        wanted = codec.limits_from_wire(limits) if limits is not None else None
        opened = self.box.session(wanted, profile=profile)
        self._opening[session] = False
        try:
            await opened.open()
        finally:
            abandoned = self._opening.pop(session)
        if abandoned:
            await opened.close()
            raise SessionDead("it was closed before it was open")
        self._sessions[session] = _Served(opened, owner)
        if self._reaper is None or self._reaper.done():
            self._reaper = asyncio.get_running_loop().create_task(self._reap())
        return {}, []

    def _find(self, owner: str, name: str) -> _Served:
        served = self._sessions.get(name)
        if served is None or served.owner != owner:
            raise SessionDead("the session is not known here: it was closed, or idle for too long")
        served.used = time.monotonic()
        return served

    async def _during(self, served: _Served, work: Awaitable[Any]) -> Any:
        served.busy += 1
        try:
            return await work
        finally:
            served.busy -= 1
            served.used = time.monotonic()

    async def _run(
        self, owner: str, blobs: list[bytes], session: str, timeout: float | None = None
    ) -> Answer:
        served = self._find(owner, session)
        code = blobs[0].decode("utf-8", "surrogatepass")
        return _result(await self._during(served, served.session.run(code, timeout=timeout)))

    async def _exec(
        self,
        owner: str,
        blobs: list[bytes],
        session: str,
        argv: Sequence[str],
        timeout: float | None = None,
    ) -> Answer:
        served = self._find(owner, session)
        work = served.session.exec(argv, stdin=blobs[0], timeout=timeout)
        return _result(await self._during(served, work))

    async def _write(self, owner: str, blobs: list[bytes], session: str, path: str) -> Answer:
        served = self._find(owner, session)
        await self._during(served, served.session.write_file(path, blobs[0]))
        return {}, []

    async def _read(self, owner: str, blobs: list[bytes], session: str, path: str) -> Answer:
        served = self._find(owner, session)
        return {}, [await self._during(served, served.session.read_file(path))]

    async def _interrupt(self, owner: str, blobs: list[bytes], session: str) -> Answer:
        await self._find(owner, session).session.interrupt()
        return {}, []

    async def _reset(self, owner: str, blobs: list[bytes], session: str) -> Answer:
        served = self._find(owner, session)
        await self._during(served, served.session.reset())
        return {}, []

    async def _close(self, owner: str, blobs: list[bytes], session: str) -> Answer:
        served = self._sessions.get(session)
        if session in self._opening:
            self._opening[session] = True
        elif served is not None and served.owner == owner:
            del self._sessions[session]
            await served.session.close()
        return {}, []

    async def _touch(self, owner: str, blobs: list[bytes], sessions: Sequence[str]) -> Answer:
        """Keep sessions that are waiting for their client; says which are gone."""
        gone = []
        for name in sessions:
            try:
                self._find(owner, name)
            except SessionDead:
                gone.append(name)
        return {"gone": gone}, []

    async def _program(
        self,
        owner: str,
        blobs: list[bytes],
        language: str,
        args: Sequence[str],
        files: Sequence[str],
        limits: Mapping[str, Any] | None = None,
        profile: str | None = None,
    ) -> Answer:
        source, stdin, *contents = blobs
        result = await self.box.run(
            source.decode("utf-8", "surrogatepass"),
            language=language,
            args=args,
            stdin=stdin,
            files=dict(zip(files, contents, strict=True)),
            limits=codec.limits_from_wire(limits) if limits is not None else None,
            profile=profile,
        )
        return _result(result)

    async def _reap(self) -> None:
        """Close sessions whose clients are gone, until there are none."""
        while self._sessions:
            await asyncio.sleep(min(self.idle_s / 4, 30.0))
            oldest = time.monotonic() - self.idle_s
            for name, served in list(self._sessions.items()):
                if not served.busy and served.used < oldest:
                    del self._sessions[name]
                    await served.session.close()

    async def close(self) -> None:
        """Close all sessions; the sandbox stays open. Twice is fine."""
        if self._reaper is not None:
            self._reaper.cancel()
        served = list(self._sessions.values())
        self._sessions.clear()
        await asyncio.gather(*(one.session.close() for one in served))


def _result(result: ExecResult) -> Answer:
    return codec.result_to_wire(result)

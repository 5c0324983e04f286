"""The embedded backend: sessions as clones of a zygote in a bubblewrap jail on this machine."""

from __future__ import annotations

import asyncio
import sys
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

from agentrl.errors import (
    AgentRLWarning,
    ConfigError,
    EndedByCode,
    IsolationError,
    SandboxError,
    unknown,
)
from agentrl.interfaces import Capabilities
from agentrl.types import ExecError, ExecResult, Limits, Verdict
from sandboxes import languages
from sandboxes.embedded import cgroups, profiles, snapshot, uids
from sandboxes.embedded.handle import Handle
from sandboxes.embedded.plan import limits_of
from sandboxes.embedded.profiles import Profile
from sandboxes.embedded.results import of_full_queue, refused
from sandboxes.embedded.session import EmbeddedSession
from sandboxes.embedded.snapshot import Snapshot
from sandboxes.embedded.supply import Supply
from sandboxes.embedded.zygote import Zygote
from sandboxes.metrics import Meter, Metrics
from sandboxes.pool import QUEUE, Gate, QueueFull, default_turns

ISOLATION = ("auto", "namespaces", "uid", "none")
JAILS = ("bubblewrap", "container")
_LOOK_S = 30.0  # between two looks for sessions that nobody uses


class EmbeddedSandbox:
    """Runs untrusted code on this machine; see `agentrl.interfaces.Sandbox`.

    Any number of tasks of one event loop may use it at the same time. Open it before use (`async
    with`, or `await open()`); `capabilities` says from then on what is in force.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        isolation: str = "auto",
        profile: str | Profile = "bare",
        spares: int = 2,
        max_running: int | None = None,
        queue: int = QUEUE,
        ttl_s: float = 3600.0,
        recycle: int = 10_000,
        jail: str = "bubblewrap",
        **changes: Any,
    ) -> None:
        """`isolation`: "namespaces" gives every session namespaces of its own, "uid" (root only) a
        user of its own; "auto" is "namespaces", or where they are not possible "uid" with a
        warning. Each refuses to run without isolation; "none" runs code as this user without any.
        `jail`: "container" says that this process is in a container made for it: sessions then see
        its files and packages, without bubblewrap. `spares` sessions of each profile are kept
        ready.

        At most `max_running` (16 a core unless given) executions run at once, `queue` more wait in
        line, their time limits not running; any number of sessions may be open. A session that
        nobody used for `ttl_s` seconds is ended. The process that sessions are clones of is
        replaced after `recycle` of them, or when its memory grew. `changes` are fields of Limits.

        Raises ConfigError on values that cannot be.
        """
        if isolation not in ISOLATION:
            raise unknown("isolation", isolation, ISOLATION)
        if jail not in JAILS:
            raise unknown("jail", jail, JAILS)
        if spares < 0:
            raise ConfigError(f"spares must be at least 0, not {spares}")
        if recycle < 1 or not ttl_s > 0:
            raise ConfigError(f"recycle ({recycle}) and ttl_s ({ttl_s}) must be above 0")
        self.limits = limits_of(limits, changes, EmbeddedSandbox)
        self.profile = profiles.find(profile)
        self.capabilities = Capabilities("embedded", "", False, False, ())
        self._tier = "namespaces" if isolation == "auto" else isolation
        self._may_fall_back = isolation == "auto"
        self._container = jail == "container"
        self._snapshots = False
        self._spares = spares
        self._recycle = recycle
        self._ttl_s = ttl_s
        self._meter = Meter()
        self._gate = Gate(
            default_turns() if max_running is None else max_running, queue, self._meter.wait
        )
        self._supply: Supply | None = None
        self._sessions: weakref.WeakSet[EmbeddedSession] = weakref.WeakSet()
        self._reaper: asyncio.Task[None] | None = None

    async def open(self) -> Self:
        """Start it and make sure that it works.

        Raises IsolationError where the isolation is not possible, SandboxError where it fails.
        """
        if self._supply is not None:
            return self
        if not sys.platform.startswith("linux"):
            raise IsolationError("the embedded sandbox needs Linux")
        place, reason = await asyncio.to_thread(cgroups.detect)
        try:
            supply, zygote = await self._first_zygote(place)
        except BaseException:
            await self.close()
            raise
        details = [] if place else [f"no control groups ({reason}): limits by process"]
        if zygote.tier != "none" and zygote.landlock < 6:
            details.append("no landlock scopes")
        self.capabilities = Capabilities(
            backend="embedded",
            isolation=self._tier,
            cgroup=place is not None,
            network=self._tier == "none",
            languages=languages.available(),
            detail="; ".join(details),
            snapshots=self._snapshots,
        )
        supply.spares(self.profile).fill()
        self._reaper = asyncio.get_running_loop().create_task(self._reap())
        return self

    async def _first_zygote(self, place: cgroups.Hierarchy | None) -> tuple[Supply, Zygote]:
        """Where sessions come from, and a zygote whose first session works: of the next tier if
        this one is not possible and another is allowed."""
        self._supply = supply = Supply(
            self._tier,
            place,
            self.limits,
            self._meter,
            spares=self._spares,
            recycle=self._recycle,
            container=self._container,
        )
        try:
            zygote = await supply.zygote(self.profile)
            self._snapshots = await self._try(supply)
            return supply, zygote
        except IsolationError as error:
            if not self._may_fall_back or uids.why_not() is not None:
                raise
            self._may_fall_back = False
            self._tier = "uid"
            await supply.close()
            message = f"sessions are users of their own, not namespaces (isolation 'uid'): {error}"
            warnings.warn(message, AgentRLWarning, stacklevel=3)
            return await self._first_zygote(place)

    async def _try(self, supply: Supply) -> bool:
        """Open a session and close it; whether its state could be carried. Raises IsolationError if
        that fails."""
        try:
            first = await supply.make(self.profile, self.limits)
        except SandboxError as error:
            if self._tier == "none":
                raise
            raise IsolationError(f"no isolation by {self._tier} here: {error}") from error
        try:
            return await snapshot.possible(first)
        finally:
            await first.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def session(
        self, limits: Limits | None = None, *, profile: str | Profile | None = None
    ) -> EmbeddedSession:
        """A new session, not yet open. Raises ConfigError for an unknown profile."""
        chosen = self.profile if profile is None else profiles.find(profile)
        wanted = self.limits if limits is None else limits_of(limits, {})
        return self._session(chosen, wanted, self._gate)

    def _session(
        self, profile: Profile, limits: Limits, gate: Gate | None, start: Snapshot | None = None
    ) -> EmbeddedSession:
        async def acquire() -> Handle:
            if self._supply is None:
                raise SandboxError("the sandbox is not open: use `async with` or `await open()`")
            return await self._supply.take(profile, limits)

        def successor(start: Snapshot) -> EmbeddedSession:
            return self._session(profile, limits, gate, start)

        session = EmbeddedSession(limits, acquire, gate, self._meter, successor, start)
        self._sessions.add(session)
        return session

    async def run(
        self,
        program: str,
        *,
        language: str = "python",
        args: Sequence[str] = (),
        stdin: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        limits: Limits | None = None,
        profile: str | Profile | None = None,
    ) -> ExecResult:
        """Run a whole program once, in a session of its own, and end everything it started.

        A Python program that ends by `sys.exit` or `os._exit` has status `exit` and its
        `exit_code`, 0 included; `ok` means that it ran to its end. A program that does not compile
        has status `error` and the error `CompileError`, one that is too long `SourceTooLong`.
        Raises ConfigError for an unknown language, ValueError for file names outside /work, OSError
        for files that do not fit, SandboxError if no session could be had.
        """
        how = languages.find(language)
        chosen = self.profile if profile is None else profiles.find(profile)
        wanted = self.limits if limits is None else limits_of(limits, {})
        source = program.encode("utf-8", "surrogatepass")
        if len(source) > wanted.source_bytes:
            return refused(len(source), wanted, self.capabilities.isolation)
        try:
            async with self._gate.turn(), self._session(chosen, wanted, None) as session:
                for name, data in (files or {}).items():
                    await session.write_file(name, data)
                await session.write_file(how.file, source)
                if how.name == "python":
                    return await session.program(how.file, args, stdin=stdin)
                if how.compiler:
                    made = await session.exec(how.compiler, timeout=languages.COMPILE_S)
                    if not made.ok:
                        return languages.not_compiled(made)
                return await session.exec([*how.command, *args], stdin=stdin)
        except EndedByCode as error:  # what the compiler made of it was too much
            failed = ExecError("CompileError", str(error), "")
            return ExecResult("error", error=failed, isolation=self.capabilities.isolation)
        except QueueFull as error:
            return of_full_queue(error, self._meter)

    def metrics(self) -> Metrics:
        """What it has done so far, and what it does now."""
        supply, gate = self._supply, self._gate
        return self._meter.read(
            live=len(supply.live) - supply.ready() if supply else 0,
            spares=supply.ready() if supply else 0,
            running=gate.running,
            queued=gate.queued,
        )

    async def _reap(self) -> None:
        """End sessions that nobody uses, and those that use too much between two calls."""
        while True:
            await asyncio.sleep(min(self._ttl_s / 4, _LOOK_S))
            for session in list(self._sessions):
                if session.idle_s() > self._ttl_s:
                    self._meter.reaped += 1
                    idle = f"nobody used it for {self._ttl_s:g} s (ttl_s)"
                    await session.expire(idle, by_code=False)
                elif (why := session.overspent()) is not None:
                    await session.expire(why, by_code=True)

    async def judge(self, program: str, cases: Any, **options: Any) -> Verdict:
        """Judge a program; see `sandboxes.judge.judge`."""
        from sandboxes.judge import judge  # stays out of containers, whose server never judges

        return await judge(self, program, cases, **options)

    async def close(self) -> None:
        """End all sessions and free everything. Twice is fine."""
        supply, self._supply = self._supply, None
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        await asyncio.gather(*(s.close() for s in list(self._sessions)))
        if supply is not None:
            await supply.close()

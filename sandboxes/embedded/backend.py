"""The embedded backend: sessions as clones of a zygote in a bubblewrap jail on this machine."""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

from agentrl.errors import ConfigError, IsolationError, SandboxError, unknown
from agentrl.interfaces import Capabilities
from agentrl.types import ExecResult, Limits, Verdict
from sandboxes import languages
from sandboxes.embedded import cgroups, profiles
from sandboxes.embedded.handle import Handle
from sandboxes.embedded.plan import limits_of
from sandboxes.embedded.profiles import Profile
from sandboxes.embedded.session import EmbeddedSession
from sandboxes.embedded.stock import Stock
from sandboxes.embedded.zygote import Zygote
from sandboxes.judge import judge

ISOLATION = ("auto", "namespaces", "none")
_STARTS_AT_ONCE = 8


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
        **changes: Any,
    ) -> None:
        """`isolation`: "auto" and "namespaces" refuse to run without isolation, "none" runs code as
        this user without any. `spares` sessions of each profile are kept ready. `changes` are
        fields of Limits. Raises ConfigError on values that cannot be.
        """
        if isolation not in ISOLATION:
            raise unknown("isolation", isolation, ISOLATION)
        if spares < 0:
            raise ConfigError(f"spares must be at least 0, not {spares}")
        self.limits = limits_of(limits, changes)
        self.profile = profiles.find(profile)
        self.capabilities = Capabilities("embedded", "", False, False, ())
        self._tier = "none" if isolation == "none" else "namespaces"
        self._spares = spares
        self._place: cgroups.Hierarchy | None = None
        self._zygotes: dict[Profile, Zygote] = {}
        self._locks: dict[Profile, asyncio.Lock] = {}
        self._stocks: dict[Profile, Stock] = {}
        self._handles: weakref.WeakSet[Handle] = weakref.WeakSet()
        self._sessions: weakref.WeakSet[EmbeddedSession] = weakref.WeakSet()
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._open = False

    async def open(self) -> Self:
        """Start it and make sure that it works.

        Raises IsolationError where the isolation is not possible, SandboxError where it fails.
        """
        if self._open:
            return self
        if not sys.platform.startswith("linux"):
            raise IsolationError("the embedded sandbox needs Linux")
        self._place, reason = await asyncio.to_thread(cgroups.detect)
        self._open = True
        try:
            zygote = await self._zygote(self.profile)
            first = await self._make(self.profile, self.limits)
            await first.close()
        except BaseException:
            await self.close()
            raise
        details = [] if self._place else [f"no control groups ({reason}): limits by process"]
        if zygote.tier != "none" and zygote.landlock < 6:
            details.append("no landlock scopes")
        self.capabilities = Capabilities(
            backend="embedded",
            isolation=self._tier,
            cgroup=self._place is not None,
            network=self._tier == "none",
            languages=languages.available(),
            detail="; ".join(details),
        )
        self._stock(self.profile).fill()
        return self

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
        session = EmbeddedSession(wanted, lambda: self._acquire(chosen, wanted))
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
        has status `error` and the error `CompileError`. Raises ConfigError for an unknown language,
        ValueError for file names outside /work, SandboxError if no session could be had.
        """
        how = languages.find(language)
        async with self.session(limits, profile=profile) as session:
            for name, data in (files or {}).items():
                await session.write_file(name, data)
            await session.write_file(how.file, program.encode("utf-8", "surrogatepass"))
            if how.name == "python":
                return await session.program(how.file, args, stdin=stdin)
            if how.compiler:
                made = await session.exec(how.compiler, timeout=languages.COMPILE_S)
                if not made.ok:
                    return languages.not_compiled(made)
            return await session.exec([*how.command, *args], stdin=stdin)

    async def judge(self, program: str, cases: Any, **options: Any) -> Verdict:
        """Judge a program; see `sandboxes.judge.judge`."""
        return await judge(self, program, cases, **options)

    async def close(self) -> None:
        """End all sessions and free everything. Twice is fine."""
        self._open = False
        for stock in list(self._stocks.values()):
            await stock.close()
        self._stocks.clear()
        await asyncio.gather(*(s.close() for s in list(self._sessions)))
        await asyncio.gather(*(h.close() for h in list(self._handles)))
        for zygote in list(self._zygotes.values()):
            await zygote.close()
        self._zygotes.clear()

    def _stock(self, profile: Profile) -> Stock:
        if profile not in self._stocks:
            self._stocks[profile] = Stock(self._spares, lambda: self._make(profile, self.limits))
        return self._stocks[profile]

    async def _acquire(self, profile: Profile, limits: Limits) -> Handle:
        if limits == self.limits:
            return await self._stock(profile).take()
        return await self._make(profile, limits)

    async def _make(self, profile: Profile, limits: Limits) -> Handle:
        zygote = await self._zygote(profile)
        try:
            async with self._starts:
                handle = await Handle.open(zygote, limits)
        except SandboxError:
            if zygote.dead is None or not self._open:
                raise
            handle = await Handle.open(await self._zygote(profile), limits)
        self._handles.add(handle)
        return handle

    async def _zygote(self, profile: Profile) -> Zygote:
        """The living zygote of a profile; a dead one is replaced."""
        if not self._open:
            raise SandboxError("the sandbox is not open: use `async with` or `await open()`")
        async with self._locks.setdefault(profile, asyncio.Lock()):
            zygote = self._zygotes.get(profile)
            if zygote is not None and zygote.dead is None:
                return zygote
            if zygote is not None:
                await zygote.close()
            zygote = Zygote(profile, self._tier, self._place)
            await zygote.start()
            self._zygotes[profile] = zygote
            return zygote

"""Where sessions come from: one zygote for each profile, spares, replacement of what grew old."""

from __future__ import annotations

import asyncio
import os

from agentrl.errors import SandboxError
from agentrl.types import Limits
from sandboxes.embedded import cgroups
from sandboxes.embedded.handle import Handle
from sandboxes.embedded.profiles import Profile
from sandboxes.embedded.zygote import Zygote
from sandboxes.metrics import Meter
from sandboxes.pool import Breaker, Spares

_STARTS_AT_ONCE = 8
_GROWTH_MB = 256.0  # of a zygote's memory, until it is replaced
_LOOK_EVERY = 100  # sessions between two looks at it


class Supply:
    """Makes the sessions of one sandbox, and knows all that live."""

    def __init__(
        self,
        tier: str,
        place: cgroups.Hierarchy | None,
        limits: Limits,
        meter: Meter,
        *,
        spares: int,
        recycle: int,
        container: bool,
    ) -> None:
        self.tier = tier
        self.place = place
        self.limits = limits
        self.meter = meter
        self.live: set[Handle] = set()
        self.zygotes: dict[Profile, Zygote] = {}
        self._size = spares
        self._recycle = recycle
        self._container = container
        self._retired: set[Zygote] = set()
        self._locks: dict[Profile, asyncio.Lock] = {}
        self._spares: dict[Profile, Spares[Handle]] = {}
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)
        self._breaker = Breaker("starting a session")
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def take(self, profile: Profile, limits: Limits) -> Handle:
        """A fresh session, which nobody had before. Raises SandboxError."""
        spare = await self.spares(profile).take() if limits == self.limits else None
        return spare or await self.make(profile, limits)

    def spares(self, profile: Profile) -> Spares[Handle]:
        """The spares of a profile; none are made before they are asked to `fill`."""
        if profile not in self._spares:
            self._spares[profile] = Spares(
                self._size, lambda: self.make(profile, self.limits, warm=True)
            )
        return self._spares[profile]

    def ready(self) -> int:
        """How many spares there are."""
        return sum(len(s) for s in self._spares.values())

    async def make(self, profile: Profile, limits: Limits, *, warm: bool = False) -> Handle:
        """A new session; a `warm` one has run a cell. Raises SandboxError."""
        try:
            with self._breaker.watch(), self.meter.spawn.measure():
                async with self._starts:
                    return await self._start(profile, limits, warm)
        except SandboxError:
            self.meter.failed_spawns += 1
            raise

    async def _start(self, profile: Profile, limits: Limits, warm: bool) -> Handle:
        zygote = await self.zygote(profile)
        try:
            handle = await Handle.open(zygote, limits, warm=warm, freed=self._freed)
        except SandboxError:
            if zygote.dead is None or self._closed:
                raise
            zygote = await self.zygote(profile)
            handle = await Handle.open(zygote, limits, warm=warm, freed=self._freed)
        if self._closed:
            await handle.close()
            raise SandboxError("the sandbox was closed")
        self.live.add(handle)
        if self.zygotes.get(profile) is zygote and self._is_old(zygote, handle):
            self._retire(profile)
        return handle

    def _is_old(self, zygote: Zygote, handle: Handle) -> bool:
        zygote.made += 1
        if zygote.made >= self._recycle:
            return True
        if zygote.made % _LOOK_EVERY == 1:
            used = _memory_mb(_parent(handle.pid))
            zygote.first_mb = zygote.first_mb or used
            return used > zygote.first_mb + _GROWTH_MB
        return False

    def _retire(self, profile: Profile) -> None:
        """Have the next session come from a new zygote; the old one ends with its last session."""
        self.meter.recycled += 1
        self._retired.add(self.zygotes.pop(profile))

    def _freed(self, handle: Handle, seconds: float) -> None:
        self.meter.kill.add(seconds)
        self.live.discard(handle)
        zygote = handle.zygote
        if zygote in self._retired and not any(h.zygote is zygote for h in self.live):
            self._retired.discard(zygote)
            self._later(zygote)

    def _later(self, zygote: Zygote) -> None:
        task = asyncio.get_running_loop().create_task(zygote.close())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def zygote(self, profile: Profile) -> Zygote:
        """The living zygote of a profile; a dead one is replaced. Raises SandboxError."""
        if self._closed:
            raise SandboxError("the sandbox is not open: use `async with` or `await open()`")
        async with self._locks.setdefault(profile, asyncio.Lock()):
            zygote = self.zygotes.get(profile)
            if zygote is not None and zygote.dead is None:
                return zygote
            if zygote is not None:
                await zygote.close()
            zygote = Zygote(profile, self.tier, self.place, container=self._container)
            await zygote.start()
            self.zygotes[profile] = zygote
            return zygote

    async def close(self) -> None:
        """End every session and every zygote."""
        self._closed = True
        for spares in list(self._spares.values()):
            await spares.close()
        await asyncio.gather(*(handle.close() for handle in list(self.live)))
        await asyncio.gather(*self._tasks)
        for zygote in [*self.zygotes.values(), *self._retired]:
            await zygote.close()
        self.zygotes.clear()
        self._retired.clear()


def _parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, ValueError):
        return 0


def _memory_mb(pid: int) -> float:
    """The resident memory of a process, MiB; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)
    except (OSError, ValueError, IndexError):
        return 0.0

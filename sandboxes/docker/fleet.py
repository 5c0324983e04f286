"""Containers as a fleet that serves sessions: a few shared ones, or one for each session."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.errors import AgentRLWarning, IsolationError, SandboxError
from agentrl.interfaces import Capabilities
from agentrl.types import ExecResult, Limits
from sandboxes.docker import owner
from sandboxes.docker.container import Container
from sandboxes.docker.engine import Engine
from sandboxes.docker.hardening import Shape
from sandboxes.rpc import codec
from sandboxes.rpc.service import Answer

_SERVER_MB = 192  # of a container's memory, for its server and what a profile imports
_SERVER_PIDS = 32
_SHARED_PIDS = 8192
_STARTS_AT_ONCE = 4
_EXECUTIONS = ("run", "exec", "program")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fleet's containers are; see `sandboxes.docker.docker_sandbox`."""

    image: str
    limits: Limits
    profile: str
    spares: int
    inner: str
    containers: int
    per_session: bool
    memory_mb_total: int | None
    cpus: float | None
    runtime: str | None

    def shape(self, inner: str, machine_mb: int) -> Shape:
        """One container. `machine_mb`: the memory of the daemon's machine."""
        if self.per_session:
            memory = int(self.limits.memory_mb) + _SERVER_MB
        else:
            memory = self.memory_mb_total or machine_mb // 2 // self.containers
        pids = self.limits.pids + _SERVER_PIDS if self.per_session else _SHARED_PIDS
        return Shape(self.image, inner, memory, pids, self.cpus, self.runtime)


class Seat:
    """One session's channel: its container. `alone`: no other session is in it."""

    def __init__(self, container: Container, alone: bool) -> None:
        self.container = container
        self.alone = alone
        self.taken = True

    async def call(self, op: str, args: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Answer:
        """See `sandboxes.rpc.client.Channel`. Code that ended its own container for want of memory
        has status `oom`: it must not pass for a failure of ours."""
        try:
            return await self.container.call(op, args, blobs)
        except SandboxError:
            if op not in _EXECUTIONS or not self.alone or self.container.dead is None:
                raise
            if not await self.container.out_of_memory():
                raise
        result = ExecResult(
            "oom",
            isolation=self.container.capabilities.isolation,
            detail="the code used all memory of its container, which ended",
        )
        return codec.result_to_wire(result)


class DockerFleet:
    """Keeps `plan.containers` ready, replaces those that end, and gives sessions to the emptiest.

    With `plan.per_session` a container goes to one session and is removed after it.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._inner = "namespaces" if plan.inner == "auto" else plan.inner
        self._settled = plan.inner != "auto"
        self._engine: Engine | None = None
        self._machine_mb = 0
        self._ready: list[Container] = []
        self._starting: set[asyncio.Task[None]] = set()
        self._waiting = 0
        self._watchers: dict[Container, asyncio.Task[None]] = {}
        self._starts = asyncio.Semaphore(_STARTS_AT_ONCE)

    async def open(self) -> Capabilities:
        """Find the daemon, remove what dead owners left, start the containers.

        Raises MissingExtraError, SandboxError, IsolationError.
        """
        self._engine = await Engine.connect()
        try:
            await owner.reap(self._engine)
            self._machine_mb = int((await self._engine.info())["MemTotal"]) >> 20
            first = await self._start()  # settles how sessions are isolated
            self._fill()
            if self._starting:
                await asyncio.gather(*self._starting)
        except BaseException:
            await asyncio.shield(self.close())
            raise
        return first.capabilities

    async def _start(self) -> Container:
        if self._engine is None:
            raise SandboxError("the sandbox is not open: use `async with` or `await open()`")
        async with self._starts:
            try:
                container = await self._made(self._engine)
            except IsolationError as error:
                if self._settled:
                    raise
                self._inner = "uid"
                warnings.warn(
                    "Docker sessions are isolated by user ids only (container/uid), not by "
                    f"namespaces of their own: {error}",
                    AgentRLWarning,
                    stacklevel=2,
                )
                container = await self._made(self._engine)
        self._settled = True
        self._ready.append(container)
        self._watchers[container] = asyncio.ensure_future(self._watch(container))
        return container

    async def _made(self, engine: Engine) -> Container:
        plan = self.plan
        shape = plan.shape(self._inner, self._machine_mb)
        return await Container.start(engine, shape, plan.limits, plan.profile, plan.spares)

    async def _watch(self, container: Container) -> None:
        """Remove a container as soon as it ends."""
        await container.ended()
        with contextlib.suppress(ValueError):
            self._ready.remove(container)
        with contextlib.suppress(SandboxError, TimeoutError):
            await container.close()
        del self._watchers[container]

    def _fill(self) -> None:
        """Start what is missing, in the background."""
        self._ready = [c for c in self._ready if c.dead is None]
        wanted = self.plan.containers + (self._waiting if self.plan.per_session else 0)
        for _ in range(wanted - len(self._ready) - len(self._starting)):
            task = asyncio.ensure_future(self._start_one())
            self._starting.add(task)
            task.add_done_callback(self._started)

    async def _start_one(self) -> None:
        await self._start()

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.exception()  # who needs a container meets it again

    async def acquire(self) -> Seat:
        """A channel to a living container. Raises SandboxError if none can be started."""
        if self._engine is None:
            raise SandboxError("the sandbox is not open: use `async with` or `await open()`")
        self._waiting += 1
        try:
            self._fill()
            while not self._ready:
                done, _ = await asyncio.wait(self._starting, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if not task.cancelled() and (error := task.exception()) is not None:
                        raise error
                self._fill()
        finally:
            self._waiting -= 1
        container = min(self._ready, key=lambda c: c.sessions)
        container.sessions += 1
        if self.plan.per_session:
            self._ready.remove(container)
            self._fill()
        return Seat(container, self.plan.per_session)

    async def release(self, channel: Any) -> None:
        """The session is over. Twice is fine."""
        if channel.taken:
            channel.taken = False
            channel.container.sessions -= 1
            if self.plan.per_session:
                with contextlib.suppress(SandboxError, TimeoutError):
                    await channel.container.close()

    async def close(self) -> None:
        """Remove all containers. Twice is fine."""
        engine, self._engine = self._engine, None
        starting = list(self._starting)
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        containers = list(self._watchers)
        await asyncio.gather(*(c.close() for c in containers), return_exceptions=True)
        await asyncio.gather(*list(self._watchers.values()), return_exceptions=True)
        if engine is not None:
            await engine.close()

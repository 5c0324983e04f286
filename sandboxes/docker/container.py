"""One container that serves sessions, from its making to its removal."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from agentrl.errors import SandboxError
from agentrl.interfaces import Capabilities
from agentrl.types import Limits
from sandboxes.docker import bundle, hardening
from sandboxes.docker.engine import Engine
from sandboxes.docker.hardening import Shape
from sandboxes.docker.link import Link
from sandboxes.rpc import codec
from sandboxes.rpc.service import Answer

_BOOT_S = 120.0  # of a container with its profile's imports, on a busy machine


class Container:
    """A running container. Made by `await Container.start(...)`, freed by `await close()`.

    `sessions` is how many are open in it, by its fleet's count.
    """

    def __init__(self, engine: Engine, shape: Shape, name: str, link: Link) -> None:
        self.shape = shape
        self.name = name
        self.sessions = 0
        self.capabilities = Capabilities("docker", "", False, False, ())
        self._engine = engine
        self._link = link
        self._made = time.time()
        self._closing: asyncio.Task[None] | None = None

    @property
    def dead(self) -> str | None:
        """Why it can no longer be used; None while it can."""
        return self._link.dead

    @classmethod
    async def start(
        cls, engine: Engine, shape: Shape, limits: Limits, profile: str, spares: int
    ) -> Container:
        """A container whose sandbox is open.

        Raises IsolationError if its sessions cannot be isolated so, SandboxError on other failures.
        """
        name = f"agentrl-{secrets.token_hex(6)}"
        making = asyncio.ensure_future(cls._make(engine, shape, name))
        try:
            container = await asyncio.shield(making)
        except asyncio.CancelledError:
            with contextlib.suppress(SandboxError):
                await (await making).close()
            raise
        try:
            await container._boot(limits, profile, spares)
        except BaseException:
            await asyncio.shield(container.close())
            raise
        return container

    @classmethod
    async def _make(cls, engine: Engine, shape: Shape, name: str) -> Container:
        await engine.create(hardening.config(engine.api, shape), name)
        try:
            container = cls(engine, shape, name, await engine.attach(name))
        except BaseException:
            await engine.remove(name)
            raise
        try:
            await engine.start(name, shape.image)
        except BaseException:
            await container.close()
            raise
        return container

    async def _boot(self, limits: Limits, profile: str, spares: int) -> None:
        args = {
            "isolation": self.shape.inner,
            "limits": codec.limits_to_wire(limits),
            "profile": profile,
            "spares": spares,
        }
        try:
            async with asyncio.timeout(_BOOT_S):
                await self._link.send(bundle.archive())
                body, _ = await self._link.call("start", args)
        except TimeoutError as error:
            raise SandboxError(f"the container was not ready within {_BOOT_S:g} s") from error
        found = codec.capabilities_from_wire(body["capabilities"])
        self.capabilities = Capabilities(
            backend="docker",
            isolation=f"container/{found.isolation}",
            cgroup=found.cgroup,
            network=found.network,
            languages=found.languages,
            detail=found.detail,
        )
        self._link.start_pulse()

    async def call(self, op: str, args: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Answer:
        """See `sandboxes.rpc.client.Channel`. Results name the container as isolation, too."""
        body, contents = await self._link.call(op, args, blobs)
        if "isolation" in body:
            body["isolation"] = f"container/{body['isolation']}"
        return body, contents

    async def out_of_memory(self) -> bool:
        """Whether the kernel killed in it for want of memory. Works after its end, too."""
        return await self._engine.out_of_memory(self.name, self._made)

    async def ended(self) -> None:
        """Wait until it has ended, for whatever reason."""
        await self._link.ended.wait()

    async def close(self) -> None:
        """End and remove it, and wait until it is gone. Twice is fine."""
        self._link.end("it was closed")
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._engine.remove(self.name))
        await asyncio.shield(self._closing)

"""The server in the container: requests on standard input, answers on standard output.

It holds an embedded sandbox. It ends when its input does, and the container with it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from typing import Any, cast

from agentrl.errors import SandboxError
from agentrl.types import Limits
from sandboxes.embedded.backend import EmbeddedSandbox
from sandboxes.rpc import codec, frames
from sandboxes.rpc.service import Service


def main() -> None:
    """Serve until standard input ends."""
    sys.dont_write_bytecode = True
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve())
    os._exit(0)  # the container's end is the end of whatever is left


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = _Server()
    await loop.connect_write_pipe(lambda: server.outlet, os.fdopen(1, "wb", buffering=0))
    await loop.connect_read_pipe(lambda: server, os.fdopen(0, "rb", buffering=0))
    await server.ended


class _Outlet(asyncio.Protocol):
    """Writes answers, those of one turn of the loop together, and waits where the other end reads
    too slowly."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Event()
        self._room.set()
        self._ready: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    async def send(self, body: dict[str, Any], blobs: list[bytes]) -> None:
        await self._room.wait()
        if not self._ready:
            self._loop.call_soon(self._flush)
        self._ready.append(_encoded(body, blobs))

    def _flush(self) -> None:
        data, self._ready = b"".join(self._ready), []
        if self._transport is not None:
            self._transport.write(data)


class _Server(asyncio.Protocol):
    """Answers each request in a task of its own. The first one must be `start`."""

    def __init__(self) -> None:
        self.outlet = _Outlet()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decoder = frames.Decoder()
        self._service: Service | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            task = asyncio.ensure_future(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def _answer(self, request: frames.Message) -> None:
        number = request.body.get("id")
        if self._service is not None:
            body, blobs = await self._service.call(request.body, request.blobs)
        else:
            body, blobs = await self._start(request.body.get("args") or {}), []
        await self.outlet.send({**body, "id": number}, blobs)

    async def _start(self, args: dict[str, Any]) -> dict[str, Any]:
        try:
            box = await _open(**args)
        except Exception as error:
            return {"failed": codec.error_to_wire(error)}
        self._service = Service(box, idle_s=float("inf"))  # the client's end is the input's end
        return {"capabilities": codec.capabilities_to_wire(box.capabilities)}


def _encoded(body: dict[str, Any], blobs: list[bytes]) -> bytes:
    try:
        return frames.encode(body, blobs)
    except frames.FrameError as error:
        return frames.encode({"id": body["id"], "failed": codec.error_to_wire(error)})


async def _open(isolation: str, limits: dict[str, Any], profile: str, spares: int) -> Any:
    if os.getpid() == 1:
        raise SandboxError("the server must not be the container's first process")
    box = EmbeddedSandbox(
        Limits(**limits), isolation=isolation, profile=profile, spares=spares, jail="container"
    )
    return await box.open()

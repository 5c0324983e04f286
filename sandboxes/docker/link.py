"""The stream attached to a container: requests go in, answers come out, the rest is its log."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from agentrl.errors import SandboxError
from sandboxes.rpc import codec, frames
from sandboxes.rpc.service import Answer

STDOUT, STDERR = 1, 2
PING_S = 10.0
PINGS = 3  # unanswered ones after which a container counts as hung
_HEAD_BYTES = 1 << 16
_LOG_BYTES = 4096
_CHUNK = struct.Struct("!BxxxI")  # of Docker's stream: which one, and how many bytes follow


class Demultiplexer:
    """Splits Docker's attached stream into the container's standard output and error."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._kind = 0
        self._left = 0

    def feed(self, data: bytes | memoryview) -> Iterator[tuple[int, memoryview]]:
        """Which stream and what came on it. Raises SandboxError on bytes that are none."""
        view = memoryview(data)
        while view:
            if self._left:
                part, view = view[: self._left], view[self._left :]
                self._left -= len(part)
                yield self._kind, part
                continue
            missing = _CHUNK.size - len(self._head)
            self._head += view[:missing]
            view = view[missing:]
            if len(self._head) == _CHUNK.size:
                self._kind, self._left = _CHUNK.unpack(self._head)
                self._head.clear()
                if self._kind > STDERR:
                    raise SandboxError("the Docker daemon sent what is no attached stream")


class Link(asyncio.Protocol):
    """One container's attached stream, from the HTTP request that opens it to its end.

    When it ends, for whatever reason, every call that waits fails with SandboxError; `dead` says
    why from then on, and `ended` is set.
    """

    def __init__(self) -> None:
        self.dead: str | None = None
        self.ended = asyncio.Event()
        self.log = b""
        self._attached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._head = b""
        self._streams = Demultiplexer()
        self._decoder = frames.Decoder()
        self._transport: asyncio.WriteTransport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._heard = False
        self._pulse: asyncio.Task[None] | None = None

    async def attach(self, request: bytes) -> None:
        """Send the HTTP request that turns the connection into the stream. Raises SandboxError."""
        assert self._transport is not None
        self._transport.write(request)
        await self._attached

    def start_pulse(self) -> None:
        """From now on a container that does not answer for half a minute counts as dead."""
        self._pulse = asyncio.get_running_loop().create_task(self._beat())

    async def send(self, data: bytes) -> None:
        """Write bytes, at the pace of the container. Raises SandboxError."""
        while not self._room.is_set() and self.dead is None:
            await self._room.wait()
        if self.dead is not None or self._transport is None:
            raise SandboxError(f"the container is gone: {self.dead}")
        self._transport.write(data)

    async def call(self, op: str, args: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Answer:
        """See `sandboxes.rpc.client.Channel`."""
        number = next(self._numbers)
        data = frames.encode({"id": number, "op": op, "args": args}, blobs)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self.send(data)
            body, contents = await answer
        finally:
            self._waiting.pop(number, None)
        return codec.checked(body), contents

    async def _beat(self) -> None:
        """Ask for a sign of life from time to time. A loop that stood still counts as one turn."""
        silent = 0
        while silent < PINGS:
            self._heard = False
            with contextlib.suppress(SandboxError, TimeoutError):
                async with asyncio.timeout(PING_S):
                    await self.call("hello", {})
            silent = 0 if self._heard else silent + 1
            await asyncio.sleep(PING_S)
        self.end(f"it has not answered for {PINGS * PING_S:g} s")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._take(data)
        except (SandboxError, frames.FrameError) as error:
            self.end(str(error))

    def _take(self, data: bytes) -> None:
        if not self._attached.done():
            data = self._take_head(data)
        for kind, part in self._streams.feed(data):
            self._heard = True
            if kind != STDOUT:
                self.log = (self.log + part)[-_LOG_BYTES:]
                continue
            for message in self._decoder.feed(part):
                answer = self._waiting.get(message.body.pop("id", None))
                if answer is not None and not answer.done():  # else its caller is gone
                    answer.set_result((message.body, message.blobs))

    def _take_head(self, data: bytes) -> bytes:
        """Read the HTTP answer; what follows it."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(self._head) > _HEAD_BYTES:
                raise SandboxError("the Docker daemon's answer has no end")
            return b""
        status = head.split(maxsplit=2)[1:2]
        if status not in ([b"101"], [b"200"]):
            raise SandboxError(f"the Docker daemon did not attach: {self._head[:500]!r}")
        self._attached.set_result(None)
        return rest

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def eof_received(self) -> None:
        """The container ended; the transport is closed."""

    def connection_lost(self, error: Exception | None) -> None:
        self.end(str(error) if error else "it ended")

    def end(self, why: str) -> None:
        """Close the stream and fail what waits for it. The first reason given is kept."""
        if self.dead is not None:
            return
        said = self.log.decode("utf-8", "backslashreplace").strip()
        self.dead = f"{why}: {said}" if said else why
        failure = SandboxError(f"the container is gone: {self.dead}")
        every: list[asyncio.Future[Any]] = [self._attached, *self._waiting.values()]
        for waiting in every:
            if not waiting.done():
                waiting.set_exception(failure)
        if self._attached.done():
            self._attached.exception()  # it may have no caller any longer
        self._room.set()
        if self._pulse is not None:
            self._pulse.cancel()
        if self._transport is not None:
            self._transport.close()
        self.ended.set()

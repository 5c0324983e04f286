"""One server, as a client sees it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import warnings
import weakref
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import aiohttp

from agentrl.errors import AgentRLWarning, ConfigError, SandboxError
from agentrl.interfaces import Capabilities
from agentrl.types import Limits
from sandboxes.remote import bodies
from sandboxes.rpc import codec, frames
from sandboxes.rpc.service import VERSION, Answer

_SHOWN_CHARS = 500
_COOL_S = (0.5, 30.0)  # between looks at a server that is down: at first, and at most


class Busy(SandboxError):
    """The server has no place now; nothing was begun."""

    def __init__(self, message: str, retry_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Unsent(SandboxError):
    """The server was not reached; nothing was begun."""


class Client(Protocol):
    """Who has something on a server."""

    session: str


class Peer:
    """Sends requests to one server, and watches whether it is there.

    It is `up`; `suspect`, after a connection to it broke, until the next look; or `down`, which
    is looked at again after a pause that doubles. Where it does not answer for two looks in a row
    it hangs: calls that wait for it fail.
    """

    def __init__(self, url: str, http: aiohttp.ClientSession, heartbeat_s: float) -> None:
        self.url = url
        self.state: Literal["up", "suspect", "down"] = "down"
        self.error: Exception = SandboxError(f"{url} was not asked yet")
        self.clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self.capabilities: Capabilities | None = None
        self.limits = Limits()
        self._most_bytes = frames.MOST_BYTES
        self._http = http
        self._heartbeat_s = heartbeat_s
        self._capacity = 1
        self._others = 0
        self._misses = 0
        self._known = False
        self._doubt = asyncio.Event()
        self._waiting: set[asyncio.Timeout] = set()

    @property
    def load(self) -> tuple[bool, float, float]:
        """The smaller, the better for the next session."""
        share = (len(self.clients) + self._others) / self._capacity
        return self.state != "up", share, random.random()

    async def post(self, op: str, args: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Answer:
        """The answer to one call, its errors raised.

        Raises Busy and Unsent if nothing was begun, SandboxError if that is not known, ValueError
        if it is too much to send.
        """
        if self.state == "down":
            raise Unsent(str(self.error))
        parts = frames.pieces({"args": args}, blobs)
        size = sum(map(len, parts))
        if size > self._most_bytes:
            raise ValueError(f"{size} bytes to send; {self.url} takes at most {self._most_bytes}")
        async with self._watched():
            message = await self._exchange(op, parts)
        return codec.checked(message.body), message.blobs

    @contextlib.asynccontextmanager
    async def _watched(self) -> AsyncIterator[None]:
        """What goes wrong on the way, as errors of the sandbox. Ends if the server hangs."""
        try:
            async with asyncio.timeout(None) as waiting:
                self._waiting.add(waiting)
                try:
                    yield
                finally:
                    self._waiting.discard(waiting)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._suspect()
            raise Unsent(f"{self.url} cannot be reached: {error}") from error
        except TimeoutError as error:
            raise SandboxError(str(self.error)) from error
        except (aiohttp.ClientError, OSError) as error:
            self._suspect()
            raise SandboxError(f"the connection to {self.url} broke: {_said(error)}") from error
        except frames.FrameError as error:
            raise SandboxError(f"{self.url} gave an answer that is none: {error}") from error

    async def _exchange(self, op: str, parts: Sequence[bytes]) -> frames.Message:
        small = sum(map(len, parts)) <= bodies.WHOLE_BYTES
        data = b"".join(parts) if small else bodies.chunks(parts)
        request = self._http.post(
            f"{self.url}/call/{op}",
            data=data,
            headers={"Content-Type": bodies.TYPE},
            allow_redirects=False,
        )
        async with request as response:
            if response.status == 200:
                return await bodies.message(response.content, frames.MOST_BYTES)
            text = (await response.content.read(_SHOWN_CHARS)).decode("utf-8", "replace")
            said = f"{self.url} answered {response.status}: {text}"
            if response.status == 503:
                raise Busy(said, _seconds(response.headers.get("Retry-After")))
            if response.status in (401, 403):
                raise Refused(said)
            raise SandboxError(said)

    def _suspect(self) -> None:
        if self.state == "up":
            self.state = "suspect"
        self._doubt.set()

    async def watch(self) -> None:
        """Look at the server from time to time, for ever."""
        pause = self._heartbeat_s
        while True:
            self._doubt.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._doubt.wait()
            pause = await self.look()

    async def look(self) -> float:
        """See whether the server answers; returns the seconds until it should be looked at again.

        Tells it which sessions are still wanted.
        """
        try:
            async with asyncio.timeout(self._heartbeat_s):
                await self._meet()
        except TimeoutError as error:
            if self._missed(SandboxError(f"{self.url} does not answer"), error):
                for waiting in self._waiting:
                    waiting.reschedule(asyncio.get_running_loop().time())
        except ConfigError as error:
            self._missed(error, error)
        except (aiohttp.ClientError, OSError, ValueError, SandboxError) as error:
            self._missed(SandboxError(f"{self.url} is not usable: {_said(error)}"), error)
        else:
            self._misses = 0
            self.state = "up"
            return self._heartbeat_s
        if self.state != "down":
            return 0.0
        least, most = _COOL_S
        return min(most, least * 2.0 ** min(self._misses - 1, 10)) * random.uniform(0.5, 1.5)

    def _missed(self, found: Exception, cause: Exception) -> bool:
        """Count a look in vain; True if the server is taken to be down."""
        self._misses += 1
        self.error = found
        was = self.state
        if self._misses > 1 or not self._known or isinstance(cause, aiohttp.ClientConnectorError):
            self.state = "down"
            self._known = False
        if was != self.state == "down":
            warnings.warn(f"lost a sandbox server: {found}", AgentRLWarning, stacklevel=2)
        return self.state == "down"

    async def _meet(self) -> None:
        async with self._http.get(f"{self.url}/health", allow_redirects=False) as response:
            load: Any = await response.json() if response.status == 200 else None
        try:
            sessions, running = int(load["sessions"]), int(load["running"])
            capacity = int(load["max_running"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.url} is no agentrl sandbox server") from error
        if not self._known:
            await self._greet()
        names = [client.session for client in self.clients if client.session]
        if names:
            await self._exchange("touch", frames.pieces({"args": {"sessions": names}}))
        self._capacity = max(1, capacity)
        self._others = max(0, sessions + running - len(self.clients))

    async def _greet(self) -> None:
        """Make sure that we understand each other. Raises ConfigError if not."""
        try:
            message = await self._exchange("hello", frames.pieces({"args": {}}))
        except Refused as error:
            raise ConfigError(f"{error}: set AGENTRL_SANDBOX_TOKEN, or give token=") from error
        body = codec.checked(message.body)
        if body.get("version") != VERSION:
            raise ConfigError(
                f"{self.url} speaks version {body.get('version')!r}, this is version {VERSION}: "
                "install the same agentrl on both"
            )
        self.capabilities = codec.capabilities_from_wire(body["capabilities"])
        self.limits = codec.limits_from_wire(body["limits"])
        self._most_bytes = int(body["most_bytes"])
        self._known = True


class Refused(SandboxError):
    """The server does not take our token."""


def _seconds(header: str | None) -> float:
    return float(header) if header and header.isdecimal() else 0.0


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__

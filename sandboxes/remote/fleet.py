"""Sessions spread over servers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import warnings
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import aiohttp

from agentrl.errors import AgentRLWarning, ConfigError, SandboxError, SessionDead
from agentrl.interfaces import Capabilities
from agentrl.types import Limits
from sandboxes.remote import access, caps
from sandboxes.remote.peer import Busy, Peer, Unsent
from sandboxes.rpc.service import Answer

_CONNECT_S = 5.0
_CLOSE_S = 5.0
_KEEPALIVE_S = 15.0
_PAUSE_S = (0.05, 2.0)  # between two tries at servers that are busy: at first, and at most


class RemoteChannel:
    """A way to whichever server takes the session; see `sandboxes.rpc.client.Channel`."""

    def __init__(self, fleet: RemoteFleet) -> None:
        self.session = ""
        self.peer: Peer | None = None
        self._fleet = fleet

    async def call(self, op: str, args: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> Answer:
        """Open on, or run on, whichever server is best; everything else goes to that server."""
        return await self._fleet.call(self, op, args, blobs)

    def join(self, peer: Peer, session: str) -> None:
        """What follows happens there."""
        self.leave()
        self.peer, self.session = peer, session
        peer.clients.add(self)

    def leave(self) -> None:
        if self.peer is not None:
            self.peer.clients.discard(self)
        self.peer, self.session = None, ""


class RemoteFleet:
    """Servers; see `sandboxes.rpc.client.Fleet`. Belongs to the event loop that opened it.

    New sessions and programs go to the server with the least to do for what it can do. One that
    is busy or gone is passed over; if all are, that is waited for, `wait_s` at most. What was
    begun on a server is never begun again: it fails with SandboxError.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        token: str | None = None,
        *,
        heartbeat_s: float = 5.0,
        wait_s: float = 30.0,
    ) -> None:
        """`token` is what AGENTRL_SANDBOX_TOKEN says if it is None. `heartbeat_s` is how often
        servers are looked at, and how long they have to answer. Raises ConfigError."""
        if not heartbeat_s > 0 or not wait_s >= 0:
            raise ConfigError("heartbeat_s must be above 0, and wait_s at least 0")
        self.urls = access.server_urls(urls)
        self._token = access.client_token(token)
        self._heartbeat_s = heartbeat_s
        self._wait_s = wait_s
        self._peers: list[Peer] = []
        self._watches: list[asyncio.Task[None]] = []
        self._http: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> Capabilities:
        """Meet the servers. Raises ConfigError if one refuses us, SandboxError if none answers."""
        self._loop = asyncio.get_running_loop()
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S),
            headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._peers = [Peer(url, self._http, self._heartbeat_s) for url in self.urls]
        try:
            await asyncio.gather(*(peer.look() for peer in self._peers))
            capabilities = self._met()
        except BaseException:
            await self.close()
            raise
        self._watches = [self._loop.create_task(peer.watch()) for peer in self._peers]
        return capabilities

    def _met(self) -> Capabilities:
        missing = [peer for peer in self._peers if peer.state == "down"]
        for peer in missing:
            if isinstance(peer.error, ConfigError):
                raise peer.error
        reasons = "; ".join(str(peer.error) for peer in missing)
        if len(missing) == len(self._peers):
            raise SandboxError(f"no sandbox server answers: {reasons}")
        if missing:
            warnings.warn(f"going on without some servers: {reasons}", AgentRLWarning, stacklevel=4)
        return combined(peer.capabilities for peer in self._peers if peer.capabilities)

    @property
    def limits(self) -> Limits:
        """What every server gives to sessions without limits of their own."""
        return caps.smallest(*(peer.limits for peer in self._peers if peer.capabilities))

    async def acquire(self) -> RemoteChannel:
        """A channel; which server it leads to is found out when something is opened."""
        return RemoteChannel(self)

    async def release(self, channel: Any) -> None:
        channel.leave()

    async def call(
        self, channel: RemoteChannel, op: str, args: Mapping[str, Any], blobs: Sequence[bytes]
    ) -> Answer:
        """See `RemoteChannel.call`. Raises SandboxError, and what the server answers."""
        if self._http is None:
            raise SandboxError("the sandbox is not open: use `async with` or `await open()`")
        if asyncio.get_running_loop() is not self._loop:
            raise ConfigError("a remote sandbox belongs to the event loop in which it was opened")
        if op in ("open", "program"):
            return await self._patiently(lambda: self._place(channel, op, args, blobs))
        peer = channel.peer
        if peer is None:
            return {}, []  # nothing was opened: there is nothing to close
        return await self._patiently(lambda: peer.post(op, args, blobs))

    async def _patiently(self, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Try until there is room, or `wait_s` have passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait_s
        pause, most = _PAUSE_S
        while True:
            try:
                return await work()
            except Busy as error:
                rest = max(pause, error.retry_s) * random.uniform(0.5, 1.5)
                if loop.time() + rest > end:
                    raise
            await asyncio.sleep(rest)
            pause = min(2 * pause, most)

    async def _place(
        self, channel: RemoteChannel, op: str, args: Mapping[str, Any], blobs: Sequence[bytes]
    ) -> Answer:
        """Try the servers, the best first.

        A session's name is ours, and what was opened without our knowledge ends by itself, so
        that opening is tried elsewhere whatever happened; a program only if nothing was begun.
        Raises Busy if it is worth waiting.
        """
        failed: list[SandboxError] = []
        for peer in sorted(self._peers, key=lambda peer: peer.load):
            channel.join(peer, args.get("session", ""))
            try:
                return await peer.post(op, args, blobs)
            except SessionDead:
                raise
            except SandboxError as error:
                if op == "program" and not isinstance(error, Busy | Unsent):
                    raise
                failed.append(error)
        channel.leave()
        message = "no server has a place: " + "; ".join(dict.fromkeys(map(str, failed)))
        busy = [error.retry_s for error in failed if isinstance(error, Busy)]
        if busy or any(isinstance(error, Unsent) for error in failed):
            raise Busy(message, min(busy, default=0.0))
        raise SandboxError(message)

    async def close(self) -> None:
        """End all sessions that are still open. Twice is fine."""
        watches, self._watches = self._watches, []
        for task in watches:
            task.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        http, self._http = self._http, None
        if http is None:
            return
        names = [(peer, c.session) for peer in self._peers for c in list(peer.clients)]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                closing = (peer.post("close", {"session": name}) for peer, name in names if name)
                await asyncio.gather(*closing, return_exceptions=True)
        await http.close()


def combined(found: Iterable[Capabilities]) -> Capabilities:
    """What all of them can do."""
    each = list(found)
    languages = set.intersection(*(set(c.languages) for c in each))
    backends = " and ".join(sorted({c.backend for c in each}))
    details = dict.fromkeys(c.detail for c in each if c.detail)
    return Capabilities(
        backend="remote",
        isolation=", ".join(sorted({c.isolation for c in each})),
        cgroup=all(c.cgroup for c in each),
        network=any(c.network for c in each),
        languages=tuple(name for name in each[0].languages if name in languages),
        detail="; ".join([f"{len(each)} servers of {backends}", *details]),
    )

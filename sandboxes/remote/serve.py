"""The process that serves a sandbox."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from aiohttp import web

from agentrl.errors import ConfigError
from agentrl.interfaces import Sandbox
from agentrl.types import Limits
from sandboxes.metrics import Clock
from sandboxes.pool import Gate, default_turns
from sandboxes.remote import caps
from sandboxes.remote.access import TOKEN_VARIABLE, Tokens, is_loopback
from sandboxes.remote.server import Server, log
from sandboxes.rpc.service import Service

PORT = 8400
_BACKLOG = 1024
_KEEPALIVE_S = 75.0  # longer than the client's, so that it is never the server that hangs up
_PROBES = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_noise = logging.getLogger("agentrl.sandbox.noise")  # what is no HTTP
_noise.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a sandbox is served.

    `most` is the most that a client may ask for. `idle_s` is how long a session lives without a
    word of its client, `grace_s` how long running calls may go on when the server is told to end.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    tokens: Tokens = field(default_factory=Tokens)
    most: Limits = caps.MOST
    most_sessions: int = 1024
    most_running: int = field(default_factory=default_turns)
    most_waiting: int = 1024
    idle_s: float = 300.0
    grace_s: float = 10.0
    verbose: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port {self.port}: there are ports 1 to 65535, and 0 for any")
        for name in ("most_sessions", "most_running", "most_waiting", "idle_s", "grace_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.tokens and not is_loopback(self.host):
            raise ConfigError(
                f"whoever reaches {self.host} could run code here: give tokens with --token-file "
                f"or {TOKEN_VARIABLE}, or listen on 127.0.0.1"
            )

    @property
    def limits(self) -> Limits:
        """What sessions have whose clients name no limits."""
        return caps.smallest(Limits(), self.most)


async def serve(box: Sandbox, settings: Settings, ready: Callable[[str], None]) -> None:
    """Serve an open sandbox until SIGTERM or SIGINT; `ready` is told the address.

    Then nothing new is taken, running calls may end, and all sessions are closed. Raises
    ConfigError if the address is not to be had.
    """
    service = Service(box, idle_s=settings.idle_s, most_sessions=settings.most_sessions)
    gate = Gate(settings.most_running, settings.most_waiting, Clock())
    server = Server(service, settings.tokens, gate, settings.limits, settings.most)
    runner = web.AppRunner(
        server.app(),
        handler_cancellation=True,
        shutdown_timeout=settings.grace_s,
        keepalive_timeout=_KEEPALIVE_S,
        access_log=log if settings.verbose else None,
        logger=_noise,
        access_log_format='%a "%r" %s %b %Tf',
    )
    _allow_descriptors()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with _listening(settings.host, settings.port) as listener:
        await runner.setup()
        try:
            await web.SockSite(runner, listener, backlog=_BACKLOG).start()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, stop.set)
            ready(_url(listener))
            await stop.wait()
        finally:
            await runner.cleanup()
            await server.close()


def _listening(host: str, port: int) -> socket.socket:
    """A listening socket that finds out when a client's machine is gone. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    for name, value in _PROBES.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener


def _allow_descriptors() -> None:
    """As many open files as this process may have: each session and each client takes some."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

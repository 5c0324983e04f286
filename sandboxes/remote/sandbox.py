"""The remote backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from agentrl.types import Limits
from sandboxes.embedded.plan import limits_of
from sandboxes.remote.fleet import RemoteFleet
from sandboxes.rpc.client import ServedSandbox


class RemoteSandbox(ServedSandbox):
    """Runs untrusted code on servers (`agentrl sandbox serve`); see `agentrl.interfaces.Sandbox`.

    Belongs to the event loop in which it is opened.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        urls: str | Sequence[str],
        token: str | None = None,
        profile: str | None = None,
        heartbeat_s: float = 5.0,
        wait_s: float = 30.0,
        **changes: Any,
    ) -> None:
        """`limits` are the servers' own if None; `changes` are fields of Limits. The rest is as
        for `RemoteFleet`. Raises ConfigError on values that cannot be."""
        fleet = RemoteFleet(urls, token, heartbeat_s=heartbeat_s, wait_s=wait_s)
        super().__init__(fleet, limits_of(limits, changes, RemoteSandbox), profile)
        self._servers = fleet
        self._given = limits
        self._changes = changes

    async def open(self) -> Self:
        """Meet the servers. Raises ConfigError if one refuses us, SandboxError if none answers."""
        await super().open()
        self.limits = limits_of(self._given or self._servers.limits, self._changes)
        return self

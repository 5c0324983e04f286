"""The host's end of one zygote: starts its jail, orders sessions, notices its death."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from agentrl.errors import IsolationError, SandboxError
from agentrl.types import Limits
from sandboxes.embedded import bare, cgroups, jail, seccomp, uids
from sandboxes.embedded.inside import wire
from sandboxes.embedded.profiles import Profile
from sandboxes.judge import inside as judging

_BOOT_S = 60.0
_IMPORT_SHARE = 0.9  # of it, the import budget of a profile
_END_S = 2.0
_TIERS = {"namespaces": "namespaces", "uid": "users of their own"}


class Zygote:
    """One running zygote. Use `await start(...)`; it must be closed.

    `family` is the parent of its sessions' control groups, or None. `on_death` is called once when
    it ends, with the reason.
    """

    def __init__(
        self, profile: Profile, tier: str, place: cgroups.Hierarchy | None, *, container: bool
    ) -> None:
        self.profile = profile
        self.tier = tier
        self.container = container
        self.block = uids.Block() if tier == "uid" else None
        self.family = cgroups.Family(place) if place is not None else None
        self.landlock = 0
        self.made = 0  # sessions so far
        self.first_mb = 0.0  # memory at the first session
        self.failed_imports: dict[str, str] = {}
        self.fresh: dict[Limits, Any] = {}  # what `snapshot` compares sessions with
        self.dead: str | None = None
        self.on_death: Callable[[Zygote], None] = lambda _: None
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._log = os.memfd_create("zygote-log")
        self._message: asyncio.Future[dict[str, Any]] | None = None
        self._waiting_for_room: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        """Start the jail and wait until the imports are done.

        Raises IsolationError if the jail cannot be made here, SandboxError on other failures.
        """
        loop = asyncio.get_running_loop()
        try:
            visible = self._launch(loop)
            self._message = loop.create_future()
            assert self._control is not None
            loop.add_reader(self._control, self._readable)
            wire.send(self._control, self._order(visible))
            ready = await asyncio.wait_for(self._message, _BOOT_S)
        except (OSError, EOFError) as error:
            why = self._why(error)
            await self.close()
            if isinstance(error, TimeoutError):  # it runs, but is stuck where no signal reaches it
                imports = ", ".join(self.profile.imports) or "none"
                raise SandboxError(
                    f"profile {self.profile.name!r} was not ready within {_BOOT_S:g} s; "
                    f"its imports: {imports}"
                ) from error
            raise self._refusal(why) from error
        except BaseException:
            await self.close()
            raise
        self._message = None
        self.landlock = ready["landlock"]
        self.failed_imports = ready["failed"]
        if self.failed_imports:
            await self.close()
            raise SandboxError(
                f"profile {self.profile.name!r} cannot import: "
                + "; ".join(f"{k}: {v}" for k, v in self.failed_imports.items())
            )

    def _refusal(self, why: str) -> SandboxError:
        if self.tier == "none":
            return SandboxError(f"the interpreter did not start: {why}")
        cure = "Allow unprivileged user namespaces, or" if self.tier == "namespaces" else "Else"
        return IsolationError(
            f"no isolation by {_TIERS[self.tier]} on this machine: {why}. {cure} pass "
            "isolation='none' (--isolation none) to run code WITHOUT it"
        )

    def _order(self, visible: list[str]) -> dict[str, Any]:
        program = b""
        if self.tier != "none":
            unmapped, shared = self.family is not None, self.tier == "uid"
            program = seccomp.build(unmapped_memory=unmapped, shared=shared)
        return {
            "tier": self.tier,
            "imports": (*self.profile.preloaded, *judging.MODULES),
            "import_s": _BOOT_S * _IMPORT_SHARE,
            "seccomp": program.hex(),
            "work": "/work" if self.tier == "namespaces" else "",
            "visible": visible,
        }

    def _launch(self, loop: asyncio.AbstractEventLoop) -> list[str]:
        """Start the process; what its sessions may see if they are users of their own."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._control = ours
        fds: list[int] = [theirs.fileno()]
        data: list[int] = []
        try:
            control, block = theirs.fileno(), self.block
            if self.tier == "namespaces" and not self.container:
                plan, data = jail.plan(self.profile, control)
            else:
                plan, data = bare.build(
                    self.profile, control, container=self.container, block=block
                )
            plan["cgroup"] = self.family.paths if self.family else []
            fds += data
            launch = [*jail.boot(jail.here(), "launch.main"), json.dumps(plan)]
            self._process = subprocess.Popen(
                [sys.executable, "-I", *launch],
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=fds,
                start_new_session=True,
            )
        finally:
            theirs.close()
            for fd in data:
                os.close(fd)
        self._pidfd = os.pidfd_open(self._process.pid)
        loop.add_reader(self._pidfd, self._gone)
        visible: list[str] = plan.get("visible", [])
        return visible

    def _readable(self) -> None:
        assert self._control is not None
        try:
            message, fds = wire.receive(self._control)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, fds = None, []
        for fd in fds:
            os.close(fd)
        if message is None:
            asyncio.get_running_loop().remove_reader(self._control)
            self._die("its control socket closed")
        elif self._message is not None and not self._message.done():
            self._message.set_result(message)

    def _gone(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        assert self._process is not None
        self._process.wait()
        self._ended.set()
        self._die(f"its process ended with status {self._process.returncode}")

    def _die(self, why: str) -> None:
        if self.dead is None:
            self.dead = why
            if self._message is not None and not self._message.done():
                self._message.set_exception(EOFError(why))
            self.on_death(self)

    def _why(self, error: BaseException) -> str:
        log = os.pread(self._log, 2000, 0).decode("utf-8", "backslashreplace").strip()
        return log or str(error) or type(error).__name__

    async def spawn(self, limits: dict[str, Any], fds: Sequence[int]) -> None:
        """Order a session; its first process answers on its own socket. Raises SandboxError."""
        while True:
            if self.dead is not None or self._control is None:
                raise SandboxError(f"the zygote is dead: {self.dead}")
            try:
                wire.send(self._control, {"limits": limits}, fds)
                return
            except BlockingIOError:
                await asyncio.sleep(0.001)  # the socket is full of orders
            except OSError as error:
                self._die(f"it does not listen: {error}")

    async def close(self) -> None:
        """End the zygote and all its sessions, and wait for it."""
        self._die("closed")
        loop = asyncio.get_running_loop()
        if self._control is not None:
            loop.remove_reader(self._control)
            self._control.close()
            self._control = None
        if self._process is not None:
            try:
                await asyncio.wait_for(self._ended.wait(), _END_S)
            except TimeoutError:
                self._kill()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ended.wait(), _END_S)
            self._process = None
        if self.family is not None:
            self.family.remove_now()
        if self.block is not None:
            self.block.close()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _kill(self) -> None:
        assert self._process is not None
        # Where there is a janitor it passes the signal on and cleans up.
        janitor = self.family is not None or self.block is not None
        number = signal.SIGTERM if janitor else signal.SIGKILL
        self._process.send_signal(number)

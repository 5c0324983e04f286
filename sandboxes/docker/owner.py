"""Whose a container is, and the removal of those whose owner is dead.

A container ends by itself when its owner does: its input ends. This is the second line, for what a
crash of the daemon or of the machine left.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping

import psutil

from agentrl.errors import SandboxError
from sandboxes.docker.engine import Engine

LABEL = "agentrl"
_OWNER = "agentrl.owner"
_STALE_S = 600.0
_BOOT = "/proc/sys/kernel/random/boot_id"
_STAT = "/proc/{pid}/stat"


def labels() -> dict[str, str]:
    """What marks a container as this process's."""
    return {LABEL: "1", _OWNER: f"{_place()} | {os.getpid()} {_begun(os.getpid())}"}


def _place() -> str:
    """The boot and the process namespace in which a process id means this process."""
    try:
        with open(_BOOT) as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux, where containers are in a virtual machine
        return platform.node()


def _begun(pid: int) -> str:
    """When a process began, in ticks since boot or as its start's time; "" if there is none."""
    try:
        with open(_STAT.format(pid=pid), "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except OSError:
        pass
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return ""


def abandoned(marks: Mapping[str, str], state: str, created: float) -> bool:
    """Whether a container with these labels has no owner any longer.

    Of one whose owner cannot be seen from here (another machine, another process namespace) that is
    known only if it has not been running for a while.
    """
    place, _, process = marks.get(_OWNER, "").partition(" | ")
    if place == _place():
        pid, _, begun = process.partition(" ")
        return not pid.isdigit() or _begun(int(pid)) != begun
    return state != "running" and time.time() - created > _STALE_S


async def reap(engine: Engine) -> int:
    """Remove abandoned containers; how many."""
    removed = 0
    for one in await engine.owned(f"{LABEL}=1"):
        if abandoned(one.get("Labels") or {}, one["State"], one["Created"]):
            with contextlib.suppress(SandboxError, TimeoutError):
                await engine.remove(one["Id"])
                removed += 1
    return removed

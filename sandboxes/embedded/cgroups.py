"""Memory limits by the kernel's control groups, version 1 or 2, where they may be written."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import secrets
import subprocess
from dataclasses import dataclass

_REMOVE_TRIES = 50


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A directory in which control groups can be made: `version` 1 or 2."""

    version: int
    path: str


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def _own(controller: str) -> str:
    """This process's group in a hierarchy ("" is version 2's)."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if (not controller and not names) or controller in names.split(","):
            return path
    return "/"


def _mounted() -> list[Hierarchy]:
    """Where the memory controller may be, version 2 first."""
    found = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.split(None, 2)
            where = left.split()[4]
            if kind == "cgroup2":
                found.append(Hierarchy(2, where))
            elif kind == "cgroup" and "memory" in options.strip().split(","):
                found.append(Hierarchy(1, where))
    return sorted(found, key=lambda h: -h.version)


def _places(hierarchy: Hierarchy) -> list[Hierarchy]:
    """Beside this process's own group, then (version 2) in it."""
    own = _own("memory" if hierarchy.version == 1 else "")
    beside = os.path.normpath(hierarchy.path + os.path.dirname(own))
    places = [beside]
    if hierarchy.version == 2:
        places.append(os.path.normpath(hierarchy.path + own))
    return [Hierarchy(hierarchy.version, p) for p in dict.fromkeys(places) if os.path.isdir(p)]


def detect() -> tuple[Hierarchy | None, str]:
    """Where groups can really be made and limited, or None and the reason."""
    reasons = []
    try:
        mounted = _mounted()
    except OSError as error:
        return None, str(error)
    for place in (p for h in mounted for p in _places(h)):
        try:
            family = Family(place)
        except OSError as error:
            reasons.append(f"{place.path}: {error.strerror}")
            continue
        try:
            _try(family)
            return place, ""
        except OSError as error:
            reasons.append(f"{place.path}: {error.strerror}")
        finally:
            family.remove_now()
    return None, "; ".join(reasons) or "no memory controller is mounted"


def _try(family: Family) -> None:
    """Let a process without rights put itself in a group, for a trial. Raises OSError."""
    group = family.group(64 << 20, 16)
    user = 65534 if os.geteuid() == 0 else None
    entrance = group.entrance()
    try:
        command = ["sh", "-c", "echo 0"]
        done = subprocess.run(command, stdout=entrance, stderr=subprocess.DEVNULL, user=user)
        if done.returncode != 0:
            raise PermissionError(errno.EPERM, "a process cannot put itself in (old kernel?)")
    finally:
        os.close(entrance)
        group.remove_now()


class Family:
    """The parent of one jail's groups. Raises OSError where it cannot be made."""

    def __init__(self, place: Hierarchy) -> None:
        self.version = place.version
        self.path = f"{place.path}/agentrl-{os.getpid()}-{secrets.token_hex(4)}"
        self._numbers = itertools.count(1)
        os.mkdir(self.path)
        if self.version == 2:
            try:
                _write(f"{self.path}/cgroup.subtree_control", "+memory +pids")
            except OSError:
                self.remove_now()
                raise

    def group(self, memory_bytes: int, pids: int) -> Group:
        """A new group with limits. Raises OSError."""
        path = f"{self.path}/{next(self._numbers)}"
        os.mkdir(path)
        group = Group(path, self.version)
        try:
            group.limit(memory_bytes, pids)
        except OSError:
            group.remove_now()
            raise
        return group

    def remove_now(self) -> None:
        """Remove the directory if it is empty."""
        try:
            os.rmdir(self.path)
        except OSError:
            pass


class Group:
    """One session's control group."""

    def __init__(self, path: str, version: int) -> None:
        self.path = path
        self.version = version

    def limit(self, memory_bytes: int, pids: int) -> None:
        """Set the limits. Raises OSError."""
        if self.version == 2:
            _write(f"{self.path}/memory.max", str(memory_bytes))
            _write(f"{self.path}/pids.max", str(pids + 2))
            self._no_swap("memory.swap.max", "0")
        else:
            _write(f"{self.path}/memory.limit_in_bytes", str(memory_bytes))
            self._no_swap("memory.memsw.limit_in_bytes", str(memory_bytes))

    def _no_swap(self, name: str, value: str) -> None:
        try:
            _write(f"{self.path}/{name}", value)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise

    def entrance(self) -> int:
        """A descriptor through which a process that may not open it puts itself in, by writing
        "0" (the kernel asks who opened it). Raises OSError."""
        return os.open(f"{self.path}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)

    def oom_kills(self) -> int:
        """How many processes the kernel killed here for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        try:
            for line in _read(f"{self.path}/{name}").splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
        except (OSError, ValueError):
            pass
        return 0

    def peak_mb(self) -> float | None:
        """The most memory used so far, MiB."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        try:
            return int(_read(f"{self.path}/{name}")) / (1 << 20)
        except (OSError, ValueError):
            return None

    def remove_now(self) -> bool:
        """Remove the group; False if processes are still in it."""
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    async def remove(self) -> None:
        """Remove the group as soon as its last process is gone (the jail's janitor is the last
        resort)."""
        for _ in range(_REMOVE_TRIES):
            if self.remove_now():
                return
            await asyncio.sleep(0.005)

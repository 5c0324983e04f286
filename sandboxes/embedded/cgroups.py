"""Limits by the kernel's control groups, version 1 or 2, where they may be written.

Version 2 limits memory and processes and counts CPU. In version 1 the CPU is counted in a hierarchy
of its own, which sessions enter only when they are old enough for it to matter: a second group for
each would cost more than most sessions run.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import subprocess
import time
from dataclasses import dataclass

from sandboxes.embedded import tree

_REMOVE_TRIES = 400
_MOVE_TRIES = 100
_NEEDED = ("memory", "pids")  # controllers of version 2; the CPU is always counted


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A directory in which control groups can be made: `version` 1 or 2. `cpu` is the one that
    counts CPU time in version 1, "" if there is none."""

    version: int
    path: str
    cpu: str = ""


def _mkdir(path: str) -> None:
    os.mkdir(path)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.read(fd, 4096)
        if len(data) > 1000:  # the kernel gives long files in parts
            while more := os.read(fd, 1 << 16):
                data += more
        return data.decode()
    finally:
        os.close(fd)


def _own(controller: str) -> str:
    """This process's group in a hierarchy ("" is version 2's)."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if (not controller and not names) or controller in names.split(","):
            return path
    return "/"


def _mounted() -> list[tuple[int, str, str]]:
    """(version, controller, where it is mounted) of what may be used, version 2 first."""
    found = []
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(None, 2)
        where = left.split()[4]
        if kind == "cgroup2":
            found.append((2, "", where))
        elif kind == "cgroup":
            names = options.strip().split(",")
            found += [(1, name, where) for name in ("memory", "cpuacct") if name in names]
    return sorted(found, key=lambda one: -one[0])


def _places() -> list[Hierarchy]:
    """Beside this process's own group, then (version 2) in it."""
    mounted = _mounted()
    cpu = next((w + os.path.dirname(_own("cpuacct")) for _, n, w in mounted if n == "cpuacct"), "")
    places = []
    for version, name, where in mounted:
        if name == "cpuacct":
            continue
        own = os.path.normpath(where + _own(name))
        beside = where if own == where else os.path.dirname(own)
        for path in dict.fromkeys([beside, own] if version == 2 else [beside]):
            counts = os.path.normpath(cpu) if cpu and version == 1 else ""
            places.append(Hierarchy(version, path, counts))
    return [p for p in places if os.path.isdir(p.path)]


def detect() -> tuple[Hierarchy | None, str]:
    """Where groups can really be made and limited, or None and the reason."""
    reasons = []
    try:
        places = _places()
    except OSError as error:
        return None, str(error)
    for place in places:
        try:
            _try(place)
            return place, ""
        except OSError as error:
            reasons.append(f"{place.path}: {error.strerror}")
    return None, "; ".join(reasons) or "no memory controller is mounted"


def _try(place: Hierarchy) -> None:
    """Let a process without rights put itself in a group, for a trial. Raises OSError."""
    if place.version == 2:
        _delegate(place.path)
    family = Family(place)
    try:
        group = family.group(64 << 20, 16)
        try:
            entrance = group.entrance()
            try:
                _enter(entrance)
            finally:
                os.close(entrance)
        finally:
            group.remove_now()
    finally:
        family.remove_now()


def _enter(entrance: int) -> None:
    user = 65534 if os.geteuid() == 0 else None
    command = ["sh", "-c", "echo 0"]
    done = subprocess.run(command, stdout=entrance, stderr=subprocess.DEVNULL, user=user)
    if done.returncode != 0:
        raise PermissionError(errno.EPERM, "a process cannot put itself in (old kernel?)")


def _delegate(path: str) -> None:
    """Give the groups below `path` the controllers they need (version 2). Raises OSError."""
    missing = set(_NEEDED) - set(_read(f"{path}/cgroup.subtree_control").split())
    if not missing:
        return
    absent = missing - set(_read(f"{path}/cgroup.controllers").split())
    if absent:
        raise OSError(errno.ENODEV, f"no controller {' and '.join(sorted(absent))} here")
    order = " ".join(f"+{name}" for name in sorted(missing))
    try:
        _write(f"{path}/cgroup.subtree_control", order)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _clear(path)  # what holds processes cannot give controllers on
        _write(f"{path}/cgroup.subtree_control", order)


def _clear(path: str) -> None:
    """Move this process and those below it from a group into a leaf of it. Raises OSError if there
    are others, which are not ours to move."""
    inside = _pids(path)
    ours = {os.getpid(), *tree.below(os.getpid())}
    if not inside <= ours:
        raise OSError(
            errno.EBUSY,
            "other processes are in this group, too: start this one in a group of its own "
            "(systemd-run --scope -p Delegate=yes ...)",
        )
    leaf = f"{path}/agentrl-host-{os.getpid()}"
    _mkdir(leaf)
    for pid in inside:
        with contextlib.suppress(ProcessLookupError):
            _write(f"{leaf}/cgroup.procs", str(pid))


class Family:
    """The parent of one jail's groups. Raises OSError where it cannot be made."""

    def __init__(self, place: Hierarchy) -> None:
        self.version = place.version
        self._numbers = itertools.count(1)
        name = f"agentrl-{os.getpid()}-{secrets.token_hex(4)}"
        self.path = f"{place.path}/{name}"
        self.paths = [self.path, *([f"{place.cpu}/{name}"] if place.cpu else [])]
        try:
            for path in self.paths:
                _mkdir(path)
            if self.version == 2:
                _delegate(self.path)
        except OSError:
            self.remove_now()
            raise

    def group(self, memory_bytes: int, pids: int) -> Group:
        """A new group with limits. Raises OSError."""
        number = next(self._numbers)
        cpu = f"{self.paths[1]}/{number}" if len(self.paths) > 1 else ""
        group = Group(f"{self.path}/{number}", self.version, cpu)
        try:
            group.make(memory_bytes, pids)
        except OSError:
            group.remove_now()
            raise
        return group

    def remove_now(self) -> None:
        """Remove the directories that are empty."""
        for path in self.paths:
            try:
                os.rmdir(path)
            except OSError:
                pass


class Group:
    """One session's control group. `cpu` is where, in version 1, its CPU time can be counted."""

    def __init__(self, path: str, version: int, cpu: str = "") -> None:
        self.path = path
        self.version = version
        self._cpu = cpu
        self._counted_before: float | None = None  # seconds, before `cpu` was made

    def make(self, memory_bytes: int, pids: int) -> None:
        """Make it and set the limits. Raises OSError."""
        _mkdir(self.path)
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
        return _field(f"{self.path}/{name}", "oom_kill") or 0

    def cpu_s(self) -> float | None:
        """CPU time of all its processes so far, seconds; None where it is not counted."""
        if self.version == 2:
            used = _field(f"{self.path}/cpu.stat", "usage_usec")
            return None if used is None else used / 1e6
        if self._counted_before is None:
            return None
        nanoseconds = _number(f"{self._cpu}/cpuacct.usage")
        return None if nanoseconds is None else self._counted_before + nanoseconds / 1e9

    def count_cpu(self, spent_s: float) -> None:
        """Count from now on (version 1); until now it was `spent_s` seconds. If that is not
        possible, `cpu_s` stays None."""
        if not self._cpu or self._counted_before is not None:
            return
        self._counted_before = spent_s
        try:
            _mkdir(self._cpu)
            for _ in range(_MOVE_TRIES):  # what is forked meanwhile is where its parent was
                left = _pids(self.path) - _pids(self._cpu)
                if not left:
                    return
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        _write(f"{self._cpu}/cgroup.procs", str(pid))
        except OSError:
            self._counted_before = None

    def peak_mb(self) -> float | None:
        """The most memory used so far, MiB."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        peak = _number(f"{self.path}/{name}")
        return None if peak is None else peak / (1 << 20)

    def remove_now(self) -> bool:
        """Remove the group; False if processes are still in it."""
        for path in (self._cpu, self.path) if self._counted_before is not None else (self.path,):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError:
                return False
        return True

    def remove(self) -> None:
        """Remove the group as soon as its last process is gone (the jail's janitor is the last
        resort). Takes milliseconds while the kernel is busy with other groups."""
        for _ in range(_REMOVE_TRIES):
            if self.remove_now():
                return
            time.sleep(0.005)


def _pids(path: str) -> set[int]:
    """The processes in a group."""
    return {int(pid) for pid in _read(f"{path}/cgroup.procs").split()}


def _number(path: str) -> int | None:
    """The number that is all of a file; None if it cannot be read."""
    try:
        return int(_read(path))
    except (OSError, ValueError):
        return None


def _field(path: str, name: str) -> int | None:
    """The number after `name` in a file of such lines; None if it cannot be read."""
    try:
        for line in _read(path).splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return None

"""What the kernel says of a session's interpreter from outside, and whether that can be carried.

Nothing here is read from the process's own memory: what runs in it cannot lie about it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from sandboxes.embedded.handle import Handle
from sandboxes.embedded.memory import Odd

_ALIKE = (
    "Uid", "Gid", "Groups", "NStgid", "NSpid", "NSpgid", "NSsid", "CapInh", "CapPrm", "CapEff",
    "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "THP_enabled",
    "Speculation_Store_Bypass", "SpeculationIndirectBranch", "x86_Thread_features",
    "x86_Thread_features_locked",
)  # fmt: skip
_INNERMOST = ("NStgid", "NSpid", "NSpgid", "NSsid")
_SIGNALS = {"SigIgn": "ignores other signals", "SigCgt": "handles other signals"}
_PENDING = ("SigPnd", "ShdPnd")
_PRIORITIES = (15, 16, 37, 38)  # priority, nice, rt_priority, policy
_MOST_FDS = 1024
_PROCESSES = 2  # the first one, and the interpreter


@dataclass(frozen=True, slots=True)
class Traits:
    """What must be the same in two sessions for one to take the other's place."""

    status: tuple[tuple[str, str], ...]
    signals: tuple[tuple[str, str], ...]
    limits: str
    priorities: tuple[str, ...]
    descriptors: tuple[tuple[int, str, str], ...]


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(1 << 16)


def _status(pid: int) -> dict[str, str]:
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def alone(handle: Handle) -> None:
    """Raises Odd unless the interpreter is all that runs in the session, on one thread, and nothing
    will happen to it that it does not do itself."""
    pid = handle.worker_pid
    status = _status(pid)
    if status.get("Threads") != "1":
        raise Odd("it has more than one thread")
    # The session's own /proc, which has all that is in its namespace: a list of children may lack
    # some while others end.
    if sum(name.isdigit() for name in os.listdir(f"/proc/{handle.pid}/root/proc")) != _PROCESSES:
        raise Odd("other processes run in the session")
    if any(int(status[name], 16) for name in _PENDING):
        raise Odd("a signal waits for it")
    if _read(f"/proc/{pid}/timers"):
        raise Odd("it has timers")


def traits(handle: Handle) -> Traits:
    """Those of a session's interpreter. Raises Odd for descriptors without end."""
    pid = handle.worker_pid
    status = _status(pid)
    kept = {name: status.get(name, "") for name in _ALIKE}
    for name in _INNERMOST:
        kept[name] = kept[name].split()[-1]
    stat = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return Traits(
        tuple(kept.items()),
        tuple((name, status[name]) for name in _SIGNALS),
        _read(f"/proc/{pid}/limits"),
        tuple(stat[n] for n in _PRIORITIES),
        _descriptors(handle),
    )


def _descriptors(handle: Handle) -> tuple[tuple[int, str, str], ...]:
    """(number, what it is, flags) of each; the session's own pipes have names of their own."""
    pid = handle.worker_pid
    names = {
        f"pipe:[{os.fstat(handle.stdout).st_ino}]": "stdout",
        f"pipe:[{os.fstat(handle.stderr).st_ino}]": "stderr",
    }
    found = []
    numbers = os.listdir(f"/proc/{pid}/fd")
    if len(numbers) > _MOST_FDS:
        raise Odd("it has too many descriptors open")
    for number in sorted(map(int, numbers)):
        link = os.readlink(f"/proc/{pid}/fd/{number}")
        name = "socket" if link.startswith("socket:[") else names.get(link, link)
        flags = _read(f"/proc/{pid}/fdinfo/{number}").partition("flags:")[2].split()[0]
        found.append((number, name, flags))
    return tuple(found)


def compare(now: Traits, fresh: Traits) -> None:
    """Raises Odd where a session is no longer as a fresh one is, in what is not carried."""
    for number, name, _ in sorted(set(now.descriptors) - set(fresh.descriptors)):
        raise Odd(f"descriptor {number} is open or changed ({name[:80]})")
    if now.descriptors != fresh.descriptors:
        raise Odd("descriptors that it began with are closed")
    for (name, value), (_, usual) in zip(now.signals, fresh.signals, strict=True):
        if value != usual:
            raise Odd(f"it {_SIGNALS[name]} than at its start")
    if now.limits != fresh.limits:
        raise Odd("it changed its resource limits")
    if now.priorities != fresh.priorities:
        raise Odd("it changed its priority")
    for (name, value), (_, usual) in zip(now.status, fresh.status, strict=True):
        if value != usual:
            raise Odd(f"the kernel's {name} of it is {value[:40]!r}, not {usual[:40]!r}")


def place(handle: Handle) -> tuple[str, int]:
    """Its working directory and its umask."""
    pid = handle.worker_pid
    cwd = os.readlink(f"/proc/{pid}/cwd")
    if cwd.endswith(" (deleted)"):
        raise Odd("its working directory was removed")
    return cwd, int(_status(pid)["Umask"], 8)

"""Processes below a process, as the host's /proc shows them."""

from __future__ import annotations

import contextlib
import os


def _parents() -> dict[int, int]:
    """The parent of every process that can be seen."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    return parents


def below(pid: int) -> list[int]:
    """Process ids below `pid`, parents before their children."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def kill_below(pid: int) -> None:
    """Kill every process below `pid` (the tier without isolation has no better way)."""
    for _ in range(20):
        found = below(pid)
        if not found:
            return
        for child in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, 9)


def memory_mb(pid: int) -> float:
    """The proportional memory of `pid` and all below it, MiB; shared pages count once."""
    total = 0
    for one in [pid, *below(pid)]:
        try:
            with open(f"/proc/{one}/smaps_rollup") as file:
                for line in file:
                    if line.startswith("Pss:"):
                        total += int(line.split()[1])
                        break
        except OSError:
            continue
    return total / 1024


def cpu_s(pid: int) -> float:
    """CPU seconds of `pid`, of all below it, and of those of their children that they waited for.

    What nobody waited for is lost: control groups count better.
    """
    ticks = 0
    for one in [pid, *below(pid)]:
        with contextlib.suppress(OSError), open(f"/proc/{one}/stat", "rb") as file:
            ticks += sum(int(n) for n in file.read().rpartition(b")")[2].split()[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")

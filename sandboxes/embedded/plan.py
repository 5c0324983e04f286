"""The limits of a session in the words of the code inside the jail."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.errors import ConfigError, unknown
from agentrl.types import Limits

_FIELDS = tuple(f.name for f in dataclasses.fields(Limits))
_LEAST = {"wall_s": 0, "cpu_s": 0, "memory_mb": 8, "files": 8}  # 1 of everything else
_MOST = 1 << 40  # what the kernel takes of any


def limits_of(
    base: Limits | None, changes: Mapping[str, Any], taker: Callable[..., Any] | None = None
) -> Limits:
    """`base` (the defaults if None) with `changes`, which is what the backend's `taker` was given
    besides options of its own.

    Raises ConfigError on an unknown name or a value that cannot be.
    """
    for name in changes:
        if name not in _FIELDS:
            raise unknown("sandbox option", name, (*_FIELDS, *_options(taker)))
    limits = dataclasses.replace(base or Limits(), **changes)
    for name in _FIELDS:
        value = getattr(limits, name)
        least = _LEAST.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ConfigError(f"sandbox limit {name} must be a number above 0, not {value!r}")
        if not least <= value <= _MOST:
            raise ConfigError(f"sandbox limit {name} must be {least} to 2**40, not {value!r}")
    return limits


def _options(taker: Callable[..., Any] | None) -> list[str]:
    found = inspect.signature(taker).parameters.values() if taker else ()
    return [one.name for one in found if one.kind is one.KEYWORD_ONLY]


def display_bytes(limits: Limits) -> int:
    """The most that one cell may display: what may be downloaded, and what a process may write."""
    return int(min(limits.download_bytes, limits.disk_mb * (1 << 20)))


def order_of(
    limits: Limits, *, cgroup: bool, work: str, warm: bool, uid: int | None
) -> dict[str, Any]:
    """What the zygote is told about a session: its limits, its directory `work`, whether it is to
    warm up before it is ready, and its user if it has one of its own."""
    return {
        "memory_bytes": int(limits.memory_mb * (1 << 20)),
        "disk_bytes": int(limits.disk_mb * (1 << 20)),
        "inodes": int(limits.inodes),
        "pids": int(limits.pids),
        "files": int(limits.files),
        "cpu_s": math.ceil(limits.cpu_s),
        "value_chars": int(limits.value_chars),
        "display_bytes": display_bytes(limits),
        "cgroup": cgroup,
        "work": work,
        "warm": warm,
        "uid": uid,
    }

"""What callers pass to a session, checked and put into the form that travels."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from math import inf
from typing import Any

from agentrl.errors import ConfigError
from agentrl.types import Limits
from sandboxes.embedded.inside import wire

_WORK = "/work/"
_DEPTH = 64


def memfd(data: bytes) -> int:
    """A descriptor of a memory file that holds `data`, to be read from its start."""
    fd = os.memfd_create("agentrl", os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def close_all(fds: Sequence[int]) -> None:
    """Close every descriptor."""
    for fd in fds:
        os.close(fd)


def names(path: str) -> list[str]:
    """The parts of a path below /work. Raises ValueError for any other path."""
    below = path.removeprefix(_WORK)
    parts = [n for n in below.split("/") if n not in ("", ".")]
    try:
        sizes = [len(n.encode()) for n in parts]
    except UnicodeEncodeError:
        sizes = [256]
    if below.startswith("/") or ".." in parts or "\0" in below or not parts:
        raise ValueError(f"not a path below /work: {path[:200]!r}")
    if max(sizes) > 255 or sum(sizes) > 2048 or len(parts) > _DEPTH:
        raise ValueError(f"path too long or not text: {path[:200]!r}")
    return parts


def wall_s(timeout: float | None, limits: Limits) -> float:
    """The seconds that an execution has. Raises ConfigError for what is no positive number."""
    if timeout is None:
        return limits.wall_s
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < inf:
        raise ConfigError(f"timeout must be a number of seconds above 0, not {timeout!r}")
    return timeout


def file_error(answer: dict[str, Any], path: str) -> Exception:
    """The exception for a file that could not be read or written."""
    number = answer["errno"]
    if number in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO, None):
        return ValueError(f"{path!r} is or passes through what is no file or directory: no links")
    return OSError(number, answer["message"], path)


def checked(argv: Sequence[str]) -> list[str]:
    """Arguments that a process can be given. Raises ValueError."""
    if isinstance(argv, str) or not all(isinstance(a, str) and "\0" not in a for a in argv):
        raise ValueError("argv must be a sequence of strings without NUL")
    if len(wire.encode({"argv": list(argv)})) > wire.MESSAGE_BYTES - 1024:
        raise ValueError("argv is too long; use stdin or a file")
    return list(argv)

"""Writing the files of another session into this one, before any foreign code runs in it."""

from __future__ import annotations

import os
from typing import Any

from . import files, wire


def unpack(source: int) -> int:
    """Make the files that descriptor `source` describes; how many. Raises OSError."""
    size = int.from_bytes(os.read(source, 8), "little")
    data = b""
    while len(data) < size and (chunk := os.read(source, size - len(data))):
        data += chunk
    index = wire.decode(data)["index"]
    for path, kind, mode, _, length, text in index:
        if kind == "dir":
            os.makedirs(path, 0o700, exist_ok=True)
        elif kind == "link":
            os.symlink(text, path)
        elif kind == "same":
            os.link(text, path, follow_symlinks=False)
        else:
            _file(source, path, mode, length)
    for entry in reversed(index):  # what is in a directory before the directory
        _finish(*entry)
    return len(index)


def _file(source: int, path: str, mode: int, length: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        files.copy(source, fd, length)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _finish(path: str, kind: str, mode: int, changed: int, *_: Any) -> None:
    if kind != "same":
        os.utime(path, ns=(changed, changed), follow_symlinks=False)
    if kind == "dir":
        os.chmod(path, mode)

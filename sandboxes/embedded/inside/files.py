"""Reading and writing the session's files. Never follows a link and never leaves the root."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

_CHUNK = 1 << 20


def _parent(root: str, names: Sequence[str], *, create: bool) -> int:
    """A descriptor of the directory that holds the last of `names`."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for name in names[:-1]:
        try:
            if create:
                try:
                    os.mkdir(name, 0o755, dir_fd=fd)
                except FileExistsError:
                    pass
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def copy(source: int, target: int, size: int) -> int:
    done = 0
    while done < size:
        chunk = os.read(source, min(_CHUNK, size - done))
        if not chunk:
            break
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]
        done += len(chunk)
    return done


def write(root: str, names: Sequence[str], data: int) -> int:
    """Write what descriptor `data` holds to the file, making directories. Raises OSError."""
    parent = _parent(root, names, create=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(names[-1], flags, 0o644, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError("not a regular file")
        os.ftruncate(fd, 0)
        return copy(data, fd, os.fstat(data).st_size)
    finally:
        os.close(fd)


def read(root: str, names: Sequence[str], target: int, most: int) -> int:
    """Copy the file to descriptor `target`; its size. A file above `most` bytes is not copied."""
    parent = _parent(root, names, create=False)
    try:
        fd = os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=parent)
    finally:
        os.close(parent)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        if found.st_size > most:
            return found.st_size
        return copy(fd, target, most)
    finally:
        os.close(fd)


def objects() -> int:
    """How many System V queues, semaphores and memory segments there are in the session."""
    found = 0
    for kind in ("msg", "sem", "shm"):
        with open(f"/proc/sysvipc/{kind}", "rb") as file:
            found += len(file.read(1 << 16).splitlines()) - 1  # a line says what the columns are
    return found

"""The files of a session, read from outside: no link is followed, nothing is opened that waits."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Any

from sandboxes.embedded.inside import wire
from sandboxes.embedded.memory import Odd

ROOTS = {"/work": 0o755, "/tmp": 0o1777, "/dev/shm": 0o1777}
"""Directories that a session has for itself, with the modes that they begin with."""

_DEPTH = 64
_CHUNK = 1 << 20


@dataclass(slots=True)
class Parcel:
    """`index` has an entry for each file: its path, kind (`dir`, `file`, `link`: symbolic, `same`:
    another name of the file at `text`), mode, time of change (ns), size in `data`, and text (where
    a link points). Directories stand before what is in them."""

    index: list[tuple[str, str, int, int, int, str]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)

    def message(self) -> bytes:
        """What `inside.parcel.unpack` reads."""
        index = wire.encode({"index": self.index})
        return len(index).to_bytes(8, "little") + index + self.data


def collect(pid: int, most: int) -> Parcel:
    """The files of the session that has process `pid`, whose processes are stopped.

    Raises Odd for more than `most` bytes, or what cannot be carried.
    """
    packing = _Packing(Parcel(), most)
    for root, mode in ROOTS.items():
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(f"/proc/{pid}/root{root}", flags)
        try:
            now = os.fstat(fd)
            if (found := stat.S_IMODE(now.st_mode)) != mode:
                packing.parcel.index.append((root, "dir", found, now.st_mtime_ns, 0, ""))
            packing.folder(fd, root, 0)
        except OSError as error:
            raise Odd(f"files below {root} cannot be read ({error.strerror})") from error
        finally:
            os.close(fd)
    return packing.parcel


@dataclass(slots=True)
class _Packing:
    parcel: Parcel
    most: int
    names: dict[tuple[int, int], str] = field(default_factory=dict)

    def folder(self, fd: int, path: str, depth: int) -> None:
        """Add what is in an open directory."""
        if depth > _DEPTH:
            raise Odd(f"its directories are more than {_DEPTH} deep")
        self._attributes(fd)
        for name in sorted(os.listdir(fd)):
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            self._entry(fd, name, f"{path}/{name}", found, depth)

    def _entry(self, fd: int, name: str, path: str, found: os.stat_result, depth: int) -> None:
        kind, text, size = "same", "", 0
        self._count(len(path))
        where = (found.st_dev, found.st_ino)
        if where in self.names:
            text = self.names[where]
        elif stat.S_ISDIR(found.st_mode):
            kind = "dir"
        elif stat.S_ISLNK(found.st_mode):
            kind, text = "link", os.readlink(name, dir_fd=fd)
        elif stat.S_ISREG(found.st_mode):
            kind, size = "file", found.st_size
        else:
            raise Odd(f"{path[:80]!r} is neither file, directory nor link")
        if found.st_nlink > 1 and kind in ("link", "file"):
            self.names[where] = path
        entry: Any = (path, kind, stat.S_IMODE(found.st_mode), found.st_mtime_ns, size, text)
        self.parcel.index.append(entry)
        if kind == "file":
            self._content(fd, name, size)
        elif kind == "dir":
            below = self._open(fd, name, os.O_DIRECTORY)
            try:
                self.folder(below, path, depth + 1)
            finally:
                os.close(below)

    def _count(self, size: int) -> None:
        self.most -= size
        if self.most < 0:
            raise Odd("its files and memory hold too much")

    def _open(self, fd: int, name: str, flags: int = 0) -> int:
        flags |= os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=fd)

    def _content(self, fd: int, name: str, size: int) -> None:
        self._count(size)
        file = self._open(fd, name)
        try:
            self._attributes(file)
            while size:
                chunk = os.read(file, min(size, _CHUNK))
                if not chunk:
                    raise Odd("a file changes while it is read")
                self.parcel.data += chunk
                size -= len(chunk)
        finally:
            os.close(file)

    def _attributes(self, fd: int) -> None:
        try:
            names = os.listxattr(fd)
        except OSError:  # a file system without
            return
        if names:
            raise Odd(f"a file has extended attributes ({names[0][:40]})")

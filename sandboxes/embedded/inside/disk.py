"""Tier `uid`: how much a session has on the disk, for which the kernel has no limit there."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from . import cleaner, kernel


class Disk:
    """Watches how much a session's directory holds, and the removed files that it has open.

    What a session writes between two looks is not limited, nor are removed files of processes that
    hide from inspection (PR_SET_DUMPABLE), but for the size of each.
    """

    INTERVAL_S = 0.25

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self.path = limits["work"]
        self.uid = limits["uid"]
        self.most_bytes = limits["disk_bytes"]
        self.most_files = limits["inodes"]
        self.next = 0.0
        self.last: tuple[int, int] | None = None

    def wait_ms(self) -> int:
        """How long until the next look."""
        return max(0, int((self.next - time.monotonic()) * 1000) + 1)

    def over(self) -> str | None:
        """What there is too much of, if it is time to look and the disk has changed at all."""
        now = time.monotonic()
        if now < self.next:
            return None
        self.next = now + self.INTERVAL_S
        disk = os.statvfs(self.path)
        if (disk.f_bfree, disk.f_ffree) == self.last:
            return None
        self.last = (disk.f_bfree, disk.f_ffree)
        size, files = self._removed()
        kernel.set_file_user(0)  # what the code made unreadable counts as well
        try:
            return self._count(size, files)
        except OSError as error:
            return f"files that cannot be counted ({error.strerror})"
        finally:
            kernel.set_file_user(self.uid)
            kernel.die_with_parent()

    def _removed(self) -> tuple[int, int]:
        """Bytes and number of files that have no name any more, but are open."""
        device = os.stat(self.path).st_dev
        found = {}
        for process in cleaner.processes(self.uid, 1):
            try:
                for fd in os.listdir(f"/proc/{process}/fd"):
                    file = os.stat(f"/proc/{process}/fd/{fd}")
                    if file.st_dev == device and file.st_nlink == 0:
                        found[file.st_ino] = file.st_blocks * 512
            except OSError:
                continue
        return sum(found.values()), len(found)

    def _count(self, size: int, files: int) -> str | None:
        todo = [self.path]
        while todo:
            try:
                entries = list(os.scandir(todo.pop()))
            except (FileNotFoundError, NotADirectoryError):  # gone meanwhile
                continue
            for entry in entries:
                try:
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                except FileNotFoundError:
                    continue
                files += 1
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
            if files > self.most_files:
                return f"more than {self.most_files} files"
            if size > self.most_bytes:
                return f"more than {self.most_bytes} bytes of files"
        return None

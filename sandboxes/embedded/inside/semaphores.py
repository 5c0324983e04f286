"""Tier `uid`: semaphores without /dev/shm, for the locks, queues and pools of multiprocessing.

An event counter takes the place of the C library's named semaphore. Forked processes inherit it;
started otherwise (spawn, forkserver) they could not open it, so that is refused as the kernel
refuses the original.
"""

from __future__ import annotations

import errno
import importlib
import os
import select
import time
from _thread import get_ident
from typing import Any

RECURSIVE = 0  # kind of semaphore; the other is 1


class SemLock:
    """Does what `_multiprocessing.SemLock` does; see Modules/_multiprocessing/semaphore.c."""

    SEM_VALUE_MAX = 0x7FFFFFFF
    name = None

    def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool) -> None:
        if not unlink:
            raise PermissionError(errno.EACCES, "there is no /dev/shm here: use fork", name)
        self.kind = kind
        self.maxvalue = maxvalue
        self.handle = os.eventfd(value, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._depth = 0  # how often this process holds it
        self._owner = 0  # the thread that took it last

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it; False if it could not be had in time."""
        if self.kind == RECURSIVE and self._is_mine():
            self._depth += 1
            return True
        end = None if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            try:
                os.eventfd_read(self.handle)
            except BlockingIOError:
                left = None if end is None else end - time.monotonic()
                if not block or (left is not None and left <= 0):
                    return False
                self._wait(left)
            else:
                self._depth += 1
                self._owner = get_ident()
                return True

    def _wait(self, seconds: float | None) -> bool:
        """Wait until somebody gave it back; False if nobody did."""
        poll = select.poll()
        poll.register(self.handle, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def release(self) -> None:
        """Give it back. Raises what the original does."""
        if self.kind == RECURSIVE:
            if not self._is_mine():
                raise AssertionError("attempt to release recursive lock not owned by thread")
            if self._depth > 1:
                self._depth -= 1
                return
        elif self.maxvalue < self.SEM_VALUE_MAX and self._get_value() >= self.maxvalue:
            raise ValueError("semaphore or lock released too many times")
        os.eventfd_write(self.handle, 1)
        self._depth -= 1

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()

    def _count(self) -> int:
        return self._depth

    def _is_mine(self) -> bool:
        return self._depth > 0 and self._owner == get_ident()

    def _is_zero(self) -> bool:
        return not self._wait(0)

    def _get_value(self) -> int:
        """The counter, by taking all and giving it back: others may find it taken meanwhile."""
        if self.maxvalue == 1 or self._is_zero():
            return int(not self._is_zero())
        taken = 0
        try:
            while True:
                os.eventfd_read(self.handle)
                taken += 1
        except BlockingIOError:
            pass
        if taken:
            os.eventfd_write(self.handle, taken)
        return taken

    def _after_fork(self) -> None:
        self._depth = 0


def install() -> None:
    """Let multiprocessing use it, in this process and those forked from it."""
    module: Any = importlib.import_module("_multiprocessing")
    module.SemLock = SemLock

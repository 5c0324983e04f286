"""Tier `uid`: ends the processes of a session's user, and removes what it left on the disk.

Every session has a user of its own, and a second one (the next number), as which its processes are
killed: they cannot signal that one.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from . import kernel

LEAST_UID = 1000  # below it are the system's users: never killed
_LOOKS = 20


def kill_user(uid: int) -> None:
    """Kill every process of user `uid`, and wait until there is none.

    kill(-1) is atomic against forks: what is about to fork dies first.
    """
    if uid < LEAST_UID:
        raise ValueError(f"not a session's user: {uid}")
    while True:
        killer = kernel.clone(0)
        if killer == 0:
            _kill_all(uid)
        os.waitpid(killer, 0)
        for _ in range(_LOOKS):
            if not users(uid, 1):
                return
            time.sleep(0.001)


def _kill_all(uid: int) -> NoReturn:
    try:
        os.setgroups([])
        os.setresgid(uid + 1, uid + 1, uid + 1)
        os.setresuid(uid + 1, uid, uid + 1)
        os.kill(-1, signal.SIGKILL)
    finally:
        os._exit(0)


def remove(path: str) -> None:
    """Remove a directory and all in it, however deep: directories are moved up, then removed."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    root = os.open(path, flags)
    prefix, serial, todo = os.urandom(8).hex(), 0, ["."]
    while todo:
        name = todo.pop()
        folder = os.open(name, flags, dir_fd=root)
        for entry in os.listdir(folder):
            try:
                os.unlink(entry, dir_fd=folder)
            except IsADirectoryError:
                serial += 1
                moved = f"{prefix}{serial}"
                os.rename(entry, moved, src_dir_fd=folder, dst_dir_fd=root)
                todo.append(moved)
        os.close(folder)
        if name != ".":
            os.rmdir(name, dir_fd=root)
    os.close(root)
    os.rmdir(path)


class Ends:
    """Notices the end of sessions' first processes, and has the rest of each cleaned up.

    Until that is done a copy of the session's `facts` socket stays open: its end tells the host.
    """

    def __init__(self, control: int) -> None:
        self.control = control
        self.sessions: dict[int, tuple[int, str, int]] = {}  # by the first process
        self.cleaners: dict[int, int] = {}  # the socket of the session that each cleans up
        kernel.adopt_orphans()
        self.woken, self.wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        kernel.handle_signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.poll.register(self.woken, select.POLLIN)

    def add(self, pid: int, limits: Mapping[str, Any], facts: int) -> None:
        """Remember a session."""
        self.sessions[pid] = (limits["uid"], limits["work"], os.dup(facts))

    def forget(self) -> None:
        """In a child: close what belongs to other sessions and to the zygote."""
        signal.set_wakeup_fd(-1)
        facts = [fd for _, _, fd in self.sessions.values()]
        for fd in (self.woken, self.wake, *facts, *self.cleaners.values()):
            os.close(fd)

    def wait(self) -> None:
        """Clean up until the host has an order."""
        while True:
            ready = [fd for fd, _ in self.poll.poll()]
            if self.woken in ready:
                os.read(self.woken, 4096)
                self._reap()
            if self.control in ready:
                return

    def _reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.sessions:
                uid, work, facts = self.sessions.pop(pid)
                cleaner = kernel.clone(0)
                if cleaner == 0:
                    self._clean(uid, work, facts)
                self.cleaners[cleaner] = facts
            elif pid in self.cleaners:
                os.close(self.cleaners.pop(pid))

    def _clean(self, uid: int, work: str, facts: int) -> NoReturn:
        try:
            os.close(self.control)
            os.close(facts)
            self.forget()
            kill_user(uid)
            remove(work)
        except FileNotFoundError:  # the session ended before it made its directory
            pass
        finally:
            os._exit(0)


def sweep(first: int, count: int) -> None:
    """End every process of these users, which are in pairs."""
    while found := users(first, count):
        for uid in {u - (u - first) % 2 for u in found}:
            kill_user(uid)


def users(first: int, count: int) -> set[int]:
    """Those of these users that have processes."""
    return set(processes(first, count).values())


def processes(first: int, count: int) -> dict[str, int]:
    """The processes of these users, with their user; ended ones do not count."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                uid = os.stat(f"/proc/{name}").st_uid
                if first <= uid < first + count and not _ended(name):
                    found[name] = uid
            except OSError:
                continue
    return found


def _ended(pid: str) -> bool:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return fields[0] == b"Z" and int(fields[17]) <= 1  # else it has other threads

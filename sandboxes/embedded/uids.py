"""Tier `uid`: which users sessions are, so that no two live ones on this machine are the same."""

from __future__ import annotations

import fcntl
import os
import random
import secrets
import stat
import tempfile
from collections.abc import Mapping
from typing import Any

from agentrl.errors import IsolationError, SandboxError
from sandboxes.embedded.inside import kernel, landlock, owned

# Above the users of `jail.jail_uid`; where user ids are mapped (containers), ids that no
# distribution gives away.
_RANGES = ((1_883_242_496, 2_147_000_000), (20_000, 60_000))
_COUNT = 4096  # two for each session
_TRIES = 100


def why_not() -> str | None:
    """Why sessions cannot be users of their own here; None if they can."""
    if os.geteuid() != 0:
        return "the process is not root"
    has = kernel.capabilities()
    if any(not has & 1 << capability for capability in owned.CAPABILITIES):
        return "root lacks one of CAP_CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID"
    if landlock.abi() < 1:
        return "the kernel has no landlock"
    if _range() is None:
        return "no block of free user ids is mapped here"
    return None


def _range() -> tuple[int, int] | None:
    with open("/proc/self/uid_map") as file:
        maps = [[int(n) for n in line.split()] for line in file]
    for low, high in _RANGES:
        if any(first <= low and high <= first + count for first, _, count in maps):
            return low, high
    return None


def reachable(path: str) -> bool:
    """True if every user can read the file, or look into the directory."""
    path = os.path.realpath(path)
    while True:
        mode = os.stat(path).st_mode
        if not mode & (0o001 if stat.S_ISDIR(mode) else 0o004):
            return False
        if path == "/":
            return True
        path = os.path.dirname(path)


def _private_folder(path: str) -> str:
    """A directory of root's that others cannot write to. Raises OSError."""
    if not os.path.lexists(path):
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o711)  # whatever the umask
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{path} is not a directory that only root can write to")
    return path


def _folder(candidates: tuple[str, ...]) -> str:
    problem: OSError | None = None
    for parent in dict.fromkeys(candidates):
        try:
            if reachable(parent):
                return _private_folder(f"{parent}/agentrl-sessions")
        except OSError as error:
            problem = error
    raise IsolationError(
        f"no directory for sessions' files ({problem or 'other users cannot reach TMPDIR'}): set "
        "TMPDIR to one that root can write to and every user can reach"
    )


class Block:
    """A block of users for the sessions of one zygote, and the directory of their files.

    Blocks are locks on directories, held by this process and by the zygote's janitor: nobody else
    takes the block while one of them lives. Raises IsolationError where none can be had.
    """

    def __init__(self, folder: str | None = None) -> None:
        limits = _range()
        reason = why_not()
        if limits is None or reason is not None:
            raise IsolationError(f"sessions cannot be users of their own: {reason}")
        self.folder = folder or _folder((tempfile.gettempdir(), "/tmp", "/var/tmp"))
        self.count = _COUNT
        self.lock, self.base = self._lock(*limits)
        self.first = int(os.path.basename(self.base))
        self._free = list(range(self.first + _COUNT - 2, self.first - 2, -2))

    def _lock(self, low: int, high: int) -> tuple[int, str]:
        """Blocks that dead hosts left come first, so that what they left is removed."""
        left = [int(name) for name in os.listdir(self.folder) if name.isdecimal()]
        fresh = (random.randrange(low, high - _COUNT, _COUNT) for _ in range(_TRIES))
        for first in (*left, *fresh):
            path = f"{self.folder}/{first}"
            try:
                _private_folder(path)
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except OSError as error:
                raise IsolationError(f"no directory for sessions' files: {error}") from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    return fd, path
            except (BlockingIOError, FileNotFoundError):
                pass
            os.close(fd)
        raise IsolationError(f"{len(left)} blocks of user ids below {self.folder} are all in use")

    def plan(self, links: Mapping[str, str], lock: int) -> dict[str, Any]:
        """What the launcher needs to know: `links` are shown to the sessions in `site`, `lock` is a
        descriptor that it inherits."""
        return {
            "first": self.first,
            "count": self.count,
            "base": self.base,
            "lock": lock,
            "links": dict(links),
        }

    @property
    def site(self) -> str:
        """The directory of links to the profile's packages."""
        return f"{self.base}/site"

    def take(self) -> tuple[int, str]:
        """A user whom no session is, and the path of its directory, which does not exist yet."""
        if not self._free:
            raise SandboxError(f"more than {_COUNT // 2} sessions of one profile at once")
        uid = self._free.pop()
        return uid, f"{self.base}/{uid}-{secrets.token_hex(4)}"

    def give_back(self, uid: int) -> None:
        """Say that the user has no process left."""
        self._free.append(uid)

    def close(self) -> None:
        """Free the block; the zygote has ended. What could not be removed is left for the next."""
        if self.lock >= 0:
            for folder in (self.base, self.folder):
                try:
                    os.rmdir(folder)
                except OSError:  # removed by the janitor, or in use by others
                    pass
            os.close(self.lock)
            self.lock = -1

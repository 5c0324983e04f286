"""The kernel's landlock: what files, ports and neighbours a process and its children may reach.

Sources: landlock(7) and linux/landlock.h. Every failure is an OSError.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from .kernel import _check, _libc

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1
_SCOPES = 0b11  # abstract unix sockets, signals
_SCOPE_ABI = 6
_TCP = 0b11  # bind, connect
_TCP_ABI = 4

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEVICE = 1 << 14, 1 << 15
_ALL_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_MAKE_DEVICES = 1 << 6 | 1 << 11

READ = _EXECUTE | _READ_FILE | _READ_DIR
DEVICE = _READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL_DEVICE
WRITE = (1 << 16) - 1 & ~_MAKE_DEVICES & ~_IOCTL_DEVICE


def _call(number: int, *args: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *args)
    return result


def abi() -> int:
    """The kernel's landlock version, 0 without landlock."""
    return max(_call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION)), 0)


def _create(files: int, ports: int, scopes: int) -> int:
    attributes = struct.pack("QQQ", files, ports, scopes)
    version = abi()
    size = 24 if version >= _SCOPE_ABI else 16 if version >= _TCP_ABI else 8
    fd = _call(_CREATE, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    return _check(fd, "landlock_create_ruleset")


def scope() -> int | None:
    """A ruleset that keeps signals and abstract sockets inside; None if the kernel has none."""
    return _create(0, 0, _SCOPES) if abi() >= _SCOPE_ABI else None


def _handled(version: int) -> int:
    return max(rights for since, rights in _ALL_BY_ABI.items() if since <= version)


def nothing() -> int:
    """A ruleset that allows no file, no port, and no neighbour, as far as this kernel knows them.

    `allow` makes exceptions.
    """
    version = abi()
    ports = _TCP if version >= _TCP_ABI else 0
    return _create(_handled(version), ports, _SCOPES if version >= _SCOPE_ABI else 0)


def allow(ruleset: int, path: int, rights: int) -> None:
    """Allow `rights` on what descriptor `path` names, and below it."""
    if not stat.S_ISDIR(os.fstat(path).st_mode):
        rights &= _ON_FILES
    rule = struct.pack("=Qi", rights & _handled(abi()), path)
    _check(
        _call(
            _ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0)
        ),
        "landlock_add_rule",
    )


def enter(ruleset: int) -> None:
    """Apply a ruleset to this thread and its children."""
    _check(_call(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0)), "landlock_restrict_self")

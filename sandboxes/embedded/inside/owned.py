"""Tier `uid`: the world of a session that has a user and a directory of its own, no namespaces."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from . import kernel, landlock

# What a session may read of the machine, if it is there; the interpreter and packages come on top.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
    "/etc/ld.so.cache", "/etc/alternatives", "/etc/nsswitch.conf", "/etc/localtime",
    "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf",
    "/dev/random", "/dev/urandom",
    "/proc/cpuinfo", "/proc/loadavg", "/proc/meminfo", "/proc/stat", "/proc/uptime",
    "/proc/version",
)  # fmt: skip
_DEVICES = ("/dev/full", "/dev/null", "/dev/zero")
_OWN_PROC = ("comm", "fd", "fdinfo", "limits", "maps", "smaps", "stat", "statm", "status")
CAPABILITIES = (
    kernel.CAP_CHOWN,
    kernel.CAP_DAC_OVERRIDE,
    kernel.CAP_KILL,
    kernel.CAP_SETGID,
    kernel.CAP_SETUID,
)


def open_paths(extra: Sequence[str]) -> list[tuple[int, int]]:
    """Descriptors of what sessions may use besides their own files, and the landlock rights."""
    found = []
    read = [(path, landlock.READ) for path in (*SYSTEM, *extra)]
    for path, rights in (*read, *((path, landlock.DEVICE) for path in _DEVICES)):
        try:
            found.append((os.open(path, os.O_PATH | os.O_CLOEXEC), rights))
        except OSError:
            if path in extra:
                raise
    return found


def build(plan: dict[str, Any], limits: Mapping[str, Any]) -> None:
    """Make the session's directory; from here on this process has its user's rights on files.

    It keeps the privilege to start processes as that user and to kill them.
    """
    work, uid = limits["work"], limits["uid"]
    os.mkdir(work, 0o700)
    os.chown(work, uid, uid)
    ruleset = landlock.nothing()
    for path, rights in plan["paths"]:
        landlock.allow(ruleset, path, rights)
        os.close(path)
    home = os.open(work, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    landlock.allow(ruleset, home, landlock.WRITE)
    os.close(home)
    plan["ruleset"], plan["init"] = ruleset, os.getpid()
    kernel.set_file_user(uid)
    kernel.die_with_parent()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["disk_bytes"],) * 2)
    kernel.no_new_privileges()
    kernel.install_seccomp(plan["seccomp"])
    os.environ["HOME"] = os.environ["TMPDIR"] = work
    sys.path[0] = work


def confine(plan: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
    """Become the session's user, who may do nothing but with its own files."""
    for name in _OWN_PROC:
        path = os.open(f"/proc/self/{name}", os.O_PATH)
        landlock.allow(plan["ruleset"], path, landlock.READ)
        os.close(path)
    if kernel.capabilities() & 1 << kernel.CAP_SETPCAP:
        kernel.lock_capabilities()
    uid = limits["uid"]
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kernel.keep_capabilities()
    kernel.die_with_parent()
    if os.getppid() != plan["init"]:
        os._exit(0)  # the session has ended, and its user's processes may have been killed by now
    kernel.set_dumpable(True)
    landlock.enter(plan["ruleset"])
    os.close(plan["ruleset"])

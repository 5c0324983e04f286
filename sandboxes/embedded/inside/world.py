"""The world of one session: namespaces' contents, limits, and what may be called in it."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Mapping
from typing import Any

from . import kernel, landlock, owned

NAMESPACES = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWNET
)
INFINITE = resource.RLIM_INFINITY
_PROCESSES_A_PROCESSOR = 4
_WATCHERS = 8  # of inotify: the machine has 128 for the user of all sessions
_SIGNALS = 1024  # that wait, and timers; counted for that user, too, as are message queues
_USER = 1000  # inside; outside it is the zygote's own unprivileged user


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def map_user(uid: int, gid: int) -> None:
    """Map the caller's only user and group, whose ids outside are `uid` and `gid`."""
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{_USER} {uid} 1")
    _write("/proc/self/gid_map", f"{_USER} {gid} 1")


def mount_private(limits: Mapping[str, Any]) -> None:
    """A fresh /proc, terminals of its own, and empty sized /work, /tmp and /dev/shm."""
    safe = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("proc", "/proc", "proc", safe | kernel.MS_NOEXEC)
    kernel.mount(
        "devpts",
        "/dev/pts",
        "devpts",
        kernel.MS_NOSUID | kernel.MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=620",
    )
    size = f"size={limits['disk_bytes']},nr_inodes={limits['inodes']}"
    with contextlib.suppress(FileNotFoundError):  # a kernel without
        _write("/proc/sys/user/max_inotify_instances", str(_WATCHERS))
    kernel.mount("tmpfs", "/work", "tmpfs", safe, f"{size},mode=755")
    kernel.mount("tmpfs", "/tmp", "tmpfs", safe, f"{size},mode=1777")
    kernel.mount("tmpfs", "/dev/shm", "tmpfs", safe, f"{size},mode=1777")
    if os.path.isdir("/sys"):  # of a container; bubblewrap's jail has none
        kernel.mount("tmpfs", "/sys", "tmpfs", safe | kernel.MS_RDONLY, "size=4k,mode=555")


def build(plan: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
    """Make the session's world, in the process that then becomes its interpreter."""
    if plan["tier"] == "namespaces":
        map_user(plan["uid"], plan["gid"])
        mount_private(limits)
        kernel.loopback_up()
    secure(plan)
    os.chdir(limits["work"])


def secure(plan: Mapping[str, Any]) -> None:
    """Give up every privilege in the session's world, and hide from inspection."""
    if plan["tier"] == "namespaces":
        kernel.lock_capabilities()
        kernel.keep_capabilities()
        kernel.no_new_privileges()
        kernel.install_seccomp(plan["seccomp"])
        kernel.set_dumpable(False)


def confine(plan: Mapping[str, Any], limits: Mapping[str, Any], *, interpreter: bool) -> None:
    """Put the limits on this process, which is about to run foreign code.

    Where control groups count the session's memory, the limit on addresses is the interpreter's
    only (it turns most overruns into a MemoryError) and commands go without.
    """
    if plan["tier"] == "namespaces":
        kernel.set_dumpable(True)
        if plan["ruleset"] is not None:
            landlock.enter(plan["ruleset"])
            os.close(plan["ruleset"])
        if plan["counts_processes"]:
            _limit(resource.RLIMIT_NPROC, limits["pids"] + 1)
    elif plan["tier"] == "uid":
        owned.confine(plan, limits)
        _limit(resource.RLIMIT_NPROC, limits["pids"])
    _share_processors(limits["pids"])
    for kind in (resource.RLIMIT_CORE, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_RTPRIO):
        _limit(kind, 0)
    _limit(resource.RLIMIT_SIGPENDING, _SIGNALS)
    _limit(resource.RLIMIT_FSIZE, limits["disk_bytes"])
    _limit(resource.RLIMIT_NOFILE, limits["files"])
    _limit(resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1)
    addresses = limits["memory_bytes"] + plan["vm_bytes"]
    if not limits["cgroup"]:
        _limit(resource.RLIMIT_AS, addresses)
    elif interpreter:
        _limit(resource.RLIMIT_AS, addresses, INFINITE)


def _share_processors(pids: int) -> None:
    """Leave this process as many processors as its limit of processes has use for: `Pool()` and its
    like start a process for each one they see."""
    found = sorted(os.sched_getaffinity(0))
    most = max(1, pids // _PROCESSES_A_PROCESSOR)
    if len(found) > most:
        first = int.from_bytes(os.urandom(2), "big") % len(found)
        os.sched_setaffinity(0, [found[(first + n) % len(found)] for n in range(most)])


def _limit(kind: int, soft: int, hard: int | None = None) -> None:
    most = resource.getrlimit(kind)[1]
    wanted = soft if hard is None else hard
    if most != INFINITE and (wanted == INFINITE or wanted > most):
        wanted = most
    if wanted != INFINITE and soft > wanted:
        soft = wanted
    resource.setrlimit(kind, (soft, wanted))

"""Starts the outer jail from a short-lived process of its own, and cleans up after it.

Root's part: paths that an unprivileged user cannot reach are bound to reachable ones in a private
mount namespace, then the jail is started as an unprivileged user. Where control groups are used
or sessions are users of their own, this process stays as the jail's janitor, so that they go away
even if the host is killed.
"""

from __future__ import annotations

import glob
import json
import os
import signal
import sys
import time
from typing import Any, NoReturn

from . import cleaner, kernel, owned

STAGE = "/run/agentrl"


def main() -> NoReturn:
    """Run the plan in the last argument (JSON)."""
    plan = json.loads(sys.argv[-1])
    try:
        if plan["users"]:
            _clean(plan["users"])
            _link(plan["users"])
        if plan["cgroup"] or plan["users"]:
            _watch(plan)
        _start(plan)
    except Exception as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def _start(plan: dict[str, Any]) -> NoReturn:
    if plan["stage"]:
        _stage(plan["stage"])
        if plan["users"]:
            _hide_packages()
    if plan["uid"] is not None:
        os.setgroups([])
        os.setresgid(plan["uid"], plan["uid"], plan["uid"])
        os.setresuid(plan["uid"], plan["uid"], plan["uid"])
    if plan["users"]:
        os.setgroups([])
        kernel.limit_capabilities(*owned.CAPABILITIES, kernel.CAP_SETPCAP)
        os.set_inheritable(plan["users"]["lock"], False)
    kernel.die_with_parent()
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # the machine's memory runs out: sessions go first
    except OSError:
        pass
    os.execve(plan["argv"][0], plan["argv"], plan["env"])


def _stage(binds: dict[str, str]) -> None:
    """Bind each path to a name in a directory that only this process and its children see."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    sources = {name: os.open(path, os.O_PATH) for name, path in binds.items()}
    kernel.mount("tmpfs", os.path.dirname(STAGE), "tmpfs", kernel.MS_NOSUID, "mode=755,size=64k")
    os.mkdir(STAGE, 0o755)
    for name in binds:
        target = f"{STAGE}/{name}"
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if os.path.isdir(f"/proc/self/fd/{sources[name]}"):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        kernel.mount(f"/proc/self/fd/{sources[name]}", target, "", kernel.MS_BIND | kernel.MS_REC)
        os.close(sources[name])


def _hide_packages() -> None:
    """Cover the packages that are installed for the machine's interpreters by nothing."""
    for base in (f"{STAGE}/python", "/usr", "/usr/local"):
        for path in glob.glob(f"{base}/lib*/python3*/*-packages"):
            flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_RDONLY
            kernel.mount("tmpfs", path, "tmpfs", flags, "size=4k,mode=755")


def _watch(plan: dict[str, Any]) -> None:
    """Return in a child; in this process wait for its end, then remove the control groups."""
    host = os.getppid()
    child = os.fork()
    if child == 0:
        return
    lock = plan["users"]["lock"] if plan["users"] else 3
    os.closerange(3, lock)
    os.closerange(lock + 1, 1 << 20)
    kernel.adopt_orphans()
    handle = os.pidfd_open(child)

    def end(*_: object) -> None:
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            pass

    signal.signal(signal.SIGTERM, end)
    kernel.die_with_parent(signal.SIGTERM)
    if os.getppid() != host:
        end()
    _, status = os.waitpid(child, 0)
    if plan["users"]:
        _clean(plan["users"])
        os.rmdir(plan["users"]["base"])
    for base in plan["cgroup"]:
        _remove(base)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _clean(users: dict[str, Any]) -> None:
    """End what runs as one of the sessions' users, and remove their files: after the zygote's end,
    and before its start what another zygote left, whose host and janitor were killed at once."""
    cleaner.sweep(users["first"], users["count"])
    for name in os.listdir(users["base"]):
        cleaner.remove(f"{users['base']}/{name}")


def _link(users: dict[str, Any]) -> None:
    """Make the directory of links to packages."""
    folder = f"{users['base']}/site"
    os.mkdir(folder)
    os.chmod(folder, 0o755)  # whatever the umask
    for name, path in users["links"].items():
        os.symlink(path, f"{folder}/{name}")


def _remove(base: str) -> None:
    """Remove the control group and those in it, once their processes are gone."""
    for _ in range(250):
        try:
            folders = [entry.path for entry in os.scandir(base) if entry.is_dir()]
        except FileNotFoundError:
            return
        for folder in (*folders, base):
            try:
                os.rmdir(folder)
            except OSError:
                pass
        time.sleep(0.02)

"""The first process of a session: starts the interpreter and commands, reaps, reports facts.

Foreign code has no way to speak through its socket: the interpreter closes it before it runs any,
and can neither inspect nor signal this process.
"""

from __future__ import annotations

import os
import select
import signal
import time
from _socket import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from . import disk, files, kernel, owned, parcel, wire, worker, world

_SWEEPS = 50
_CANNOT = 126  # exit status of a command that could not be started


def main(plan: dict[str, Any], limits: Mapping[str, Any], fds: list[int]) -> NoReturn:
    """Start the interpreter's process, give up every privilege, serve until the host lets go.

    The namespaces' contents are made by the interpreter's process before it runs any foreign code.
    What a clone touches is copied, so this process does little, and most of it after its own fork.
    """
    facts = socket(fileno=fds[0])
    try:
        for entrance in fds[4:]:
            os.write(entrance, b"0")  # into its control groups, before it has children
            os.close(entrance)
        if plan["tier"] == "uid":
            owned.build(plan, limits)
        secured, me = os.eventfd(0), os.pidfd_open(os.getpid())
        pid = os.fork()
        if pid == 0:
            _interpreter(plan, limits, facts, fds[1:4], secured, me)
        kernel.die_with_parent()
        if plan["tier"] != "namespaces":
            kernel.adopt_orphans()
        world.secure(plan)
        os.eventfd_write(secured, 1)
        for fd in (secured, me, *fds[1:4]):
            os.close(fd)
        Init(plan, limits, facts, pid).serve()
    except BaseException as error:
        _fail(facts, error)
    finally:
        os._exit(0)


def _interpreter(
    plan: Mapping[str, Any],
    limits: Mapping[str, Any],
    facts: socket,
    streams: list[int],
    go: int,
    first: int,
) -> NoReturn:
    """Build the world, tell the host when both processes are as they must be for foreign code, and
    become the interpreter."""
    try:
        try:
            world.build(plan, limits)
            os.eventfd_read(go)
            os.close(go)
            pidfds = [first, os.pidfd_open(os.getpid())]  # the parent may have ended by now
            wire.send(facts, {"ready": True}, pidfds)
            for fd in pidfds:
                os.close(fd)
        except BaseException as error:
            _fail(facts, error)
            raise
        facts.close()
        _begin(plan)
        worker.main(plan, limits, *streams)
    finally:
        os._exit(worker.BROKEN)


def _begin(plan: Mapping[str, Any]) -> None:
    """What every child of the first process does."""
    os.setsid()
    if plan["tier"] == "none":
        kernel.die_with_parent()


def _fail(facts: socket, error: BaseException) -> None:
    wire.send(facts, {"failed": f"{type(error).__name__}: {error}"})


def _say(fd: int, command: str, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or error
    os.write(fd, f"{command}: {reason}\n".encode("utf-8", "backslashreplace"))


def _processes(since: int) -> list[int]:
    """The processes below this one that began at clock tick `since` or later, without zombies; what
    has threads beside its ended first one is none."""
    parents, begun = {}, []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            parents[int(name)] = int(fields[1])
            if int(fields[19]) >= since and (fields[0] != b"Z" or int(fields[17]) > 1):
                begun.append(int(name))
    return [pid for pid in begun if _below(pid, parents)]


def _below(pid: int, parents: Mapping[int, int]) -> bool:
    me = os.getpid()
    while pid > 1 and pid != me:
        pid = parents.get(pid, 0)
    return pid == me


class Init:
    """Children by process id, and the loop that serves the host's orders."""

    def __init__(
        self, plan: Mapping[str, Any], limits: Mapping[str, Any], facts: socket, worker: int
    ) -> None:
        self.plan = plan
        self.limits = limits
        self.facts = facts
        self.jobs: dict[int, int] = {}  # process id -> the host's id of the command
        self.worker = worker  # the interpreter's process id
        self.disk = disk.Disk(limits) if plan["tier"] == "uid" else None
        self.woken, self.wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        kernel.handle_signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        os.write(self.wake, b"\0")  # the interpreter may have ended by now

    def serve(self) -> None:
        """Answer orders until the host closes its end."""
        poll = select.poll()
        poll.register(self.facts.fileno(), select.POLLIN)
        poll.register(self.woken, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(self.disk.wait_ms() if self.disk else None)]
            if self.disk and (reason := self.disk.over()):
                wire.send(self.facts, {"over": reason})
                return
            if self.woken in ready:
                os.read(self.woken, 4096)
                self.reap()
            if self.facts.fileno() in ready:
                order, fds = wire.receive(self.facts)
                if order is None:
                    return
                try:
                    self.obey(order, fds)
                finally:
                    for fd in fds:
                        os.close(fd)

    def _child(self) -> None:
        """What a command's process does first: forget what it must not have."""
        signal.set_wakeup_fd(-1)
        kernel.handle_signal(signal.SIGCHLD, kernel.DEFAULT)
        self.facts.close()
        os.close(self.woken)
        os.close(self.wake)
        _begin(self.plan)
        os.chdir(self.limits["work"])

    def reap(self) -> None:
        """Collect ended processes; report those the host asked for."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            job = 0 if pid == self.worker else self.jobs.pop(pid, None)
            if job is not None:
                self._ended(job, status, usage.ru_utime + usage.ru_stime, usage.ru_maxrss)

    def _ended(self, job: int, status: int, cpu: float, peak_kb: int) -> None:
        wire.send(self.facts, {"ended": job, "status": status, "cpu": cpu, "peak_kb": peak_kb})

    def obey(self, order: Mapping[str, Any], fds: list[int]) -> None:
        """Carry out one order; each but `kill` is answered with its id."""
        kind = order["op"]
        if kind == "kill":
            self.kill(order["id"])
            return
        try:
            if kind == "exec":
                self.execute(order["id"], order["argv"], fds)
                return
            root = self.limits["work"]
            if kind == "sweep":
                size = self.sweep(order["since"])
            elif kind == "objects":
                size = files.objects()
            elif kind == "unpack":
                size = parcel.unpack(fds[0])
            elif kind == "write":
                size = files.write(root, order["names"], fds[0])
            else:
                size = files.read(root, order["names"], fds[0], order["most"])
            answer = {"id": order["id"], "size": size}
        except OSError as error:
            answer = {
                "id": order["id"],
                "errno": error.errno,
                "message": error.strerror or str(error),
            }
        wire.send(self.facts, answer)

    def execute(self, job: int, argv: list[str], fds: list[int]) -> None:
        """Start a command with `fds` as its standard streams."""
        try:
            pid = os.fork()
        except OSError as error:  # the session has as many processes as it may have
            _say(fds[2], argv[0], error)
            self._ended(job, _CANNOT << 8, 0.0, 0)
            return
        if pid:
            self.jobs[pid] = job
            return
        try:
            self._child()
            for target, fd in enumerate(fds):
                os.dup2(fd, target)
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                kernel.handle_signal(number, kernel.DEFAULT)
            world.confine(self.plan, self.limits, interpreter=False)
            os.execvp(argv[0], argv)
        except OSError as error:
            _say(2, argv[0], error)
            os._exit(127)
        except ValueError as error:  # it cannot be encoded
            _say(2, argv[0], error)
        finally:
            os._exit(_CANNOT)

    def sweep(self, since: int) -> int:
        """Kill what was started at clock tick `since` or later, but for the interpreter; how many
        processes are left, if they come faster than they go."""
        for _ in range(_SWEEPS):
            found = [pid for pid in _processes(since) if pid not in (os.getpid(), self.worker)]
            if not found:
                return 0
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            time.sleep(0.002)
            self.reap()
        return len(found)

    def kill(self, job: int) -> None:
        """Kill a command and what it left in its process group."""
        for pid, known in self.jobs.items():
            if known == job:
                try:
                    os.killpg(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass

"""The interpreter of foreign code: answers each order of the host exactly once.

Its answers are claims: the code it runs shares its memory. It holds private copies of what that
code may spoil, so that clumsy code does not break it; against hostile code the host relies on facts
only.
"""

from __future__ import annotations

import builtins
import gc
import os
import signal
import sys
from _socket import socket
from collections.abc import Mapping
from typing import Any, NoReturn

from . import cells, kernel, program, wire, world

BROKEN = 125  # exit status when the interpreter itself cannot go on
_HIGH_FD = 900  # where closing "all" descriptors up to the limit does not reach
_LEAST_RECURSION = 500
_getaffinity = os.sched_getaffinity

_FAILURES = 1000  # of receiving, through what the code did, before it gives up
_BUILTINS = dict(vars(builtins))
_UNSPEAKABLE = {
    "status": "error",
    "error": ["SystemError", "the result could not be put into words", ""],
}

globals()["__builtins__"] = _BUILTINS  # for the functions below


def _raise_fd(fd: int) -> int:
    """Move a descriptor out of the way of the code."""
    import fcntl

    high: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH_FD)
    os.close(fd)
    return high


def main(
    plan: Mapping[str, Any], limits: Mapping[str, Any], channel: int, out: int, err: int
) -> NoReturn:
    """Confine this process, say so, and serve."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    saved = (_raise_fd(out), _raise_fd(err))
    worker = Worker(socket(fileno=_raise_fd(channel)), saved, limits)
    world.confine(plan, limits, interpreter=True)
    worker.restore_streams()
    random = sys.modules.get("numpy.random")
    if random is not None:
        random.seed()  # every session has a stream of its own, as `random` has
    worker.cells.offer_displays()
    os.cpu_count = _cpu_count
    if limits["warm"]:
        cells.warm_up(1)
    gc.enable()
    worker.serve()


def _cpu_count() -> int:
    """The processors that this process may use, where Python's own counts the machine's."""
    return len(_getaffinity(0))


class Worker:
    """The loop between host and code."""

    def __init__(self, channel: socket, saved: tuple[int, int], limits: Mapping[str, Any]) -> None:
        self.channel = channel
        self.saved = saved
        self.pid = os.getpid()
        self.running = False
        self.cells = cells.Cells(limits["value_chars"], limits["display_bytes"], limits["work"])
        self._receive = wire.receive
        self._getpid, self._exit = os.getpid, os._exit
        self._dup2, self._fstat = os.dup2, os.fstat
        os.register_at_fork(before=cells.flush, after_in_child=self._forked)

    def _forked(self) -> None:
        """Children of the code never speak for the interpreter."""
        if self.channel.fileno() >= 0:
            self.channel.close()

    def restore_streams(self) -> None:
        """Give the code descriptors 1 and 2 again, where it closed or replaced them."""
        for fd, kept in zip((1, 2), self.saved, strict=True):
            try:
                same = self._fstat(fd).st_ino == self._fstat(kept).st_ino
            except OSError:
                same = False
            if not same:
                self._dup2(kept, fd)

    def _interrupted(self, *_: object) -> None:
        if self.running:
            raise KeyboardInterrupt

    def serve(self) -> NoReturn:
        """Answer until the host closes its end."""
        kernel.handle_signal(signal.SIGINT, self._interrupted)
        self._answer({"up": True})
        for _ in range(_FAILURES):
            try:
                while True:
                    self._obey(*self._receive(self.channel))
            except OSError as error:
                if error.errno is not None:  # the channel's, not one that a handler raised
                    raise
            except BaseException:
                self._repair()
        self._exit(BROKEN)

    def _obey(self, order: dict[str, Any] | None, fds: list[int]) -> None:
        if order is None:
            self._exit(0)
        elif order["op"] == "sync":
            for fd in fds:
                self.cells.displays.write(fd)
                os.close(fd)
            self._answer({"sync": order["token"]})
        elif order["op"] == "program":
            program.run(order, fds, self)
        else:
            self._cell(order, fds)

    def _repair(self) -> None:
        """Undo what the code did to the built-in names: this module and those it calls need them.

        Called where something failed, by that or by a signal handler that the code left behind.
        """
        vars(builtins).update(_BUILTINS)

    def _answer(self, answer: dict[str, Any]) -> None:
        """Send it, once; if it cannot be put into words, an error instead."""
        data = b""
        for one in (answer, answer, {"id": answer.get("id"), **_UNSPEAKABLE}):
            try:
                data = wire.encode(one)
                break
            except BaseException:
                self._repair()
        self.channel.send(data)

    def _cell(self, order: dict[str, Any], fds: list[int]) -> None:
        source = order["code"] if not fds else _contents(fds[0]).decode("utf-8", "surrogatepass")
        for fd in fds:
            os.close(fd)
        self.restore_streams()
        kernel.handle_signal(signal.SIGINT, self._interrupted)
        answer: dict[str, Any] = {}
        for _ in range(2):  # an interrupt may come between the cell's end and this loop's
            try:
                if not answer:
                    self.running = True
                    answer = self.cells.run(source)
                self.running = False
                break
            except BaseException as error:  # or what the code did breaks what follows it
                self.running = False
                answer = answer or _failed(error)
        cells.flush()
        if self._getpid() != self.pid:
            self._exit(0)
        if sys.getrecursionlimit() < _LEAST_RECURSION:
            sys.setrecursionlimit(1000)
        answer["id"] = order["id"]
        self._answer(answer)


def _failed(error: BaseException) -> dict[str, Any]:
    name = "KeyboardInterrupt" if isinstance(error, KeyboardInterrupt) else "SystemError"
    return {"status": "error", "error": [name, "", ""]}


def _contents(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)

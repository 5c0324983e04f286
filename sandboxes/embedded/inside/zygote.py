"""Waits for orders and clones sessions. It has what a profile imports, and runs no foreign code."""

from __future__ import annotations

import gc
import importlib
import io
import os
import signal
import sys
from _socket import socket
from collections.abc import Sequence
from typing import Any, NoReturn

from . import cells, cleaner, init, kernel, landlock, owned, semaphores, wire, world


def main(control_fd: int) -> NoReturn:
    """Serve the host until it closes its end of the control socket."""
    control = socket(fileno=control_fd)
    order, _ = wire.receive(control)
    if order is None:
        os._exit(0)
    plan = prepare(order)
    # What has a handler may be sent to a session's first process: only what has none is ignored.
    kernel.handle_signal(signal.SIGINT, kernel.DEFAULT)
    wire.send(control, {"ready": True, "failed": plan["failed"], "landlock": plan["landlock"]})
    kernel.handle_signal(signal.SIGCHLD, kernel.IGNORE)  # ended sessions are reaped by the kernel
    ends = cleaner.Ends(control_fd) if plan["tier"] == "uid" else None
    while True:
        if ends is not None:
            ends.wait()
        order, fds = wire.receive(control)
        if order is None:
            os._exit(0)
        spawn(plan, order["limits"], control, ends, fds)
        for fd in fds:
            os.close(fd)


def prepare(order: dict[str, Any]) -> dict[str, Any]:
    """Import, set up the standard streams and freeze the heap, so that clones are cheap."""
    os.umask(0o022)
    _usual_signals()
    failed = _import(order["imports"], order["import_s"])
    code = sys.path.pop(0)  # where `inside` is; all of it is imported by now
    sys.path_importer_cache.pop(code, None)
    sys.path[:] = [order["work"], *(p for p in sys.path if p)]
    _standard_streams()
    order["failed"] = failed
    order["seccomp"] = bytes.fromhex(order["seccomp"])
    order["uid"], order["gid"] = os.getuid(), os.getgid()
    order["landlock"] = landlock.abi()
    order["ruleset"] = landlock.scope() if order["tier"] == "namespaces" else None
    if order["tier"] == "uid":
        order["paths"] = owned.open_paths(order["visible"])
        semaphores.install()
    release = os.uname().release.split(".")
    # Since 5.14 a user namespace counts its own processes; before, the user's on the whole machine.
    order["counts_processes"] = (int(release[0]), int(release[1].split("-")[0])) >= (5, 14)
    with open("/proc/self/statm") as file:
        order["vm_bytes"] = int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")
    cells.warm_up()
    gc.collect()
    gc.disable()
    gc.freeze()
    return order


def _usual_signals() -> None:
    """Signals as Python finds them in a terminal. A host in a shell's background, or under nohup,
    ignores some, a thread of it may hold them back, and all its processes inherit that."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # Python's own choice
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _import(names: Sequence[str], budget_s: float) -> dict[str, str]:
    """Import the modules, all within `budget_s` seconds; module -> error of those that fail."""

    def late(*_: object) -> NoReturn:
        raise TimeoutError(f"not imported within {budget_s:g} s")

    failed = {}
    kernel.handle_signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, budget_s)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
            if isinstance(error, TimeoutError):
                break
    signal.setitimer(signal.ITIMER_REAL, 0)
    kernel.handle_signal(signal.SIGALRM, kernel.DEFAULT)
    return failed


def _standard_streams() -> None:
    """Text streams on descriptors 0 to 2 that never fail on what cannot be encoded."""
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(  # type: ignore[misc]
        io.BufferedReader(io.FileIO(0, "rb", closefd=False)), "utf-8", "surrogateescape"
    )
    for name, fd in (("stdout", 1), ("stderr", 2)):
        raw = io.BufferedWriter(io.FileIO(fd, "wb", closefd=False))
        stream = io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True)
        stream.mode = "w"  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def spawn(
    plan: dict[str, Any],
    limits: dict[str, Any],
    control: socket,
    ends: cleaner.Ends | None,
    fds: list[int],
) -> None:
    """Clone a session; says why on its socket if that fails."""
    try:
        pid = kernel.clone(world.NAMESPACES if plan["tier"] == "namespaces" else 0)
    except OSError as error:
        facts = socket(fileno=os.dup(fds[0]))
        wire.send(facts, {"failed": str(error)})
        facts.close()
        return
    if pid and ends is not None:
        ends.add(pid, limits, fds[0])
    if pid == 0:
        control.close()
        kernel.handle_signal(signal.SIGCHLD, kernel.DEFAULT)
        if ends is not None:
            ends.forget()
        init.main(plan, limits, fds)

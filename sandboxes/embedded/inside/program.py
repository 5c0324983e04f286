"""Running a whole program as `python main.py` would, and ending the process as it would."""

from __future__ import annotations

import atexit
import builtins
import io
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from . import cells, shell, tracebacks

if TYPE_CHECKING:
    from .worker import Worker

globals()["__builtins__"] = dict(vars(builtins))  # for the functions below


def run(order: dict[str, Any], fds: list[int], worker: Worker) -> NoReturn:
    """Run the file that `order` names, say how it ended, and end this process."""
    path = order["path"]
    os.dup2(fds[0], 0)
    for fd in fds:
        os.close(fd)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(  # type: ignore[misc]
        io.BufferedReader(io.FileIO(0, "rb", closefd=False)), "utf-8", "surrogateescape"
    )
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=stream is sys.stderr)  # type: ignore[union-attr]
    sys.argv = [path, *order["args"]]
    main = worker.cells.module
    main.__dict__["__file__"] = path
    del main.__dict__[shell.NAME], builtins.display  # type: ignore[attr-defined]
    worker.running = True
    claim: dict[str, Any] = {"status": "ok"}
    code = 0
    try:
        with open(path, "rb") as file:
            source = file.read()
        name = path.removeprefix(f"{worker.cells.folder}/")
        exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as error:
        code = cells.exit_code(error)
        claim = {"status": "exit", "code": code}
    except BaseException as error:
        code = 1
        claim = {"status": "error", "error": tracebacks.describe(error, worker.cells.folder)}
        print(claim["error"][2], file=sys.stderr, end="")
    try:
        threading = sys.modules.get("threading")
        if threading is not None:
            threading._shutdown()
        atexit._run_exitfuncs()
    except BaseException:
        pass
    worker.running = False
    cells.flush()
    if os.getpid() == worker.pid:
        claim["id"] = order["id"]
        worker._answer(claim)
    worker._exit(code)

"""Running cells: one namespace, the last expression's value, tracebacks of the code's own lines."""

from __future__ import annotations
import __future__

import _signal  # type: ignore[import-not-found]
import ast
import builtins
import linecache
import signal
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from . import displays, kernel, shell, tracebacks, wire

_setprofile, _settrace = sys.setprofile, sys.settrace
_setitimer, _mask = signal.setitimer, _signal.pthread_sigmask  # without Python's enums
_HELD = [  # while no code of the cell runs: their handlers, if it has set any, may raise
    int(n)
    for n in (
        signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGCHLD, signal.SIGUSR1,
        signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGIO, signal.SIGWINCH,
    )
]  # fmt: skip
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_Expr, _Expression = ast.Expr, ast.Expression
_ONLY_AST = ast.PyCF_ONLY_AST
_COROUTINE = 0x80  # code flag of a cell with a top-level await
_VALUE_CHARS = 32_000  # what one message holds, whatever the characters
_WARM_UPS = 20
_LINES = linecache.cache
_FUTURES = {f.compiler_flag for f in (getattr(__future__, n) for n in __future__.all_feature_names)}

globals()["__builtins__"] = dict(vars(builtins))  # for the functions below


def flush() -> None:
    """Write out what Python and C hold back, whatever the code did to the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass
    kernel.flush_c_streams()


def _alone(function: Callable[..., Any], *args: Any) -> Any:
    """Call it, and end what the code leaves that would see, break or interrupt what follows."""
    try:
        return function(*args)
    finally:  # in this frame, which began before any tracer: a call of ours would be traced
        try:
            _setprofile(None)
        except BaseException:
            pass
        _settrace(None)
        for timer in _TIMERS:
            _setitimer(timer, 0)


class Cells:
    """The state that cells share."""

    def __init__(self, value_chars: int, display_bytes: int, folder: str) -> None:
        self.value_chars = min(value_chars, _VALUE_CHARS)
        self.folder = folder
        self.module = types.ModuleType("__main__")
        self.names = self.module.__dict__
        self.names["__builtins__"] = builtins
        self.names[shell.NAME] = shell.run
        sys.modules["__main__"] = self.module
        self.displays = displays.Displays(display_bytes)
        self.count = 0
        self.flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self.loop: Any = None
        self.last: Any = None  # what `_` holds, unless the code has a `_` of its own

    def offer_displays(self) -> None:
        """Give the code `display`, and a `show` to pyplot."""
        builtins.display = self.displays.display  # type: ignore[attr-defined]
        self.displays.watch_plots()

    def run(self, source: str) -> dict[str, Any]:
        """Run one cell; the claim about it. Never raises for what the code does, but
        KeyboardInterrupt may come out of it while it is at the answer."""
        self.count += 1
        self.displays.begin()
        claim = self._outcome(self._value_of, source)
        shown = self._outcome(self.displays.figures)
        if claim["status"] == "ok" and shown["status"] != "ok":
            claim = shown
        return claim | self.displays.claim()

    def _outcome(
        self, function: Callable[..., dict[str, Any] | None], *args: Any
    ) -> dict[str, Any]:
        try:
            try:
                _mask(_signal.SIG_UNBLOCK, _HELD)
                return function(*args) or {"status": "ok"}
            finally:
                _mask(_signal.SIG_BLOCK, _HELD)
        except SystemExit as error:
            return {"status": "exit", "code": exit_code(error)}
        except BaseException as error:
            return {"status": "error", "error": tracebacks.describe(error, self.folder)}

    def _value_of(self, source: str) -> dict[str, Any]:
        name = f"<cell {self.count}>"
        source = source.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        lines = source.split("\n")  # not splitlines: Python ends lines here only
        linecache.cache = _LINES
        _LINES[name] = (len(source), None, [f"{line}\n" for line in lines], name)
        self.names.pop("__warningregistry__", None)  # each cell's warnings are new ones
        value = self._evaluate(source, name)
        if value is None:
            return {"status": "ok", "value": None}
        if self.names.get("_", self.last) is self.last:
            self.names["_"] = self.last = value
        self.displays.show(value)
        text = str.__str__(repr(value))  # exactly a string, whatever class it is of
        cut = len(text) > self.value_chars
        return {"status": "ok", "value": text[: self.value_chars], "cut": cut}

    def _parse(self, source: str, name: str) -> ast.Module:
        """The cell's tree; lines of notebooks are translated where it is no Python otherwise."""
        while True:
            try:
                tree: ast.Module = compile(
                    source, name, "exec", self.flags | _ONLY_AST, dont_inherit=True
                )
                return tree
            except SyntaxError as error:
                translated = shell.translate(source, error.lineno)
                if translated is None:
                    raise
                source = translated

    def _evaluate(self, source: str, name: str) -> Any:
        tree = self._parse(source, name)
        last = None
        if tree.body and isinstance(tree.body[-1], _Expr):
            last = _Expression(tree.body.pop().value)  # type: ignore[attr-defined]
        body = compile(tree, name, "exec", self.flags, dont_inherit=True)
        self.flags |= sum(f for f in _FUTURES if body.co_flags & f and not self.flags & f)
        value = compile(last, name, "eval", self.flags, dont_inherit=True) if last else None
        return self._run_code([body, value] if value else [body])

    def _run_code(self, codes: Sequence[types.CodeType]) -> Any:
        """Run them one after the other; the last one's value."""
        if any(code.co_flags & _COROUTINE for code in codes):
            return _alone(self._await, self._in_turn(codes))
        value = None
        for code in codes:
            value = _alone(eval, code, self.names)
        return value

    async def _in_turn(self, codes: Sequence[types.CodeType]) -> Any:
        """All of a cell runs in the event loop if one part of it awaits."""
        value = None
        for code in codes:
            value = eval(code, self.names)
            if code.co_flags & _COROUTINE:
                value = await value
        return value

    def _await(self, coroutine: Any) -> Any:
        import asyncio

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(coroutine)
        try:
            return self.loop.run_until_complete(task)
        finally:
            if not task.done():
                task.cancel()
            asyncio.set_event_loop(None)


def warm_up(rounds: int = _WARM_UPS) -> None:
    """Run some cells before any session is cloned: what the interpreter makes at first use, clones
    then share. In a clone: have what the first cell touches copied."""
    main = sys.modules["__main__"]
    for _ in range(rounds):
        trial = Cells(100, 0, "/work")
        for source in ("x = [n * 2 for n in range(3)]\nx", "def f():\n    1 / 0\nf()", "x = ("):
            answer = trial.run(source)
            wire.decode(wire.encode(answer))
    sys.modules["__main__"] = main
    linecache.clearcache()
    _mask(_signal.SIG_UNBLOCK, _HELD)


def exit_code(error: SystemExit) -> int:
    """The status a process would end with; a message goes to standard error."""
    code = error.code
    if code is None:
        return 0
    if isinstance(code, int):
        return int.__and__(code, 0xFF)
    try:
        print(code, file=sys.stderr)
    except BaseException:
        pass
    return 1

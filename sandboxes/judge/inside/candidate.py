"""In the session of a judged program: loads it and does what the judge asks of it.

Everything here shares a process with the program, which may change it: what it answers is the
program's claim. Expected results never come here.
"""

from __future__ import annotations

import builtins
import linecache
import operator
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from sandboxes.judge.codec import Encoder, NotAValue, decode
from sandboxes.judge.inside.driver import Driver

FILE = "solution.py"
_TEXT_CHARS = 2000
_TRACE_CHARS = 8000
_BUILTIN = {v: k for k, v in vars(builtins).items() if isinstance(v, type)}


class Candidate:
    """The program, and the objects of it that the tests hold."""

    def __init__(self) -> None:
        self.module = types.ModuleType("solution")
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.folder = os.getcwd()

    def do_load(self, source: str, name: str, names: list[str]) -> dict[str, Any]:
        """Run the program as the module `name`; what it gave `names` (those it has)."""
        self.module.__name__ = name
        self.module.__dict__["__file__"] = os.path.join(self.folder, FILE)
        sys.modules[name] = self.module
        linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)

        def run() -> dict[str, Any]:
            code = compile(source, FILE, "exec", dont_inherit=True)
            exec(code, self.module.__dict__)
            found = {n: self.module.__dict__[n] for n in names if n in self.module.__dict__}
            return {n: self.named(v) for n, v in found.items()}

        return self._guarded(run)

    def named(self, value: Any) -> Any:
        """The form of a global name: a value, a class of exceptions, or an object."""
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"exception": self._classes(value)}
        return Encoder(self.number).encode(value)

    def do_call(self, name: str, args: Any, kwargs: Any, after: bool) -> dict[str, Any]:
        """Call what a dotted name leads to with plain values, and get one. `Name()` in it makes an
        instance. `after`: how the arguments look after the call."""
        values = decode(args)
        keywords = decode(kwargs)

        def run() -> Any:
            target: Any = self.module
            for part in name.split("."):
                target = getattr(target, part.removesuffix("()"))
                target = target() if part.endswith("()") else target
            return target(*values, **keywords)

        answer = self._guarded(lambda: Encoder().encode(run()))
        if after and "value" in answer:
            answer["after"] = Encoder().encode([values, keywords])
        return answer

    def do_op(self, op: str, args: Any) -> dict[str, Any]:
        """Do something with objects of the program; a result that is no value stays here."""
        values = decode(args, self.opened)
        return self._guarded(lambda: Encoder(self.number).encode(OPERATIONS[op](*values)))

    def number(self, value: Any) -> dict[str, Any]:
        """The form of an object that stays here."""
        key = id(value)
        if key not in self.numbers:
            self.numbers[key] = len(self.objects)
            self.objects.append(value)
        return {"object": self.numbers[key]}

    def opened(self, form: dict[str, Any]) -> Any:
        """The object of a form that `number` made."""
        number = form["object"]
        if type(number) is not int or not 0 <= number < len(self.objects):
            raise ValueError("no such object")
        return self.objects[number]

    def _guarded(self, run: Callable[[], Any]) -> dict[str, Any]:
        try:
            return {"value": run()}
        except NotAValue:
            raise
        except BaseException as error:
            return {"raised": self._raised(error)}

    def _raised(self, error: BaseException) -> dict[str, Any]:
        try:
            text = str(error)[:_TEXT_CHARS]
        except BaseException:
            text = ""
        try:
            args = Encoder().encode(list(error.args))
        except BaseException:
            args = [text]
        return {
            "classes": self._classes(type(error)),
            "args": args,
            "text": text.encode("utf-8", "backslashreplace").decode(),
            "trace": self._trace(error),
        }

    def _classes(self, kind: type) -> list[Any]:
        """An exception's classes, nearest first: the built-in ones by name, others by number."""
        found: list[Any] = []
        for one in type.mro(kind)[:50]:
            if one in _BUILTIN:
                found.append(_BUILTIN[one])
            else:
                found.append([str(one.__name__)[:200], self.number(one)["object"]])
        return found

    def _trace(self, error: BaseException) -> str:
        step = error.__traceback__
        while step is not None and step.tb_frame.f_code.co_filename != FILE:
            step = step.tb_next
        try:
            shown = traceback.TracebackException(type(error), error, step, compact=True)
            own = [f for f in shown.stack if f.filename == FILE]
            shown.stack = traceback.StackSummary.from_list(own)
            text = "".join(shown.format(chain=False)).encode("utf-8", "backslashreplace").decode()
        except BaseException:
            return ""
        return text if len(text) <= _TRACE_CHARS else f"{text[:4000]}\n[...]\n{text[-4000:]}"


def _instance(value: Any, kind: Any) -> bool:
    return isinstance(value, kind)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
    "repr": repr,
    "getitem": operator.getitem,
    "setitem": operator.setitem,
    "delitem": operator.delitem,
    "enter": lambda target: target.__enter__(),
    "exit": lambda target: target.__exit__(None, None, None),
    "isinstance": _instance,
    **{
        name: getattr(operator, name)
        for name in (
            *("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv"),
            *("mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift", "neg", "pos"),
            *("abs", "invert", "contains"),
        )
    },
}
"""What the tests can do with an object. The last ones only where the judge trusts them."""


def start() -> Driver:
    """The driver, in a fresh session."""
    return Driver(Candidate())

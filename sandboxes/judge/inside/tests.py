"""In the session of the tests: runs them beside names that stand for the program's.

The program is in another session. The tests run in a thread; when they use an object of the
program, the thread leaves a request, the cell that waits for it returns the request, the host
carries it over, and the next cell brings the reply. Comparisons are made here, on plain values.
"""

from __future__ import annotations

import _thread
import builtins
import operator
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from sandboxes.judge.codec import Encoder, NotAValue, decode
from sandboxes.judge.inside.driver import Driver

_EXCEPTIONS = {
    k: v for k, v in vars(builtins).items() if isinstance(v, type) and issubclass(v, BaseException)
}
_DETAIL_CHARS = 1000


class Line:
    """The way from the thread of the tests to the host and back."""

    def __init__(self) -> None:
        self.message: Any = None
        self.asked = False
        self._there, self._back, self._turn = (_thread.allocate_lock() for _ in range(3))
        self._there.acquire()
        self._back.acquire()

    def ask(self, request: Any) -> Any:
        """In the thread: leave a request, and wait for the reply."""
        with self._turn:
            self.asked = True
            self.message = request
            self._there.release()
            self._back.acquire()
            return self.message

    def end(self, outcome: Any) -> None:
        """In the thread: leave the last message."""
        with self._turn:
            self.message = outcome
            self._there.release()

    def wait(self) -> Any:
        """In the cell: the thread's next message."""
        self._there.acquire()
        return self.message

    def answer(self, reply: Any) -> Any:
        """In the cell: give the reply, and wait for the next message."""
        self.message = reply
        self._back.release()
        return self.wait()


class Object:
    """Stands for an object of the program.

    It can be called, indexed, iterated over, entered, and its attributes be used. It is equal to
    itself only, and no arithmetic or comparison is asked of the program: its answer would decide
    the test. `Trusted` asks.
    """

    __slots__ = ("_link", "_number")

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._link.do("call", self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return self._link.do("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._link.do("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._link.do("delattr", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._link.do("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._link.do("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._link.do("delitem", self, key)

    def __len__(self) -> int:
        return int(operator.index(self._link.do("len", self)))

    def __bool__(self) -> bool:
        return self._link.do("bool", self) is True

    def __iter__(self) -> Iterator[Any]:
        source = self._link.do("iter", self)
        while True:
            try:
                item = self._link.do("next", source)
            except StopIteration:
                return
            yield item

    def __next__(self) -> Any:
        return self._link.do("next", self)

    def __contains__(self, value: Any) -> bool:
        return any(value is item or value == item for item in self)

    def __str__(self) -> str:
        return _text(self._link.do("str", self))

    def __repr__(self) -> str:
        return _text(self._link.do("repr", self))

    def __enter__(self) -> Any:
        return self._link.do("enter", self)

    def __exit__(self, *_: object) -> None:
        self._link.do("exit", self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Object) and self._link.do("isinstance", value, self) is True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Object) and self._number == other._number

    def __hash__(self) -> int:
        return hash((Object, self._number))


def _asking(name: str, swapped: bool) -> Callable[..., Any]:
    if swapped:
        return lambda self, other: self._link.do(name, other, self)
    return lambda self, *others: self._link.do(name, self, *others)


_TWO_SIDED = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("and_", "or_", "xor", "lshift", "rshift"),
)


def _trusted() -> type[Object]:
    members: dict[str, Any] = {"__slots__": (), "__hash__": Object.__hash__}
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert", "contains"):
        members[f"__{name}__"] = _asking(name, False)
    for name in _TWO_SIDED:
        plain = name.rstrip("_")
        members[f"__{plain}__"] = _asking(name, False)
        members[f"__r{plain}__"] = _asking(name, True)
    return type("Trusted", (Object,), members)


Trusted = _trusted()


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("the program's object has no text")
    return value


class Link:
    """Carries operations to the program, and makes objects and exceptions of what comes back."""

    def __init__(self, line: Line, trusting: bool) -> None:
        self.line = line
        self.kind = Trusted if trusting else Object
        self.kinds: dict[int, type[BaseException]] = {}

    def do(self, op: str, *args: Any) -> Any:
        """The result of an operation in the program's session, or what it raised there."""
        try:
            forms = Encoder(self._form).encode([*args])
        except NotAValue as error:
            raise TypeError(f"the tests hand the program {error}") from None
        reply = self.line.ask({"op": op, "args": forms})
        if "value" in reply:
            return decode(reply["value"], self._opened)
        if "raised" in reply:
            self._raise(reply["raised"])
        raise TypeError(f"the program gave no value: {reply.get('foreign')}")

    def named(self, form: Any) -> Any:
        """What a global name of the program stands for."""
        if type(form) is dict and form.keys() == {"exception"}:
            return self._exception(form["exception"])
        return decode(form, self._opened)

    def _form(self, value: Any) -> dict[str, Any] | None:
        return {"object": value._number} if isinstance(value, Object) else None

    def _opened(self, form: dict[str, Any]) -> Object:
        number = form.get("object")
        if type(number) is not int:
            raise ValueError("not the form of a value")
        return self.kind(self, number)

    def _exception(self, classes: Sequence[Any]) -> type[BaseException]:
        """A class for these, nearest first: the built-in one, or one of ours that is made once."""
        first, *rest = classes
        if isinstance(first, str):
            return _EXCEPTIONS.get(first) or self._exception(rest)
        name, number = first
        if number not in self.kinds:
            self.kinds[number] = type(str(name), (self._exception(rest),), {})
        return self.kinds[number]

    def _raise(self, raised: Mapping[str, Any]) -> NoReturn:
        kind = self._exception([*raised["classes"], "Exception"])
        try:
            error = kind(*decode(raised["args"]))
        except Exception:
            error = Exception(raised["text"])
        raise error


class Tests:
    """The tests of one program."""

    def __init__(self) -> None:
        self.line = Line()
        self.names: dict[str, Any] = {}

    def do_load(
        self, source: str, module: str, names: Mapping[str, Any], entry_point: str, trusting: bool
    ) -> Any:
        """Run the test file (up to its first request)."""
        link = Link(self.line, trusting)
        self.entry_point = entry_point
        given = {name: link.named(form) for name, form in names.items()}
        program = types.ModuleType(module)
        program.__dict__.update(given)
        sys.modules[module] = program
        tests = types.ModuleType("tests")
        sys.modules["tests"] = tests
        self.names = tests.__dict__
        self.names.update(given)
        code = compile(source, "tests.py", "exec", dont_inherit=True)
        return self._begin(lambda: exec(code, self.names))

    def do_begin(self, test: str) -> Any:
        """Start a test."""
        return self._begin(lambda: self._run(test))

    def do_reply(self, reply: Any) -> Any:
        """Give the tests what they asked for; their next request, or the outcome."""
        return self.line.answer(reply)

    def _begin(self, work: Callable[[], Any]) -> Any:
        def target() -> None:
            outcome = ["passed", ""]
            try:
                outcome = work() or outcome
            except BaseException as error:
                outcome = _outcome(error)
            self.line.end({"done": outcome, "asked": self.line.asked})

        self.line.asked = False
        _thread.start_new_thread(target, ())
        return self.line.wait()

    def _run(self, test: str) -> list[str] | None:
        name, _, method = test.partition("::")
        if not method:
            if name == "check":
                self.names["check"](self.names[self.entry_point])
            elif name != "module":
                _finish(self.names[name]())
            return None
        kind = self.names[name]
        if any(f"{c.__module__}.{c.__name__}" == "unittest.case.TestCase" for c in kind.__mro__):
            return _run_case(kind(method))
        instance = kind()
        for before in ("setup_method", "setUp"):
            getattr(instance, before, lambda: None)()
        try:
            _finish(getattr(instance, method)())
        finally:
            for after in ("teardown_method", "tearDown"):
                getattr(instance, after, lambda: None)()
        return None


def _finish(result: Any) -> None:
    """A test that is a generator or coroutine has not run by being called."""
    if isinstance(result, types.CoroutineType):
        import asyncio

        asyncio.run(result)
    elif isinstance(result, types.GeneratorType):
        raise TypeError("a test that yields is none")


def _run_case(case: Any) -> list[str]:
    import unittest

    result = unittest.TestResult()
    case.run(result)
    if result.skipped:
        return ["skipped", str(result.skipped[0][1])[:_DETAIL_CHARS]]
    if result.expectedFailures or result.unexpectedSuccesses or result.testsRun != 1:
        return ["wrong", "it did not run as a plain test"]
    for status, problems in (("wrong", result.failures), ("error", result.errors)):
        if problems:
            return [status, problems[0][1].strip().rpartition("\n")[2][:_DETAIL_CHARS]]
    return ["passed", ""]


def _outcome(error: BaseException) -> list[str]:
    kind = type(error).__name__
    try:
        text = f"{kind}: {error}"[:_DETAIL_CHARS]
    except BaseException:
        text = kind
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    where = f" (line {lines[-1]} of the tests)" if lines else ""
    if kind in ("SkipTest", "Skipped"):
        return ["skipped", text + where]
    return ["wrong" if isinstance(error, AssertionError) else "error", text + where]


def start() -> Driver:
    """The driver, in a fresh session."""
    return Driver(Tests())

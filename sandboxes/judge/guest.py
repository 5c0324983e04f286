"""The host's end of a session in which one of the judge's drivers (`inside`) runs."""

from __future__ import annotations

import marshal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import CodeType, TracebackType
from typing import Any, Self

from agentrl.errors import SandboxError, SessionDead
from agentrl.interfaces import Sandbox, Session
from agentrl.types import CaseStatus, ExecError, ExecResult, Limits
from sandboxes.judge import codec, inside

_CELL_CHARS = 100_000  # longer messages go through a file

# How a session gets its driver: it is there already, it comes compiled, or as source. Each cell
# ends with `judge` made, or says that it could not.
_OTHER = "'not so'"
_PRELOADED = """\
import sys
if getattr(sys.modules.get('sandboxes.judge.digest'), 'VALUE', '') == {digest!r}:
    judge = sys.modules['sandboxes.judge.inside.{driver}'].start()
"""
_BOOT = """\
import sys, types
def _boot(parts):
    for name, code in parts:
        module = sys.modules[name] = types.ModuleType(name)
        exec(code, module.__dict__)
    return module.start()
"""
_COMPILED = """\
if sys.version_info[:2] == {version} and sys.implementation.name == 'cpython':
    import marshal
    judge = _boot(marshal.loads(bytes.fromhex({code!r})))
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: the guest's `answer` (a claim), or None and why there is none."""

    answer: dict[str, Any] | None
    result: ExecResult
    problem: str = ""

    @property
    def status(self) -> CaseStatus:
        """Why there is no answer, as a case's status."""
        return "malformed" if self.result.status == "ok" else self.result.status

    @property
    def detail(self) -> str:
        """The same in words."""
        error = self.result.error
        shown = f"{error.name}: {error.message}"[:1000] if error else ""
        return self.problem or self.result.detail or shown or self.result.status


class Died(Exception):
    """The session ended between two messages."""


class Guest:
    """One fresh session with a driver in it; use with `async with`."""

    def __init__(
        self, box: Sandbox, driver: str, limits: Limits | None, profile: Any, timeout: float | None
    ) -> None:
        self._driver = driver
        self._timeout = timeout
        self._session: Session = box.session(limits, profile=profile)
        self._files = 0
        self._up = False

    async def __aenter__(self) -> Self:
        """Raises SandboxError if the session does not start."""
        await self._session.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def write(self, files: Mapping[str, bytes]) -> None:
        """Put files into /work."""
        for name, data in files.items():
            await self._session.write_file(name, data)

    async def ask(self, do: str, **message: Any) -> Reply:
        """Give the driver a message, and wait for its answer.

        Raises Died if the session ended since the last one, SandboxError if the sandbox failed.
        """
        text = codec.dumps({"do": do, **message})
        try:
            if len(text) <= _CELL_CHARS:
                cell = f"judge({text!r})"
            else:
                self._files += 1
                name = f".message-{self._files}"
                await self._session.write_file(name, text.encode("ascii"))
                cell = f"judge.from_file({name!r})"
            return await self._read(await self._run(cell))
        except SessionDead as error:
            raise Died(str(error)) from error
        except (OSError, ValueError) as error:  # the program is in their way
            return Reply(
                None, ExecResult("error"), f"the files of the session are unusable: {error}"
            )

    async def _run(self, cell: str) -> ExecResult:
        """Run a cell; the first one makes the driver, too."""
        if self._up:
            return await self._session.run(cell, timeout=self._timeout)
        self._up = True
        for make in (_preloaded, _compiled):
            first = f"{make(self._driver)}{cell} if 'judge' in globals() else {_OTHER}"
            result = await self._session.run(first, timeout=self._timeout)
            if result.value != _OTHER:
                return result
        return await self._session.run(_plain(self._driver) + cell, timeout=self._timeout)

    async def _read(self, result: ExecResult) -> Reply:
        if result.status == "infra":
            raise SandboxError(f"the sandbox failed: {result.detail}")
        if result.status != "ok" or result.value is None:
            return Reply(None, result, "" if result.status != "ok" else "no reply")
        answer = _parsed(result.value)
        if answer is None and result.truncated:
            result = await self._session.run("judge.again()", timeout=self._timeout)
            if result.status != "ok":
                return Reply(None, result)
            answer = _parsed(result.value or "")
        if answer is not None and "file" in answer:
            data = await self._session.read_file(".reply")
            answer = _parsed(data.decode("ascii", "replace"))
        return Reply(answer, result, "" if answer is not None else "a reply that cannot be read")


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        answer = codec.loads(text)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def error_of(raised: Any) -> tuple[list[str], ExecError] | None:
    """The names of an exception's built-in classes, nearest first, and how it is shown; None if
    `raised` is no description of one."""
    try:
        classes = raised["classes"]
        builtin = [c for c in classes if type(c) is str]
        name = classes[0] if type(classes[0]) is str else classes[0][0]
        texts = (name, raised["text"], raised["trace"])
    except (TypeError, KeyError, IndexError):
        return None
    if not all(type(t) is str for t in texts):
        return None
    return builtin, ExecError(name[:200], texts[1][:4000], texts[2][:10_000])


@cache
def _preloaded(driver: str) -> str:
    """The cell that takes the driver that the session has had from its start."""
    return _PRELOADED.format(driver=driver, digest=inside.digest())


@cache
def _compiled(driver: str) -> str:
    """The cell that makes the driver, without compiling it where the version is ours."""
    parts = [
        (name, _bare(compile(source, "<judge>", "exec", optimize=2)))
        for name, source in inside.sources(driver)
    ]
    return _BOOT + _COMPILED.format(
        version=tuple(sys.version_info[:2]), code=marshal.dumps(parts).hex()
    )


def _bare(code: CodeType) -> CodeType:
    """Code without line numbers: a third of it."""
    parts = tuple(_bare(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=parts, co_linetable=b"")


@cache
def _plain(driver: str) -> str:
    """The same for another version of Python."""
    return f"judge = _boot({inside.sources(driver)!r})\n"

"""Mode `stdio`: a whole program reads a case from standard input, and its output is compared here.

Every case runs in a session of its own. A program in a compiled language is compiled once, in
another.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from agentrl.errors import ConfigError, SandboxError, unknown
from agentrl.types import CaseResult, CaseStatus, ExecResult, Limits, Verdict
from sandboxes import languages
from sandboxes.judge import compiled
from sandboxes.judge.call import load
from sandboxes.judge.compare import TEXT_CHECKERS, Tolerance, same_text
from sandboxes.judge.guest import Died, Guest
from sandboxes.judge.setting import GOT_CHARS, Setting, not_run, verdict

_KEYS = {"id", "stdin", "expect", "args"}

Checker = str | Callable[[str, str, str], bool]


@dataclass(frozen=True, slots=True)
class _Case:
    id: str
    stdin: bytes
    text: str
    expect: str
    args: tuple[str, ...]


async def judge_stdio(
    setting: Setting,
    program: str,
    cases: Sequence[Mapping[str, Any]],
    *,
    language: str = "python",
    checker: Checker = "lines",
    rel_tol: float = 0.0,
    abs_tol: float = 1e-6,
) -> Verdict:
    """Judge by input and output. A case is `{"stdin": TEXT, "expect": TEXT, "args": [...]}`.

    The program must end by itself with exit status 0: `sys.exit(0)` and `os._exit(0)` after the
    right output are right, as in contests. `checker` is one of `compare.TEXT_CHECKERS`, a function
    of the input, the expected and the found output (trusted: it runs here), or the source of a
    Python function `check(stdin, expected, found)`, which runs in a session of its own; both pass
    a case by returning True. The tolerances are those of the checker "floats".

    Raises ConfigError for cases, a language or a checker that cannot be.
    """
    if language not in languages.LANGUAGES:
        raise unknown("language", language, languages.LANGUAGES)
    parsed = [_parse(i, case) for i, case in enumerate(cases)]
    tolerance = Tolerance(rel_tol, abs_tol)
    found: dict[int, CaseResult] = {}
    async with contextlib.AsyncExitStack() as stack:
        judged_by: Callable[[str, str, str], bool] | _Checker
        if callable(checker):
            judged_by = checker
        elif checker in TEXT_CHECKERS:
            name = checker
            judged_by = lambda _, expected, got: same_text(name, expected, got, tolerance)  # noqa: E731
        else:
            judged_by = await stack.enter_async_context(_Checker(setting, checker))
        how = languages.LANGUAGES[language]
        binary = await compiled.build(setting, how, program) if how.compiler else b""
        if isinstance(binary, ExecResult):
            return verdict([_not_compiled(case.id, binary) for case in parsed], setting)
        for i in setting.shuffled(len(parsed)):
            case = parsed[i]
            why = setting.enough(found.values())
            if why:
                found[i] = not_run(case.id, why)
                continue
            if how.compiler:
                result = await compiled.run(setting, how, binary, case.args, case.stdin)
            else:
                result = await _run(setting, language, program, case)
            found[i] = await _judged(case, result, judged_by)
    return verdict([found[i] for i in range(len(parsed))], setting)


def _parse(number: int, case: Mapping[str, Any]) -> _Case:
    if not isinstance(case, Mapping) or not case.keys() <= _KEYS or "expect" not in case:
        raise ConfigError(f"case {number}: a case has 'expect' and maybe 'stdin', 'args', 'id'")
    stdin, expect = case.get("stdin", ""), case["expect"]
    if not isinstance(stdin, str) or not isinstance(expect, str):
        raise ConfigError(f"case {number}: 'stdin' and 'expect' are text")
    data = stdin.encode("utf-8", "surrogateescape")
    args = tuple(str(a) for a in case.get("args", ()))
    return _Case(str(case.get("id", number)), data, stdin, expect, args)


class _Checker:
    """A checker that is source, in a session that is replaced after an output it did not bear."""

    def __init__(self, setting: Setting, source: str) -> None:
        if "def check" not in source:
            raise unknown("checker (or the source of check(stdin, expected, found))", source[:50],
                          TEXT_CHECKERS)  # fmt: skip
        self._setting = dataclasses.replace(setting, files={})
        self._source = source
        self._stack = contextlib.AsyncExitStack()
        self._guest: Guest | None = None

    async def __aenter__(self) -> Self:
        """Raises ConfigError if the source has no such function, SandboxError."""
        try:
            await self._renew()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _renew(self) -> Guest:
        await self._stack.aclose()
        guest = await self._stack.enter_async_context(self._setting.guest("candidate"))
        loaded = await load(guest, self._setting, self._source, ["check"])
        if not isinstance(loaded, dict) or "check" not in loaded:
            why = "it does not define it" if isinstance(loaded, dict) else loaded[1]
            raise ConfigError(f"the checker has no check(stdin, expected, found): {why}")
        self._guest = guest
        return guest

    async def says(self, case: _Case, got: str) -> tuple[CaseStatus, str]:
        """What it says of an output. One that it does not bear, whatever that does to it, is wrong:
        else a program could choose not to be judged."""
        guest = self._guest or await self._renew()
        args = [case.text, case.expect, got]
        try:
            reply = await guest.ask(
                "call", name="check", args=args, kwargs={"dict": []}, after=False
            )
        except Died as died:
            raise SandboxError(f"the checker's session ended: {died}") from died
        if reply.answer is None:
            self._guest = None
            return "wrong", f"the checker failed on this output: {reply.detail}"[:1000]
        if reply.answer.get("value") is True:
            return "passed", ""
        said = str(reply.answer.get("value", reply.answer))[:500]
        return "wrong", f"the checker said {said}"


async def _run(setting: Setting, language: str, program: str, case: _Case) -> ExecResult:
    options: dict[str, Any] = {} if setting.profile is None else {"profile": setting.profile}
    return await setting.box.run(
        program,
        language=language,
        args=case.args,
        stdin=case.stdin,
        files=setting.files,
        limits=_limits(setting),
        **options,
    )


async def _judged(
    case: _Case, result: ExecResult, checker: Callable[[str, str, str], bool] | _Checker
) -> CaseResult:
    """Compare what a run gave. Raises SandboxError for what is our fault."""
    if result.status == "infra":
        raise SandboxError(f"the sandbox failed: {result.detail}")
    got = result.stdout if len(result.stdout) <= GOT_CHARS else f"{result.stdout[:GOT_CHARS]}..."
    ended = result.status == "ok" or (result.status == "exit" and result.exit_code == 0)
    status: CaseStatus
    if not ended:
        assert result.status != "ok"
        status, detail = result.status, result.detail or _why(result)
    elif result.truncated:
        status, detail = "output_limit", f"{result.stdout_bytes} bytes of output are too many"
    elif isinstance(checker, _Checker):
        status, detail = await checker.says(case, result.stdout)
    elif checker(case.text, case.expect, result.stdout) is True:
        status, detail = "passed", ""
    else:
        status, detail = "wrong", "another output than the expected one"
    passed = status == "passed"
    return CaseResult(case.id, passed, status, detail, result.duration, got, result.error)


def _why(result: ExecResult) -> str:
    error = result.error
    return f"{error.name}: {error.message}" if error else f"exit status {result.exit_code}"


def _not_compiled(name: str, result: ExecResult) -> CaseResult:
    assert result.status != "ok"
    why = result.error.message if result.error else result.detail
    detail = f"it does not compile: {why[:1000]}"
    return CaseResult(name, False, result.status, detail, result.duration, error=result.error)


def _limits(setting: Setting) -> Limits | None:
    """The sessions' limits with the time for a case."""
    if setting.timeout is None:
        return setting.limits
    base = setting.limits or getattr(setting.box, "limits", None) or Limits()
    return dataclasses.replace(base, wall_s=setting.timeout)

"""Mode `call`: the judge calls functions of the program, and compares what they give outside.

The program is loaded once as the module `solution`, then gets the arguments of one case at a time.
Neither an expected result nor the arguments of a later case are in its process.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.errors import ConfigError, SandboxError
from agentrl.types import CaseResult, CaseStatus, ExecError, Verdict
from sandboxes.feedback import NOT_LOADED
from sandboxes.judge import codec
from sandboxes.judge.compare import Tolerance
from sandboxes.judge.guest import Died, Guest, Reply, error_of
from sandboxes.judge.setting import Equal, Setting, equality, not_run, shown, verdict

_KEYS = {"id", "call", "args", "kwargs", "expect", "raises", "args_after"}
_NAME = re.compile(r"[^\W\d]\w*(\(\))?(\.[^\W\d]\w*(\(\))?)*")


@dataclass(frozen=True, slots=True)
class _Case:
    id: str
    message: Mapping[str, Any]
    expect: Any
    raises: str | None
    args_after: Any
    args: Sequence[Any]


async def judge_calls(
    setting: Setting,
    program: str,
    cases: Sequence[Mapping[str, Any]],
    *,
    equal: Equal = "exact",
    rel_tol: float = 0.0,
    abs_tol: float = 0.0,
) -> Verdict:
    """Judge by calls. A case is `{"call": NAME, "args": [...], "kwargs": {...}, "expect": VALUE}`;
    `"raises": "ValueError"` instead of `expect` wants a built-in exception or one derived from it,
    `args_after` is how the positional arguments must look afterwards.

    `equal`: "exact" (types too), "python" (as `==` has it) or a function of the expected and the
    returned value, which runs here. Raises ConfigError for cases that cannot be.
    """
    parsed = [_parse(i, case) for i, case in enumerate(cases)]
    compare = equality(equal, Tolerance(rel_tol, abs_tol))
    found: dict[int, CaseResult] = {}
    async with contextlib.AsyncExitStack() as stack:
        guest: Guest | None = None
        for i in setting.shuffled(len(parsed)):
            case = parsed[i]
            why = setting.enough(found.values())
            if why:
                found[i] = not_run(case.id, why)
                continue
            for attempt in range(2):  # of what ends between two messages it is not clear why
                if guest is None or setting.isolate_cases or attempt:
                    await stack.aclose()
                    guest = await stack.enter_async_context(setting.guest("candidate"))
                    loaded = await load(guest, setting, program)
                    if not isinstance(loaded, dict):
                        if not found:
                            return verdict([broken_case(c.id, loaded) for c in parsed], setting)
                        found[i], guest = broken_case(case.id, loaded), None
                        break
                try:
                    found[i], alive = await _judge_case(guest, case, compare)
                except Died as died:
                    found[i], guest = CaseResult(case.id, False, "exit", str(died)), None
                else:
                    guest = guest if alive else None
                    break
    return verdict([found[i] for i in range(len(parsed))], setting)


def _parse(number: int, case: Mapping[str, Any]) -> _Case:
    where = f"case {number}"
    if not isinstance(case, Mapping) or not case.keys() <= _KEYS or "call" not in case:
        raise ConfigError(f"{where}: a case has 'call' and others of {', '.join(sorted(_KEYS))}")
    if ("expect" in case) == ("raises" in case) and not (
        "args_after" in case and "raises" not in case
    ):
        raise ConfigError(f"{where}: give either 'expect' or 'raises' (or 'args_after')")
    name, args, kwargs = case["call"], case.get("args", ()), case.get("kwargs", {})
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: 'call' is a name such as 'f' or 'Solution().f', not {name!r}")
    try:
        message = {
            "name": name,
            "args": codec.encode(list(args)),
            "kwargs": codec.encode(dict(kwargs)),
            "after": "args_after" in case,
        }
        for key in ("expect", "args_after"):
            codec.encode(case.get(key))
    except (codec.NotAValue, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error
    return _Case(
        id=str(case.get("id", number)),
        message=message,
        expect=case.get("expect", ...),
        raises=case.get("raises"),
        args_after=list(case["args_after"]) if "args_after" in case else ...,
        args=list(args),
    )


Broken = tuple[CaseStatus, str, ExecError | None]


async def load(
    guest: Guest, setting: Setting, program: str, names: Sequence[str] = ()
) -> dict[str, Any] | Broken:
    """Load the program; the forms of those of its `names` that it has, or how that failed."""
    await guest.write(setting.files)
    try:
        reply = await guest.ask("load", source=program, name="solution", names=list(names))
    except Died as error:  # before the program could do anything
        raise SandboxError(str(error)) from error
    value = reply.answer.get("value") if reply.answer is not None else None
    if isinstance(value, dict) and value.keys() <= set(names):
        return value
    status, detail, error_shown, _ = failure(reply)
    return status, f"{NOT_LOADED}: {detail}", error_shown


def broken_case(name: str, why: Broken) -> CaseResult:
    return CaseResult(name, False, why[0], why[1], error=why[2])


def failure(reply: Reply) -> tuple[CaseStatus, str, ExecError | None, list[str]]:
    """Status, detail, exception and its built-in classes of a reply without a value."""
    answer = reply.answer
    if answer is None:
        return reply.status, reply.detail, reply.result.error, []
    if "foreign" in answer:
        return "malformed", f"it gave {answer['foreign']}"[:1000], None, []
    raised = error_of(answer.get("raised"))
    if raised is None:
        return "malformed", "a reply that makes no sense", None, []
    classes, error = raised
    return "error", f"{error.name}: {error.message}"[:1000], error, classes


async def _judge_case(
    guest: Guest, case: _Case, compare: Callable[[Any, Any], bool]
) -> tuple[CaseResult, bool]:
    """The result of one case, and whether the session can be used for the next. Raises Died."""
    started = time.monotonic()
    reply = await guest.ask("call", **case.message)
    seconds = time.monotonic() - started
    answer = reply.answer
    if answer is None or "value" not in answer:
        status, detail, error, classes = failure(reply)
        passed = status == "error" and case.raises is not None and case.raises in classes
        if passed:
            status = "passed"
        elif case.raises is not None and status == "error":
            detail = f"expected {case.raises}, not {detail}"
        result = CaseResult(case.id, passed, status, detail, seconds, "", error)
        return result, answer is not None
    try:
        got = codec.decode(answer["value"])
        args, _ = codec.decode(answer["after"]) if case.args_after is not ... else ([], None)
    except (ValueError, TypeError, KeyError) as error:
        return CaseResult(case.id, False, "malformed", str(error)[:1000], seconds), True
    return _compared(case, got, args, compare, seconds), True


def _compared(
    case: _Case, got: Any, args: Any, compare: Callable[[Any, Any], bool], seconds: float
) -> CaseResult:
    detail = ""
    if case.raises is not None:
        detail = f"expected {case.raises}, but it returned"
    elif case.expect is not ... and not compare(case.expect, got):
        detail = "another value than the expected one"
    elif case.args_after is not ... and not compare(case.args_after, args):
        detail = "the arguments look otherwise than expected after the call"
    status: CaseStatus = "wrong" if detail else "passed"
    return CaseResult(case.id, not detail, status, detail, seconds, shown(got))

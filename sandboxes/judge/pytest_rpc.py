"""Mode `pytest_rpc`: the tests run in one session, the program in another, the judge between them.

In the tests the program's names are proxies. What they give is decoded to plain values where it can
be, and compared in the tests' session; other objects stay with the program (see `inside.tests`).
"""

from __future__ import annotations

import ast
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from agentrl.errors import ConfigError, SandboxError
from agentrl.types import CaseResult, CaseStatus, Verdict
from sandboxes.judge import sources
from sandboxes.judge.call import broken_case, load
from sandboxes.judge.guest import Died, Guest, Reply
from sandboxes.judge.setting import Setting, not_run, verdict

MODULE = "solution"


@dataclass(frozen=True, slots=True)
class Suite:
    """Tests that can be run: one source, the ids that must pass, the names that are proxies."""

    source: str
    ids: tuple[str, ...]
    names: tuple[str, ...]
    entry_point: str


async def judge_tests(
    setting: Setting,
    program: str,
    tests: str | Sequence[str],
    *,
    setup: str = "",
    entry_point: str = "",
    names: Sequence[str] | None = None,
    required: Sequence[str] | None = None,
    trust_operators: bool = False,
) -> Verdict:
    """Judge by tests: the source of a file, or a list of sources that are a test each.

    A file holds functions `test_*`, classes `Test*` or `unittest.TestCase`, a function
    `check(candidate)` that is given `entry_point`, or bare asserts. `setup` is run before. The
    program's names are those in `names`; by default those that the tests use without making them
    and those they import from the module `solution`. Every id in `required` (by default all tests)
    must report that it passed.

    `trust_operators`: operators on objects that are no plain values are the program's own; then
    the verdict's integrity is "weak". Raises ConfigError for tests that cannot be run.
    """
    suite = make_suite(tests, setup, entry_point, names, required)
    found: dict[int, CaseResult] = {}
    async with contextlib.AsyncExitStack() as stack:
        pair: tuple[Guest, Guest] | None = None
        for i in setting.shuffled(len(suite.ids)):
            why = setting.enough(found.values())
            if why:
                found[i] = not_run(suite.ids[i], why)
                continue
            for attempt in range(2):  # of what ends between two messages it is not clear why
                try:
                    if pair is None or setting.isolate_cases or attempt:
                        await stack.aclose()
                        opened = await _open(stack, setting, program, suite, trust_operators)
                        if isinstance(opened, CaseResult):
                            found[i], pair = _named(opened, suite.ids[i]), None
                            break
                        pair = opened
                    found[i] = await _run(*pair, suite.ids[i])
                except Died as died:
                    found[i], pair = CaseResult(suite.ids[i], False, "exit", str(died)), None
                else:
                    if found[i].status not in ("passed", "wrong", "skipped"):
                        pair = None
                    break
    cases = [found[i] for i in range(len(suite.ids))]
    return verdict(cases, setting, "weak" if trust_operators else "strong")


def make_suite(
    tests: str | Sequence[str],
    setup: str,
    entry_point: str,
    names: Sequence[str] | None,
    required: Sequence[str] | None,
) -> Suite:
    """Read tests. Raises ConfigError."""
    if isinstance(tests, str):
        source = f"{setup}\n{tests}" if setup else tests
    else:
        source = "\n".join([setup, *(_as_function(n, text) for n, text in enumerate(tests))])
    tree = sources.parse(source, "the tests")
    ids = sources.test_ids(tree, plain=True)
    for name in required or ():
        if name not in ids:
            raise ConfigError(f"the required test {name!r} is not among {', '.join(ids)}")
    if "check" in ids and not entry_point:
        raise ConfigError("check(candidate) needs entry_point, the name of the function")
    if names is None:
        names = [*sources.free_names(tree), *sources.imported_names(tree, MODULE)]
    wanted = dict.fromkeys([*names, *([entry_point] if entry_point else [])])
    return Suite(source, tuple(required or ids), tuple(wanted), entry_point)


def _as_function(number: int, text: str) -> str:
    body = sources.parse(text, f"the tests (number {number})").body
    if not body:
        raise ConfigError(f"test {number} has no statement")
    (function,) = ast.parse(f"def test_{number}(): pass").body
    assert isinstance(function, ast.FunctionDef)
    function.body = body
    return ast.unparse(function)


async def _open(
    stack: contextlib.AsyncExitStack,
    setting: Setting,
    program: str,
    suite: Suite,
    trusting: bool,
) -> tuple[Guest, Guest] | CaseResult:
    """Both sessions, program and test file loaded, or how that failed."""
    candidate = await stack.enter_async_context(setting.guest("candidate"))
    tests = await stack.enter_async_context(setting.guest("tests"))
    loaded = await load(candidate, setting, program, suite.names)
    if not isinstance(loaded, dict):
        return broken_case("", loaded)
    reply = await tests.ask(
        "load",
        source=suite.source,
        module=MODULE,
        names=loaded,
        entry_point=suite.entry_point,
        trusting=trusting,
    )
    outcome, asked = await _carry(candidate, tests, reply, "", time.monotonic())
    if outcome.passed:
        return candidate, tests
    if not asked and outcome.detail.startswith("ModuleNotFoundError: "):
        raise ConfigError(f"the tests cannot be run: {outcome.detail}. Name a profile that has it")
    return outcome


def _named(result: CaseResult, name: str) -> CaseResult:
    return CaseResult(
        name, False, result.status, result.detail, result.duration, error=result.error
    )


async def _run(candidate: Guest, tests: Guest, name: str) -> CaseResult:
    """Run one test. Raises Died."""
    started = time.monotonic()
    outcome, _ = await _carry(candidate, tests, await tests.ask("begin", test=name), name, started)
    return outcome


async def _carry(
    candidate: Guest, tests: Guest, reply: Reply, name: str, started: float
) -> tuple[CaseResult, bool]:
    """Carry requests and replies until the tests are done; and whether they used the program."""
    asked = False
    while True:
        seconds = time.monotonic() - started
        answer = reply.answer
        if answer is None:
            detail = f"in the tests: {reply.detail}"
            return CaseResult(name, False, reply.status, detail, seconds), asked
        if "done" in answer:
            return _outcome(name, answer["done"], seconds), asked or answer.get("asked") is True
        asked = True
        done = await candidate.ask("op", **answer)
        if done.answer is None:
            error = done.result.error
            return CaseResult(name, False, done.status, done.detail, seconds, error=error), True
        reply = await tests.ask("reply", reply=done.answer)


def _outcome(name: str, done: Any, seconds: float) -> CaseResult:
    status, detail = done
    if status not in get_args(CaseStatus):
        raise SandboxError(f"the tests' session reported {status!r}")
    return CaseResult(name, status == "passed", status, detail, seconds)

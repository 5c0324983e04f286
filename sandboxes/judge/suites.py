"""HumanEval and MBPP problems as the judge's cases.

Tests that only compare a call with a literal become `call` cases; the others run as they are in
mode `pytest_rpc`.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.errors import DataError
from agentrl.interfaces import Sandbox
from agentrl.types import Verdict
from sandboxes.judge.sources import quietly_parsed


@dataclass(frozen=True, slots=True)
class Suite:
    """How to judge a program for one problem: what `judge` takes besides the program."""

    mode: str
    cases: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    async def judge(self, box: Sandbox, program: str, **options: Any) -> Verdict:
        """Judge a program in any sandbox."""
        from sandboxes.judge import judge

        return await judge(box, program, self.cases, mode=self.mode, **{**self.options, **options})


def humaneval(problem: Mapping[str, Any]) -> Suite:
    """A problem of HumanEval.jsonl (`prompt`, `entry_point`, `test`). A program to judge is the
    prompt with its completion, or whatever defines the function.

    Helpers that the tests use are taken from the prompt, never from the program.
    """
    entry = problem["entry_point"]
    tree = _parsed(problem["test"])
    checks = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "check"]
    if len(checks) != 1:
        raise DataError(f"{problem.get('task_id')}: the tests have no function check")
    cases = _cases(checks[0].body, {"candidate": entry, entry: entry})
    if cases:
        return Suite("call", cases, {"equal": "python"})
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    prompt = _parsed(problem["prompt"] + "    pass\n").body
    helpers = [n for n in prompt if isinstance(n, ast.FunctionDef) and n.name in used - {entry}]
    needed = [n for n in prompt if isinstance(n, ast.Import | ast.ImportFrom)] if helpers else []
    setup = "\n".join(ast.unparse(n) for n in [*needed, *helpers])
    options = {"entry_point": entry, "names": [entry], "setup": setup}
    return Suite("pytest_rpc", problem["test"], options)


def mbpp(problem: Mapping[str, Any]) -> Suite:
    """A problem of mbpp.jsonl (`code`, `test_setup_code`, `test_list`).

    The names that tests take from a program are those the reference solution defines.
    """
    setup, tests = problem["test_setup_code"], problem["test_list"]
    reference = _parsed(problem["code"]).body
    made = {n.name for n in reference if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    trees = [_parsed(test) for test in tests]
    cases = [] if setup else _cases([n for t in trees for n in t.body], {n: n for n in made})
    if cases:
        return Suite("call", cases, {"equal": "python"})
    used = {n.id for t in [*trees, _parsed(setup)] for n in ast.walk(t) if isinstance(n, ast.Name)}
    modules = sorted((used - made) & sys.stdlib_module_names)
    setup = "".join(f"import {m}\n" for m in modules) + setup
    return Suite("pytest_rpc", tests, {"setup": setup, "names": sorted(used & made)})


def _parsed(source: str) -> ast.Module:
    try:
        return quietly_parsed(source)
    except SyntaxError as error:
        raise DataError(f"a problem does not compile: {error}") from error


def _cases(body: Sequence[ast.stmt], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The statements as `call` cases; none if one of them is something else."""
    cases = []
    for statement in body:
        if _idle(statement):
            continue
        case = _case(statement, names)
        if case is None:
            return []
        cases.append(case)
    return cases


def _idle(statement: ast.stmt) -> bool:
    """A text, or an assertion that a constant is true: prompts to readers, no tests."""
    match statement:
        case ast.Expr(ast.Constant()):
            return True
        case ast.Assert(ast.Constant(value)):
            return bool(value)
    return False


def _case(statement: ast.stmt, names: Mapping[str, str]) -> dict[str, Any] | None:
    """`assert f(LITERALS) == LITERAL` as a case."""
    match statement:
        case ast.Assert(ast.Compare(ast.Call(ast.Name(name), args, words), [ast.Eq()], [right])):
            pass
        case _:
            return None
    if name not in names or not all(w.arg for w in words):
        return None
    try:
        return {
            "call": names[name],
            "args": [ast.literal_eval(a) for a in args],
            "kwargs": {str(w.arg): ast.literal_eval(w.value) for w in words},
            "expect": ast.literal_eval(right),
        }
    except (ValueError, TypeError, SyntaxError):
        return None

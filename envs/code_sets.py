"""The problems of the environment `code`: where they come from, and the tests that judge them."""

from __future__ import annotations

import doctest
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, DataError
from envs.files import data_file, read_jsonl
from sandboxes.judge import suites
from sandboxes.judge.suites import Suite

BUILT_IN = Path(__file__).with_name("code_problems.jsonl")


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem. `visible` are tests that may be shown, as asserts; `tests` is what else its
    set's `suites` reads (JSON, never shown)."""

    id: str
    split: str
    text: str
    solution: str
    visible: tuple[str, ...]
    tests: Mapping[str, Any]
    wrong: str = ""


@dataclass(frozen=True, slots=True)
class Tests:
    """What judges a program: `graded`, of whose cases `shown` (id to text) may be told of.

    Where those that may be shown are not among the graded ones, they are `examples`.
    """

    graded: Suite
    shown: Mapping[str, str]
    examples: Suite | None = None
    examples_shown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProblemSet:
    """Where a set comes from. `shows_tests`: the prompt does not have its examples already."""

    splits: tuple[str, ...]
    file: str
    problem: Callable[[Mapping[str, Any], int], Problem]
    tests: Callable[[Mapping[str, Any], bool], Tests]
    shows_tests: bool = True


def read(
    source: str, split: str, path: str | os.PathLike[str] | None, visible: int
) -> list[Problem]:
    """The problems of a split, in the file's order, of which `visible` tests each may be shown.

    Raises ConfigError without a data folder, DataError for a file or line that cannot be read.
    """
    made = SETS[source]
    if source == "builtin" and path is None:
        path = BUILT_IN
    file = data_file("code", made.file, path, otherwise="use source='builtin', which needs no file")
    problems = [_problem(made, where, record, visible) for where, record in read_jsonl(file)]
    return [problem for problem in problems if problem.split == split]


def _problem(made: ProblemSet, where: str, record: Any, visible: int) -> Problem:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: a problem is a JSON object")
    try:
        return made.problem(record, visible)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: not a problem of this set ({error!r}); mend the line") from error


def _mbpp(record: Mapping[str, Any], visible: int) -> Problem:
    tests = [str(test) for test in record["test_list"]]
    code = record["code"].replace("\r\n", "\n")
    more = {"hidden": tests[visible:], "setup": record["test_setup_code"]}
    shown = tuple(tests[:visible])
    name, wrong = str(record["task_id"]), str(record.get("wrong", ""))
    split = record.get("split") or _mbpp_split(int(name))
    return Problem(name, split, record["text"].strip(), code, shown, more, wrong)


def _mbpp_split(number: int) -> str:
    """The splits of MBPP (google-research/mbpp) by task id."""
    bounds = {"prompt": 10, "test": 510, "validation": 600, "train": 974}
    return next((split for split, last in bounds.items() if number <= last), "")


def _mbpp_tests(data: Mapping[str, Any], everything: bool) -> Tests:
    tests = [*data["visible"], *data["hidden"]]
    suite = suites.mbpp(
        {"code": data["solution"], "test_setup_code": data["setup"], "test_list": tests}
    )
    if len(suite.cases) != len(tests):
        raise DataError("a problem's test is not one statement; split it")
    names = (str(i) if suite.mode == "call" else f"test_{i}" for i in range(len(tests)))
    shown = tests if everything else data["visible"]
    return Tests(suite, dict(zip(names, shown, strict=False)))


def _humaneval(record: Mapping[str, Any], visible: int) -> Problem:
    prompt, entry, name = record["prompt"], record["entry_point"], str(record["task_id"])
    more = {"prompt": prompt, "entry_point": entry, "test": record["test"]}
    shown = _examples(prompt)
    text = f"Complete this function:\n```python\n{prompt.strip()}\n```"
    solution = prompt + record["canonical_solution"]
    wrong = str(record.get("wrong", ""))
    return Problem(name, "test", text, solution, tuple(shown[:visible]), more, wrong)


def _examples(prompt: str) -> list[str]:
    """The examples `>>> f(...)` of a prompt, as asserts; only calls with plain values."""
    try:
        found = doctest.DocTestParser().get_examples(prompt)
    except ValueError:  # an example that is none
        return []
    tests = (f"assert {example.source.strip()} == {example.want.strip()}" for example in found)
    return [test for test in tests if _plain(test, prompt)]


def _plain(test: str, prompt: str) -> bool:
    """True if a test compares one call with plain values."""
    problem = {"code": f"{prompt}    pass", "test_setup_code": "", "test_list": [test]}
    try:
        suite = suites.mbpp(problem)
    except DataError:
        return False
    return suite.mode == "call"


def _humaneval_tests(data: Mapping[str, Any], everything: bool) -> Tests:
    suite = suites.humaneval(data)
    shown: dict[str, str] = {}
    if everything and suite.mode == "call":
        shown = {str(i): _assert(case) for i, case in enumerate(suite.cases)}
    if not data["visible"]:
        return Tests(suite, shown)
    examples = suites.mbpp(
        {"code": data["solution"], "test_setup_code": "", "test_list": data["visible"]}
    )
    told = {str(i): test for i, test in enumerate(data["visible"])}
    return Tests(suite, shown, examples, told)


def _assert(case: Mapping[str, Any]) -> str:
    """A case as an assert."""
    words = [repr(a) for a in case["args"]]
    words += [f"{name}={value!r}" for name, value in case["kwargs"].items()]
    return f"assert {case['call']}({', '.join(words)}) == {case['expect']!r}"


SETS: dict[str, ProblemSet] = {
    "builtin": ProblemSet(("train", "test"), "", _mbpp, _mbpp_tests),
    "mbpp": ProblemSet(
        ("train", "validation", "test", "prompt"), "mbpp/mbpp.jsonl", _mbpp, _mbpp_tests
    ),
    "humaneval": ProblemSet(
        ("test",), "humaneval/HumanEval.jsonl", _humaneval, _humaneval_tests, shows_tests=False
    ),
}


def wrong_programs(path: str | os.PathLike[str] | None) -> dict[str, str]:
    """Wrong programs by problem, from a JSONL file with `task_id` and `program`; empty for None."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise ConfigError(f"code: there is no file {os.fspath(path)}; check the option wrong")
    found = {}
    for where, record in read_jsonl(Path(path)):
        if not (isinstance(record, Mapping) and isinstance(record.get("program"), str)):
            raise DataError(f"{where}: a wrong program is an object with 'task_id' and 'program'")
        found[str(record.get("task_id"))] = record["program"]
    return found

"""The judge's modes on honest programs, right and wrong; failures of ours; what cannot be."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from sandbox_arena import Go

from agentrl.errors import ConfigError, EndedByCode, SandboxError
from agentrl.types import CaseResult, ExecResult, Limits, Verdict
from sandboxes import languages
from sandboxes.embedded import EmbeddedSandbox, EmbeddedSession, Profile
from sandboxes.judge import judge


@pytest.fixture
def ask(go: Go, box: EmbeddedSandbox):
    """Judge in the small box."""

    def ask(program: str, cases: Any, **options: Any) -> Verdict:
        return go(box.judge(textwrap.dedent(program), cases, **options))

    return ask


SQUARE = "def f(x):\n    return x * x\n"


def statuses(verdict: Verdict) -> list[str]:
    return [c.status for c in verdict.cases]


def test_calls(ask) -> None:
    cases = [
        {"call": "f", "args": [3], "expect": 9},
        {"call": "f", "args": [2], "expect": 5, "id": "wrong"},
        {"call": "f", "kwargs": {"x": 1.5}, "expect": 2.25},
        {"call": "f", "args": ["a"], "raises": "TypeError"},
        {"call": "f", "args": [1], "raises": "TypeError"},
        {"call": "f", "args": [], "expect": 0},
    ]
    verdict = ask(SQUARE, cases)
    assert statuses(verdict) == ["passed", "wrong", "passed", "passed", "wrong", "error"]
    assert [c.id for c in verdict.cases] == ["0", "wrong", "2", "3", "4", "5"]
    assert (verdict.passed, verdict.status, verdict.passed_fraction) == (False, "wrong", 0.5)
    assert (verdict.integrity, verdict.infra) == ("strong", False)
    assert verdict.cases[1].got == "4"
    assert verdict.detail.startswith("wrong: another value")


def test_errors_come_with_the_programs_own_lines(ask) -> None:
    program = """
    def helper(n):
        return 1 / n

    def f(n):
        return helper(n)
    """
    (case,) = ask(program, [{"call": "f", "args": [0], "expect": 0}]).cases
    assert case.error is not None
    assert (case.error.name, case.error.message) == ("ZeroDivisionError", "division by zero")
    assert 'File "solution.py", line 6, in f\n    return helper(n)' in case.error.traceback
    assert "judge" not in case.error.traceback
    (broken,) = ask("def f(:", [{"call": "f", "expect": 0}]).cases
    assert broken.error is not None
    assert (broken.status, broken.error.name) == ("error", "SyntaxError")


def test_types_are_exact_unless_said_otherwise(ask) -> None:
    program = "def f(kind): return {'b': True, 'f': 1.0, 't': (1,)}[kind]"
    cases = [{"call": "f", "args": [k], "expect": e} for k, e in (("b", 1), ("f", 1), ("t", [1]))]
    assert statuses(ask(program, cases)) == ["wrong"] * 3
    assert statuses(ask(program, cases, equal="python")) == ["passed", "passed", "wrong"]
    near = [{"call": "f", "args": ["f"], "expect": 1.0 + 1e-9}]
    assert not ask(program, near).passed
    assert ask(program, near, abs_tol=1e-6).passed
    assert ask(program, cases, equal=lambda expected, got: got is not None).passed
    assert not ask(program, cases, equal=lambda expected, got: 1).passed, "only True is True"


def test_values_of_every_kind_travel(ask) -> None:
    value = [None, {(1, "a"): {2.5, b"x"}}, "\ud800", 10**30, -0.0, complex(1, 2), frozenset()]
    assert ask("def f(x): return x", [{"call": "f", "args": [value], "expect": value}]).passed
    large = ["x" * 1000] * 300  # more than a cell's source and value hold
    assert ask("def f(x): return x", [{"call": "f", "args": [large], "expect": large}]).passed


def test_dotted_names_make_instances(ask) -> None:
    program = """
    class Solution:
        def __init__(self): self.n = 1
        def add(self, k): self.n += k; return self.n
        @staticmethod
        def double(k): return 2 * k
    """
    cases = [
        {"call": "Solution().add", "args": [4], "expect": 5},
        {"call": "Solution().add", "args": [4], "expect": 5},
        {"call": "Solution.double", "args": [4], "expect": 8},
    ]
    assert ask(program, cases).passed


def test_arguments_after_the_call(ask) -> None:
    program = "def f(xs):\n    xs.sort()"
    after = {"call": "f", "args": [[3, 1]], "args_after": [[1, 3]]}
    assert ask(program, [after]).passed
    assert ask(program, [{**after, "expect": None}]).passed
    assert statuses(ask("def f(xs): return sorted(xs)", [after])) == ["wrong"]


def test_cases_share_a_session_unless_isolated(ask) -> None:
    program = "seen = []\ndef f(n):\n    seen.append(n)\n    return len(seen)"
    cases = [{"call": "f", "args": [n], "expect": 1} for n in range(3)]
    assert statuses(ask(program, cases)).count("passed") == 1
    assert ask(program, cases, isolate_cases=True).passed


def test_a_case_that_kills_the_session_costs_only_itself(ask) -> None:
    program = """
    import os
    def f(n):
        if n == 1: os._exit(0)
        if n == 2:
            while True: pass
        return n
    """
    cases = [{"call": "f", "args": [n], "expect": n} for n in range(5)]
    verdict = ask(program, cases, timeout=0.3)
    assert statuses(verdict) == ["passed", "exit", "timeout", "passed", "passed"]
    assert not verdict.infra


def test_order_follows_the_seed(ask) -> None:
    program = "seen = []\ndef f(n):\n    seen.append(n)\n    return list(seen)"
    cases = [{"call": "f", "args": [n], "expect": None} for n in range(6)]

    def order(seed: int) -> str:
        return max((c.got for c in ask(program, cases, seed=seed).cases), key=len)

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(str(list(range(6))))


def test_stopping_early(ask) -> None:
    cases = [{"call": "f", "args": [2], "expect": 0}] * 4
    verdict = ask(SQUARE, cases, stop_early=True)
    assert sorted(statuses(verdict)) == ["not_run", "not_run", "not_run", "wrong"]
    assert verdict.status == "wrong"
    late = ask("import time\ndef f(n): time.sleep(0.2)", cases, total_timeout=0.1)
    assert "not_run" in statuses(late)
    assert not late.passed


def test_no_cases_are_no_pass(ask) -> None:
    verdict = ask(SQUARE, [])
    assert (verdict.passed, verdict.status, verdict.passed_fraction) == (False, "missing", 0.0)
    assert not ask("print(1)", [], mode="stdio").passed


def test_files_are_copied(ask) -> None:
    program = "def f(): return open('data/n.txt').read()"
    files = {"data/n.txt": b"7"}
    assert ask(program, [{"call": "f", "expect": "7"}], files=files).passed
    assert ask(
        "print(open('data/n.txt').read())", [{"expect": "7"}], mode="stdio", files=files
    ).passed


def test_stdio(ask) -> None:
    program = "import sys\nn = int(input())\nprint(n * n, *sys.argv[1:])\nif n == 3: sys.exit(0)"
    cases = [
        {"stdin": "2\n", "expect": "4"},
        {"stdin": "3\n", "expect": "9\n"},
        {"stdin": "4\n", "expect": "17\n"},
        {"stdin": "5", "expect": "25 a b", "args": ["a", "b"]},
        {"stdin": "x", "expect": "", "id": "text"},
    ]
    verdict = ask(program, cases, mode="stdio")
    assert statuses(verdict) == ["passed", "passed", "wrong", "passed", "error"]
    assert verdict.cases[2].got == "16\n"
    assert verdict.cases[4].error is not None
    assert verdict.cases[4].error.name == "ValueError"


CHECKER = """
def check(stdin, expected, found):
    numbers = [int(t) for t in found.split()]
    return len(numbers) == 2 and sum(numbers) == int(stdin)
"""


def test_stdio_checkers(ask) -> None:
    program = "n = int(input()); print(1, n - 1)"
    cases = [{"stdin": "7", "expect": "3 4"}]
    assert not ask(program, cases, mode="stdio").passed
    assert ask(program, cases, mode="stdio", checker=CHECKER).passed
    assert not ask("print(1, 1)", cases, mode="stdio", checker=CHECKER).passed
    assert not ask("print('no')", cases, mode="stdio", checker=CHECKER).passed
    truthy = "def check(*texts): return 'yes'"
    assert not ask(program, cases, mode="stdio", checker=truthy).passed
    assert ask(program, cases, mode="stdio", checker=lambda i, e, f: "1" in f).passed
    third = [{"expect": "0.333333"}]
    assert ask("print(1 / 3)", third, mode="stdio", checker="floats", abs_tol=1e-5).passed
    assert not ask("print(1 / 3)", third, mode="stdio", checker="tokens").passed


FRAIL = """
import os
def check(stdin, expected, found):
    if "loop" in found:
        while True: pass
    if "die" in found:
        os._exit(0)
    return found == expected
"""


def test_an_output_that_breaks_the_checker_is_wrong_and_the_next_is_judged(ask) -> None:
    program = "print(input(), end='')"
    cases = [{"stdin": word, "expect": word} for word in ("loop", "fine", "die", "good")]
    verdict = ask(program, cases, mode="stdio", checker=FRAIL, timeout=1.0)
    assert (verdict.status, verdict.infra) == ("wrong", False)
    assert [case.status for case in verdict.cases] == ["wrong", "passed", "wrong", "passed"]
    assert "the checker failed on this output" in verdict.cases[2].detail


CPP = """
#include <iostream>
int main() { long n; std::cin >> n; std::cout << n * n << std::endl; return n == 3; }
"""


@pytest.mark.skipif("cpp" not in languages.available(), reason="no C++ compiler here")
def test_what_ends_a_session_by_compiling_is_not_our_failure(
    go: Go, wide_box: EmbeddedSandbox, monkeypatch
) -> None:
    """As where the compiler's files are more than a session may have, found out after its end."""

    async def gone(*_: object, **__: object) -> None:
        raise EndedByCode("the session has ended: too many files")

    monkeypatch.setattr(EmbeddedSession, "read_file", gone)
    cases = [{"stdin": "2", "expect": "4"}]
    verdict = go(wide_box.judge(CPP, cases, mode="stdio", language="cpp"))
    assert (verdict.status, verdict.infra) == ("error", False)
    run, compiled = EmbeddedSession.exec, []

    async def once(session, argv, **options):
        compiled.append(argv)
        return await (run(session, argv, **options) if len(compiled) == 1 else gone())

    monkeypatch.setattr(EmbeddedSession, "exec", once)
    result = go(wide_box.run(CPP, language="cpp"))
    assert (result.status, result.error.name) == ("error", "CompileError")


@pytest.mark.skipif("cpp" not in languages.available(), reason="no C++ compiler here")
def test_stdio_of_a_compiled_program(go: Go, wide_box: EmbeddedSandbox) -> None:
    cases = [{"stdin": str(n), "expect": str(n * n)} for n in (2, 3, 4)]
    verdict = go(wide_box.judge(CPP, cases, mode="stdio", language="cpp"))
    assert statuses(verdict) == ["passed", "exit", "passed"]
    broken = go(wide_box.judge("int main() { return x; }", cases, mode="stdio", language="cpp"))
    assert statuses(broken) == ["error"] * 3
    assert "does not compile" in broken.cases[0].detail
    assert "not declared" in broken.cases[0].detail


@pytest.mark.skipif("bash" not in languages.available(), reason="no bash here")
def test_stdio_of_a_script(ask) -> None:
    cases = [{"stdin": "3", "expect": "9"}]
    assert ask("read n; echo $((n * n))", cases, mode="stdio", language="bash").passed


STACK = """
class Empty(LookupError):
    pass

class Stack:
    def __init__(self, *items): self.items = list(items)
    def push(self, item): self.items.append(item); return self
    def pop(self):
        if not self.items: raise Empty('nothing here', 3)
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def __setitem__(self, i, v): self.items[i] = v
    def __str__(self): return f'Stack{self.items}'
    def __enter__(self): return self
    def __exit__(self, *e): self.items.clear()

LIMIT = 3

def same(stack): return stack
def pairs(n):
    for i in range(n): yield (i, i * i)
def join(a, b): return Stack(*a, *b)
"""

STACK_TESTS = """
import unittest
from solution import Empty, Stack, join
import solution

def test_methods():
    s = Stack(1)
    s.push(2).push([3])
    assert len(s) == 3 and s.pop() == [3] and s[0] == 1 and list(s) == [1, 2] and 2 in s
    assert str(s) == 'Stack[1, 2]' and s.items == [1, 2] and bool(s)
    s[0] = 'x'
    s.extra = 5
    assert s[0] == 'x' and s.extra == 5
    assert join(s, Stack(9)).items == ['x', 2, 9]
    with s as t:
        assert t == s and t is not None
    assert len(s) == 0 and not s

def test_exceptions():
    try:
        Stack().pop()
    except Empty as e:
        assert isinstance(e, LookupError) and e.args == ('nothing here', 3)
    else:
        assert False

def test_identity():
    s = Stack()
    assert solution.same(s) == s and s != Stack() and isinstance(s, Stack)
    assert not isinstance(3, Stack)

def test_generators():
    assert list(solution.pairs(3)) == [(0, 0), (1, 1), (2, 4)]
    assert dict(solution.pairs(2)) == {0: 0, 1: 1}
    assert next(solution.pairs(1)) == (0, 0)

def test_values():
    assert solution.LIMIT == 3 and type(solution.LIMIT) is int

class TestPlain:
    def setup_method(self): self.s = Stack(1)
    def test_pop(self): assert self.s.pop() == 1

class Cases(unittest.TestCase):
    def setUp(self): self.s = Stack(1, 2)
    def test_raises(self):
        with self.assertRaises(Empty): Stack().pop()
        with self.assertRaisesRegex(LookupError, 'nothing'): Stack().pop()
    def test_count(self): self.assertEqual(len(self.s), 2)

async def test_coroutine():
    assert Stack(4).pop() == 4
"""


def test_tests_of_a_class_in_another_session(ask) -> None:
    verdict = ask(STACK, STACK_TESTS, mode="pytest_rpc")
    assert verdict.passed, verdict
    assert [c.id for c in verdict.cases] == [
        *("test_methods", "test_exceptions", "test_identity", "test_generators", "test_values"),
        *("TestPlain::test_pop", "Cases::test_raises", "Cases::test_count", "test_coroutine"),
    ]
    wrong = ask(STACK.replace("self.items.pop()", "self.items.pop(0)"), STACK_TESTS,
                mode="pytest_rpc")  # fmt: skip
    assert {c.id for c in wrong.cases if not c.passed} == {"test_methods"}


def test_check_functions_and_lists_of_asserts(ask) -> None:
    check = "def check(candidate):\n    assert candidate(3) == 9\n    assert candidate(-1) > 0"
    assert ask(SQUARE, check, mode="pytest_rpc", entry_point="f").passed
    asserts = ["assert f(3) == 9", "assert f(2) == 5", 'assert f(1) == 1, """\ntext\n"""']
    verdict = ask(SQUARE, asserts, mode="pytest_rpc")
    assert [(c.id, c.status) for c in verdict.cases] == [
        *(("test_0", "passed"), ("test_1", "wrong"), ("test_2", "passed"))
    ]
    assert ask(SQUARE, "assert f(3) == 9\nassert f(0) == 0", mode="pytest_rpc").passed
    assert statuses(ask(SQUARE, "assert f(3) == 8", mode="pytest_rpc")) == ["wrong"]


def test_setup_and_required_tests(ask) -> None:
    tests = "def test_a():\n    assert f(N) == 9\n\ndef test_b():\n    assert f(N) == 10"
    options = {"mode": "pytest_rpc", "setup": "N = 3"}
    assert not ask(SQUARE, tests, **options).passed
    assert ask(SQUARE, tests, required=["test_a"], **options).passed


def test_skipped_tests_do_not_pass(ask) -> None:
    tests = """
import unittest
class T(unittest.TestCase):
    @unittest.skip('later')
    def test_a(self): assert f(1) == 1
    @unittest.expectedFailure
    def test_b(self): assert f(1) == 2
    def test_c(self): raise unittest.SkipTest('no')
def test_d():
    yield f(1)
"""
    verdict = ask(SQUARE, tests, mode="pytest_rpc")
    assert statuses(verdict) == ["skipped", "wrong", "skipped", "error"]


def test_arguments_are_copies(ask) -> None:
    """What the program does to an argument does not reach the tests' object."""
    program = "def f(xs):\n    xs.clear()\n    return []"
    assert not ask(program, ["xs = [2, 1]\nassert f(xs) == sorted(xs)"], mode="pytest_rpc").passed


def test_functions_cannot_be_handed_over(ask) -> None:
    verdict = ask("def f(g): return g(1)", ["assert f(lambda n: n) == 1"], mode="pytest_rpc")
    assert "hand the program an object of type function" in verdict.detail


IN_PROCESS = """
from solution import f

def test_small():
    assert f(2) == 4

class TestMore:
    def test_large(self):
        assert f(10) == 100
"""


IN_ONE: dict[str, Any] = {"mode": "pytest_inproc", "timeout": 30}  # pytest takes its time to start


def test_tests_in_the_same_process(ask) -> None:
    verdict = ask(SQUARE, IN_PROCESS, **IN_ONE)
    assert (verdict.passed, verdict.integrity) == (True, "weak")
    assert [c.id for c in verdict.cases] == ["test_small", "TestMore::test_large"]
    wrong = ask("def f(x): return 4", IN_PROCESS, **IN_ONE)
    assert statuses(wrong) == ["passed", "wrong"]
    missing = ask(SQUARE, IN_PROCESS, **IN_ONE, required=["test_small", "test_other"])
    assert statuses(missing) == ["passed", "missing"]


PYTEST = Profile(
    "pytest", ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments")
)
WITH_PYTEST = """
import pytest
from solution import f

@pytest.mark.parametrize("n", [1, 2])
def test_squares(n, tmp_path):
    assert f(n) == n * n

def test_raises():
    with pytest.raises(TypeError):
        f("a")

@pytest.mark.skip
def test_skipped():
    assert False

@pytest.mark.xfail
def test_xfail():
    assert False
"""


def test_pytest_itself_where_the_profile_has_it(ask) -> None:
    verdict = ask(SQUARE, WITH_PYTEST, **IN_ONE, profile=PYTEST)  # fmt: skip
    assert statuses(verdict) == ["passed", "passed", "skipped", "skipped"], verdict
    wrong = ask("def f(n): return 1", WITH_PYTEST, **IN_ONE, profile=PYTEST)  # fmt: skip
    assert statuses(wrong) == ["wrong", "wrong", "skipped", "skipped"], wrong


class Failing:
    """A box whose first `failures` sessions and programs fail in our hands."""

    def __init__(self, box: EmbeddedSandbox, failures: int, late: bool = False) -> None:
        self.box, self.failures, self.late = box, failures, late
        self.capabilities = box.capabilities

    def session(self, limits: Limits | None = None, *, profile: Any = None) -> EmbeddedSession:
        session = self.box.session(limits, profile=profile)
        if self.failures:
            self.failures -= 1

            async def fail(*_: Any, **__: Any) -> ExecResult:
                if self.late:
                    return ExecResult("infra", detail="the machine is gone")
                raise SandboxError("no more sessions")

            name = "run" if self.late else "open"
            setattr(session, name, fail)
            session.exec = fail
        return session

    async def run(self, program: str, **options: Any) -> ExecResult:
        if self.failures:
            self.failures -= 1
            return ExecResult("infra", detail="the machine is gone")
        return await self.box.run(program, **options)


HONEST = [
    ("call", SQUARE, [{"call": "f", "args": [3], "expect": 9}]),
    ("pytest_rpc", SQUARE, "assert f(3) == 9"),
    ("stdio", "print(9)", [{"expect": "9"}]),
    ("pytest_inproc", SQUARE, IN_PROCESS),
]


@pytest.mark.parametrize(("mode", "program", "cases"), HONEST)
@pytest.mark.parametrize("late", [False, True])
def test_our_failures_are_tried_again_and_never_a_fail(
    go: Go, box: EmbeddedSandbox, mode: str, program: str, cases: Any, late: bool
) -> None:
    once: Any = Failing(box, 1, late)
    assert go(judge(once, program, cases, mode=mode, timeout=30)).passed
    always: Any = Failing(box, 100, late)
    verdict = go(judge(always, program, cases, mode=mode))
    assert (verdict.infra, verdict.passed, verdict.status) == (True, False, "infra")
    assert verdict.passed_fraction is None
    assert "no more sessions" in verdict.detail or "the machine is gone" in verdict.detail


@pytest.mark.parametrize(
    ("program", "cases", "options", "message"),
    [
        (SQUARE, [], {"mode": "cal"}, "Did you mean 'call'"),
        (SQUARE, [], {"equl": "exact"}, "Did you mean 'equal'"),
        (SQUARE, [], {"equal": "roughly"}, "equal is"),
        (SQUARE, [{"args": [1], "expect": 1}], {}, "case 0"),
        (SQUARE, [{"call": "f"}], {}, "either 'expect' or 'raises'"),
        (SQUARE, [{"call": "f", "expect": 1, "raises": "E"}], {}, "either 'expect' or 'raises'"),
        (SQUARE, [{"call": "f(1)", "expect": 1}], {}, "is a name such as"),
        (SQUARE, [{"call": "f", "args": [object()], "expect": 1}], {}, "no plain value"),
        (SQUARE, [{"stdin": "1"}], {"mode": "stdio"}, "'expect'"),
        (SQUARE, [{"expect": "1"}], {"mode": "stdio", "language": "pyton"}, "Did you mean"),
        (SQUARE, [{"expect": "1"}], {"mode": "stdio", "checker": "tokns"}, "Did you mean"),
        (SQUARE, [{"expect": "1"}], {"mode": "stdio", "checker": "def check("}, "check"),
        (SQUARE, "def test_a(: pass", {"mode": "pytest_rpc"}, "do not compile"),
        (SQUARE, "def test_a(tmp_path): pass", {"mode": "pytest_rpc"}, "pytest_inproc"),
        (SQUARE, "def check(c): pass", {"mode": "pytest_rpc"}, "entry_point"),
        (SQUARE, "assert math.pi == f(1)", {"mode": "pytest_rpc"}, "use math without importing"),
        (SQUARE, "from solution import *", {"mode": "pytest_rpc"}, "import *"),
        (SQUARE, "import pytest\nassert f(1) == 1", {"mode": "pytest_rpc"}, "No module named"),
        (SQUARE, "assert f(1)", {"mode": "pytest_rpc", "required": ["x"]}, "required test 'x'"),
    ],
)
def test_what_cannot_be(ask, program, cases, options, message) -> None:
    with pytest.raises(ConfigError, match=message.replace("*", r"\*")):
        ask(program, cases, **options)


def test_fraction() -> None:
    cases = (CaseResult("a", True, "passed"), CaseResult("b", False, "wrong"))
    assert Verdict(False, "wrong", cases).passed_fraction == 0.5

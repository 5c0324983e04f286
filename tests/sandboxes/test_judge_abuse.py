"""Nobody passes the judge without solving the problem, and nobody else notices the attempts."""

from __future__ import annotations

import dataclasses
import textwrap
import time
from typing import Any

import pytest
from judge_cheats import IN_PROCESS, PROGRAMS, RIGHT, STDIO, TESTS
from sandbox_arena import Arena, Go, descriptors, groups, processes, settled

from agentrl.types import Verdict

CALLS: list[dict[str, Any]] = [
    {"call": "f", "args": [n], "expect": n**3 + 7} for n in (2, 3, -5, 40)
]
LINES = [{"stdin": f"{n}\n", "expect": f"{n**3 + 7}\n"} for n in (2, 3)]
IMPORTING = f"from solution import f\n{TESTS}"
SLOW = ("E14", "E15", "X23", "X24", "X25", "X26", "X27", "X45")


async def judged(arena: Arena, program: str, cases: Any, mode: str, **options: Any) -> Verdict:
    """The verdict; nothing must be left of the sessions, and the bystander must answer."""
    before = arena.counts()
    if mode == "pytest_inproc":  # pytest takes its time to start
        options = {"timeout": 10, **options}
    started = time.monotonic()
    verdict = await arena.box.judge(textwrap.dedent(program), cases, mode=mode, **options)
    assert time.monotonic() - started < 20
    await arena.check_bystander()
    assert await settled(lambda: processes(arena.box), before[0]) == before[0]
    assert await settled(descriptors, before[1]) == before[1]
    assert await settled(lambda: groups(arena.box), before[2]) == before[2]
    return verdict


def options_of(name: str) -> dict[str, Any]:
    return {"timeout": 0.4, "stop_early": True} if name.startswith(SLOW) else {}


def assert_failed(verdict: Verdict) -> None:
    assert not verdict.passed, verdict
    assert not verdict.infra, verdict
    assert verdict.status not in ("passed", "infra")
    assert verdict.passed_fraction is not None
    assert verdict.passed_fraction < 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_calls(go: Go, arena: Arena, name: str) -> None:
    options = options_of(name)
    assert_failed(go(judged(arena, PROGRAMS[name], CALLS, "call", **options)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_tests_in_another_session(go: Go, arena: Arena, name: str) -> None:
    options = options_of(name)
    assert_failed(go(judged(arena, PROGRAMS[name], TESTS, "pytest_rpc", **options)))


@pytest.mark.parametrize("name", STDIO)
@pytest.mark.parametrize("checker", ["lines", "floats"])
def test_stdio(go: Go, arena: Arena, name: str, checker: str) -> None:
    limits = dataclasses.replace(arena.box.limits, wall_s=0.5)
    made = judged(arena, STDIO[name], LINES, "stdio", checker=checker, limits=limits)
    assert_failed(go(made))


@pytest.mark.parametrize("name", IN_PROCESS)
def test_in_process(go: Go, arena: Arena, name: str) -> None:
    options = {"timeout": 2} if name.startswith("E14") else {}
    verdict = go(judged(arena, IN_PROCESS[name], IMPORTING, "pytest_inproc", **options))
    assert_failed(verdict)
    assert verdict.integrity == "weak"


@pytest.mark.parametrize(
    ("mode", "cases", "program"),
    [
        ("call", CALLS, RIGHT),
        ("pytest_rpc", TESTS, RIGHT),
        ("pytest_rpc", IMPORTING, RIGHT),
        ("pytest_inproc", IMPORTING, RIGHT),
        ("stdio", LINES, "print(int(input()) ** 3 + 7)"),
        ("stdio", LINES, "import os; os.write(1, b'%d' % (int(input()) ** 3 + 7)); os._exit(0)"),
    ],
)
def test_who_solves_it_passes(go: Go, arena: Arena, mode: str, cases: Any, program: str) -> None:
    verdict = go(judged(arena, program, cases, mode))
    assert verdict.passed, verdict
    assert (verdict.status, verdict.passed_fraction) == ("passed", 1.0)


FOREIGN = {
    "own-class-of-that-name": "class ValueError(Exception): pass\ndef f(n): raise ValueError('no')",
    "returned-not-raised": "def f(n): return ValueError('no')",
    "base-of-it": "def f(n): raise Exception('ValueError')",
    "group": "def f(n): raise ExceptionGroup('ValueError', [ValueError()])",
    "name-changed": "class E(Exception): __module__ = 'builtins'\n"
    "E.__name__ = E.__qualname__ = 'ValueError'\ndef f(n): raise E",
    "exit": "import os\ndef f(n): os._exit(0)",
    "assertion": "def f(n): raise AssertionError('ValueError')",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_expected_exceptions_are_the_real_ones(go: Go, arena: Arena, name: str) -> None:
    cases = [{"call": "f", "args": [1], "raises": "ValueError"}]
    assert_failed(go(judged(arena, FOREIGN[name], cases, "call")))
    tests = "def test_it():\n    try: f(1)\n    except ValueError: return\n    assert False"
    assert_failed(go(judged(arena, FOREIGN[name], tests, "pytest_rpc")))


FILES = {
    "conftest.py": b"import os\ndef pytest_configure(): os._exit(0)\n",
    "sub/conftest.py": b"import builtins\nbuiltins.AssertionError = KeyError\n",
    "pytest.ini": b"[pytest]\naddopts = --collect-only\n",
    "setup.cfg": b"[tool:pytest]\naddopts = --collect-only\n",
    "evil.pth": b"import os; os._exit(0)\n",
    "sitecustomize.py": b"import os; os._exit(0)\n",
    "json.py": b"import os; os._exit(0)\n",
    "random.py": b"random = lambda: 0.5\n",
    "unittest/__init__.py": b"import os; os._exit(0)\n",
    "data.txt": b"7",
}


def test_files_that_are_read_by_themselves_are_left_out(go: Go, arena: Arena) -> None:
    """E06: listed files come along, but none that pytest or Python would take for its own."""
    program = "def f(n):\n    return n ** 3 + int(open('data.txt').read())"
    made = judged(arena, program, IMPORTING, "pytest_inproc", files=FILES)
    verdict = go(made)
    assert verdict.passed, verdict
    assert "left out: conftest.py, evil.pth, json.py" in verdict.detail
    assert "data.txt" not in verdict.detail
    wrong = judged(arena, "def f(n): return 0", IMPORTING, "pytest_inproc", files=FILES)
    assert_failed(go(wrong))


COLLIDING = """
import __main__
class Text(str):
    __repr__ = str.__str__
def f(n):
    items = ','.join('{"int":"%x"}' % (k * ((1 << 61) - 1)) for k in range(1, 30_000))
    open('.reply', 'w').write('{"value": {"set": [%s]}}' % items)
    __main__.judge.again = lambda: Text('{"file":".reply"}')
    return 'x' * 10_000
"""


def test_colliding_keys_do_not_hold_the_host(go: Go, arena: Arena) -> None:
    """A set of them would take the host minutes to build."""
    verdict = go(judged(arena, COLLIDING, CALLS[:1], "call"))
    assert (verdict.status, verdict.cases[0].detail) == ("malformed", "keys whose hashes collide")


def test_an_answer_that_depends_on_the_comparison_is_not_asked(go: Go, arena: Arena) -> None:
    """With trusted operators the same program gets through, and the verdict says how weak it is."""
    program = textwrap.dedent(PROGRAMS["X05-close-to-everything"])
    tests = "def test_close():\n    assert abs(f(3) - 34) < 1e-6"
    assert_failed(go(judged(arena, program, tests, "pytest_rpc")))
    verdict = go(judged(arena, program, tests, "pytest_rpc", trust_operators=True))
    assert (verdict.passed, verdict.integrity) == (True, "weak")

# ruff: noqa: E501
"""What cells can do that a plain interpreter cannot, and sources of every shape."""

from __future__ import annotations

import pytest
from sandbox_arena import SMALL, Arena, Go

from agentrl.types import ExecResult, Limits
from sandboxes.embedded import EmbeddedSandbox


def play(go: Go, box: EmbeddedSandbox, *sources: str, **limits) -> list[ExecResult]:
    async def cells():
        async with box.session(Limits(**{**SMALL, "wall_s": 10.0, **limits})) as session:
            return [await session.run(source) for source in sources]

    return go(cells())


@pytest.mark.parametrize(
    ("source", "value", "out"),
    [
        ("!echo hi", None, "hi\n"),
        ("x = !echo 'a b'; echo c\nx", "['a b', 'c']", ""),
        ('if True:\n    !echo "it\'s"\n    x = 1\nx', "1", "it's\n"),
        ("!echo 'one\n!echo two\n3", "3", "two\n"),
        ("%%bash\nfor x in 1 2; do\n  echo $x\ndone", None, "1\n2\n"),
        ("%matplotlib inline\n1", "1", ""),
        ('x = """\n!echo no\n"""\nx', "'\\n!echo no\\n'", ""),
        ("x = (1 \n!= 2)\nx", "True", ""),
        ("!exit 3", None, ""),
    ],
)
def test_shell_lines(go: Go, box: EmbeddedSandbox, source: str, value, out: str) -> None:
    (result,) = play(go, box, source)
    assert (result.status, result.value, result.stdout) == ("ok", value, out), result


def test_a_failing_shell_cell_is_an_error(go: Go, box: EmbeddedSandbox) -> None:
    (result,) = play(go, box, "%%bash\necho before\nexit 3")
    assert (result.status, result.stdout) == ("error", "before\n")
    assert result.error is not None
    assert result.error.name == "CalledProcessError"


@pytest.mark.parametrize("source", ["%time x", "x = (\n!", "!ls\nx = (", "? x", "%%html\n<b>"])
def test_other_notebook_lines_are_syntax_errors(go: Go, box: EmbeddedSandbox, source) -> None:
    (result,) = play(go, box, source)
    assert result.error is not None
    assert result.error.name == "SyntaxError"


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (
            "import asyncio\nasync def g():\n    yield 1\n    yield 2\n[x async for x in g()]",
            "[1, 2]",
        ),
        (
            "import asyncio\nasync def g():\n    yield 1\ns = 0\nasync for x in g():\n    s += x\ns",
            "1",
        ),
        (
            "import contextlib\n@contextlib.asynccontextmanager\nasync def c():\n    yield 7\n"
            "async with c() as x:\n    pass\nx",
            "7",
        ),
        ("import asyncio\nt = asyncio.create_task(asyncio.sleep(0, 5))\nawait t", "5"),
        ("import asyncio\nasyncio.run(asyncio.sleep(0, 3))", "3"),
        ("__name__", "'__main__'"),
        ("import pickle\nclass A: pass\ntype(pickle.loads(pickle.dumps(A()))) is A", "True"),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(3)",
            "P(x=3)",
        ),
        (
            "import inspect\ndef f(x):\n    return x\ninspect.getsource(f)",
            repr("def f(x):\n    return x\n"),
        ),
        ("import enum\nclass C(enum.Enum):\n    A = 1\nC.A", "<C.A: 1>"),
        ("from typing import NamedTuple\nclass T(NamedTuple):\n    x: int\nT(1)", "T(x=1)"),
        (
            "import multiprocessing as m\ndef f(x): return x * x\n"
            "with m.get_context('fork').Pool(2) as p: r = p.map(f, range(4))\nr",
            "[0, 1, 4, 9]",
        ),
        (
            "import multiprocessing as m, operator\n"
            "with m.get_context('forkserver').Pool(1) as p: r = p.map(operator.neg, [1, 2])\nr",
            "[-1, -2]",
        ),
        (
            "from concurrent.futures import ThreadPoolExecutor as T\n"
            "with T(2) as t: r = list(t.map(abs, [-1, 2]))\nr",
            "[1, 2]",
        ),
    ],
)
def test_cells_are_a_main_module(go: Go, box: EmbeddedSandbox, source: str, value: str) -> None:
    if box.capabilities.isolation == "uid" and "forkserver" in source:
        pytest.skip("no sockets and no /dev/shm in tier uid: processes are forked")
    (result,) = play(go, box, source)
    assert (result.status, result.value) == ("ok", value), result


def test_underscore_is_the_last_value(go: Go, box: EmbeddedSandbox) -> None:
    results = play(go, box, "1", "_ + 1", "None", "_", "1/0", "_", "_ = 'mine'", "5", "_")
    assert [r.value for r in results] == ["1", "2", None, "2", None, "2", None, "5", "'mine'"]


def test_input_is_at_its_end(go: Go, box: EmbeddedSandbox) -> None:
    (result,) = play(go, box, "input('name? ')")
    assert result.error is not None
    assert result.error.name == "EOFError"


def test_warnings_are_shown_once_a_cell_with_their_line(go: Go, box: EmbeddedSandbox) -> None:
    source = "import warnings\nfor _ in range(3):\n    warnings.warn('careful')"
    first, second = play(go, box, source, source)
    assert first.stderr == "<cell 1>:3: UserWarning: careful\n  warnings.warn('careful')\n"
    assert second.stderr == first.stderr.replace("cell 1", "cell 2")


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("\ufeffx = 1\nx", "1"),
        ("x = 1\r\nif x:\r\n    x = 2\r\nx\r\n", "2"),
        ("x = 1\rx", "1"),
        ("x = '\x0c\u2028'\nx", "'\\x0c\\u2028'"),
        ("def f():\n\treturn 1\nf()", "1"),
        ("# -*- coding: latin-1 -*-\n'é'", "'é'"),
    ],
)
def test_sources_of_every_shape(go: Go, box: EmbeddedSandbox, source: str, value: str) -> None:
    (result,) = play(go, box, source)
    assert (result.status, result.value) == ("ok", value), result


def test_lines_are_counted_as_python_does(go: Go, box: EmbeddedSandbox) -> None:
    (result,) = play(go, box, "x = '\u2028\x0c\x85'\r\n1 / 0")
    assert result.error is not None
    assert "line 2, in <module>\n    1 / 0" in result.error.traceback


def test_a_million_lines(go: Go, arena: Arena) -> None:
    """C16: at the limit of what a source may be."""
    source = "\n" * 999_999 + "1"
    result = go(arena.attack(lambda s: s.run(source, timeout=8), ("ok",), True))
    assert result.value == "1"
    many = "x=1\n" * 240_000
    go(arena.attack(lambda s: s.run(many, timeout=8), ("ok", "error", "oom", "timeout"), None))


@pytest.mark.parametrize(
    ("source", "shown", "lines"),
    [
        ("def f(): f()\nf()", "[Previous line repeated 9", 14),
        ("def f(): g()\ndef g(): f()\nf()", "[Previous 2 frames repeated 4", 22),
        ("import random\nfs = [lambda: random.choice(fs)()] * 2\nfs[0]()", "[Previous line", 14),
    ],
)
def test_recursions_are_shown_once(go: Go, box: EmbeddedSandbox, source, shown, lines) -> None:
    (result,) = play(go, box, source)
    assert result.error is not None
    assert result.error.name == "RecursionError"
    assert shown in result.error.traceback
    assert result.error.traceback.count("\n") <= lines


def test_tracebacks_without_a_cycle_are_bounded(go: Go, box: EmbeddedSandbox) -> None:
    source = "exec('\\n'.join(f'def f{n}(): f{n + 1}()' for n in range(200)) + '\\ndef f200(): 1/0')\nf0()"
    (result,) = play(go, box, source)
    assert result.error is not None
    assert "frames ...]" in result.error.traceback
    assert result.error.traceback.endswith("ZeroDivisionError: division by zero\n")
    assert result.error.traceback.count("\n") < 100


def test_groups_and_chains_keep_the_codes_frames(go: Go, box: EmbeddedSandbox) -> None:
    group, chain = play(
        go,
        box,
        "import json\ndef f():\n    json.loads('{')\ntry: f()\n"
        "except ValueError as e: raise ExceptionGroup('g', [e, TypeError('t')])",
        "try:\n    {}['k']\nexcept KeyError:\n    int('x')",
    )
    assert group.error is not None
    assert chain.error is not None
    assert "ExceptionGroup: g (2 sub-exceptions)" in group.error.traceback
    assert "decoder.py" not in group.error.traceback
    assert "json.loads('{')" in group.error.traceback
    assert "During handling of the above exception" in chain.error.traceback
    assert chain.error.traceback.count("line 2, in <module>") == 1


def test_programs_name_their_own_file(go: Go, box: EmbeddedSandbox) -> None:
    files = {"d/util.py": b"def f():\n    1 / 0\n"}
    result = go(box.run("import os\nfrom d.util import f\nos.chdir('/')\nf()", files=files))
    assert result.error is not None
    assert result.error.traceback == result.stderr
    assert '  File "main.py", line 4, in <module>\n    f()\n' in result.stderr
    assert '  File "d/util.py", line 2, in f\n    1 / 0\n' in result.stderr


def test_processors_are_what_the_session_may_use(go: Go, box: EmbeddedSandbox) -> None:
    """A20: a pool with as many processes as it sees processors fits."""
    source = (
        "import os, multiprocessing as m\nwith m.Pool() as p: r = p.map(abs, [-1, -2])\n"
        "r, os.cpu_count() == m.cpu_count() == len(os.sched_getaffinity(0))"
    )
    wide, narrow = play(go, box, source)[0], play(go, box, source, pids=7)[0]
    assert wide.value == narrow.value == "([1, 2], True)"
    (count,) = play(go, box, "import os; os.cpu_count()", pids=7)
    assert count.value == "1"


def test_a_forgotten_alarm_does_not_end_the_next_cell(go: Go, box: EmbeddedSandbox) -> None:
    forgotten = (
        "import signal\ndef stop(*_): raise TimeoutError\n"
        "signal.signal(signal.SIGALRM, stop); signal.setitimer(signal.ITIMER_REAL, 0.05)\n1"
    )
    used = "signal.setitimer(signal.ITIMER_REAL, 0.05)\nwhile True: pass"
    first, second, third = play(go, box, forgotten, "import time; time.sleep(0.1); 2", used)
    assert (first.value, second.value) == ("1", "2")
    assert third.error is not None
    assert third.error.name == "TimeoutError"


def test_a_handler_that_raises_later_ends_cells_only(go: Go, box: EmbeddedSandbox) -> None:
    """What it raises comes out of the cell that runs then, or the next, and never out of ours."""
    source = (
        "import signal, subprocess\nx = 1\ndef stop(*_): raise TimeoutError('a child ended')\n"
        "signal.signal(signal.SIGCHLD, stop)\n"
        "children = [subprocess.Popen(['sleep', f'0.0{n}']) for n in range(8)]"
    )
    first, *others, last = play(go, box, source, *["x"] * 200, "import time; time.sleep(0.1)", "x")
    assert first.status in ("ok", "error")
    assert {r.error.name for r in others if r.error} <= {"TimeoutError"}
    assert {r.status for r in others} <= {"ok", "error"}
    assert last.value == "1"

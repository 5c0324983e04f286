"""What a model reads of an execution, and LeTI's rows with the values of its specification."""

from __future__ import annotations

import pytest
from sandbox_arena import Go

from agentrl.types import CaseResult, ExecError, ExecResult, Verdict
from sandboxes.embedded import EmbeddedSandbox
from sandboxes.feedback import (
    BAD,
    CLOSE,
    GOOD,
    HIDDEN,
    LETI_TOKENS,
    NOT_LOADED,
    OPEN,
    Feedback,
    clip,
    clip_lines,
    leti,
    leti_row,
    stable,
    tool_text,
    verdict_text,
)


def ok(stdout: str = "", **rest) -> ExecResult:
    return ExecResult("ok", stdout, **rest)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (ok("1\n", value="2"), "1"),
        (ok(value="2"), "2"),
        (ok(), "[no output]"),
        (ok(stderr="careful\n"), "careful"),
        (ExecResult("error", "a\n", error=ExecError("E", "m", "Trace\nE: m\n")), "a\nTrace\nE: m"),
        (ExecResult("error", error=ExecError("KeyError", "'x'", "")), "KeyError: 'x'"),
        (ExecResult("error", stderr="boom\n"), "boom"),
        (ExecResult("timeout", "a\n", duration=2.04), "a\n[timed out after 2.0 s]"),
        (ExecResult("oom"), "[killed: out of memory]"),
        (ExecResult("exit", exit_code=3), "[exited with status 3]"),
        (ExecResult("crashed", signal=11), "[crashed by signal 11]"),
        (ExecResult("output_limit", "aa"), "aa\n[killed: too much output]"),
    ],
)
def test_what_the_model_is_shown(result: ExecResult, text: str) -> None:
    assert tool_text(result) == text


def test_long_output_keeps_head_and_tail() -> None:
    shown = tool_text(ok("a" * 400 + "b" * 5000 + "c" * 400))
    assert shown == "a" * 400 + "\n... [5000 characters left out] ...\n" + "c" * 400
    assert clip("x" * 800) == "x" * 800


@pytest.mark.parametrize(
    ("head", "tail", "text"),
    [
        (2, 1, "a\nb\n... [2 lines left out] ...\ne"),
        (3, 0, "a\nb\nc\n... [2 lines left out] ..."),
        (5, 0, "a\nb\nc\nd\ne"),
        (0, 0, "... [5 lines left out] ..."),
    ],
)
def test_lines_keep_head_and_tail(head: int, tail: int, text: str) -> None:
    assert clip_lines("a\nb\nc\nd\ne", head, tail) == text


def test_a_tail_of_nothing_is_nothing() -> None:
    assert clip("abcd", 2, 0) == "ab\n... [2 characters left out] ...\n"


def test_text_is_the_same_in_every_run() -> None:
    assert stable("<f at 0x7f69b758f5d0> <a.B object at 0x55d0>") == (
        "<f at 0x...> <a.B object at 0x...>"
    )
    assert stable("0x7f69b758f5d0 at 0x7f") == "0x7f69b758f5d0 at 0x7f"  # numbers are numbers
    assert stable('File "/tmp/agentrl-x1y2/a/util.py", line 1') == 'File "a/util.py", line 1'


def test_displays_are_named() -> None:
    shown = ok(value="<Figure>", artifacts={"display-1.png": b"12345"})
    assert tool_text(shown) == "<Figure>\n[display-1.png: 5 bytes]"
    assert tool_text(ok(artifacts={"display-1.png": b""})) == "[display-1.png: 0 bytes]"


def test_two_runs_give_the_same_text(go: Go, box: EmbeddedSandbox) -> None:
    source = "print(object())\ndef f(): raise KeyError(f)\nf()"

    async def play() -> str:
        async with box.session() as session:
            return tool_text(await session.run(source))

    first, second = go(play()), go(play())
    assert first == second
    assert "KeyError: <function f at 0x...>" in first


PROGRAM = "def f():\n    return 1/0"
TEST = "assert f()==1"
TRACEBACK = (
    "Traceback (most recent call last):\n"
    '  File "main.py", line 3, in <module>\n'
    "    assert f()==1\n"
    '  File "main.py", line 2, in f\n'
    "    return 1/0\n"
    "ZeroDivisionError: division by zero"
)


def test_leti_rows() -> None:
    x, y = "x = 1\n", "y = 2"
    assert leti_row(x, y, Feedback(True)) == "<|good|>" + x + y
    assert leti_row(x, y, Feedback(False, "tb")) == (
        "<|bad|><|lang_feedback|>tb<|/lang_feedback|>" + x + y
    )
    assert leti_row("good", y, Feedback(True)) == "<|good|>good" + y
    fine, coarse = (leti_row(x, y, Feedback(False, "tb"), coarse_only=c) for c in (False, True))
    assert coarse == fine.replace(f"{OPEN}tb{CLOSE}", "") == BAD + x + y
    good = leti_row(x, y, Feedback(True), coarse_only=True)
    assert good == leti_row(x, y, Feedback(True))
    assert set(LETI_TOKENS) == {GOOD, BAD, OPEN, CLOSE}


@pytest.mark.parametrize(
    ("result", "feedback"),
    [
        (ExecResult("ok"), Feedback(True)),
        (ExecResult("timeout", "half", "noise"), Feedback(False, "timeout")),
        (ExecResult("crashed", signal=11), Feedback(False, "crashed")),
        (ExecResult("exit", exit_code=0), Feedback(False, "exit")),
        (ExecResult("oom"), None),
        (ExecResult("infra"), None),
    ],
)
def test_leti_verdicts(result: ExecResult, feedback: Feedback | None) -> None:
    assert leti(result) == feedback


def test_leti_names_lines_of_the_program(go: Go, box: EmbeddedSandbox) -> None:
    result = go(box.run(f"{PROGRAM}\n{TEST}"))
    assert leti(result) == Feedback(False, TRACEBACK)


def test_leti_shifts_lines_and_drops_the_wrappers(go: Go, box: EmbeddedSandbox) -> None:
    wrapper = "import sys\ndef call(g):\n    return g()\n"
    result = go(box.run(f"{wrapper}{PROGRAM}\ncall(lambda: f())"))
    found = leti(result, first_line=4)
    assert found is not None
    assert found.text == (
        "Traceback (most recent call last):\n"
        '  File "main.py", line 3, in <module>\n'
        "    call(lambda: f())\n"
        '  File "main.py", line 3, in <lambda>\n'
        "    call(lambda: f())\n"
        '  File "main.py", line 2, in f\n'
        "    return 1/0\n"
        "ZeroDivisionError: division by zero"
    )


def test_leti_leaves_out_columns_of_syntax_errors(go: Go, box: EmbeddedSandbox) -> None:
    found = leti(go(box.run("x = 1\ny = (2 +")))
    assert found is not None
    assert found.text == (
        "  File \"main.py\", line 2\n    y = (2 +\nSyntaxError: '(' was never closed"
    )


def test_leti_text_is_bounded() -> None:
    error = ExecError("E", "m" * 5000, "h" * 2000 + "t" * 3000)
    found = leti(ExecResult("error", error=error), chars=100)
    assert found is not None
    assert found.text == "h" * 50 + "\n... [4900 characters left out] ...\n" + "t" * 50


FIRST, SECOND = "assert f(1) == 1", "assert f(2) == 2"
RAISED = ExecError(
    "E", "m", 'Traceback:\n  File "solution.py", line 2, in f\n    1/0\n    ~^~\nE: m\n'
)


@pytest.mark.parametrize(
    ("cases", "text"),
    [
        ([CaseResult("0", True, "passed"), CaseResult("1", True, "passed")], ""),
        ([CaseResult("0", False, "wrong", "d", got="3")], f"{FIRST}\nAssertionError: it gave 3"),
        ([CaseResult("0", False, "wrong", "no arguments left")], f"{FIRST}\nno arguments left"),
        ([CaseResult("0", False, "malformed", "it gave an f")], f"{FIRST}\nit gave an f"),
        ([CaseResult("0", False, "timeout", "more than 1 s")], "timeout"),
        ([CaseResult("0", False, "exit", "it ended")], "exit"),
        (
            [CaseResult("0", False, "error", "E: m", error=RAISED)],
            f'{FIRST}\nTraceback:\n  File "solution.py", line 2, in f\n    1/0\nE: m',
        ),
        (
            [CaseResult("0", True, "passed"), CaseResult("7", False, "error", "E", error=RAISED)],
            HIDDEN,
        ),
        (
            [CaseResult("7", False, "wrong", got="9"), CaseResult("1", False, "wrong", got="0")],
            f"{SECOND}\nAssertionError: it gave 0",
        ),
        (
            [CaseResult("7", False, "error", f"{NOT_LOADED}: E: m", error=RAISED)],
            'Traceback:\n  File "solution.py", line 2, in f\n    1/0\nE: m',
        ),
        ([CaseResult("0", False, "not_run"), CaseResult("7", False, "oom")], HIDDEN),
        ([], "missing"),
    ],
)
def test_what_may_be_told_of_a_verdict(cases: list[CaseResult], text: str) -> None:
    passed = bool(cases) and all(c.passed for c in cases)
    verdict = Verdict(passed, "passed" if passed else "missing", tuple(cases))
    assert verdict_text(verdict, {"0": FIRST, "1": SECOND}) == text

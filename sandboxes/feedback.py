"""From an ExecResult to what a model reads of it. The only place where that is decided.

The text is stable: it names no addresses of memory and no paths of this machine, so the same code
gives the same text. `leti` gives the feedback of LeTI (arXiv 2305.10314, section 2.2), and
`leti_row` a row of its training text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentrl.types import ExecError, ExecResult, Verdict

HEAD = TAIL = 400
"""Characters of a tool's answer that are kept at its beginning and at its end."""

GOOD, BAD = "<|good|>", "<|bad|>"
OPEN, CLOSE = "<|lang_feedback|>", "<|/lang_feedback|>"
LETI_TOKENS = (GOOD, BAD, OPEN, CLOSE)
"""What LeTI adds to the vocabulary."""

NOT_LOADED = "the program did not load"
"""How the judge's detail on a program begins that fails before any test."""

_LETI_CHARS = 2_000  # about 512 tokens
_ADDRESS = re.compile(r"(<[^<>\n]*\bat )0x[0-9a-fA-F]{4,}")
_FOLDER = re.compile(r"/(?:work|tmp/agentrl-[^/\s\"']*)/")  # a session's own folder
_FRAME = re.compile(r'  File "(?P<file>[^"\n]*)", line (?P<line>\d+)(?P<rest>.*)')
_PROGRAM = re.compile(r"main\.py|<cell \d+>")
_MARKERS = re.compile(r"\s+[~^ ]*[~^]")  # under a line of code


def tool_text(result: ExecResult, *, head: int = HEAD, tail: int = TAIL) -> str:
    """What a model is shown of an execution: START's protocol, section 2.

    What the code printed; if it printed nothing, the value of its last expression, as a notebook
    shows it, or else what it wrote to stderr. Whatever ended the run early follows on a line of
    its own: the traceback, the time limit, the memory limit; then the displays that came with it.
    """
    parts = [result.stdout.rstrip("\n") or result.value or ""]
    shown = [f"[{name}: {len(data)} bytes]" for name, data in result.artifacts.items()]
    if result.status == "ok":
        parts = [parts[0] or result.stderr.rstrip("\n") or ("" if shown else "[no output]")]
    elif result.status == "error":
        parts.append(error_text(result))
    else:
        parts.append(_ending(result))
    return clip(stable("\n".join(p for p in (*parts, *shown) if p)), head, tail)


def error_text(result: ExecResult) -> str:
    """The traceback of what the code raised, or the nearest to one that there is."""
    error = result.error
    if error is None:
        return result.stderr.rstrip("\n") or "Error"
    last = f"{error.name}: {error.message}" if error.message else error.name
    return error.traceback.rstrip("\n") or last


def _ending(result: ExecResult) -> str:
    detail = f": {result.detail}" if result.detail else ""
    texts = {
        "timeout": f"[timed out after {result.duration:.1f} s]",
        "oom": "[killed: out of memory]",
        "output_limit": "[killed: too much output]",
        "exit": f"[exited with status {result.exit_code}]",
        "crashed": f"[crashed by signal {result.signal}]",
        "tampered": "[killed: the code interfered with the interpreter]",
    }
    text = texts.get(result.status, f"[{result.status}{detail}]")
    return "\n".join(p for p in (result.stderr.rstrip("\n"), text) if p)


def stable(text: str) -> str:
    """`text` without what differs between two runs of the same code: addresses of objects, and
    where on this machine the session's folder is."""
    return _FOLDER.sub("", _ADDRESS.sub(r"\g<1>0x...", text))


def clip(text: str, head: int = HEAD, tail: int = TAIL) -> str:
    """`text`, or its head and tail with a marker that says how much is left out between them."""
    left_out = len(text) - head - tail
    if left_out <= 0:
        return text
    return f"{text[:head]}\n... [{left_out} characters left out] ...\n{text[len(text) - tail :]}"


def clip_lines(text: str, head: int, tail: int) -> str:
    """`text`, or its first and last lines with a marker that says how many are left out."""
    lines = text.split("\n")
    left_out = len(lines) - head - tail
    if left_out <= 0:
        return text
    marker = f"... [{left_out} lines left out] ..."
    return "\n".join([*lines[:head], marker, *lines[len(lines) - tail :]])


@dataclass(frozen=True, slots=True)
class Feedback:
    """LeTI's two kinds of feedback: whether the program is `good`, and the text (empty if so)."""

    good: bool
    text: str = ""


def leti(result: ExecResult, *, first_line: int = 1, chars: int = _LETI_CHARS) -> Feedback | None:
    """The feedback on a program that ran together with its tests (LeTI, section 2.2).

    Good if no exception escaped. Otherwise the text is the traceback: only frames of the program,
    in its own line numbers (`first_line` is where it begins in what was executed), without columns,
    at most `chars` characters of it, head and tail. What left no traceback is named by its
    status: `timeout`. A failing assert is shown as it stands in the tests: use it for training,
    not where the tests are secret.

    None if the sandbox failed or ran out of memory: that says nothing about the program, and makes
    no row.
    """
    if result.status in ("infra", "oom"):
        return None
    if result.status == "ok":
        return Feedback(True)
    if result.status != "error":
        return Feedback(False, result.status)
    text = "\n".join(_own_lines(error_text(result).split("\n"), first_line))
    return Feedback(False, clip(stable(text), chars // 2, chars - chars // 2))


HIDDEN = "a hidden test failed"


def verdict_text(verdict: Verdict, tests: Mapping[str, str], *, chars: int = _LETI_CHARS) -> str:
    """What a model is shown of a program that did not pass; empty for one that did.

    `tests` has the text of each case that may be shown, by its id. Of the first of these that
    failed, the text and what the program gave or raised, with its own frames and line numbers; of a
    program that does not even load, only that; what left no traceback is named by its status:
    `timeout`. Where only others failed, that and no more: their inputs stay secret.
    """
    failed = [case for case in verdict.cases if not case.passed and case.status != "not_run"]
    if verdict.passed:
        return ""
    if not failed:
        return verdict.status
    case = next((c for c in failed if c.id in tests), failed[0])
    if case.error is not None and case.detail.startswith(NOT_LOADED):
        text = _traceback(case.error)
    elif case.id not in tests:
        text = HIDDEN
    elif case.error is not None:
        text = f"{tests[case.id]}\n{_traceback(case.error)}"
    elif case.status == "wrong" and case.got:
        text = f"{tests[case.id]}\nAssertionError: it gave {case.got}"
    elif case.status in ("wrong", "error", "malformed"):
        text = f"{tests[case.id]}\n{case.detail}"
    else:
        text = case.status
    return clip(stable(text), chars // 2, chars - chars // 2)


def _traceback(error: ExecError) -> str:
    lines = error.traceback.rstrip("\n").split("\n")
    return "\n".join(line for line in lines if not _MARKERS.fullmatch(line))


def _own_lines(lines: list[str], first_line: int) -> list[str]:
    """The lines of a traceback without frames outside the program."""
    kept: list[str] = []
    inside = True
    for line in lines:
        frame = _FRAME.fullmatch(line)
        if frame:
            number = int(frame["line"]) - first_line + 1
            inside = number > 0 and _PROGRAM.fullmatch(frame["file"]) is not None
            line = f'  File "{frame["file"]}", line {number}{frame["rest"]}'
        elif not line.startswith("    "):
            inside = True
        if inside and not _MARKERS.fullmatch(line):
            kept.append(line)
    return kept


def leti_row(prompt: str, program: str, feedback: Feedback, *, coarse_only: bool = False) -> str:
    """One row of LeTI's training text: verdict, feedback, prompt, program, with nothing between.

    The feedback comes first, so that the model learns p(program | verdict, error, prompt).
    `coarse_only` leaves the text out and keeps the verdict (the paper's ablation).
    """
    if feedback.good:
        return f"{GOOD}{prompt}{program}"
    text = "" if coarse_only else f"{OPEN}{feedback.text}{CLOSE}"
    return f"{BAD}{text}{prompt}{program}"

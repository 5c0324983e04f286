"""The grade of tool calls against the reference, while they are being written.

iTool lets the policy compare the calls so far with the reference and give a grade, A to D
(`evaluators.GradeEvaluation`), which a small model cannot do. Here the calls are parsed, and what
differs decides (`evaluators.CallEvaluation`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from agentrl.callsyntax import python_calls
from agentrl.toolcalls import first_call, parse_tool_calls
from agentrl.types import ToolCall

Grade = Literal["A", "B", "C", "D"]

_CLOSERS = (")]", "]", "}}", "}")
"""What may be missing after the last whole argument, in Python's notation and in JSON."""


def calls_so_far(text: str) -> tuple[list[ToolCall], bool]:
    """The calls in a turn that may break off anywhere, and whether the last is still open.

    Of an open call the arguments that are whole stand there: one whose value could go on does not.
    """
    calls = parse_tool_calls(text)
    if calls and all(map(_readable, calls)):
        return calls, False
    cuts = [i + (c != ",") for i, c in enumerate(text) if c in ",({"]
    for cut in reversed(cuts):
        for closer in _CLOSERS:
            calls = parse_tool_calls(text[:cut] + closer)
            if calls and all(map(_readable, calls)):
                return calls, True
    return [], True


def _readable(call: ToolCall) -> bool:
    return call.name != "invalid"


_NOTATIONS: tuple[tuple[str, str, Callable[[str], Any], tuple[str, ...]], ...] = (
    ("<|tool_call_start|>", "<|tool_call_end|>", python_calls, ("", "0", "=0", "()", ":0")),
    ("<tool_call>", "</tool_call>", json.loads, ("", "0", ":0", '"":0')),
)
"""How a block of calls begins and ends, what reads it, and what may stand where it breaks off."""

_WORDS = ("True", "False", "None", "true", "false", "null")


def can_go_on(text: str) -> bool:
    """False if the block of calls with which `text` breaks off is beyond repair: nothing that could
    follow would make calls of it. Blocks of other notations than Python's lists and tagged JSON are
    not looked at."""
    for start, end, read, fillers in _NOTATIONS:
        _, mark, body = text.partition(start)
        if not mark:
            continue
        *whole, body = body.split(end)
        body = body.partition(start)[2] if whole else body
        body = body[: len(body) - _begun(body, end)]
        endings = {word[_begun(body, word) :] for word in _WORDS if _begun(body, word)}
        return not body.strip() or any(_reads(read, body, f) for f in (*fillers, *endings))
    return True


def _begun(text: str, word: str) -> int:
    """With how many characters of `word`, but not all, `text` ends."""
    return next((n for n in range(len(word) - 1, 0, -1) if text.endswith(word[:n])), 0)


def _reads(read: Callable[[str], Any], body: str, filler: str) -> bool:
    """Whether `body` can be read once `filler` stands behind it and all that is open is closed."""
    quote, brackets = "", ""
    escaped = False
    for c in body:
        if escaped or (quote and c == "\\"):
            escaped = not escaped
        elif quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        elif c in "([{":
            brackets = ")]}"["([{".index(c)] + brackets
        elif brackets and c == brackets[0]:
            brackets = brackets[1:]
    try:
        read(body + "\\" * escaped + quote + filler + brackets)
    except (ValueError, RecursionError):
        return False
    return True


def grade(text: str, reference: str, *, finished: bool) -> Grade:
    """How the calls in `text` compare with those of `reference`, in any order.

    A: nothing differs (so far, unless `finished`). B: a value. C: a parameter is missing or too
    much, or the number of calls. D: a call of another function, a call where none is wanted, none
    where one is, or calls that cannot be read.
    """
    wanted = parse_tool_calls(reference)
    begun = first_call(text) < len(text)
    if not begun or not wanted:
        return "D" if begun or (finished and wanted) else "A"
    said, still_open = calls_so_far(text)
    if still_open and (finished or not can_go_on(text)):
        return "D"
    grades: list[Grade] = ["C"] if len(said) > len(wanted) else []
    grades += ["C"] if finished and len(said) < len(wanted) else []
    left = list(wanted)
    for i, call in enumerate(said[: len(wanted)]):
        whole = not (still_open and i == len(said) - 1)
        found = [_compared(call, other, whole) for other in left]
        best = min(found)
        grades.append(best)
        del left[found.index(best)]
    return max(grades, default="A")


def _compared(said: ToolCall, wanted: ToolCall, whole: bool) -> Grade:
    """One call against one; where it is not `whole`, parameters may be missing."""
    if said.name != wanted.name:
        return "D"
    if said.arguments.keys() - wanted.arguments.keys():
        return "C"
    if whole and wanted.arguments.keys() - said.arguments.keys():
        return "C"
    same = all(_same(value, wanted.arguments[name]) for name, value in said.arguments.items())
    return "A" if same else "B"


def _same(a: object, b: object) -> bool:
    """Equal, and of one type wherever a truth value stands, inside of lists and mappings too: True
    is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[name]) for name, value in a.items())
    if isinstance(a, list | tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b and isinstance(a, bool) == isinstance(b, bool)

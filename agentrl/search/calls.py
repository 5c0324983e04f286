"""The grade of tool calls against the reference, while they are being written.

iTool lets the policy compare the calls so far with the reference and give a grade, A to D
(`evaluators.GradeEvaluation`), which a small model cannot do. Here the calls are parsed, and what
differs decides (`evaluators.CallEvaluation`).
"""

from __future__ import annotations

from typing import Literal

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
    if finished and still_open:
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
    """Equal and of one type: True is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)

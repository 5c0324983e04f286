"""What is shown of an exception: its name, its text, and the frames of the code's own lines."""

from __future__ import annotations

import builtins
import sys
import traceback
from typing import Any

_TRACEBACK_CHARS = 10_000
_MESSAGE_CHARS = 4_000
_NAME_CHARS = 200
_LONGEST_CYCLE = 8  # frames of a recursion through several functions
_FRAMES_SHOWN = 40

_TracebackException, _StackSummary = traceback.TracebackException, traceback.StackSummary
_HERE = __file__.rpartition("/")[0] + "/"
_LIBRARIES = ("/opt/", "/usr/", sys.prefix, "<frozen", _HERE)

_name_of = type.__dict__["__name__"].__get__  # whatever the metaclass says

globals()["__builtins__"] = dict(vars(builtins))  # for the functions below


def shorten(text: str, most: int) -> str:
    """`text`, with its middle left out if it is longer than `most`."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"


def describe(error: BaseException, folder: str) -> list[str]:
    """The name, text and traceback of an exception; files below `folder` by their path in it."""
    name = "Exception"
    try:
        name = str.__str__(_name_of(type(error)))  # exactly a string, whatever class it is of
        shown = _TracebackException.from_exception(error, lookup_lines=False, compact=True)
        _cut(shown, folder)
        text = "".join(shown.format())
        message = str.__str__(str(error))
    except BaseException:
        text, message = f"{name}: <the exception cannot be shown>", ""
    return [
        name[:_NAME_CHARS],
        shorten(message, _MESSAGE_CHARS),
        shorten(text, _TRACEBACK_CHARS),
    ]


def _own(frame: traceback.FrameSummary) -> bool:
    path = frame.filename
    return not (path.startswith(_LIBRARIES) or "/site-packages/" in path)


def _cut(shown: traceback.TracebackException, folder: str) -> None:
    """Leave the code's own frames, in the exception and in those it came from."""
    seen: set[int] = set()
    todo: list[traceback.TracebackException | None] = [shown]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        own = [frame for frame in one.stack if _own(frame)]
        for frame in own:
            frame.filename = frame.filename.removeprefix(f"{folder}/")
        one.stack = _Stack(own)
        todo += [one.__cause__, one.__context__]
        todo += getattr(one, "exceptions", None) or []


class _Stack(traceback.StackSummary):
    """Frames in which a recursion is shown once, however many functions take part in it."""

    def format(self, **options: Any) -> list[str]:
        lines: list[str] = []
        at = 0
        while at < len(self):
            period, rounds = _cycle(self, at)
            most = 3 if period == 1 else 2  # rounds that are shown; 3 is what Python does
            shown = self[at : at + min(rounds, most) * period]
            lines += _StackSummary.from_list(shown).format(**options)
            if rounds > most:
                what = "line" if period == 1 else f"{period} frames"
                lines.append(f"  [Previous {what} repeated {rounds - most} more times]\n")
            at += rounds * period
        left_out = len(lines) - _FRAMES_SHOWN
        if left_out > 0:
            half = _FRAMES_SHOWN // 2
            lines[half:-half] = [f"  [... {left_out} frames ...]\n"]
        return lines


def _cycle(frames: list[traceback.FrameSummary], at: int) -> tuple[int, int]:
    """The number of frames from `at` on that repeat, and how often; (1, 1) if none do."""
    for period in range(1, _LONGEST_CYCLE + 1):
        rounds, start = 1, at + period
        while start + period <= len(frames) and all(
            _same(frames[start + n], frames[at + n]) for n in range(period)
        ):
            rounds, start = rounds + 1, start + period
        if rounds > 2:
            return period, rounds
    return 1, 1


def _same(one: traceback.FrameSummary, other: traceback.FrameSummary) -> bool:
    return one.lineno == other.lineno and one.filename == other.filename

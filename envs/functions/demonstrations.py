"""Reference turns for the generated tasks, part of whose calls can be made wrong: training data.

A teacher's data are not wrong at random. Here it has habits: half of the tools it knows badly, and
at each of these it always makes the same mistake, which the tool answers by an error; then it makes
the call that is right. So a share of wrong calls that is small over all may be most of what a
student sees of one tool.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

from agentrl.errors import ConfigError, DataError
from agentrl.types import Task, ToolCall
from envs.functions.schema import Notation, written

NO_TOOL = "None of my tools can do this."
DONE = "It is done."
RETRIES = 3
"""So often a call that failed is made again; then the turn is given up."""


def reference(
    notation: Notation = "json", *, wrong: float = 0.0, seed: int = 0
) -> Callable[[Task, Sequence[Sequence[str]]], str]:
    """What a teacher says next, from a task and the statuses of its calls so far, turn by turn.

    A first call of a tool that is known badly is wrong with probability `2 * wrong`, so that about
    a share of `wrong` is (up to 0.5). Raises ConfigError for another.
    """
    if not 0 <= wrong <= 0.5:
        raise ConfigError(f"the share of wrong calls is 0 to 0.5, not {wrong}: half of the tools")

    def speak(task: Task, statuses: Sequence[Sequence[str]]) -> str:
        if "calls" not in task.data:
            raise DataError(f"task {task.id!r} has no reference calls to demonstrate")
        steps = task.data["calls"]
        at, calls, tries = _left(steps, statuses)
        if not calls or tries > RETRIES:
            return _last(task, steps)
        if tries == 0:
            rng = Random(f"wrong {seed} {task.id} {at}")
            functions = {f["name"]: f for f in task.data["functions"]}
            calls = [
                mistaken(call, functions[call.name])
                if known_badly(call.name) and rng.random() < 2 * wrong
                else call
                for call in calls
            ]
        return written(calls, notation)

    return speak


def _left(
    steps: Sequence[Sequence[Mapping[str, Any]]], statuses: Sequence[Sequence[str]]
) -> tuple[int, list[ToolCall], int]:
    """The step that is being worked on, its calls that have not succeeded yet, and how often they
    were tried."""
    at, tries = 0, 0
    left = _calls(steps, 0)
    for turn in statuses:
        if len(turn) == len(left):  # else it could not be read, and none was made
            left = [call for call, status in zip(left, turn, strict=True) if status != "ok"]
        tries += 1
        if not left:
            at, tries = at + 1, 0
            left = _calls(steps, at)
    return at, left, tries


def _calls(steps: Sequence[Sequence[Mapping[str, Any]]], at: int) -> list[ToolCall]:
    return [ToolCall(c["name"], c["arguments"]) for c in (steps[at] if at < len(steps) else ())]


def _last(task: Task, steps: Sequence[Sequence[Any]]) -> str:
    if not any(steps):
        return NO_TOOL
    result = task.data.get("result")
    return DONE if result is None else f"The answer is {result}."


def known_badly(name: str) -> bool:
    """True for the half of all tools at which the teacher makes mistakes."""
    return _hash(name) % 2 == 0


def mistaken(call: ToolCall, function: Mapping[str, Any]) -> ToolCall:
    """The call with the mistake that the teacher makes at this tool: a wrong name, an argument by
    another name, or the first one left out. The tool answers it by an error."""
    kind = _hash(call.name) // 2 % 3
    first = next(iter(function["parameters"]["required"]))
    if kind == 0:
        return replace(call, name=call.name + "s")
    rest = {k: v for k, v in call.arguments.items() if k != first}
    if kind == 1:
        return replace(call, arguments={f"{first}_id": call.arguments[first]} | rest)
    return replace(call, arguments=rest)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")

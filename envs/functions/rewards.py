"""TL-Training's graded reward for calls (arXiv 2412.15495, IRM): how wrong is a wrong call?

The table is that of the authors' code and can be replaced, value by value. Mind that it values the
right tool with every kind of wrong argument (-1.8) below the wrong tool (-1.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentrl.errors import unknown
from agentrl.types import ToolCall
from envs.functions.checker import Wanted, described, name_of, value_fault

CallClass = Literal[
    "unparsable",  # no call that can be read, or a tool that is not offered
    "wrong_tool",  # another one of the offered tools, or an empty name
    "all_wrong",  # an unknown argument, an unwanted one, and one missing
    "unknown_and_other",  # an unknown argument, and an unwanted or a missing one
    "unwanted_and_missing",  # an unwanted argument and a missing one
    "unknown",  # an argument that the tool does not have
    "unwanted_or_missing",  # an argument that was not wanted, or a wanted one that is missing
    "value",  # the right arguments, and a value that differs
    "exact",
]

TABLE: Mapping[CallClass, float] = {
    "unparsable": -2.0,
    "wrong_tool": -1.5,
    "all_wrong": -1.8,
    "unknown_and_other": -1.3,
    "unwanted_and_missing": -1.0,
    "unknown": -0.8,
    "unwanted_or_missing": -0.5,
    "value": -0.25,
    "exact": 1.0,
}


def table(changes: Mapping[str, float] | None) -> dict[CallClass, float]:
    """The rewards, with `changes`. Raises ConfigError for a class that does not exist."""
    made = dict(TABLE)
    for name, value in (changes or {}).items():
        if name not in TABLE:
            raise unknown("class of calls", name, TABLE)
        made[name] = float(value)  # type: ignore[index]
    return made


def classify(
    call: ToolCall | None, wanted: Wanted, functions: Sequence[Mapping[str, Any]]
) -> CallClass:
    """The class of one call, None where none could be read: the first that fits, as listed.

    An argument is wanted if the reference has it; it may be missing where the reference accepts
    `""`. Values are compared as `checker` does.
    """
    if call is None or (call.name and call.name not in {f["name"] for f in functions}):
        return "unparsable"
    if call.name != name_of(wanted):
        return "wrong_tool"
    properties = described(functions, call.name)["parameters"]["properties"]
    accepted = wanted[call.name]
    unknown_ = any(name not in properties for name in call.arguments)
    unwanted = any(name in properties and name not in accepted for name in call.arguments)
    missing = any(n not in call.arguments and "" not in values for n, values in accepted.items())
    if unknown_ and unwanted and missing:
        return "all_wrong"
    if unknown_ and (unwanted or missing):
        return "unknown_and_other"
    if unwanted and missing:
        return "unwanted_and_missing"
    if unknown_:
        return "unknown"
    if unwanted or missing:
        return "unwanted_or_missing"
    differs = any(value_fault(v, properties[n], accepted[n]) for n, v in call.arguments.items())
    return "value" if differs else "exact"


def classify_all(
    calls: Sequence[ToolCall], wanted: Sequence[Wanted], functions: Sequence[Mapping[str, Any]]
) -> list[CallClass]:
    """The classes of a turn's calls: each wanted one with the call left that fits it best.

    A wanted call that was not made is `unparsable`, one too many is `wrong_tool`; a turn in which
    no call is wanted and none was made is `exact`. (The paper has turns of one call.)
    """
    if not wanted and not calls:
        return ["exact"]
    left = list(calls)
    found: list[CallClass] = []
    for one in wanted:
        classes = [classify(call, one, functions) for call in left]
        if not classes:
            found.append("unparsable")
            continue
        best = max(range(len(left)), key=lambda i: TABLE[classes[i]])
        found.append(classes[best])
        del left[best]
    return found + ["wrong_tool" for _ in left]


def reward(classes: Sequence[CallClass], values: Mapping[CallClass, float]) -> float:
    """The mean reward of a turn's calls."""
    return math.fsum(values[c] for c in classes) / len(classes)

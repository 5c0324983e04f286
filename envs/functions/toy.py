"""Small tools for tiny models: short names that begin alike, one digit a number, short questions.

Which tool a word asks for, and what its arguments are called, has to be learnt.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from envs.functions.catalogue import Chain
from envs.functions.tools import Parameter, Tool


def _digit(rng: Random) -> int:
    return rng.randrange(10)


def _tool(
    name: str, parameters: str, words: str, answer: Callable[[int, int], int], group: str
) -> Tool:
    first, second = tuple(parameters)
    digit = Parameter({"type": "integer"}, _digit)

    def run(**given: Any) -> dict[str, Any]:
        return {"r": answer(given[first], given[second])}

    questions = tuple(f"{word} {{{first}}} {{{second}}}" for word in words.split())
    return Tool(name, words, group, {first: digit, second: digit}, run, "r", questions)


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        _tool("max", "ab", "top big", max, "a"),
        _tool("mad", "ab", "mean", lambda a, b: (a + b) // 2, "b"),
        _tool("min", "xy", "low few", min, "c"),
        _tool("mix", "xy", "join", lambda x, y: 10 * x + y, "d"),
        _tool("sum", "ab", "plus all", lambda a, b: a + b, "e"),
        _tool("sub", "xy", "less", lambda x, y: x - y, "f"),
        _tool("set", "uv", "one", lambda u, v: u, "g"),
        _tool("sep", "uv", "gap", lambda u, v: abs(u - v), "h"),
    )
}

CHAINS: dict[str, Chain] = {
    f"{a} then {b}": Chain(
        (a, b),
        f"{TOOLS[a].questions[0]} then {TOOLS[b].questions[0].split()[0]} "
        f"{{{list(TOOLS[b].parameters)[1]}}}",
        ({}, {next(iter(TOOLS[b].parameters)): "r"}),
    )
    for a, b in (("max", "sub"), ("min", "sum"), ("sum", "sep"), ("mad", "mix"))
}

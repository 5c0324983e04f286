"""The unit of action: where a step of a search ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agentrl.search.rules import group_length


@dataclass(frozen=True, slots=True)
class Unit:
    """A step: `parts` runs up to one of the `stops`, of `max_tokens` tokens together (None: as many
    as the turn may have). The end of the turn always ends it."""

    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    parts: int = 1


Units = Callable[[int], Unit]
"""From the depth of the state that a step starts in to its unit."""

WHOLE = Unit()


def whole(depth: int) -> Unit:
    """All that is left of the turn."""
    return WHOLE


def lines(max_tokens: int | None = 128) -> Units:
    """A line a step (MCTS-DPO on mathematics: 128 tokens at most)."""
    unit = Unit(("\n",), max_tokens)
    return lambda depth: unit


def sentences(max_tokens: int | None = 128) -> Units:
    """A sentence or a line a step."""
    unit = Unit(("\n", ". ", "? ", "! "), max_tokens)
    return lambda depth: unit


def calls(max_tokens: int | None = 128) -> Units:
    """A call with its answer, or the rest of the turn, a step (for searches with tools)."""
    unit = Unit(max_tokens=max_tokens)
    return lambda depth: unit


def fragments(group: int = 2, depth: int = 3, max_tokens: int | None = 50) -> Units:
    """iTool: `group` fragments of a call a step, so that a step is about one argument; from
    `depth` - 1 steps on the rest of the turn is one step."""
    unit = Unit((". ", ", ", "=", "("), max_tokens, group)
    return lambda at: unit if at < depth - 1 else WHOLE


def token_groups(depth: int) -> Unit:
    """RAIN: 1, 2, 4, then 10 tokens."""
    return Unit(max_tokens=group_length(depth))


UNITS: dict[str, Callable[[int], Units]] = {
    "line": lines,
    "sentence": sentences,
    "call": calls,
}
"""Units by name, made for a number of tokens."""

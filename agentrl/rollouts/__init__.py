"""Strategies: each makes a `Rollout`, an async function that grows one tree through a cursor."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Rollout
from agentrl.rollouts.external import external
from agentrl.rollouts.hint_infer import hint_infer
from agentrl.rollouts.leti import leti
from agentrl.rollouts.magicore import magicore
from agentrl.rollouts.refine import refine
from agentrl.rollouts.replay import replay
from agentrl.rollouts.rise import rise, rise_collect
from agentrl.rollouts.search import beam, best_first, best_of_n, itool, mcts, rain
from agentrl.rollouts.self_correct import self_correct
from agentrl.rollouts.self_debug import self_debug
from agentrl.rollouts.single_turn import single_turn
from agentrl.rollouts.synthesize import synthesize
from agentrl.rollouts.tool_loop import tool_loop

ROLLOUTS: dict[str, Callable[..., Rollout]] = {
    "single_turn": single_turn,
    "tool_loop": tool_loop,
    "hint_infer": hint_infer,
    "self_correct": self_correct,
    "leti": leti,
    "self_debug": self_debug,
    "refine": refine,
    "synthesize": synthesize,
    "rise": rise,
    "rise_collect": rise_collect,
    "mcts": mcts,
    "itool": itool,
    "rain": rain,
    "best_first": best_first,
    "beam": beam,
    "best_of_n": best_of_n,
    "external": external,
    "magicore": magicore,
}

COUNTS = frozenset(
    {"rounds", "turns", "candidates", "window", "width", "beams", "iterations", "b1", "b2", "depth"}
    | {"first", "group", "least", "t_min", "step_tokens", "at_once"}
)
"""Options that are whole numbers, besides those that begin with `max_`."""


def make(name: str, **options: Any) -> Rollout:
    """The rollout called `name`. Raises ConfigError for an unknown name or option."""
    if name not in ROLLOUTS:
        raise unknown("rollout", name, ROLLOUTS)
    parameters = inspect.signature(ROLLOUTS[name]).parameters
    for option, value in options.items():
        if option not in parameters:
            raise unknown(f"option of rollout {name!r}:", option, parameters)
        counts = option.startswith("max_") or option in COUNTS
        if counts and value is not None and (type(value) is not int or value < 0):
            raise ConfigError(f"rollout {name!r}: {option} is a whole number from 0, not {value!r}")
    return ROLLOUTS[name](**options)


__all__ = [
    "ROLLOUTS",
    "beam",
    "best_first",
    "best_of_n",
    "external",
    "hint_infer",
    "itool",
    "leti",
    "magicore",
    "make",
    "mcts",
    "rain",
    "refine",
    "replay",
    "rise",
    "rise_collect",
    "self_correct",
    "self_debug",
    "single_turn",
    "synthesize",
    "tool_loop",
]

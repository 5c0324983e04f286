"""Strategies: each makes a `Rollout`, an async function that grows one tree through a cursor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Rollout
from agentrl.options import check, imported
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


def make(name: str, **options: Any) -> Rollout:
    """The rollout called `name`, or of your own as `MODULE:NAME`. Raises ConfigError for an unknown
    name or option, or a value of another type."""
    what = f"rollout {name!r}"
    checked = check(what, factory(name), options)
    for option, value in checked.items():
        if isinstance(value, int) and value < 0:
            raise ConfigError(f"{what}: {option} is a whole number from 0, not {value!r}")
    return factory(name)(**checked)


def factory(name: str) -> Callable[..., Rollout]:
    """What makes the rollout called `name`. Raises ConfigError if there is none."""
    if ":" in name:
        found: Callable[..., Rollout] = imported(name, f"rollout {name!r}")
        return found
    if name not in ROLLOUTS:
        raise unknown("rollout", name, [*ROLLOUTS, "MODULE:NAME"])
    return ROLLOUTS[name]


__all__ = [
    "ROLLOUTS",
    "beam",
    "best_first",
    "best_of_n",
    "external",
    "factory",
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

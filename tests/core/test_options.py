"""Options by name: one error for a wrong name or type, and things of one's own by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import pytest

import envs
from agentrl import losses, rollouts
from agentrl.errors import ConfigError
from agentrl.options import check, imported


class Says(Protocol):
    def __call__(self, text: str) -> str: ...


def thing(
    *,
    n: int = 1,
    share: float = 0.5,
    on: bool = False,
    kinds: Sequence[str] | None = None,
    mode: Literal["a", "b"] = "a",
    judge: str | Says | None = None,
    score: Callable[[str], float] | None = None,
    more: dict[str, Any] | None = None,
) -> None: ...


@pytest.mark.parametrize(
    "given",
    [
        {"n": 3, "share": 1, "on": True, "kinds": ["x"], "mode": "b", "judge": "self"},
        {"share": "1e-3", "judge": str.upper, "score": len, "more": {"k": 1}},
        {"kinds": None, "judge": None, "score": None, "more": None},
    ],
)
def test_what_fits_is_taken(given: dict[str, Any]) -> None:
    taken = check("thing", thing, given)
    assert taken == {**given, **({"share": 1e-3} if given.get("share") == "1e-3" else {})}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"m": 1}, "unknown option of thing: 'm'"),
        ({"n": 1.5}, "thing: n=1.5: expected a whole number"),
        ({"n": True}, "expected a whole number"),
        ({"share": "half"}, "expected a number"),
        ({"on": "maybe"}, "expected true or false"),
        ({"on": 1}, "expected true or false"),
        ({"kinds": "x"}, "expected a list of names"),
        ({"mode": 3}, "expected one of a, b"),
        ({"judge": 3}, "judge=3: expected text or Says or null"),
        ({"score": "f"}, r"expected a function \(from Python\) or null"),
        ({"more": 8}, "expected a mapping {key: value} or null"),
    ],
)
def test_what_does_not_fit_is_named(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check("thing", thing, given)


def test_what_must_be_given_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"rollout 'external': give agent=\.\.\."):
        rollouts.make("external")


@pytest.mark.parametrize(
    "option",
    [
        {"c": "x"},
        {"seconds": "x"},
        {"judge": 3},
        {"outcome": "maybe"},
        {"folder": 3},
        {"depth": 1.5},
    ],
)
def test_a_search_refuses_a_value_of_another_type(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="rollout 'mcts': "):
        rollouts.make("mcts", **option)


def test_a_loss_refuses_a_value_of_another_type() -> None:
    with pytest.raises(ConfigError, match=r"loss 'dpo': beta='x': expected a number"):
        losses.make("dpo", beta="x")
    with pytest.raises(ConfigError, match=r"Known: beta, divergence, label_smoothing, ref"):
        losses.make("dpo", bet=1)


def test_environments_and_rollouts_of_ones_own_by_module_and_name() -> None:
    env = envs.make("envs.chains:Chains", split="test", seed=3, width=9)
    assert env.tasks(1) == envs.make("chains", split="test", seed=3, width=9).tasks(1)
    rollout = rollouts.make("agentrl.rollouts.single_turn:single_turn", max_tokens=4)
    assert rollout.__name__ == "single_turn"
    with pytest.raises(ConfigError, match="unknown option"):
        rollouts.make("agentrl.rollouts.single_turn:single_turn", turns=4)


class Bare:
    """An environment that forgot its options."""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no.such:Env", "No module named"),
        ("envs.chains:Chain", "no attribute 'Chain'"),
        ("envs.chains:SPLITS", "no function"),
        (f"{__name__}:Bare", "takes the options split and seed"),
    ],
)
def test_what_cannot_be_imported_says_why(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        envs.make(name, split="test", seed=0)


def test_a_module_with_a_mistake_is_named() -> None:
    with pytest.raises(ConfigError, match=r"it: .*Write MODULE:NAME"):
        imported("agentrl:", "it")

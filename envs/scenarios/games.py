"""Scripts and games that a model made up: reading, verifying, telling them as a chat.

The paper's verifier (arXiv 2501.01702, section 6 of its specification):

- (a) the text is JSON;
- (b) every turn has its keys;
- (c) every action is offered and its parameters keep their rules, unless the master flagged it;
- (d) the goal is reached.

A game with fewer than two flagged mistakes is thrown away and made anew; after any other fault the
verified turns stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.types import Message

MIN_ERRORS = 2

TURN_KEYS = ("observation", "thought", "action", "ok")
SCRIPT_KEYS = ("description", "places", "objects", "goal", "actions")


@dataclass(frozen=True, slots=True)
class Offered:
    """An action that a script offers: `rules` has each parameter's allowed values, None for any
    text."""

    name: str
    form: str
    rules: Mapping[str, frozenset[str] | None]

    def fault(self, parameters: Mapping[str, Any]) -> str:
        """What is wrong with `parameters`, or nothing."""
        if set(parameters) != set(self.rules):
            return f"{self.name!r} takes the parameters {sorted(self.rules)}"
        for name, allowed in self.rules.items():
            value = parameters[name]
            if not isinstance(value, str) or not value.strip():
                return f"the parameter {name!r} of {self.name!r} is no text"
            if allowed is not None and value not in allowed:
                return f"{value!r} is no {name!r} of {self.name!r}"
        return ""


@dataclass(frozen=True, slots=True)
class Verified:
    """What the verifier says of a game: the turns that may stay, how many of them are flagged as
    mistakes, and the fault that ended them (empty if the game is accepted)."""

    turns: tuple[Mapping[str, Any], ...]
    errors: int
    fault: str = ""

    @property
    def accepted(self) -> bool:
        """True if there is nothing wrong with the game."""
        return not self.fault


def verify(
    text: str,
    offered: Mapping[str, Offered],
    before: Sequence[Mapping[str, Any]] = (),
    *,
    min_errors: int = MIN_ERRORS,
) -> Verified:
    """Check the turns in `text`, which follow the verified ones `before`.

    A fault at a turn leaves the turns in front of it. A whole game with fewer than `min_errors`
    flagged mistakes leaves nothing: it is to be made anew. So does a text that is no JSON, of what
    came with it.
    """
    kept = list(before)

    def stopped(fault: str) -> Verified:
        return Verified(tuple(kept), sum(not t["ok"] for t in kept), fault)

    try:
        data = _parsed(text)
    except ValueError as error:
        return stopped(str(error))
    if not isinstance(data, list) or not data:
        return stopped("the answer is not a list of turns")
    for turn in data:
        if kept and kept[-1].get("done"):
            return stopped("the game goes on after its goal")
        fault = _turn_fault(turn, offered)
        if fault:
            return stopped(f"turn {len(kept) + 1}: {fault}")
        kept.append(turn)
    if not (kept[-1].get("done") is True and kept[-1]["ok"]):
        return stopped("the goal is not reached yet")
    errors = sum(not t["ok"] for t in kept)
    if errors < min_errors:
        return Verified((), 0, f"there were {errors} mistakes, and {min_errors} are wanted")
    return Verified(tuple(kept), errors)


def _turn_fault(turn: Any, offered: Mapping[str, Offered]) -> str:
    if not isinstance(turn, Mapping):
        return "it is no object"
    missing = [key for key in TURN_KEYS if key not in turn]
    if missing:
        return f"the key {missing[0]!r} is missing"
    action = turn["action"]
    if not isinstance(turn["ok"], bool):
        return "'ok' is not true or false"
    if not all(isinstance(turn[key], str) for key in ("observation", "thought")):
        return "'observation' and 'thought' are texts"
    if not isinstance(action, Mapping) or not isinstance(action.get("name"), str):
        return "the action has no name"
    parameters = action.get("parameters", {})
    if not isinstance(parameters, Mapping):
        return "the action's parameters are no object"
    if not turn["ok"]:
        return ""  # flagged: whatever it is, the master calls it wrong
    if action["name"] not in offered:
        return f"there is no action {action['name']!r}"
    return offered[action["name"]].fault(parameters)


def read_script(text: str) -> dict[str, Any]:
    """The script in `text`. Raises ValueError, naming what is wrong, if it cannot be used."""
    script = _parsed(text)
    if not isinstance(script, dict):
        raise ValueError("the answer is not an object")
    for key in SCRIPT_KEYS:
        if not script.get(key):
            raise ValueError(f"the key {key!r} is missing or empty")
    if not all(isinstance(script[key], str) for key in ("description", "goal")):
        raise ValueError("'description' and 'goal' are texts")
    actions_of(script)
    return script


def actions_of(script: Mapping[str, Any]) -> dict[str, Offered]:
    """The actions that a script offers, by name. Raises ValueError for one that cannot be."""
    if not isinstance(script["actions"], list):
        raise ValueError("'actions' is not a list")
    made: dict[str, Offered] = {}
    for action in script["actions"]:
        if not isinstance(action, Mapping):
            raise ValueError("an action is not an object")
        name, form, rules = (action.get(key) for key in ("name", "format", "parameters"))
        if not (
            isinstance(name, str) and name and isinstance(form, str) and isinstance(rules, dict)
        ):
            raise ValueError("an action needs 'name', 'format' and 'parameters'")
        if set(re.findall(r"\{(\w+)\}", form)) != set(rules):
            raise ValueError(f"the format of {name!r} does not have its parameters in braces")
        allowed = {
            n: frozenset(map(str, rule)) if isinstance(rule, list) else None
            for n, rule in rules.items()
        }
        made[name] = Offered(name, form, allowed)
    if len(made) < 3:
        raise ValueError("there are fewer than three actions")
    return made


def _parsed(text: str) -> Any:
    """The JSON in `text`, which may stand in a fenced block. Raises ValueError."""
    found = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", text, re.S)
    try:
        return json.loads(found[1] if found else text)
    except (ValueError, RecursionError):
        raise ValueError("the answer is not JSON") from None


def conversation(script: Mapping[str, Any], turns: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A verified game as a chat: the environment and the first observation, then thought and action
    (assistant) and observation (user) in turn."""
    offered = actions_of(script)
    rules = "\n".join(f"- {action.form}" for action in offered.values())
    opening = (
        f"{script['description']}\nPlaces: {json.dumps(script['places'], ensure_ascii=False)}\n"
        f"Objects: {json.dumps(script['objects'], ensure_ascii=False)}\nActions:\n{rules}\n"
        "Answer every message with two lines, and only one action:\n"
        f"Thought: what you think\nAction: the action\nGoal: {script['goal']}\n"
    )
    messages: list[Message] = []
    for turn in turns:
        shown = turn["observation"] if messages else opening + turn["observation"]
        said = f"Thought: {turn['thought']}\nAction: {_written(turn['action'], offered)}"
        messages += [Message("user", shown), Message("assistant", said)]
    return messages


def _written(action: Mapping[str, Any], offered: Mapping[str, Offered]) -> str:
    """An action in its format; a mistake that has none by its name and values."""
    name, parameters = action["name"], action.get("parameters", {})
    known = offered.get(name)
    if known is None or set(parameters) != set(known.rules):
        return " ".join([name, *map(str, parameters.values())])
    return re.sub(r"\{(\w+)\}", lambda found: str(parameters[found[1]]), known.form)

"""Environments made up by a strong model, with games in them: AgentRefine's synthesis.

arXiv 2501.01702, from its specification's section 6. A task is a persona. The model first writes a
script (an environment: places, objects, a goal, and actions with their parameters), then plays both
the game's master and its player, all in one message of JSON. `verify` is the paper's verifier; what
is wrong goes back to the model:

- (a) the text is JSON;
- (b) every turn has its keys;
- (c) every action is offered and its parameters keep their rules, unless the master flagged it;
- (d) the goal is reached.

A game with fewer than two flagged mistakes is thrown away and asked for anew; after any other fault
the verified turns stay and the model goes on from there. `agentrl.rollouts.synthesize` is the
rollout for this environment, which says nothing of a real one: where there is a simulator, use it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from agentrl.errors import ConfigError, DataError
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Step, Task, ToolSpec
from envs.base import EpisodeOver

MIN_ERRORS = 2
RETRIES = 4

WHO = (
    "a night nurse", "a lighthouse keeper", "a retired watchmaker", "a ship's cook", "a bee keeper",
    "a museum guard", "a cartographer", "a locksmith's apprentice", "a botanist", "a stage hand",
    "an astronomer", "a ferryman", "a librarian", "a glass blower", "a mountain guide",
    "an archaeologist", "a radio operator", "a pastry chef", "a train dispatcher", "a falconer",
)  # fmt: skip
WHERE = (
    "in an old harbour town", "on a research station", "in a flooded village", "on a night train",
    "in a castle that is being restored", "in a desert oasis", "on a generation ship",
    "in a department store after closing time", "on a small island", "in a mining settlement",
)  # fmt: skip
WITH = (
    "who never throws anything away", "who is late", "who distrusts machines", "who has lost a key",
    "who must not wake anyone", "who works with one hand", "who follows every rule",
)  # fmt: skip

SCRIPT_PROMPT = """\
Invent a small text environment for this person: {persona}.
Answer with one JSON object and nothing else. Its keys:
"description": what the player is told of the place and its rules,
"places": a list of places, each with what is in it,
"objects": a list of objects,
"goal": what the player has to achieve, in one sentence,
"actions": a list of at least three objects with "name", "format" (how the action is written, with \
each parameter in braces, such as "open {{container}} with {{tool}}") and "parameters" (an object \
from each parameter to the list of its allowed values, or to "text").
The goal must need at least five actions in a sensible order."""

PLAY_PROMPT = """\
Now play this environment, as the master and as the player. Answer with a JSON list of turns and \
nothing else. Each turn has the keys
"observation": what the master tells the player before the action (the first one sets the scene),
"thought": what the player thinks,
"action": an object with "name" and "parameters",
"ok": the master's verdict, false for an action that is wrong (a parameter that cannot be, the \
wrong place, the wrong order),
"done": true in the turn that reaches the goal, else false.
The player must make at least {min_errors} mistakes. After each, the next observation reports the \
error, the thought says what was wrong, and the action repairs it. The last turn reaches the \
goal."""

CONTINUE_PROMPT = """\
These turns are verified:
{turns}
The next one was wrong: {fault}. Answer with the JSON list of the turns that follow, and only \
these."""

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
        data = json.loads(_bare(text))
    except ValueError:
        return stopped("the answer is not JSON")
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
    try:
        script = json.loads(_bare(text))
    except ValueError:
        raise ValueError("the answer is not JSON") from None
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


def _bare(text: str) -> str:
    """A text without the fence of a code block around it."""
    found = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?```\s*", text, re.S)
    return found[1] if found else text


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


@dataclass(frozen=True)
class Scenarios:
    """The environment. `make("scenarios", ...)` takes these fields as options.

    A task is a persona: 1,400 that are put together here, or the lines of the file `path`. More
    tasks than that begin again with the first one, for another environment. `min_errors` are the
    mistakes that a game must have; `retries` how often what is wrong may be asked for again, of the
    script and of the game. The reward is 1 for an accepted game, which is in
    `Step.info["scenario"]`.
    """

    split: str = "train"
    seed: int = 0
    path: str | os.PathLike[str] | None = None
    min_errors: int = MIN_ERRORS
    retries: int = RETRIES
    name: str = field(default="scenarios", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(), init=False)
    interactive: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.split != "train":
            raise ConfigError(f"scenarios: there is no split {self.split!r}, only 'train'")
        if self.min_errors < 0 or self.retries < 0:
            raise ConfigError("scenarios: min_errors and retries are at least 0")

    def tasks(self, n: int | None = None) -> list[Task]:
        """A task for each of the first `n` personas (for each one without it), in an order that the
        seed draws. Raises DataError for a file that cannot be read."""
        if n is not None and n < 0:
            raise ConfigError(f"scenarios: the number of tasks is at least 0, not {n}")
        personas = self._personas()
        Random(f"scenarios {self.seed}").shuffle(personas)
        wanted = len(personas) if n is None else n
        return [self._task(i, personas[i % len(personas)]) for i in range(wanted)]

    def _personas(self) -> list[str]:
        if self.path is None:
            return [" ".join(parts) for parts in product(WHO, WHERE, WITH)]
        try:
            lines = Path(self.path).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"scenarios: cannot read the personas in {self.path}: {error}"
            ) from error
        if not (personas := [line.strip() for line in lines if line.strip()]):
            raise DataError(f"scenarios: there is no persona in {self.path}; write one a line")
        return personas

    def open(self, task: Task, box: Sandbox | None) -> ScenarioEpisode:
        """The making of one scenario. It needs no sandbox."""
        return ScenarioEpisode(task, self.min_errors, self.retries)

    def _task(self, index: int, persona: str) -> Task:
        prompt = (Message("user", SCRIPT_PROMPT.format(persona=persona)),)
        data = {"persona": persona}
        task_id = f"scenarios-{self.seed}-{index:05d}"
        return Task(task_id, prompt, "scenarios", "persona", self.split, data)


class ScenarioEpisode:
    """A script, then a game of it. A step that is wrong has `info["ok"]` False, its fault as
    `info["error"]`, and the message that asks again; the one before is to be forgotten."""

    tools: tuple[ToolSpec, ...] = ()

    def __init__(self, task: Task, min_errors: int, retries: int) -> None:
        self.task, self._min_errors, self._retries = task, min_errors, retries
        self._left = retries
        self._script: dict[str, Any] | None = None
        self._turns: tuple[Mapping[str, Any], ...] = ()
        self._over = ""

    async def reset(self) -> tuple[Message, ...]:
        """The request for a script. Raises EpisodeOver once the episode is over."""
        self._require_open()
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        """Check the script, or the turns of the game. Raises EpisodeOver after the end."""
        self._require_open()
        if self._script is None:
            return self._scripted(message.content)
        made = verify(
            message.content, actions_of(self._script), self._turns, min_errors=self._min_errors
        )
        self._turns = made.turns
        if not made.accepted:
            return self._again(made.fault, self._request(made.fault))
        self._over = "the game was accepted"
        scenario = {"script": self._script, "turns": list(made.turns)}
        info = {"ok": True, "progress": 1.0, "scenario": scenario, "errors": made.errors}
        return Step(reward=1.0, terminated=True, info=info)

    async def close(self) -> None:
        """End the episode. Calling it twice is fine."""
        self._over = self._over or "it was closed"

    def _scripted(self, text: str) -> Step:
        try:
            self._script = read_script(text)
        except ValueError as error:
            return self._again(str(error), self.task.prompt[-1].content)
        self._left = self._retries
        return Step((Message("user", self._request("")),), 0.0, info={"ok": True, "progress": 0.5})

    def _request(self, fault: str) -> str:
        """The message that asks for the game, or for the rest of it."""
        asked = PLAY_PROMPT.format(min_errors=self._min_errors)
        if not self._turns:
            return asked
        turns = json.dumps(list(self._turns), ensure_ascii=False)
        return f"{asked}\n{CONTINUE_PROMPT.format(turns=turns, fault=fault)}"

    def _again(self, fault: str, request: str) -> Step:
        over = self._left == 0
        self._left -= 1
        self._over = "nothing usable came in the tries there are" if over else ""
        progress = 0.5 if self._script is not None else 0.0
        info = {"ok": False, "error": fault, "fault": fault, "progress": progress}
        return Step((Message("user", request),), 0.0, truncated=over, info=info)

    def _require_open(self) -> None:
        if self._over:
            raise EpisodeOver(
                f"this episode of task {self.task.id!r} is over: {self._over}. "
                "Open another with env.open(task, box)."
            )

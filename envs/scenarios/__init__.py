"""Environments made up by a strong model, with games in them: AgentRefine's synthesis.

arXiv 2501.01702, from its specification's section 6. A task is a persona. The model first writes a
script (an environment: places, objects, a goal, and actions with their parameters), then plays both
the game's master and its player, all in one message of JSON. `envs.scenarios.games` verifies both;
what is wrong goes back to the model. `agentrl.rollouts.synthesize` is the rollout for this
environment, which says nothing of a real one: where there is a simulator, use it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from agentrl.errors import ConfigError, DataError
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Step, Task, ToolSpec
from envs.base import EpisodeOver
from envs.scenarios.games import MIN_ERRORS, actions_of, read_script, verify

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

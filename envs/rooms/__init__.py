"""A small text game: find a thing in a building and bring it where it belongs.

Every message of the policy is one action. The environment judges each: `Step.info` has `ok`,
`error` (what was wrong, as the policy is told it), `fault` (its kind, see
`envs.rooms.world.Fault`) and `progress` (the share of sub-goals reached, from 0 to 1). An action
that cannot be done changes nothing but counts against the budget.

Five splits measure what carries over; what is to be brought where, and from which room on, is never
the same as in training. `train` and `test` are houses in which the furniture stands where it
usually does, and most things lie where they usually do. `mislaid`: nothing lies where it
usually does. `moved`: the furniture stands in other rooms as well. `reworded`: other words for the
three actions. `unseen`: all of that, and (in sentences) a ship, of whose rooms, furniture and
things training never spoke.
"""

from __future__ import annotations

import hashlib
from copy import copy
from dataclasses import asdict, dataclass, field
from random import Random

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Step, Task, ToolSpec
from envs.base import EpisodeOver
from envs.rooms import words, world
from envs.rooms.words import HELD_OUT, WORDINGS, Style
from envs.rooms.world import HOUSE, LETTERS, SHIP, Outcome, World

__all__ = ["SPLITS", "Rooms", "RoomsEpisode"]

SPLITS = ("train", "test", "mislaid", "moved", "reworded", "unseen")
TEST_SHARE = 4


@dataclass(frozen=True)
class Rooms:
    """The environment. `make("rooms", ...)` takes these fields as options.

    `style` is `react` (sentences; a thought and an action a message) or `compact` (a few
    characters, for tiny models). `budget` is the number of actions after which an attempt ends,
    errors counted; `surprise` the share of things that do not lie where they usually do, in
    `train`, `test` and `reworded`. `tasks()` without a number gives 1,000.
    """

    split: str = "train"
    style: Style = "react"
    seed: int = 0
    budget: int = 16
    surprise: float = 0.3
    name: str = field(default="rooms", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(), init=False)
    interactive: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of rooms", self.split, SPLITS)
        if self.style not in WORDINGS:
            raise unknown("style of rooms", self.style, WORDINGS)
        if self.budget < 1 or not 0 <= self.surprise <= 1:
            raise ConfigError("rooms: budget is at least 1, surprise between 0 and 1")

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split, a function of split, style and seed."""
        if n is not None and n < 0:
            raise ConfigError(f"rooms: the number of tasks is at least 0, not {n}")
        return [self._task(i) for i in range(1000 if n is None else n)]

    def open(self, task: Task, box: Sandbox | None) -> RoomsEpisode:
        """A game of `task`. It needs no sandbox."""
        return RoomsEpisode(task, self.style, self.budget)

    def _task(self, index: int) -> Task:
        rng = Random(f"rooms {self.split} {self.seed} {index}")
        names = LETTERS if self.style == "compact" else SHIP if self.split == "unseen" else HOUSE
        moved = self.split in ("moved", "unseen")
        surprise = 1.0 if self.split == "mislaid" else self.surprise
        while True:
            made = world.make(names, rng, surprise=surprise, moved=moved)
            if for_test(made) == (self.split != "train"):
                break
        held_out = self.split in ("reworded", "unseen")
        wording = rng.choice((HELD_OUT if held_out else WORDINGS)[self.style])
        prompt = (Message("user", words.prompt(made, wording, self.style)),)
        data = {"world": asdict(made), "wording": list(wording)}
        task_id = f"rooms-{self.style}-{self.split}-{self.seed}-{index:05d}"
        return Task(task_id, prompt, "rooms", self.split, self.split, data)


def for_test(made: World) -> bool:
    """True for the goals and starting rooms that are kept from training, one in four by a hash."""
    key = "\x1f".join((*made.goal, made.start))
    return hashlib.blake2b(key.encode(), digest_size=8).digest()[0] % TEST_SHARE == 0


class RoomsEpisode:
    """One game. Every step is an action; the reward is 1 with the one that reaches the goal, else
    0. It ends at the goal (`terminated`) or when the budget is used up (`truncated`)."""

    tools: tuple[ToolSpec, ...] = ()

    def __init__(self, task: Task, style: Style, budget: int) -> None:
        self.task, self._style, self._left = task, style, budget
        self._world = World.from_json(task.data["world"])
        go, take, put = task.data["wording"]
        self._wording = (go, take, put)
        self._state = world.begin(self._world)
        self._over = ""

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt. Raises EpisodeOver once the game is over."""
        self._require_open()
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        """Do the message's action. Raises EpisodeOver after the end."""
        self._require_open()
        action = words.read(message.content, self._wording, self._style)
        if isinstance(action, str):
            outcome = Outcome(self._state, action)
        else:
            outcome = world.act(self._world, self._state, action)
        self._state, self._left = outcome.state, self._left - 1
        if outcome.fault is not None or isinstance(action, str):
            told = words.complaint(self._world, outcome, self._wording, self._style)
        else:
            told = words.seen(self._world, action, self._state, self._style)
        won = world.done(self._world, self._state)
        spent = self._left == 0 and not won
        self._over = "the goal was reached" if won else "the budget is used up" if spent else ""
        return Step(
            (Message("user", told),),
            reward=float(won),
            terminated=won,
            truncated=spent,
            info={
                "ok": outcome.fault is None,
                "error": told if outcome.fault is not None else "",
                "fault": outcome.fault,
                "progress": world.progress(self._world, self._state),
            },
        )

    async def fork(self) -> RoomsEpisode:
        """The same game, in the same state; from here on it is another one."""
        self._require_open()
        return copy(self)

    async def close(self) -> None:
        """End the game. Calling it twice is fine."""
        self._over = self._over or "it was closed"

    def _require_open(self) -> None:
        if self._over:
            raise EpisodeOver(
                f"this episode of task {self.task.id!r} is over: {self._over}. "
                "Open another with env.open(task, box)."
            )

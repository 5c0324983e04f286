"""Function calling: tools described by JSON schemas, calls graded on their syntax tree.

Each task offers tools of its own (`Episode.tools`). Tasks are generated, with simulated tools that
answer (`generated`; `toy` for tiny models), or those of the Berkeley Function Calling Leaderboard,
read from local files (`bfcl`), where no tool is run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice, zip_longest
from typing import Literal

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Task, ToolCall, ToolSpec
from envs.functions import bfcl, generated, rewards
from envs.functions.demonstrations import NO_TOOL
from envs.functions.episode import FunctionEpisode, Reward
from envs.functions.generated import SHELVES, Draft
from envs.functions.schema import Notation, instruction, written
from envs.functions.tools import Faults, Workshop, shown

__all__ = ["SOURCES", "SPLITS", "Functions"]

SOURCES = ("generated", "toy", "bfcl")
SPLITS = {
    "train": "trained tools, training tasks",
    "test": "trained tools, other tasks; the leaderboard",
    "unseen": "tools that are held out of training",
}
SIZES = {"train": 1024, "test": 1024, "unseen": 256}
"""How many generated tasks a split has by default."""


@dataclass(frozen=True)
class Functions:
    """The environment. `make("functions", ...)` takes these fields as options.

    `mode` is `call`, where the first message is graded (a task of several turns becomes a task a
    turn, with the right turns before it), or `conversation`, where tools answer until a message
    without calls. `reward` is `match` (0 or 1), or `classes`, TL-Training's graded table with the
    changes in `rewards`. `tools_in` says where the tools are shown: in the chat `template`, in a
    `system` message that asks for the `notation` (`json` or `python`), or, with `nowhere`, not at
    all. `failing` is the share of good calls that a tool does not answer, `noisy` the share of
    answers with fields that nobody asked for. `kinds` keeps only those kinds; they take turns, so
    every prefix of the tasks is balanced. `n` is the size of the split: by default that in `SIZES`,
    or all of the leaderboard. `path` is the folder of the leaderboard's files (by default `bfcl` in
    the one that AGENTRL_DATA names); without `dots`, those in its names are underscores.
    """

    split: str = "train"
    source: Literal["generated", "toy", "bfcl"] = "generated"
    kinds: Sequence[str] | None = None
    seed: int = 0
    n: int | None = None
    mode: Literal["call", "conversation"] = "call"
    reward: Reward = "match"
    rewards: Mapping[str, float] | None = None
    tools_in: Literal["template", "system", "nowhere"] = "template"
    notation: Notation = "json"
    failing: float = 0.0
    noisy: float = 0.0
    system: str | None = None
    path: str | os.PathLike[str] | None = None
    dots: bool = True
    name: str = field(default="functions", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        choices = {
            "split": SPLITS,
            "source": SOURCES,
            "mode": ("call", "conversation"),
            "reward": ("match", "classes"),
            "tools_in": ("template", "system", "nowhere"),
            "notation": ("json", "python"),
        }
        for option, known in choices.items():
            if getattr(self, option) not in known:
                raise unknown(f"{option} of functions", str(getattr(self, option)), known)
        for option in ("failing", "noisy"):
            if not 0 <= getattr(self, option) <= 1:
                raise ConfigError(f"functions: {option} is a share, 0 to 1")
        if self.n is not None and self.n < 1:
            raise ConfigError(f"functions: n is at least 1 (or None), not {self.n}")
        if self.mode == "conversation" and self.reward == "classes":
            raise ConfigError("functions: reward='classes' grades one turn; use mode='call'")
        if self.source == "bfcl":
            self._check_bfcl()
        rewards.table(self.rewards)
        self._chosen()

    def _check_bfcl(self) -> None:
        if self.split != "test":
            raise ConfigError(
                "functions: the leaderboard is a test set (split='test'); train on the tasks of "
                "source='generated'"
            )
        if self.mode == "conversation" or self.failing or self.noisy:
            raise ConfigError(
                "functions: the leaderboard's tools are not run; conversations, failing and noisy "
                "tools need source='generated'"
            )

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split; the same ones in every process.

        Raises ConfigError where a kind has no further tasks, DataError for a file or line of the
        leaderboard's that cannot be read.
        """
        if n is not None and n < 0:
            raise ConfigError(f"functions: the number of tasks is at least 0, not {n}")
        size = self.n
        if size is None and self.source != "bfcl":
            size = SIZES[self.split]
        limit = min((x for x in (n, size) if x is not None), default=None)
        streams = self._leaderboard if self.source == "bfcl" else map(self._stream, self._chosen())
        in_turn = chain.from_iterable(zip_longest(*streams))
        return list(islice((task for task in in_turn if task is not None), limit))

    def open(self, task: Task, box: Sandbox | None) -> FunctionEpisode:
        """An episode of `task`. No sandbox is needed.

        Raises ConfigError for a conversation with tools that are not simulated.
        """
        shows = self.tools_in == "template"
        shelf = SHELVES.get(task.data.get("source", ""))
        shop = None
        if shelf is not None:
            faults = Faults(self.failing, self.noisy, f"functions {self.seed} {task.id}")
            shop = Workshop(shelf.tools, task.data["functions"], faults)
        elif self.mode == "conversation":
            raise ConfigError(
                f"functions: the tools of task {task.id!r} are not run; use mode='call'"
            )
        return FunctionEpisode(
            task,
            shop,
            shows_tools=shows,
            conversation=self.mode == "conversation",
            reward=self.reward,
            values=rewards.table(self.rewards),
        )

    def _chosen(self) -> list[str]:
        known = list(bfcl.SETS)
        if self.source != "bfcl":
            known = generated.kinds_of(self.source, self.split)
        if self.kinds is None:
            return known
        if not self.kinds or isinstance(self.kinds, str):
            raise ConfigError(f"functions: kinds is a list of names, of: {', '.join(known)}")
        for name in self.kinds:
            if name not in known:
                where = f"source {self.source!r}, split {self.split!r}"
                raise unknown(f"kind of functions, {where}:", name, known)
        return list(dict.fromkeys(self.kinds))

    @cached_property
    def _leaderboard(self) -> list[list[Task]]:
        folder = bfcl.folder(self.path)
        kinds = [bfcl.read(folder, kind, dots=self.dots) for kind in self._chosen()]
        return [[self._told(task) for task in tasks] for tasks in kinds]

    def _stream(self, kind: str) -> Iterator[Task]:
        for i, draft in enumerate(generated.drafts(self.source, kind, self.split, self.seed)):
            name = f"functions-{self.source}-{self.split}-s{self.seed}-{kind}-{i:05d}"
            if self.mode == "conversation" or len(draft.calls) == 1:
                yield self._task(name, draft)
            else:
                for turn in range(len(draft.calls)):
                    yield self._task(f"{name}-t{turn}", draft, turn)

    def _task(self, name: str, draft: Draft, turn: int | None = None) -> Task:
        """The task of a whole draft, or of one of its turns."""
        tools = SHELVES[self.source].tools
        calls = draft.calls if turn is None else draft.calls[turn : turn + 1]
        data = {
            "source": self.source,
            "functions": list(draft.offered),
            "steps": [[tools[c.name].wanted(c.arguments) for c in step] for step in calls],
            "calls": [[{"name": c.name, "arguments": dict(c.arguments)} for c in s] for s in calls],
            "result": draft.result if turn is None else None,
        }
        if self.mode == "call":
            said = [ToolCall(c.name, c.arguments) for c in calls[0]]
            data["reference"] = written(said, self.notation) or NO_TOOL
        prompt = (Message("user", draft.question), *self._before(draft, turn or 0))
        return self._told(Task(name, prompt, self.name, draft.kind, self.split, data))

    def _before(self, draft: Draft, turn: int) -> Iterator[Message]:
        """The messages of the turns before `turn`."""
        for calls, results in generated.history(draft, self.source, turn):
            named = [ToolCall(c.name, c.arguments, f"call{i:05d}") for i, c in enumerate(calls)]
            yield Message("assistant", written(calls, self.notation), tuple(named))
            for call, result in zip(named, results, strict=True):
                yield Message("tool", shown(result), tool_call_id=call.id, name=call.name)

    def _told(self, task: Task) -> Task:
        """The task with its system message, if it has one."""
        texts = [self.system] if self.system else []
        if self.tools_in == "system":
            texts.append(instruction(task.data["functions"], self.notation))
        if not texts:
            return task
        prompt = (Message("system", "\n\n".join(texts)), *task.prompt)
        return Task(task.id, prompt, task.env, task.kind, task.split, task.data)

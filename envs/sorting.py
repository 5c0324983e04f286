"""Sorting digits: a task that a shallow model cannot finish in one attempt, but can go on with.

One attempt of a small transformer is good for a few passes of bubble sort; a second attempt may
start from what the first left. So a policy has something to gain from looking at its own answer,
which is what self-correction is about (SCoRe, arXiv 2409.12917; RISE, arXiv 2407.18219). `passes`
makes demonstrations of any quality.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from random import Random
from typing import Literal

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Step, Task, ToolSpec
from envs.base import EpisodeOver

SPLITS = ("train", "test")

TEST_SHARE = 4
"""One string of digits in this many belongs to the test, by its hash: whatever the seed."""

_DIGITS = re.compile(r"[0-9](?:[\s,]*[0-9])*")


def passes(digits: str, n: int) -> str:
    """`digits` after `n` passes of bubble sort, each from the left to the right."""
    found = list(digits)
    for _ in range(n):
        for i in range(len(found) - 1):
            if found[i] > found[i + 1]:
                found[i], found[i + 1] = found[i + 1], found[i]
    return "".join(found)


def ordered(digits: str) -> float:
    """The share of neighbours in ascending order; 1 if sorted."""
    pairs = list(pairwise(digits))
    return sum(a <= b for a, b in pairs) / len(pairs) if pairs else 1.0


@dataclass(frozen=True)
class Sorting:
    """The environment. `make("sorting", ...)` takes these fields as options.

    A task is a string of `length` digits of which the first `symbols` occur, unsorted. `reward` is
    `exact` (1 for the sorted digits, else 0) or `fraction`: the share of neighbours in order, if
    they are the task's digits (else 0). `prompt` has `{}` where the digits stand; with
    `brief` the feedback is in two signs, for tiny models. `n` is the size of the split.
    """

    split: str = "train"
    seed: int = 0
    length: int = 7
    symbols: int = 10
    reward: Literal["exact", "fraction"] = "exact"
    prompt: str = "Sort these digits in ascending order, and answer with the digits alone: {}"
    brief: bool = False
    n: int = 1024
    name: str = field(default="sorting", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of sorting", self.split, SPLITS)
        if self.reward not in ("exact", "fraction"):
            raise unknown("reward of sorting", self.reward, ("exact", "fraction"))
        if not (self.length >= 2 and 2 <= self.symbols <= 10 and self.n >= 1):
            raise ConfigError("sorting: length is at least 2, symbols 2 to 10, n at least 1")
        if "{}" not in self.prompt:
            raise ConfigError("sorting: prompt needs {} where the digits are to stand")
        if self.n > self.symbols**self.length // (2 * TEST_SHARE):
            raise ConfigError(
                f"sorting: there are too few strings of {self.length} digits for n={self.n}; "
                "raise length or symbols"
            )

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split; the same ones in every process."""
        if n is not None and n < 0:
            raise ConfigError(f"sorting: the number of tasks is at least 0, not {n}")
        return list(islice(self._generate(), self.n if n is None else min(n, self.n)))

    def open(self, task: Task, box: Sandbox | None) -> SortingEpisode:
        """An episode of `task`; it needs no sandbox."""
        return SortingEpisode(task, self.reward, self.brief)

    def _generate(self) -> Iterator[Task]:
        rng, seen = Random(f"sorting {self.split} {self.seed}"), set()
        while True:
            digits = "".join(str(rng.randrange(self.symbols)) for _ in range(self.length))
            answer = "".join(sorted(digits))
            if digits in seen or digits == answer or split_of(digits) != self.split:
                continue
            seen.add(digits)
            prompt = (Message("user", self.prompt.replace("{}", digits)),)
            data = {"digits": digits, "answer": answer}
            yield Task(f"sorting-{digits}", prompt, self.name, "sorting", self.split, data)


class SortingEpisode:
    """One attempt: the last run of digits in a message is the answer."""

    tools: tuple[ToolSpec, ...] = ()

    def __init__(
        self, task: Task, reward: Literal["exact", "fraction"], brief: bool = False
    ) -> None:
        self.task, self._reward, self._brief, self._over = task, reward, brief, False

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt."""
        self._require_open()
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        """Grade the answer. `info["feedback"]` names the first pair in wrong order, `passed` is the
        share of neighbours in order (0 if they are not the task's digits)."""
        self._require_open()
        self._over = True
        runs = _DIGITS.findall(message.content)
        answer = re.sub(r"[\s,]", "", runs[-1]) if runs else ""
        same = sorted(answer) == sorted(self.task.data["digits"])
        share = ordered(answer) if same else 0.0
        reward = share if self._reward == "fraction" else float(share == 1.0)
        feedback = _feedback(answer, same, self._brief)
        info = {"answer": answer, "feedback": feedback, "passed": share}
        return Step(reward=reward, terminated=True, info=info)

    async def close(self) -> None:
        """End the episode. Calling it twice is fine."""
        self._over = True

    def _require_open(self) -> None:
        if self._over:
            raise EpisodeOver(
                f"this episode of task {self.task.id!r} is over. "
                "Open another with env.open(task, box)."
            )


def split_of(digits: str) -> str:
    """The split that a string of digits belongs to."""
    digest = hashlib.blake2b(digits.encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def _feedback(answer: str, same: bool, brief: bool) -> str:
    if not same:
        return "--" if brief else "These are not the digits of the task."
    for a, b in pairwise(answer):
        if a > b:
            return f"{a}{b}" if brief else f"{a} stands before {b}."
    return "ok" if brief else "All digits are in order."

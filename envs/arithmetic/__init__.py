"""Procedural problems with exact answers: numbers, lists, dates, units, strings.

A problem belongs to training or to the test by a hash of what it asks, so that no seed, level or
wording makes a training problem of a test problem. Some kinds are held out of training entirely.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from typing import Any

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Task, ToolSpec
from envs.arithmetic import numbers, words
from envs.arithmetic.draft import Draft, Kind
from envs.base import PYTHON, QuestionEpisode
from envs.grading import grade_task

__all__ = ["KINDS", "SPLITS", "Arithmetic"]

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*numbers.KINDS, *words.KINDS)}

SPLITS = {
    "train": "trained kinds, training problems",
    "test": "trained kinds, other problems",
    "unseen": "kinds that are held out of training",
}

TEST_SHARE = 5
"""One problem in this many belongs to the test."""

TRIES = 10_000


@dataclass(frozen=True)
class Arithmetic:
    """The environment. `make("arithmetic", ...)` takes these fields as options.

    `kinds` keeps only those kinds (of the split's); they take turns, so every prefix of the tasks
    is balanced. `n` is the size of the split, None for no end. `level` from 1 makes the numbers
    larger. `system` is a system prompt, `timeout` the seconds that one piece of code may take.
    """

    split: str = "train"
    seed: int = 0
    kinds: Sequence[str] | None = None
    n: int | None = 1024
    level: int = 1
    system: str | None = None
    timeout: float | None = None
    name: str = field(default="arithmetic", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(PYTHON,), init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of arithmetic", self.split, SPLITS)
        if not 1 <= self.level <= 5:
            raise ConfigError(f"arithmetic: level is 1 to 5, not {self.level}")
        if self.n is not None and self.n < 1:
            raise ConfigError(f"arithmetic: n is at least 1 (or None for no end), not {self.n}")
        self._chosen()

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` tasks of the split; the same ones in every process.

        Raises ConfigError if there is no end to them and `n` is None, or if a kind has no further
        problems at this level.
        """
        if n is not None and n < 0:
            raise ConfigError(f"arithmetic: the number of problems is at least 0, not {n}")
        sizes = [size for size in (n, self.n) if size is not None]
        if not sizes:
            raise ConfigError("arithmetic without n has no end of tasks: say tasks(n) or n=...")
        return list(islice(self._generate(), min(sizes)))

    def open(self, task: Task, box: Sandbox | None) -> QuestionEpisode:
        """An episode of `task`; its sandbox session is opened at the first tool call."""
        return QuestionEpisode(task, grade_task, box, timeout=self.timeout)

    def demonstrations(self, task: Task) -> list[str]:
        """The program that computes the answer, and the answer."""
        program, answer = task.data["program"], task.data["answer"]
        return [f"```python\n{program}\n```\nThe answer is \\boxed{{{answer}}}."]

    def _chosen(self) -> list[Kind]:
        trained = self.split != "unseen"
        names = [k.name for k in KINDS.values() if k.trained == trained]
        if self.kinds is None:
            return [KINDS[name] for name in names]
        if not self.kinds or isinstance(self.kinds, str):
            raise ConfigError(f"arithmetic: kinds is a list of names, of: {', '.join(names)}")
        for name in self.kinds:
            if name in KINDS and name not in names:
                where = "held out of training: use split='unseen'" if trained else "trained on"
                raise ConfigError(
                    f"arithmetic: kind {name!r} is {where}. "
                    f"Kinds of split {self.split!r}: {', '.join(names)}."
                )
            if name not in names:
                raise unknown(f"kind of arithmetic, split {self.split!r}:", name, names)
        return [KINDS[name] for name in dict.fromkeys(self.kinds)]

    def _generate(self) -> Iterator[Task]:
        streams = [self._stream(kind) for kind in self._chosen()]
        while True:
            yield from (next(stream) for stream in streams)

    def _stream(self, kind: Kind) -> Iterator[Task]:
        """Problems of one kind that belong to the split, none twice."""
        rng = Random(f"arithmetic {kind.name} {self.split} {self.seed} {self.level}")
        seen: set[str] = set()
        while True:
            for _ in range(TRIES):
                made = kind.make(rng, self.level)
                if made.key not in seen and self._belongs(kind, made):
                    break
            else:
                raise ConfigError(
                    f"arithmetic: kind {kind.name!r} has only {len(seen)} problems in split "
                    f"{self.split!r} at level {self.level}; ask for fewer, or a higher level"
                )
            yield self._task(len(seen), kind, made)
            seen.add(made.key)

    def _belongs(self, kind: Kind, made: Draft) -> bool:
        if not kind.trained:
            return True
        return is_test(kind.name, made.key) == (self.split == "test")

    def _task(self, index: int, kind: Kind, made: Draft) -> Task:
        prompt = [Message("user", made.question)]
        if self.system:
            prompt.insert(0, Message("system", self.system))
        data: dict[str, Any] = {
            "answer": made.answer,
            "type": made.type,
            "family": kind.family,
            "program": made.program,
        }
        name = f"arithmetic-{self.split}-l{self.level}-s{self.seed}-{kind.name}-{index:05d}"
        return Task(name, tuple(prompt), "arithmetic", kind.name, self.split, data)


def is_test(kind: str, key: str) -> bool:
    """True if the problem `key` belongs to the test, whatever the seed, level and wording."""
    digest = hashlib.blake2b(f"{kind} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % TEST_SHARE == 0

"""GSM8K: grade-school word problems (openai/grade-school-math), from local files or the hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from typing import Any, Literal

from agentrl.errors import ConfigError, DataError, missing_extra, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Message, Task, ToolSpec
from envs.base import PYTHON, QuestionEpisode
from envs.files import VARIABLE, data_file, read_jsonl
from envs.grading import grade_task
from envs.values import decimal

SPLITS = ("train", "test")
HUB = "openai/gsm8k"


@dataclass(frozen=True)
class GSM8K:
    """The environment. `make("gsm8k", ...)` takes these fields as options.

    `source` is `local` or `hub` (through the `datasets` package). Local problems come from the
    JSONL file `path`, or from `gsm8k/train.jsonl` and `gsm8k/test.jsonl` in the folder that the
    environment variable AGENTRL_DATA names. With `seed`, the problems are shuffled; `n` keeps the
    first so many. `system` is a system prompt, `suffix` is put behind every question.
    """

    split: str = "train"
    source: Literal["local", "hub"] = "local"
    path: str | os.PathLike[str] | None = None
    seed: int | None = None
    n: int | None = None
    system: str | None = None
    suffix: str = "\nPut the final answer in \\boxed{}."
    timeout: float | None = None
    name: str = field(default="gsm8k", init=False)
    tools: tuple[ToolSpec, ...] = field(default=(PYTHON,), init=False)

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise unknown("split of gsm8k", self.split, SPLITS)
        if self.source not in ("local", "hub"):
            raise unknown("source of gsm8k", self.source, ("local", "hub"))
        if self.source == "hub" and self.path is not None:
            raise ConfigError("gsm8k: path is for source='local'; leave it out to read the hub")
        if self.n is not None and self.n < 1:
            raise ConfigError(f"gsm8k: n is at least 1 (or None for all), not {self.n}")

    def tasks(self, n: int | None = None) -> list[Task]:
        """The first `n` problems. Raises DataError for a file or line that cannot be read."""
        if n is not None and n < 0:
            raise ConfigError(f"gsm8k: the number of problems is at least 0, not {n}")
        return self._tasks[: self.n][:n]

    def open(self, task: Task, box: Sandbox | None) -> QuestionEpisode:
        """An episode of `task`; its sandbox session is opened at the first tool call."""
        return QuestionEpisode(task, grade_task, box, timeout=self.timeout)

    def demonstrations(self, task: Task) -> list[str]:
        """The data set's solution in words, without its calculator's marks."""
        words, _, _ = re.sub(r"<<[^>]*>>", "", task.data["solution"]).rpartition("####")
        return [f"{words.strip()}\nThe answer is \\boxed{{{task.data['answer']}}}."]

    @cached_property
    def _tasks(self) -> list[Task]:
        records = self._hub() if self.source == "hub" else self._local()
        tasks = [self._task(where, i, record) for i, (where, record) in enumerate(records)]
        if self.seed is not None:
            Random(f"gsm8k {self.seed}").shuffle(tasks)
        return tasks

    def _local(self) -> Iterable[tuple[str, Any]]:
        name = f"gsm8k/{self.split}.jsonl"
        return read_jsonl(
            data_file("gsm8k", name, self.path, otherwise="read the hub with source='hub'")
        )

    def _hub(self) -> Iterator[tuple[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise missing_extra("datasets", "train") from error
        try:
            rows = datasets.load_dataset(HUB, "main", split=self.split)
        except Exception as error:
            raise DataError(
                f"gsm8k: the hub gave no {HUB} ({type(error).__name__}: {error}). Without network, "
                f"set {VARIABLE} or path to local files (source='local')."
            ) from error
        for i, row in enumerate(rows):
            yield f"{HUB} {self.split} row {i}", row

    def _task(self, where: str, index: int, record: Any) -> Task:
        if not isinstance(record, Mapping):
            raise DataError(f"{where}: a problem is an object with 'question' and 'answer'")
        for key in ("question", "answer"):
            if not isinstance(record.get(key), str):
                raise DataError(f"{where}: the field {key!r} is missing or not text; add it")
        gold = reference(record["answer"])
        if gold is None:
            raise DataError(
                f"{where}: 'answer' does not end with '#### NUMBER'; put the final number there"
            )
        prompt = [Message("user", record["question"].strip() + self.suffix)]
        if self.system:
            prompt.insert(0, Message("system", self.system))
        data = {"answer": gold, "type": "number", "family": "gsm8k", "solution": record["answer"]}
        return Task(
            f"gsm8k-{self.split}-{index:05d}", tuple(prompt), "gsm8k", "gsm8k", self.split, data
        )


def reference(solution: str) -> str | None:
    """The number after the last `####` of a solution, commas removed; None if there is none."""
    found = re.search(r"####\s*([^\n]*?)\s*$", solution)
    value = found[1].replace(",", "") if found else ""
    return value if decimal(value) is not None else None

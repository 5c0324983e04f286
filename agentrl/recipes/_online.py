"""What the recipes of online RL share: a step's tasks, its update, what is logged, how it goes on.

Each recipe keeps its own loop; nothing here decides how attempts are made or credited.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from rich.console import Console

from agentrl import evaluate
from agentrl.checkpoint import Checkpoints, MetricsLog, frozen_digest
from agentrl.config import FREE, settings
from agentrl.errors import DataError
from agentrl.interfaces import TrainedPolicy
from agentrl.train import Row, Trainer
from agentrl.train.online import Group, Method, Rows, policy_part
from agentrl.train.schedule import due
from agentrl.tree import Tree
from agentrl.types import Attempt, Task


def tasks_of(step: int, tasks: Sequence[Task], prompts: int, seed: int) -> list[Task]:
    """The tasks of a step, a function of the step and the seed; each epoch is a new permutation
    of all, and leaves the few over that make no whole step. Where there are fewer than `prompts`
    it is all of them. Raises DataError if there are none."""
    if not tasks:
        raise DataError(
            "there is no problem to train on: the environment gave none, or all of them are in the "
            "test, too. Ask for more (n=...), or for other test problems"
        )
    prompts = min(prompts, len(tasks))
    epoch, slot = divmod(step, len(tasks) // prompts)
    order = np.random.default_rng([seed, epoch]).permutation(len(tasks)).tolist()
    return [tasks[i] for i in order[slot * prompts :][:prompts]]


def in_groups(trees: Iterable[Tree]) -> list[Group]:
    """The last attempt of each tree, those at one task together."""
    groups: dict[str, list[tuple[Tree, Attempt]]] = defaultdict(list)
    for tree, attempt in evaluate.final(trees):
        groups[tree.task.id].append((tree, attempt))
    return list(groups.values())


def update(
    trainer: Trainer,
    method: Method,
    made: Rows,
    *,
    lr: float,
    number: int,
    epochs: int = 1,
    **options: Any,
) -> Row:
    """`epochs` optimizer steps on the same rows; the metrics are their means, or the largest.

    The difference of trainer and sampler is that of the first, before anything has moved.
    `options` are those of `policy_part`.
    """
    if not trainer.settled:  # one layout for the whole run
        trainer.settle(made.samples, [range(len(made.samples))])
    part, denominator = policy_part(method, made, **options)
    with trainer.training():
        rows = [
            trainer.step(made.samples, part, denominator, lr=lr, number=number)
            for _ in range(epochs)
        ]
    row: Row = {}
    for name in rows[0]:
        values = [r[name] for r in rows]
        row[name] = max(values) if name.endswith("_max") else mean(values)
    row |= {name: x for name, x in rows[0].items() if name.startswith("logprob_diff")}
    if "clip_high" in row:
        row["clip_fraction"] = row["clip_high"] + row.get("clip_low", 0.0)
    return row | {"updates": len(rows)}


def measured(groups: Sequence[Group], made: Rows) -> Row:
    """What the attempts say. Those that failed in our hands count in `failure_rate` alone."""
    everyone = [attempt for group in groups for _, attempt in group]
    valid = [a for a in everyone if a.error is None and a.reward is not None]
    rewards = [float(a.reward or 0.0) for a in valid]
    lengths = [float(a.metrics.get("sampled_tokens", 0)) for a in valid]
    scored = [[a.reward for _, a in group if a.error is None] for group in groups]
    flat = sum(len(set(rewards)) <= 1 for rewards in scored)
    return {
        "reward": mean(rewards),
        "reward_max": max(rewards, default=0.0),
        "attempts": len(everyone),
        "groups": len(groups),
        "groups_dropped": len(made.refill),
        "zero_variance_rate": flat / max(len(groups), 1),
        "failure_rate": (len(everyone) - len(valid)) / max(len(everyone), 1),
        "truncation_rate": mean([float(a.truncated) for a in valid]),
        "tool_call_rate": mean([float(a.metrics.get("calls", 0) > 0) for a in valid]),
        "length": mean(lengths),
        "length_max": max(lengths, default=0.0),
    }


def by_turn(groups: Sequence[Group]) -> Row:
    """What happened from the first answer to the last, as shares of all scored attempts (names as
    in `agentrl.evaluate`), and the mean of the last answer's reward and of the sum over answers.

    Attempts with another policy's answer (`offline`) say nothing of this one and are left out.
    """
    everyone = [a for group in groups for _, a in group if a.error is None]
    own = [a for a in everyone if "offline" not in a.metrics]
    runs = [turns for a in own if (turns := evaluate.turns_of(a)) is not None]
    row: Row = {"offline_rate": 1 - len(own) / max(len(everyone), 1)}
    for t, answers in enumerate(zip(*runs, strict=True), start=1):
        row[f"acc@t{t}"] = mean([answer.right for answer in answers])
        row[f"cut@t{t}"] = mean([answer.truncated for answer in answers])
    ends = [(run[0], run[-1]) for run in runs]
    row["i2c"] = mean([b.right and not a.right for a, b in ends])
    row["c2i"] = mean([a.right and not b.right for a, b in ends])
    row["delta"] = row["i2c"] - row["c2i"]
    row["change_rate"] = mean([a.answer != b.answer for a, b in ends])
    row["edit_ratio"] = mean([evaluate.edit_ratio(a.text or "", b.text or "") for a, b in ends])
    rewards = [[r.value for r in a.rewards] for a in own if a.rewards]
    row["last_reward"] = mean([values[-1] for values in rewards])
    row["sum_reward"] = mean([sum(values) for values in rewards])
    return row


def seconds(clocks: Sequence[float]) -> Row:
    """Seconds of each part of a step, from the times at which they began and ended."""
    parts = ("collect", "credit", "train")
    took = {f"seconds_{p}": b - a for p, a, b in zip(parts, clocks, clocks[1:], strict=False)}
    return took | {"seconds": clocks[-1] - clocks[0]}


def timings(rows: Sequence[Row]) -> dict[str, float]:
    """The seconds of all steps by part, for a summary."""
    parts = ("collect", "credit", "train")
    return {part: round(math.fsum(r[f"seconds_{part}"] for r in rows), 1) for part in parts}


def mean(values: Sequence[float]) -> float:
    """The mean; 0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def say(text: str, progress: bool) -> None:
    """A line about a step on the standard error stream."""
    if progress:
        Console(stderr=True).print(text, highlight=False, soft_wrap=True)


class Journal:
    """The steps of a run as they are done: a row of metrics each, and a checkpoint every few.

        with Journal(config, folder.path, policy, trainer, steps=config.steps) as journal:
            for step in journal.left():
                ...
                journal.done(row)

    Opened in the folder of a run that was interrupted, it puts policy, trainer and random number
    generators into the state of the newest checkpoint, forgets the metrics after it, and goes on
    there. Raises ConfigError if that was made with other settings or weights.

    A run in several parts, each with a trainer of its own, has a journal a part: `name` is the
    part's, `first` the number of steps before it. With `best`, the name of a metric, `settle` goes
    back to the checkpoint with the highest mean of it over the steps since the one before.
    """

    def __init__(
        self,
        config: Any,
        path: Path,
        policy: TrainedPolicy,
        trainer: Trainer,
        *,
        steps: int,
        first: int = 0,
        name: str = "policy",
        best: str = "",
    ) -> None:
        self.policy, self.trainer, self.every = policy, trainer, config.save_every
        self.first, self.end, self.best = first, first + steps, best
        self.log = MetricsLog(path / "metrics.jsonl")
        folder = path / "checkpoints"
        self.store = Checkpoints(folder / name / "checkpoints", keep=2)
        # a step that is done again after a crash must find the best one before it: so two stay
        self.bests = Checkpoints(folder / f"{name}-best" / "checkpoints", keep=2)
        self.fingerprint = {k: v for k, v in settings(config).items() if k not in FREE}
        self.fingerprint["frozen"] = frozen_digest(policy.model)
        self.chosen: list[float] = []
        """The step of the best checkpoint and its value, once there is one."""

    def __enter__(self) -> Self:
        self.store.__enter__()
        self.start = max(self.store.steps(), default=self.first)
        self.rows = self.log.truncate(self.start) if self.start < self.end else self.log.read()
        if self.start > self.first:
            self.chosen = self._load(self.store, self.start)["chosen"]
        return self

    def __exit__(self, *exc: object) -> None:
        self.store.__exit__(*exc)

    def left(self) -> range:
        """The steps that are still to be done, counted from 0."""
        return range(self.start, self.end)

    def done(self, row: Row) -> None:
        """Log a step (`row["step"]` counts from 1), and write a checkpoint where one is due."""
        self.rows.append(row)
        self.log.append(row)
        step = int(row["step"])
        if due(step - self.first, self.end - self.first, self.every):
            self.log.flush()
            self._keep_if_best(step)
            self._save(self.store, step)

    @property
    def kept(self) -> int:
        """The step that `settle` goes back to: the last one where there is no checkpoint."""
        return int(self.chosen[0]) if self.chosen else self.end

    def settle(self) -> None:
        """Put policy and trainer into the state of the best checkpoint."""
        if self.kept < self.end:
            self._load(self.bests, self.kept)

    def _keep_if_best(self, step: int) -> None:
        if not self.best:
            return
        since = max(self.first, step - self.every)
        value = mean([row[self.best] for row in self.rows if since < row["step"] <= step])
        if not self.chosen or value > self.chosen[1]:
            self.chosen = [step, value]
            self._save(self.bests, step)

    def _save(self, store: Checkpoints, step: int) -> None:
        trainer = self.trainer
        position = {
            "layout": trainer.layout,
            "settled": trainer.settled,
            "version": self.policy.version,
            "chosen": self.chosen,
        }
        store.save(step, trainer.scorer, trainer.optimizer, self.fingerprint, position)

    def _load(self, store: Checkpoints, step: int) -> dict[str, Any]:
        trainer = self.trainer
        position = store.load(step, trainer.scorer, trainer.optimizer, self.fingerprint)
        trainer.layout, trainer.settled = position["layout"], position["settled"]
        self.policy.refresh(version=position["version"])
        return position

"""The loop over a data set, flat and the same for every loss.

Step (`agentrl.train.step`), log, checkpoint. The learning rate and the order of the data are pure
functions of the step and the seed, so a resumed run does bit for bit what an uninterrupted one
does.

Under `torchrun` or `accelerate launch` every process runs the same loop on the same data; `Trainer`
computes this process's share of each step (`agentrl.train.distributed`), the main one prints and
writes.
"""

from __future__ import annotations

import functools
import hashlib
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from agentrl import losses
from agentrl.batch import Layout, check_samples
from agentrl.checkpoint import Checkpoints, MetricsLog, frozen_digest
from agentrl.errors import ConfigError
from agentrl.logprob import read_head
from agentrl.train.adapter import adapt
from agentrl.train.objective import Goal, objective
from agentrl.train.plan import Plan, planned
from agentrl.train.reference import Reference
from agentrl.train.schedule import TrainConfig, due, learning_rate
from agentrl.train.setup import context, seed_all
from agentrl.train.step import Trainer
from agentrl.train.sums import Row
from agentrl.types import Pair, Sample


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained model (wrapped by peft under LoRA) and what happened.

    Where it was sharded, `model` is a copy in one piece on the main process's CPU, and without
    memory in the other processes; what was given to `train` stays sharded.

    `metrics` has one row a step, also of the steps before a resume: `step` (from 1), `epoch`,
    `loss` (nats), the loss's own metrics, `lr`, `grad_norm_raw`, `samples`, `tokens`,
    `tokens_computed` (with fill; what samples share in a tree counts once in a micro-batch),
    `weight` (what the loss divides by: the sum of weights, or the number of samples or pairs),
    `seconds`, `tokens_per_s`.
    """

    model: nn.Module
    metrics: list[Row]
    steps: int
    layout: Layout
    dtype: str
    seconds: float
    """wall time of this call, start-up and checkpoints included"""

    def facts(self, method: str, data: str) -> dict[str, str]:
        """Lines for a model card: what was done (`method`, on what `data`), and how it ended."""
        lines = {"Method": method, "Data": data, "Steps": str(self.steps)}
        config = getattr(self.model, "peft_config", None)
        if config:
            kinds = ", ".join(sorted(str(c.peft_type.value) for c in config.values()))
            lines["Adapter"] = f"{kinds} (peft)"
        lines["Precision"] = self.dtype
        if self.metrics:
            last = self.metrics[-1]
            lines["Trained tokens"] = f"{sum(row['tokens'] for row in self.metrics):.0f}"
            lines["Loss"] = f"{self.metrics[0]['loss']:.4f} at first, {last['loss']:.4f} at last"
        return lines


def train(
    model: nn.Module,
    data: Sequence[Sample] | Sequence[Pair],
    loss: losses.Loss | Goal | str = "sft",
    config: TrainConfig | None = None,
    out_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callable[[Row], None]] = (),
    reference: Reference | None = None,
    value_head: nn.Module | None = None,
) -> TrainResult:
    """Train `model` (a transformers causal LM, or a peft model) in place on `data`.

    `data` are samples, or pairs for preference losses; a pair stays in one micro-batch. `loss` is a
    name, `losses.make(name, **options)`, or a function of your own, a mean over weights (over pairs
    where the data are pairs). Where a loss compares with a reference policy and the samples have no
    `ref_logprobs`, these are scored once: by `reference`, or without one by the model before its
    first step. `value_head` is trained along, for a `Goal` of your own that reads its values.

    `out_dir` gets `metrics.jsonl` and `checkpoints/`. With `resume`, goes on after the newest whole
    checkpoint there, or starts if there is none; call it with the same model, data and config.
    Each of `callbacks` gets every step's row of metrics before it is written (so what a callback
    draws at random is in the checkpoint). Seeds the global random number generators.

    Raises DataError for data that cannot be trained on; ConfigError for a model, setting or
    folder that cannot be used; FloatingPointError for a loss or gradient that is not finite, before
    it reaches the weights; StoreFullError if the disk is full (earlier checkpoints are safe).
    """
    began, config = time.perf_counter(), config or TrainConfig()
    plan = planned(objective(loss), data, config)
    seed_all(config.seed)
    model = adapt(model, config.lora, plan.samples) if config.lora is not None else model
    check_samples(plan.samples, len(read_head(model).weight_VD), context(model))
    trainer = Trainer(model, config, value_head)
    saved = model if value_head is None else trainer.scorer
    steps, frozen = len(plan.chosen), frozen_digest(model)
    trainer.settle(plan.samples, plan.members)
    fingerprint = _fingerprint(trainer, plan, frozen)
    ranks = trainer.ranks
    ranks.agree(fingerprint)
    if plan.goal.needs_reference and any(s.ref_logprobs is None for s in plan.samples):
        plan.samples = trainer.referenced(plan.samples, reference)
    if not ranks.main:  # dropout differs from one process to the next
        seed_all(config.seed + ranks.rank)
    rows: list[Row] = []
    with ExitStack() as stack:
        store, start = None, 0
        if out_dir is not None:
            metrics = MetricsLog(Path(out_dir) / "metrics.jsonl")
            folder = Path(out_dir) / "checkpoints"
            store = stack.enter_context(Checkpoints(folder, config.keep, ranks))
            start, rows = ranks.on_main(lambda: _begin(store, metrics, resume))
            if start:
                store.load(start, saved, trainer.optimizer, fingerprint)
        stack.enter_context(trainer.training())
        show = stack.enter_context(
            _display(steps, start, config.log_every, progress and ranks.main)
        )
        for step in range(start, steps):
            lr = learning_rate(step, steps, config)
            row = {"step": step + 1, "epoch": plan.chosen[step][0], "lr": lr}
            row |= plan.take(trainer, step, lr=lr, number=step + 1)
            rows.append(row)
            for callback in callbacks:
                callback(row)
            if store is not None:
                ranks.on_main(functools.partial(metrics.append, row))
                if due(step + 1, steps, config.save_every):
                    metrics.flush()
                    store.save(step + 1, saved, trainer.optimizer, fingerprint)
            show(row)
    model, took = trainer.trained(), time.perf_counter() - began
    return TrainResult(model, rows, steps, trainer.layout, trainer.dtype, took)


def _fingerprint(trainer: Trainer, plan: Plan, frozen: str) -> dict[str, Any]:
    """What must be the same for a resumed run to go on as if it had not been interrupted."""
    config, digest = trainer.config, hashlib.sha256()
    for sample in plan.samples:
        digest.update(array("q", sample.token_ids).tobytes())
        for values in (sample.weights, sample.advantages, sample.logprobs, sample.ref_logprobs):
            digest.update(b"-" if values is None else array("d", values).tobytes())
    for pair in plan.pairs:
        digest.update(array("d", [pair.margin]).tobytes())
    free = ("log_every", "save_every", "keep", "epochs", "layout", "dtype")
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in free}
    settings["lora"] = None if config.lora is None else dict(config.lora)
    return settings | {
        "loss": plan.goal.described,
        "layout": trainer.layout,
        "dtype": trainer.dtype,
        "steps": len(plan.chosen),
        "samples": digest.hexdigest()[:16],
        "frozen": frozen,
        "processes": trainer.ranks.size,
    }


def _begin(store: Checkpoints, metrics: MetricsLog, resume: bool) -> tuple[int, list[Row]]:
    """The step to start after, of the newest whole checkpoint or 0, and the metrics up to it."""
    have = store.steps()
    if not resume and (have or metrics.path.exists()):
        raise ConfigError(
            f"{metrics.path.parent} holds an earlier run. Go on with it by resume=True "
            "(--resume), or give another folder"
        )
    start = have[-1] if have else 0
    return start, metrics.truncate(start)


@contextmanager
def _display(steps: int, start: int, every: int, progress: bool) -> Iterator[Callable[[Row], None]]:
    """A progress bar on a terminal, a line every so many steps elsewhere, or nothing."""
    if not progress:
        yield lambda row: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=steps, completed=start)

        def show(row: Row) -> None:
            step = int(row["step"])
            text = f"loss {row['loss']:.4f}  lr {row['lr']:.2g}  {row['tokens_per_s']:.0f} tokens/s"
            bar.update(task, completed=step, description=text)
            if step % every == 0 or step == steps:
                console.print(f"step {step}/{steps}  {text}", highlight=False)

        yield show

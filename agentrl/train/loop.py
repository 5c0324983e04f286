"""The loop, flat and the same for every loss.

Forward, loss, backward for each micro-batch; clip, step, log, checkpoint. The learning rate and the
order of the data are pure functions of the step and the seed, so a resumed run does bit for bit
what an uninterrupted one does.

One process, one device (the model's). Where several will hook in: `Scorer` is the module that DDP
or FSDP2 wraps, `denominator` is then summed over ranks, and each rank takes its share of `plan`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from agentrl import losses
from agentrl.batch import Batch, Layout, Rows, check_samples, collate, plan, trainable_weight
from agentrl.checkpoint import Checkpoints, MetricsLog, frozen_digest
from agentrl.errors import ConfigError
from agentrl.logprob import bare_model, read_head
from agentrl.train.adapter import adapt
from agentrl.train.attention import tree_attention
from agentrl.train.schedule import TrainConfig, learning_rate, plan_steps
from agentrl.train.scorer import Scorer
from agentrl.train.setup import choose_dtype, choose_layout, context, make_optimizer, seed_all
from agentrl.types import Sample

log = logging.getLogger(__name__)

Row = dict[str, float]
"""One step's metrics, as in metrics.jsonl."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained model (wrapped by peft under LoRA) and what happened.

    `metrics` has one row a step, also of the steps before a resume: `step` (from 1), `epoch`,
    `loss` (nats), the loss's own metrics, `lr`, `grad_norm_raw`, `samples`, `tokens`,
    `tokens_computed` (with fill; what samples share in a tree counts once in a micro-batch),
    `weight` (the sum of weights, the loss's denominator), `seconds`, `tokens_per_s`.
    """

    model: nn.Module
    metrics: list[Row]
    steps: int
    layout: Layout
    dtype: str
    seconds: float
    """wall time of this call, start-up and checkpoints included"""


def train(
    model: nn.Module,
    samples: Sequence[Sample],
    loss: losses.Loss | str = "sft",
    config: TrainConfig | None = None,
    out_dir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callable[[Row], None]] = (),
) -> TrainResult:
    """Train `model` (a transformers causal LM, or a peft model) in place on `samples`.

    `out_dir` gets `metrics.jsonl` and `checkpoints/`. With `resume`, goes on after the newest whole
    checkpoint there, or starts if there is none; call it with the same model, samples and config.
    Each of `callbacks` gets every step's row of metrics before it is written (so what a callback
    draws at random is in the checkpoint). Seeds the global random number generators.

    Raises DataError for samples that cannot be trained on; ConfigError for a model, setting or
    folder that cannot be used; FloatingPointError for a loss or gradient that is not finite, before
    it reaches the weights; StoreFullError if the disk is full (earlier checkpoints are safe).
    """
    began, config = time.perf_counter(), config or TrainConfig()
    loss = _weighted(loss) if isinstance(loss, str) else loss
    seed_all(config.seed)
    model = adapt(model, config.lora, samples) if config.lora is not None else model
    head_VD = read_head(model).weight_VD
    check_samples(samples, len(head_VD), context(model))
    device = head_VD.device
    dtype = choose_dtype(config, device)
    steps = plan_steps([len(s.token_ids) for s in samples], config)
    layout = choose_layout(model, config, samples, [chosen for _, chosen in steps], device)
    optimizer = make_optimizer(model, config)
    scorer = Scorer(model)  # DDP and FSDP2 wrap here
    fingerprint = _fingerprint(model, samples, config, layout, dtype, len(steps))
    rows: list[Row] = []
    with ExitStack() as stack:
        store, start = None, 0
        if out_dir is not None:
            metrics = MetricsLog(Path(out_dir) / "metrics.jsonl")
            store = stack.enter_context(Checkpoints(Path(out_dir) / "checkpoints", config.keep))
            start = _begin(store, metrics, resume)
            rows = metrics.truncate(start)
            if start:
                store.load(start, model, optimizer, fingerprint)
        stack.enter_context(_training_mode(model, config.grad_checkpointing))
        stack.enter_context(tree_attention(model, layout))
        show = stack.enter_context(_display(len(steps), start, config.log_every, progress))
        for step in range(start, len(steps)):
            clock = time.perf_counter()
            epoch, chosen = steps[step]
            picked = [samples[i] for i in chosen]
            micros = plan(picked, config.micro_tokens, layout)
            row = {"step": step + 1, "epoch": epoch, "lr": learning_rate(step, len(steps), config)}
            for group in optimizer.param_groups:
                group["lr"] = row["lr"]
            row |= _accumulate(scorer, loss, picked, chosen, micros, layout, dtype, step + 1)
            row["grad_norm_raw"] = _clip(model, config.clip, step + 1, chosen)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row["seconds"] = time.perf_counter() - clock
            row["tokens_per_s"] = row["tokens"] / row["seconds"]
            rows.append(row)
            for callback in callbacks:
                callback(row)
            if store is not None:
                metrics.append(row)
                if _due(step + 1, len(steps), config.save_every):
                    metrics.flush()
                    store.save(step + 1, model, optimizer, fingerprint)
            show(row)
    return TrainResult(model, rows, len(steps), layout, dtype, time.perf_counter() - began)


def _weighted(name: str) -> losses.Loss:
    """The loss called `name`, whose mean must be over weights: that is what a step divides by."""
    if losses.unit(name) != "weights":
        raise ConfigError(
            f"loss {name!r} is a mean over {losses.unit(name)}, and train() divides by the sum of "
            f"weights. By name it takes: {', '.join(losses.OVER_WEIGHTS)}"
        )
    return losses.get(name)


def _due(step: int, steps: int, every: int) -> bool:
    """True if a checkpoint is written after `step`."""
    return every > 0 and (step % every == 0 or step == steps)


def _accumulate(
    scorer: Scorer,
    loss: losses.Loss,
    picked: Sequence[Sample],
    chosen: Sequence[int],
    micros: Sequence[Rows],
    layout: Layout,
    dtype: str,
    step: int,
) -> Row:
    """Forward and backward of one step's micro-batches; returns the step's sums.

    The denominator is the sum of weights over the whole step, so a token counts the same wherever
    it lands (a mean of micro-batch means would not: transformers issue 34191).
    """
    device = read_head(scorer.model).weight_VD.device
    denominator = math.fsum(trainable_weight(s) for s in picked)
    computed = 0
    totals: dict[str, list[Tensor]] = {}
    maxima: dict[str, list[Tensor]] = {}
    for micro in micros:
        batch = collate(picked, micro, tree=layout == "tree").to(device)
        computed += batch.computed
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            slopes_BT = known_slopes(loss, batch, denominator)
            logprobs_BT = scorer(batch, slopes_BT=slopes_BT).logprobs_BT
        out = loss(logprobs_BT, batch, denominator)
        out.loss.backward()  # type: ignore[no-untyped-call]
        for name, part in {"loss": out.loss.detach(), **out.metrics}.items():
            totals.setdefault(name, []).append(part)
        for name, part in out.maxima.items():
            maxima.setdefault(name, []).append(part)
    losses_M = torch.stack(totals["loss"])
    if not losses_M.isfinite().all():
        at = int((~losses_M.isfinite()).nonzero()[0])
        bad = sorted(chosen[i] for row in micros[at] for i in row)
        raise FloatingPointError(
            f"the loss of step {step} is {losses_M[at].item()}, in the micro-batch of samples "
            f"{bad}. The weights were not changed. Look at those samples' weights, or lower lr"
        )
    sums = {name: torch.stack(parts).sum().item() for name, parts in totals.items()}
    sums |= {name: torch.stack(parts).max().item() for name, parts in maxima.items()}
    tokens = sum(len(s.token_ids) for s in picked)
    counts = {"samples": len(picked), "tokens": tokens, "tokens_computed": computed}
    return {**sums, **counts, "weight": denominator}


def known_slopes(loss: losses.Loss, batch: Batch, denominator: float) -> Tensor | None:
    """The derivative [B, T] of `loss` by the log-probabilities, where it does not depend on them.

    So for losses that are linear in them (weighted likelihood, on-policy gradients), which lets
    the head make its gradients in the forward pass. Found by asking at two places; a loss that is
    only linear between these is caught in the backward pass (`linear_logprobs`).
    """
    found = []
    for value in (-1.0, -4.0):
        at_BT = torch.full_like(batch.weights_BT, value).requires_grad_()
        out = loss(at_BT, batch, denominator).loss
        found.append(torch.autograd.grad(out, at_BT, allow_unused=True)[0])
    one_BT, other_BT = found
    return one_BT if one_BT is not None and torch.equal(one_BT, other_BT) else None


def _clip(model: nn.Module, clip: float | None, step: int, chosen: Sequence[int]) -> float:
    """Scale gradients to a norm of at most `clip`; returns the norm that they had before."""
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.clip_grad_norm_(parameters, math.inf if clip is None else clip).item()
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient of step {step} has norm {norm} (samples {sorted(chosen)}). The weights "
            "were not changed. Lower lr, or train in fp32"
        )
    return norm


def _fingerprint(
    model: nn.Module,
    samples: Sequence[Sample],
    config: TrainConfig,
    layout: str,
    dtype: str,
    steps: int,
) -> dict[str, Any]:
    """What must be the same for a resumed run to go on as if it had not been interrupted."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(array("q", sample.token_ids).tobytes())
        for values in (sample.weights, sample.advantages, sample.logprobs, sample.ref_logprobs):
            digest.update(b"-" if values is None else array("d", values).tobytes())
    free = ("log_every", "save_every", "keep", "epochs", "layout", "dtype")
    settings = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in free}
    settings["lora"] = None if config.lora is None else dict(config.lora)
    return settings | {
        "layout": layout,
        "dtype": dtype,
        "steps": steps,
        "samples": digest.hexdigest()[:16],
        "frozen": frozen_digest(model),
    }


def _begin(store: Checkpoints, metrics: MetricsLog, resume: bool) -> int:
    """The step to start after: of the newest whole checkpoint, or 0."""
    have = store.steps()
    if not resume and (have or metrics.path.exists()):
        raise ConfigError(
            f"{metrics.path.parent} holds an earlier run. Use resume=True to go on with it, or "
            "another folder"
        )
    return have[-1] if have else 0


@contextmanager
def _training_mode(model: nn.Module, grad_checkpointing: bool) -> Iterator[None]:
    """Dropout on, gradient checkpointing as asked; both as before when the block ends."""
    training, bare = model.training, bare_model(model)
    model.train()
    if grad_checkpointing:
        bare.gradient_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        model.train(training)
        model.zero_grad(set_to_none=True)
        if grad_checkpointing:
            bare.gradient_checkpointing_disable()


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

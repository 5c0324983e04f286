"""What happens at which step of a training run: settings, data order, learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from agentrl.errors import ConfigError, unknown

SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How to train. Raises ConfigError at once for values that cannot be.

    `lora` trains an adapter instead of the weights: `{"r": 16, "alpha": 32}` and any further option
    of the method's peft configuration (`target_modules`, `dropout`, `use_dora`,
    `init_lora_weights`, ...); `{"method": "dora", ...}` names another method, as peft or its
    paper does.
    """

    lr: float = 2e-5
    epochs: int = 3
    max_steps: int | None = None
    """optimizer steps; instead of `epochs` where given"""
    batch_size: int = 64
    """samples an optimizer step"""
    batch_tokens: int | None = None
    """tokens an optimizer step; instead of `batch_size` where given"""
    micro_tokens: int = 2048
    """tokens a forward pass, fill counted: what bounds memory"""
    layout: Literal["auto", "padded", "packed", "tree"] = "auto"
    """auto: tree where samples share enough of their beginnings; else padded on a CPU, packed on a
    GPU; as far as the model allows it, with a warning where it does not"""
    warmup_ratio: float = 0.05
    """part of all steps in which the learning rate rises from 0"""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """the learning rate after the warm-up; linear and cosine fall to 0"""
    weight_decay: float = 0.0
    """on matrices only, not on norms and biases"""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    """largest gradient norm; the norm before clipping is logged"""
    seed: int = 0
    """of data order, adapter initialisation and dropout"""
    dtype: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: autocast, with fp32 parameters; auto: that for models above 30M parameters, where the
    hardware multiplies it"""
    grad_checkpointing: bool = False
    """computes activations again in the backward pass: less memory, a third more time"""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: bitsandbytes, moments in 8 bits, on a GPU only"""
    shard: bool = False
    """FSDP2: each process holds its part of parameters, gradients and optimizer state; else, where
    there are several, DDP"""
    lora: Mapping[str, Any] | None = None
    log_every: int = 10
    """steps between printed lines; metrics.jsonl has every step"""
    save_every: int = 100
    """steps between checkpoints; 0 for none at all, else there is one at the end, too"""
    keep: int = 2
    """how many checkpoints stay"""

    def __post_init__(self) -> None:
        positive = ("epochs", "batch_size", "micro_tokens", "log_every", "keep")
        optional = ("max_steps", "batch_tokens", "clip")
        for name in (*positive, *(n for n in optional if getattr(self, n) is not None)):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)!r}")
        if not (math.isfinite(self.lr) and self.lr >= 0 and self.weight_decay >= 0):
            raise ConfigError("lr and weight_decay must be finite and not negative")
        if not 0 <= self.warmup_ratio <= 1 or self.save_every < 0:
            raise ConfigError("warmup_ratio must be from 0 to 1, save_every not negative")
        choices = {
            "schedule": SCHEDULES,
            "layout": ("auto", "padded", "packed", "tree"),
            "optimizer": ("adamw", "adamw_8bit"),
            "dtype": ("fp32", "bf16", "auto"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise unknown(name, str(getattr(self, name)), known)


def plan_steps(lengths: Sequence[int], config: TrainConfig) -> list[tuple[int, list[int]]]:
    """For each optimizer step its epoch (from 1) and the indices of its samples.

    Every epoch is a new permutation of all samples, drawn from the seed and the epoch; its last
    step may be smaller.
    """
    steps: list[tuple[int, list[int]]] = []
    epoch = 0
    while len(steps) < config.max_steps if config.max_steps else epoch < config.epochs:
        epoch += 1
        order = np.random.default_rng([config.seed, epoch]).permutation(len(lengths)).tolist()
        steps.extend((epoch, chunk) for chunk in _chunks(order, lengths, config))
    return steps[: config.max_steps] if config.max_steps else steps


def _chunks(
    order: Sequence[int], lengths: Sequence[int], config: TrainConfig
) -> Iterator[list[int]]:
    """Cut an epoch into steps of `batch_size` samples, or of about `batch_tokens` tokens."""
    chunk: list[int] = []
    tokens = 0
    for i in order:
        if config.batch_tokens:
            full = tokens + lengths[i] > config.batch_tokens
        else:
            full = len(chunk) == config.batch_size
        if chunk and full:
            yield chunk
            chunk, tokens = [], 0
        chunk.append(i)
        tokens += lengths[i]
    yield chunk


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The learning rate of step `step` (from 0) of `steps`."""
    warmup = math.ceil(config.warmup_ratio * steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if config.schedule == "linear":
        return config.lr * (1 - done)
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * done)) / 2
    return config.lr


def due(step: int, steps: int, every: int) -> bool:
    """True if a checkpoint is written after `step`."""
    return every > 0 and (step % every == 0 or step == steps)

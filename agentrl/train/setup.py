"""What is settled before the first step: seeds, precision, layout, optimizer."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from agentrl.batch import Layout, cost, plan
from agentrl.engines.hf_device import multiplies_bf16
from agentrl.errors import ConfigError, missing_extra
from agentrl.logprob import bare_model
from agentrl.train.attention import tree_attention
from agentrl.train.schedule import TrainConfig
from agentrl.train.scorer import head_fault, layout_fault
from agentrl.types import Sample

log = logging.getLogger(__name__)

COMPARED = 8
"""How many of a run's steps are looked at to see whether its samples share enough."""
GAIN = 0.9
"""A tree is taken where its steps cost less than this part of the others'."""


def seed_all(seed: int) -> None:
    """Seed every random number generator that training may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def context(model: nn.Module) -> int | None:
    """The most positions the model's configuration allows, if it says."""
    return getattr(bare_model(model).config.get_text_config(), "max_position_embeddings", None)


SMALL = 30_000_000
"""Parameters below which `dtype=auto` stays in fp32: their products are so small that bf16 is no
faster on a CPU, and its rounding (0.03 nats a token) is a large part of what RL on them learns."""


def choose_dtype(model: nn.Module, config: TrainConfig, device: torch.device) -> str:
    """fp32 or bf16; auto takes bf16 where products of it are faster than of fp32."""
    if config.dtype != "auto":
        return config.dtype
    if sum(p.numel() for p in model.parameters()) < SMALL:
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and multiplies_bf16() else "fp32"


def choose_layout(
    model: nn.Module,
    config: TrainConfig,
    samples: Sequence[Sample],
    steps: Sequence[Sequence[int]],
    device: torch.device,
) -> Layout:
    """Check that the model can be trained at all, and how its samples share a forward pass.

    Raises ConfigError if the layout asked for does not work for this model. Left to itself, it
    takes a tree where that is clearly cheaper in the first of `steps` (indices of their samples),
    and says loudly when the model cannot have what would be the best.
    """
    name = type(model).__name__
    if fault := head_fault(model):
        raise ConfigError(f"cannot train {name}: {fault}")
    longest = max(len(s.token_ids) for s in samples)

    def fault_of(layout: Layout) -> str | None:
        with tree_attention(model, layout):
            return None if layout == "padded" else layout_fault(model, layout, longest)

    if config.layout != "auto":
        if fault := fault_of(config.layout):
            raise ConfigError(
                f"{name} cannot train on {config.layout} rows: {fault}. Use layout='padded'"
            )
        return config.layout
    plain: Layout = "padded" if device.type == "cpu" else "packed"
    first = [[samples[i] for i in chosen] for chosen in steps[:COMPARED]]
    tree, other = (
        sum(cost(step, plan(step, config.micro_tokens, layout), layout) for step in first)
        for layout in ("tree", plain)
    )
    wanted: list[Layout] = ["tree", plain] if tree < GAIN * other else [plain]
    for layout in wanted:
        if not (fault := fault_of(layout)):
            return layout
        log.warning("%s: cannot train on %s rows, which would be faster: %s", name, layout, fault)
    return "padded"


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, in one fused kernel where the device has it; no weight decay on vectors.

    `adamw_8bit` keeps its two moments in 8 bits (arXiv 2110.02861), a quarter of their memory.
    Raises ConfigError for parameters that cannot be trained so; MissingExtraError without
    bitsandbytes.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("the model has no trainable parameter; set requires_grad, or use lora")
    if kinds := {str(p.dtype) for p in trainable if p.dtype != torch.float32}:
        raise ConfigError(
            f"the trainable parameters are {', '.join(sorted(kinds))}; small updates would be "
            "lost. Load the model in float32 (dtype='bf16' then computes in bfloat16), or use lora"
        )
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        fused = all(p.device.type in ("cpu", "cuda") for p in trainable)
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)
    if any(p.device.type == "cpu" for p in trainable):
        raise ConfigError("optimizer='adamw_8bit' runs on a GPU only; use 'adamw'")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise missing_extra("bitsandbytes", "quant") from error
    low: torch.optim.Optimizer = AdamW8bit(groups, lr=config.lr, betas=config.betas)
    return low

"""A view of a transformers model for sampling: the same weights, its own attention and mode.

The view is a second tree of modules over the very parameters and buffers of the model, whose own
training mode, attention and configuration stay as they are. Where linear layers have packed copies
of their weights, a view shows the weights that the model had when it was made.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from itertools import chain
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from agentrl.engines import hf_attention, hf_device
from agentrl.errors import ConfigError

_PACKED_SHARE = 0.25
"""Packed copies of weights take at most this part of the memory now free."""

_UNSTABLE_ROPE = frozenset({"dynamic", "longrope"})
"""Rotary types whose angles depend on the longest sequence of the batch."""


def make_view(model: nn.Module, *, onednn: bool, attention: str | None = None) -> nn.Module:
    """A copy of the module tree that shares every parameter and buffer, in evaluation mode.

    `onednn` lets large linear layers on CPUs call oneDNN (see `hf_device`), with weights that are
    packed beforehand where there is memory for a copy; the results differ by rounding only.
    """
    memo: dict[int, Any] = {id(t): t for t in chain(model.parameters(), model.buffers())}
    try:
        view = copy.deepcopy(model, memo)
    except Exception as error:
        raise ConfigError(
            f"cannot make a sampling view of {type(model).__name__}: {error}. Hand over the plain "
            "transformers (or peft) model, unwrapped from FSDP, DDP or torch.compile."
        ) from error
    view.eval()
    for config in _configs(view):
        config._attn_implementation = attention or hf_attention.NAME
    if onednn:
        _use_onednn([m for m in view.modules() if hf_device.suits_onednn(m)])
    return view


def check_config(config: Any) -> None:
    """Raise ConfigError for models whose attention or positions the engine cannot serve."""
    config = text_config(config)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    other = kinds - {"full_attention", "sliding_attention"}
    rope = getattr(config, "rope_parameters", None) or {}
    ropes = [rope] if "rope_type" in rope else [r for r in rope.values() if isinstance(r, dict)]
    unstable = {r.get("rope_type", "default") for r in ropes} & _UNSTABLE_ROPE
    problem = ""
    if getattr(config, "is_encoder_decoder", False):
        problem = "it is an encoder-decoder"
    elif other:
        problem = f"it has layers of type {', '.join(sorted(other))}"
    elif unstable:
        problem = f"its rotary type {', '.join(sorted(unstable))} depends on the batch"
    if problem:
        raise ConfigError(
            f"HFPolicy cannot serve {config.model_type!r} models: {problem}. It serves causal "
            "models with full or sliding attention; for others use vllm:MODEL."
        )


def text_config(config: Any) -> Any:
    """The configuration of the language model inside a configuration."""
    get = getattr(config, "get_text_config", None)
    return get(decoder=True) if get else config


def _configs(view: nn.Module) -> Iterator[Any]:
    seen: set[int] = set()
    for module in view.modules():
        config = getattr(module, "config", None)
        if (
            config is not None
            and hasattr(config, "_attn_implementation")
            and id(config) not in seen
        ):
            seen.add(id(config))
            yield config


def _use_onednn(layers: list[Any]) -> None:
    """Let the layers call oneDNN; 16-bit ones only with packed weights, as torch's own do so
    without."""
    size = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    packs = size <= _PACKED_SHARE * psutil.virtual_memory().available
    for layer in layers:
        if packs:
            with torch.inference_mode():
                layer.packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), None)
        elif layer.weight.dtype == torch.float32:
            layer.packed = None
        else:
            continue
        layer.forward = types.MethodType(_onednn_linear, layer)


def _onednn_linear(self: Any, x: Tensor) -> Tensor:
    if x.requires_grad or x.dtype != self.weight.dtype:
        return nn.functional.linear(x, self.weight, self.bias)
    weight = self.weight if self.packed is None else self.packed
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, self.bias, "none", [], "")
    return y

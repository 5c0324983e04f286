"""Linear layers in fp32 on a CPU: forward and backward by oneDNN.

torch gives these products to MKL, which on processors of other makers takes twice as long (on one
core of an AMD EPYC with AVX512, 1200 rows of SmolLM2-135M's layers: 60 to 95 GFLOP/s, oneDNN 170 to
210). In bf16 torch calls oneDNN itself.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from agentrl.engines.hf_device import suits_onednn


@contextmanager
def fast_linear(model: nn.Module) -> Iterator[None]:
    """Inside the block, large fp32 layers on a CPU call oneDNN. Results differ by rounding."""
    changed: list[Any] = [
        module
        for module in model.modules()
        if suits_onednn(module)
        and module.weight.dtype == torch.float32
        and "forward" not in vars(module)
    ]
    try:
        for module in changed:
            module.forward = types.MethodType(_forward, module)
        yield
    finally:
        for module in changed:
            vars(module).pop("forward", None)


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return nn.functional.linear(x, self.weight, self.bias)
    y: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
    return y


def _product(x_NK: Tensor, weight_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x_NK, weight_MK, bias_M, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    """`x @ weight.T + bias`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_MK: Tensor, bias_M: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_MK)
        return _product(x, weight_MK, bias_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_MK = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        dy_NM, x_NK = dy.flatten(0, -2), x.flatten(0, -2)
        return (
            _product(dy, weight_MK.T) if wants_x else None,
            _product(dy_NM.T, x_NK.T) if wants_weight else None,
            dy_NM.sum(0) if wants_bias else None,
        )

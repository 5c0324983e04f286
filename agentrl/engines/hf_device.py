"""What the `hf` engine does on which device. It chooses by itself; `agentrl doctor` shows it.

What else there is, and why it is not used (profiles of SmolLM2-135M on one core with AVX512, torch
2.13, 1 to 64 rows):

- `torch.compile`: products of matrices and attention, which it leaves to the same kernels, take
  four fifths of a step. The rest does not pay for a compiler on every machine and for compiling
  again where shapes change, which they do at every step.
- Attention by batched products of matrices instead of torch's fused kernel: as fast, to a tenth.
- A static cache: the slots are one, written in place.
- transformers' continuous batching: see `hf`.

None of this was measured on a GPU.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Costs:
    """What attention over the rows of a step is planned by."""

    call: int
    """What one attention call costs beside its work, in key positions read."""
    shares: bool
    """A prefix that neighbouring rows have in common is read once."""
    merges: bool
    """Of rows that hold the same ids one is computed. On a GPU one row more costs nothing, and
    copying what it gave does."""


def costs(device: torch.device) -> Costs:
    """Few large calls on a GPU; on a CPU as many as save reading."""
    return Costs(250, True, True) if device.type == "cpu" else Costs(20_000, False, False)


SMALL = 1 << 16
"""Weights with fewer entries stay with torch's own linear, whose calls cost less."""


def suits_onednn(module: nn.Module) -> bool:
    """True for a plain linear layer on a CPU, whole and large enough to call oneDNN."""
    weight = getattr(module, "weight", None)
    return (
        type(module) is nn.Linear
        and type(weight) is nn.Parameter  # no part of a sharded one
        and weight.device.type == "cpu"
        and weight.numel() >= SMALL
        and weight.is_contiguous()
        and onednn_works(weight.dtype)
    )


@functools.cache
def onednn_works(dtype: torch.dtype) -> bool:
    """True if this build of torch has oneDNN's linear, with packed weights too, and it computes
    what torch's does: in fp32, and in bf16 where the processor multiplies that."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    ops = torch.ops.mkldnn
    if not (hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")):
        return False
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and multiplies_bf16()):
        return False
    with torch.inference_mode():
        x = torch.ones(3, 32, dtype=dtype)
        weight = torch.linspace(-1, 1, 24 * 32).view(24, 32).to(dtype)
        plain = nn.functional.linear(x, weight)
        packed = ops._reorder_linear_weight(weight, None)
        found = [ops._linear_pointwise(x, w, None, "none", [], "") for w in (weight, packed)]
        limit = 1e-4 if dtype == torch.float32 else 0.1
        return all(torch.allclose(y, plain, atol=limit) for y in found)


def multiplies_bf16() -> bool:
    """True if this processor has instructions for products of bf16."""
    cpu = torch.cpu
    has = (
        getattr(cpu, "_is_avx512_bf16_supported", None),
        getattr(cpu, "_is_amx_tile_supported", None),
    )
    return any(f and f() for f in has)


def explained(device: torch.device) -> dict[str, str]:
    """What an engine on `device` would do, and why, by topic."""
    if device.type != "cpu":
        return {
            "dtype": "the checkpoint's (bfloat16 for smollm2)",
            "linear layers": "torch's own",
            "attention": "torch's fused kernels over slots written in place, few large calls",
            "compile": "no: shapes change at every step",
        }
    faster = multiplies_bf16()
    bf16 = "policy.dtype=bfloat16 is faster here" if faster else "this processor has no bfloat16"
    return {
        "dtype": f"float32, exact to 1e-4 nats; {bf16}",
        "linear layers": (
            "oneDNN, weights packed where the copy fits a quarter of the free memory"
            if onednn_works(torch.float32)
            else "torch's own: this build has no oneDNN that works"
        ),
        "attention": "torch's fused kernel over slots written in place, common prefixes read once",
        "compile": "no: products of matrices and attention take four fifths of a step",
        "threads": f"{torch.get_num_threads()} (OMP_NUM_THREADS, or policy.threads)",
    }

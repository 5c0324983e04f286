"""How a transformers model is told who attends to whom in a trie.

On a GPU: FlexAttention with a block mask made of the trie's intervals, so no [C, C] tensor exists.
Elsewhere: a four-dimensional mask, which transformers hands on to its attention as it is.
Axes in names: C columns, K blocks of columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from agentrl.batch import Batch, Layout
from agentrl.errors import ConfigError
from agentrl.logprob import bare_model
from agentrl.trie import Trie

BLOCK = 128
"""Columns a block of FlexAttention: its default."""


def model_inputs(model: nn.Module, batch: Batch) -> dict[str, Any]:
    """The keyword arguments for the forward pass of `model` on `batch`, attention mask included.

    Raises ConfigError for a batch with a trie if the model's attention takes no mask.
    """
    inputs = batch.model_inputs()
    if batch.trie is None:
        return inputs
    kind = bare_model(model).config._attn_implementation
    if kind == "flex_attention":
        return inputs | {"attention_mask": block_mask(batch.trie)}
    mask = batch.trie.mask()[None, None]
    if kind == "sdpa":
        return inputs | {"attention_mask": mask}
    if kind == "eager":
        added = torch.zeros(mask.shape, device=mask.device)
        added.masked_fill_(~mask, torch.finfo(added.dtype).min)
        return inputs | {"attention_mask": added}
    raise ConfigError(
        f"attention {kind!r} takes no mask for a tree of tokens. Load the model with "
        "attn_implementation='sdpa' (or 'flex_attention' on a GPU), or use layout='packed'"
    )


def block_mask(trie: Trie) -> BlockMask:
    """FlexAttention's mask of a trie: which blocks are needed at all, and which of them whole.

    From the least and greatest end of each block of keys, in O(C + K^2) time and memory.
    """
    n = len(trie)
    blocks = -(-n // BLOCK)
    end_C = torch.nn.functional.pad(trie.end_C, (0, blocks * BLOCK - n))  # fill: nobody's ancestor
    first_K = torch.arange(blocks, device=end_C.device) * BLOCK
    last_K = (first_K + BLOCK).clamp(max=n)
    least_K, greatest_K = end_C.view(blocks, BLOCK).aminmax(dim=1)
    before_KK = first_K[None] < first_K[:, None]  # the keys' block stands before the queries'
    some_KK = torch.eye(blocks, dtype=torch.bool, device=end_C.device)
    some_KK |= before_KK & (greatest_K[None] > first_K[:, None])
    all_KK = before_KK & (least_K[None] >= last_K[:, None])

    def ancestor(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < end_C[k])

    return BlockMask.from_kv_blocks(
        *_listed(some_KK & ~all_KK),
        *_listed(all_KK),
        BLOCK_SIZE=BLOCK,
        mask_mod=ancestor,
        seq_lengths=(n, n),
    )


def _listed(chosen_KK: Tensor) -> tuple[Tensor, Tensor]:
    """[1, 1, K] how many blocks of keys each block of queries has; [1, 1, K, K] these first."""
    counts_K = chosen_KK.sum(1, dtype=torch.int32)
    order_KK = chosen_KK.int().argsort(dim=1, descending=True, stable=True).int()
    return counts_K[None, None], order_KK[None, None]


@contextmanager
def tree_attention(model: nn.Module, layout: Layout) -> Iterator[None]:
    """FlexAttention inside the block, for trees where the model is on a GPU and has it."""
    bare = bare_model(model)
    before = bare.config._attn_implementation
    wanted = layout == "tree" and next(bare.parameters()).device.type == "cuda"
    if not wanted or before == "flex_attention" or not bare._supports_flex_attn:
        yield
        return
    bare.set_attn_implementation("flex_attention")
    try:
        yield
    finally:
        bare.set_attn_implementation(before)


def window(model: nn.Module) -> int | None:
    """How many tokens back the model's most short-sighted layer sees, None if all see everything.

    A trie's mask is one for all layers, so longer paths cannot be trained as trees.
    """
    config = bare_model(model).config.get_text_config()
    windows = [getattr(config, "attention_chunk_size", None)]
    if getattr(config, "use_sliding_window", True):
        windows.append(getattr(config, "sliding_window", None))
    layers = getattr(config, "layer_types", None)
    if layers is not None and not any("sliding" in kind or "chunked" in kind for kind in layers):
        return None
    return min((w for w in windows if w is not None), default=None)

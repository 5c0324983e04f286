"""Samples -> micro-batches: which samples share a forward pass, and the tensors of it.

Three layouts, with the same loss and gradients:

- `padded`: one sample a row, filled up on the right. No attention mask is needed: causal attention
  never looks right, so the fill is never read, whatever the model.
- `packed`: several samples in one row, each attending to itself only, positions counted from its
  own start. No fill.
- `tree`: the samples' trie in one row (`agentrl.trie`). Tokens that samples have in common stand
  there once, each token attends to its ancestors only, and positions count from the root.

A loss sees samples one after the other in each of them, with weights of their own also for tokens
that the model computes once, so no loss has to know the layout. Axes in names: B rows, T columns,
as a loss sees them; C columns of the trie.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from agentrl import trie
from agentrl.errors import DataError
from agentrl.trie import Trie
from agentrl.types import Sample

Layout = Literal["padded", "packed", "tree"]

Rows = list[list[int]]
"""A micro-batch before it has tensors: for each row the indices of the samples in it, in order."""

TASK = "task_id"
"""The key of `Sample.meta` that holds a sample's task, an int from 0, for adapters that ask."""

MICRO_COST = 64
"""What one more micro-batch is taken to cost (casting weights, adding to gradients), in tokens of
fill. With SmolLM2-135M on a CPU, values from 64 to 1000 made no difference that could be measured
for 8 samples of 50 to 140 tokens; the smallest of them avoids the most fill."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch: what a model and a loss read. Tensors are [B, T] unless said, on one device.

    The loss of predicting token `input_ids_BT[b, t]` has weight `weights_BT[b, t]`. Tokens nobody
    predicts (the first of a sample, fill) have weight 0. The tokens of a sample stand in one run
    of a row; where there is a `trie`, the model reads that, and `column_BT` says where in it.
    """

    input_ids_BT: Tensor
    """int64"""
    position_ids_BT: Tensor
    """int64, counted from each sample's start"""
    segment_ids_BT: Tensor
    """int64: which entry of `samples` a token belongs to; -1 is fill"""
    weights_BT: Tensor
    """float32, at least 0; 0 where there is no loss"""
    samples: tuple[int, ...]
    """the index of each segment in the caller's list of samples"""
    advantages_BT: Tensor | None = None
    logprobs_BT: Tensor | None = None
    ref_logprobs_BT: Tensor | None = None
    trie: Trie | None = None
    column_BT: Tensor | None = None
    """int64: the column of this token in the trie"""
    tasks_B: Tensor | None = None
    """int64 [B]: the task of each row's first sample (`TASK`), 0 where it has none"""

    @property
    def packed(self) -> bool:
        """True if a row holds more than one sample."""
        return len(self.samples) > self.input_ids_BT.shape[0]

    @property
    def tokens(self) -> int:
        """How many tokens are of samples, fill not counted."""
        return int((self.segment_ids_BT >= 0).sum())

    @property
    def computed(self) -> int:
        """How many tokens the model computes: with fill, and what samples share once."""
        return self.input_ids_BT.numel() if self.trie is None else len(self.trie)

    def model_inputs(self) -> dict[str, Any]:
        """The keyword arguments of a transformers causal model's forward pass.

        Not yet with a trie's attention mask, whose form depends on the model's attention
        (`agentrl.train.attention`).
        """
        if self.trie is not None:
            ids, positions = self.trie.token_ids_C[None], self.trie.depth_C[None]
            return {"input_ids": ids, "position_ids": positions, "use_cache": False}
        inputs: dict[str, Any] = {"input_ids": self.input_ids_BT, "use_cache": False}
        if self.packed:
            inputs["position_ids"] = self.position_ids_BT
        return inputs

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor | Trie)
        }
        return replace(self, **moved)


def trainable_weight(sample: Sample) -> float:
    """The sum of a sample's weights over the tokens that are predicted (all but the first)."""
    return math.fsum(sample.weights[1:])


def check_samples(
    samples: Sequence[Sample], vocab_size: int | None = None, max_length: int | None = None
) -> None:
    """Refuse samples that cannot be trained on, naming them.

    Raises DataError if there are none, or one has no token, a token outside the vocabulary, more
    tokens than the model's context, a negative or non-finite weight, or no trainable token.
    """
    if not samples:
        raise DataError("there is no sample to train on; see why the selection kept none")
    untrainable = []
    for i, sample in enumerate(samples):
        ids, weights = sample.token_ids, sample.weights
        if not ids:
            raise DataError(f"sample {i} has no token")
        if min(ids) < 0 or (vocab_size is not None and max(ids) >= vocab_size):
            raise DataError(
                f"sample {i} has token ids from {min(ids)} to {max(ids)}, outside the model's "
                f"vocabulary of {vocab_size}: it was made with another tokenizer"
            )
        if max_length is not None and len(ids) > max_length:
            raise DataError(
                f"sample {i} has {len(ids)} tokens, the model's context is {max_length}: "
                "leave it out, or cut it when selecting"
            )
        if not all(math.isfinite(w) and w >= 0 for w in weights):
            raise DataError(f"sample {i} has a negative or non-finite weight")
        if trainable_weight(sample) == 0:
            untrainable.append(i)
    if untrainable:
        shown = ", ".join(map(str, untrainable[:10])) + (", ..." if len(untrainable) > 10 else "")
        raise DataError(
            f"{len(untrainable)} of {len(samples)} samples have no trainable token (all weights "
            f"after the first token are 0): {shown}. Leave them out, or check the mask"
        )


def plan(
    samples: Sequence[Sample],
    budget: int,
    layout: Layout,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Rows]:
    """Split `samples` into micro-batches of at most `budget` computed tokens, fill counted.

    `padded` sorts by length and finds the cheapest split; `packed` fills one row a micro-batch,
    longest first; `tree` makes one trie a micro-batch (`agentrl.trie.cut`). The samples of a group
    (indices; a preference pair, say) stay in one micro-batch; without `groups` each stands alone.
    What is larger than the budget gets a micro-batch of its own. The order of micro-batches and
    rows has no meaning: the sum over all of them is the same loss.
    """
    groups = [[i] for i in range(len(samples))] if groups is None else groups
    lengths = [len(s.token_ids) for s in samples]
    if layout == "tree":
        chosen = trie.cut([s.token_ids for s in samples], groups, budget, MICRO_COST)
        return [[[i for g in micro for i in groups[g]]] for micro in chosen]
    if layout == "padded":
        widths = [max(lengths[i] for i in group) for group in groups]
        order = sorted(range(len(groups)), key=lambda g: (-widths[g], g))
        shapes = [(widths[g], len(groups[g])) for g in order]
        return [
            [[i] for g in order[a:b] for i in groups[g]] for a, b in _cheapest_cuts(shapes, budget)
        ]
    sizes = [sum(lengths[i] for i in group) for group in groups]
    bins: list[tuple[int, list[int]]] = []
    for g in sorted(range(len(groups)), key=lambda g: (-sizes[g], g)):
        for at, (used, row) in enumerate(bins):
            if used + sizes[g] <= budget:
                bins[at] = (used + sizes[g], [*row, *groups[g]])
                break
        else:
            bins.append((sizes[g], [*groups[g]]))
    return [[row] for _, row in bins]


def cost(samples: Sequence[Sample], micros: Sequence[Rows], layout: Layout) -> float:
    """What micro-batches of `plan` cost to compute, in tokens: fill, attention, overhead.

    A row's tokens attend to the columns before them in `padded` rows, to all columns of a mask in
    the others (a GPU skips most of these, so this is too much there, for both alike).
    """
    total = 0.0
    for rows in micros:
        paths = [[samples[i].token_ids for i in row] for row in rows]
        if layout == "tree":
            width = sum(map(trie.unique_tokens, paths))
        else:
            width = max(sum(map(len, row)) for row in paths)
        seen = width / 2 if layout == "padded" else width
        total += MICRO_COST + len(rows) * width * (1 + seen * trie.ATTENTION)
    return total


def _cheapest_cuts(shapes: Sequence[tuple[int, int]], budget: int) -> Iterator[tuple[int, int]]:
    """Cut groups where padded tokens plus MICRO_COST a micro-batch are least.

    `shapes` are the (longest sample, samples) of each group, longest first. Dynamic programming:
    `best[b]` is the least cost of the first b groups, `cut[b]` where the last of their
    micro-batches begins. The first sample of a micro-batch is its longest.
    """
    n = len(shapes)
    best, cut = [0.0] + [math.inf] * n, [0] * (n + 1)
    for a in range(n):
        rows = 0
        for b in range(a + 1, n + 1):
            rows += shapes[b - 1][1]
            padded = shapes[a][0] * rows
            if padded > budget and b > a + 1:
                break
            if best[a] + padded + MICRO_COST < best[b]:
                best[b], cut[b] = best[a] + padded + MICRO_COST, a
    cuts, b = [], n
    while b > 0:
        cuts.append((cut[b], b))
        b = cut[b]
    return reversed(cuts)


def collate(samples: Sequence[Sample], rows: Rows, fill: int = 0, tree: bool = False) -> Batch:
    """The tensors of a micro-batch. `rows[b]` are the indices of the samples in row b.

    A list that some of the samples lack (advantages, log-probabilities) is left out of the batch
    if all lack it, and a DataError if only some do. `fill` is the id put right of shorter rows.
    With `tree` (one row only) what samples share is computed once.
    """
    picked = [samples[i] for row in rows for i in row]
    width = max(sum(len(samples[i].token_ids) for i in row) for row in rows)
    shape = (len(rows), width)
    ids = torch.full(shape, fill, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.full(shape, -1, dtype=torch.long)
    columns = torch.arange(width)
    extra = {
        name: torch.zeros(shape)
        for name in ("weights", "advantages", "logprobs", "ref_logprobs")
        if _present(picked, name)
    }
    segment = 0
    for b, row in enumerate(rows):
        start = 0
        for i in row:
            sample = samples[i]
            end = start + len(sample.token_ids)
            ids[b, start:end] = torch.as_tensor(sample.token_ids)
            positions[b, start:end] = columns[: end - start]
            segments[b, start:end] = segment
            for name, values in extra.items():
                values[b, start:end] = torch.as_tensor(getattr(sample, name), dtype=torch.float32)
            extra["weights"][b, start] = 0.0
            start, segment = end, segment + 1
        positions[b, start:] = columns[: width - start]
    named: dict[str, Any] = {f"{name}_BT": values for name, values in extra.items()}
    batch = Batch(
        input_ids_BT=ids,
        position_ids_BT=positions,
        segment_ids_BT=segments,
        samples=tuple(i for row in rows for i in row),
        tasks_B=torch.tensor([_task(samples[row[0]]) for row in rows]),
        **named,
    )
    if not tree:
        return batch
    if len(rows) != 1:
        raise ValueError(f"a tree batch has one row, not {len(rows)}")
    shared, columns_of = trie.build([s.token_ids for s in picked])
    return replace(batch, trie=shared, column_BT=torch.cat(columns_of)[None])


def _task(sample: Sample) -> int:
    task = sample.meta.get(TASK)
    return task if isinstance(task, int) else 0


def _present(samples: Sequence[Sample], name: str) -> bool:
    """True if all samples have the list `name`, False if none has it."""
    have = [getattr(s, name) is not None for s in samples]
    if any(have) and not all(have):
        raise DataError(f"some samples have {name} and some have not; a loss needs all or none")
    return all(have)

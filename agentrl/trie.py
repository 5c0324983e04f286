"""Token paths that begin alike, as one trie: every unique token once.

The columns of a trie stand in depth-first order, so a token's descendants are a run of columns, and
"k is q or an ancestor of q" is `k <= q < end_C[k]`: two comparisons, no matrix. Only token ids
matter, whatever tree or turn they come from: what a causal model computes of a token depends on the
ids before it alone. So paths of one token tree, of several, and forks that a chat template made
by rewriting history share what they have in common; paths that begin differently are roots beside
each other and cannot see each other.

Axes in names: C columns (unique tokens).
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

ATTENTION = 1 / 2048
"""What attention adds to the cost of a column, per column in its row. With SmolLM2-135M on a CPU in
float32, masked attention takes as long as everything else at about 2000 columns."""


@dataclass(frozen=True, slots=True)
class Trie:
    """A forest of tokens. All tensors are int64 [C] on one device."""

    token_ids_C: Tensor
    depth_C: Tensor
    """how many tokens stand before it on its path: the position that the model is told"""
    parent_C: Tensor
    """the column whose hidden state predicts it; a root names itself, and is never predicted"""
    end_C: Tensor
    """one past the last column of its descendants"""

    def __len__(self) -> int:
        return len(self.token_ids_C)

    def mask(self) -> Tensor:
        """bool [C, C]: True where the first token may attend to the second, or is it."""
        at_C = torch.arange(len(self), device=self.end_C.device)
        return (at_C <= at_C[:, None]) & (at_C[:, None] < self.end_C)

    def to(self, device: torch.device | str) -> Trie:
        """The same trie on `device`."""
        return Trie(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def build(paths: Sequence[Sequence[int]]) -> tuple[Trie, list[Tensor]]:
    """The trie of `paths` (token ids, none of them empty, in any order, repeats allowed).

    Also returns for each path the columns of its tokens, ascending. In the order of their ids, each
    path adds what it does not share with the one before it.
    """
    order = sorted(range(len(paths)), key=lambda i: list(paths[i]))
    arrays = [np.asarray(paths[i], dtype=np.int64) for i in order]
    total = sum(map(len, arrays))
    ids_C, depth_C, parent_C, end_C = (np.empty(total, dtype=np.int64) for _ in range(4))
    columns: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * len(paths)
    before, at_before, size = arrays[0][:0], columns[0], 0
    for i, path in zip(order, arrays, strict=True):
        shared = _common(before, path)
        at = np.concatenate([at_before[:shared], np.arange(size, size + len(path) - shared)])
        new = slice(size, size := size + len(path) - shared)
        ids_C[new], depth_C[new] = path[shared:], np.arange(shared, len(path))
        parent_C[new] = np.concatenate([at[:1], at[:-1]])[shared:]
        end_C[at] = size  # every ancestor's descendants reach to here, so far
        columns[i], before, at_before = at, path, at
    tensors = (torch.from_numpy(values[:size]) for values in (ids_C, depth_C, parent_C, end_C))
    return Trie(*tensors), list(map(torch.from_numpy, columns))


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading entries two arrays share."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    return int(differs.argmax()) if differs.any() else n


def unique_tokens(paths: Sequence[Sequence[int]]) -> int:
    """How many columns the trie of `paths` has."""
    return _Sizes(paths).of(range(len(paths)))


def cut(
    paths: Sequence[Sequence[int]], groups: Sequence[Sequence[int]], budget: int, fixed: float
) -> list[list[int]]:
    """Split `groups` of paths into tries of at most `budget` columns; returns groups' indices.

    The paths of a group stay together (a preference pair, say); a group larger than the budget
    gets a trie of its own. Groups that begin alike stand next to each other; of all ways to cut
    that order, this is the cheapest by `fixed` a trie plus its columns and their attention. The
    quadratic part keeps tries apart that share little, and makes the rest equally large.
    """
    sizes = _Sizes(paths)
    order = sorted(range(len(groups)), key=lambda g: min(sizes.rank[i] for i in groups[g]))
    n = len(order)
    best, start = [0.0] + [math.inf] * n, [0] * (n + 1)
    for a in range(n):
        for b, columns in enumerate(sizes.growing(groups[g] for g in order[a:]), a + 1):
            if columns > budget and b > a + 1:
                break
            cost = best[a] + fixed + columns * (1 + columns * ATTENTION)
            if cost < best[b]:
                best[b], start[b] = cost, a
    cuts, b = [], n
    while b > 0:
        cuts.append(order[start[b] : b])
        b = start[b]
    return cuts[::-1]


class _Sizes:
    """How many columns the tries of some of the paths would have, without building them."""

    def __init__(self, paths: Sequence[Sequence[int]]) -> None:
        order = sorted(range(len(paths)), key=lambda i: list(paths[i]))
        arrays = [np.asarray(paths[i], dtype=np.int64) for i in order]
        self.rank = {i: rank for rank, i in enumerate(order)}
        self.lengths = [len(a) for a in arrays]
        self.common = np.array([_common(a, b) for a, b in pairwise(arrays)], dtype=np.int64)

    def of(self, chosen: Sequence[int]) -> int:
        """The columns of the trie of the paths `chosen`."""
        return max(self.growing([chosen]), default=0)

    def growing(self, groups: Iterator[Sequence[int]] | Sequence[Sequence[int]]) -> Iterator[int]:
        """The columns of the trie of the first group, the first two, the first three, ..."""
        ranks: list[int] = []
        columns = 0
        for group in groups:
            for rank in (self.rank[i] for i in group):
                at = bisect(ranks, rank)
                near = [(r, rank) for r in ranks[at - 1 : at] if at]
                near += [(rank, r) for r in ranks[at : at + 1]]
                shared = max((int(self.common[low:high].min()) for low, high in near), default=0)
                columns += self.lengths[rank] - shared
                ranks.insert(at, rank)
            yield columns

"""Tries of token paths: every unique token once, and who is whose ancestor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import trie
from agentrl.batch import collate, plan
from agentrl.errors import DataError
from agentrl.train.attention import BLOCK, block_mask
from agentrl.types import Sample

PATHS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=9)


def prefixes(paths) -> set[tuple[int, ...]]:
    return {tuple(path[:n]) for path in paths for n in range(1, len(path) + 1)}


def test_by_hand() -> None:
    #  1 - 2 - 3 - 4     7 - 8
    #       \- 5
    paths = [[1, 2, 3, 4], [1, 2, 5], [7, 8], [1, 2, 3], [1, 2, 5]]
    made, columns = trie.build(paths)
    assert made.token_ids_C.tolist() == [1, 2, 3, 4, 5, 7, 8]
    assert made.depth_C.tolist() == [0, 1, 2, 3, 2, 0, 1]
    assert made.parent_C.tolist() == [0, 0, 1, 2, 1, 5, 5]
    assert made.end_C.tolist() == [5, 5, 4, 4, 5, 7, 7]
    assert [c.tolist() for c in columns] == [[0, 1, 2, 3], [0, 1, 4], [5, 6], [0, 1, 2], [0, 1, 4]]
    seen = ["".join("X" if x else "." for x in row) for row in made.mask()]
    assert seen == ["X......", "XX.....", "XXX....", "XXXX...", "XX..X..", ".....X.", ".....XX"]


@settings(max_examples=60, deadline=None)
@given(PATHS)
def test_a_trie_has_every_unique_prefix_once_and_sees_ancestors_only(paths) -> None:
    made, columns = trie.build(paths)
    assert len(made) == trie.unique_tokens(paths) == len(prefixes(paths))
    prefix_of: dict[int, tuple[int, ...]] = {}
    for path, at in zip(paths, columns, strict=True):
        assert made.token_ids_C[at].tolist() == path
        assert made.depth_C[at].tolist() == list(range(len(path)))
        assert made.parent_C[at].tolist() == [at[0].item(), *at[:-1].tolist()]
        for n, column in enumerate(at.tolist()):
            assert prefix_of.setdefault(column, tuple(path[: n + 1])) == tuple(path[: n + 1])
    mask = made.mask()
    for q, mine in prefix_of.items():
        for k, theirs in prefix_of.items():
            assert mask[q, k].item() == (mine[: len(theirs)] == theirs)


@settings(max_examples=60, deadline=None)
@given(PATHS, st.integers(1, 30), st.integers(0, 10**6), st.integers(1, 3))
def test_cuts_hold_every_group_once_within_the_budget(paths, budget, seed, size) -> None:
    order = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed)).tolist()
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    cuts = trie.cut(paths, groups, budget, 3)
    assert sorted(g for cut in cuts for g in cut) == list(range(len(groups)))
    for chosen in cuts:
        columns = len(prefixes([paths[i] for g in chosen for i in groups[g]]))
        assert columns <= budget or len(chosen) == 1


def test_cuts_put_together_what_begins_alike_and_keep_the_rest_apart() -> None:
    a, b = [1] * 50, [2] * 50
    paths = [[*a, 3], [*b, 3], [*a, 4], [*b, 4]]
    cuts = trie.cut(paths, [[0], [1], [2], [3]], budget=60, fixed=1)
    assert sorted(map(sorted, cuts)) == [[0, 2], [1, 3]]
    whole = trie.cut(paths, [[0], [1], [2], [3]], budget=200, fixed=1000)
    assert len(whole) == 1  # room for all, and a second pass would cost more
    apart = trie.cut(paths, [[0, 1], [2, 3]], budget=60, fixed=1)
    assert sorted(map(sorted, apart)) == [[0], [1]]  # a group is never torn


def test_micro_batches_are_balanced() -> None:
    paths = [[i] * 100 for i in range(12)]
    cuts = trie.cut(paths, [[i] for i in range(12)], budget=1000, fixed=600)
    assert [len(c) for c in cuts] == [6, 6]  # not 10 and 2


def test_groups_stay_together_in_every_layout() -> None:
    samples = [Sample([i % 3, *[i] * (3 * i)], [1.0] * (1 + 3 * i)) for i in range(1, 9)]
    groups = [[0, 7], [1, 6], [2, 5], [3, 4]]
    for layout in ("padded", "packed", "tree"):
        micros = plan(samples, 60, layout, groups)
        found = [sorted(i for row in rows for i in row) for rows in micros]
        assert sorted(i for micro in found for i in micro) == list(range(8))
        assert all(
            set(g) <= set(micro) or not set(g) & set(micro) for g in groups for micro in found
        )
        assert len(micros) > 1


def test_a_tree_batch_shows_losses_one_sample_after_the_other() -> None:
    samples = [Sample([1, 2, 3], [0, 1, 2]), Sample([1, 2, 4, 5], [0, 0.5, 0, 3])]
    batch = collate(samples, [[1, 0]], tree=True)
    assert batch.input_ids_BT.tolist() == [[1, 2, 4, 5, 1, 2, 3]]
    assert batch.segment_ids_BT.tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.weights_BT.tolist() == [[0, 0.5, 0, 3, 0, 1, 2]]
    assert batch.samples == (1, 0)
    assert (batch.tokens, batch.computed) == (7, 5)
    assert batch.trie is not None
    assert batch.column_BT is not None
    assert batch.trie.token_ids_C[batch.column_BT].tolist() == batch.input_ids_BT.tolist()
    assert batch.model_inputs()["position_ids"].tolist() == [[0, 1, 2, 2, 3]]
    moved = batch.to("cpu")
    assert moved.trie is not None
    assert torch.equal(moved.trie.end_C, batch.trie.end_C)
    with pytest.raises(ValueError, match="has one row"):
        collate(samples, [[0], [1]], tree=True)
    with pytest.raises(DataError, match="some samples have advantages"):
        collate([samples[0], Sample([1], [0], advantages=[1])], [[0, 1]], tree=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 700), st.integers(1, 9))
def test_block_mask_is_the_mask(seed, longest, n) -> None:
    """FlexAttention's blocks: none that is needed is left out, whole ones are whole."""
    draw = torch.Generator().manual_seed(seed)
    trunk = torch.randint(5, (longest,), generator=draw).tolist()
    paths = []
    for _ in range(n):
        keep = int(torch.randint(longest + 1, (), generator=draw))
        tail = torch.randint(1, 200, (), generator=draw)
        paths.append(trunk[:keep] + torch.randint(5, (int(tail),), generator=draw).tolist())
    made, _ = trie.build(paths)
    mask = made.mask()
    blocks = block_mask(made)
    size = -(-len(made) // BLOCK)
    needed = torch.nn.functional.pad(mask, (0, size * BLOCK - len(made)) * 2)
    needed = needed.view(size, BLOCK, size, BLOCK).transpose(1, 2).flatten(2)
    visited = torch.zeros(size, size, dtype=torch.bool)
    whole = torch.zeros(size, size, dtype=torch.bool)
    for q in range(size):
        visited[q, blocks.kv_indices[0, 0, q, : blocks.kv_num_blocks[0, 0, q]].long()] = True
        whole[q, blocks.full_kv_indices[0, 0, q, : blocks.full_kv_num_blocks[0, 0, q]].long()] = (
            True
        )
    assert not (visited & whole).any()
    assert torch.equal(visited | whole, needed.any(-1))
    real = torch.nn.functional.pad(torch.ones_like(mask), (0, size * BLOCK - len(made)) * 2)
    real = real.view(size, BLOCK, size, BLOCK).transpose(1, 2).flatten(2)
    assert torch.equal(whole, (needed == real).all(-1).tril(-1) & needed.any(-1))
    q, k = (torch.arange(len(made))[:, None], torch.arange(len(made))[None])
    assert torch.equal(blocks.mask_mod(torch.tensor(0), torch.tensor(0), q, k), mask)

"""The work of the training benchmark is what its notes say."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from agentrl.trie import unique_tokens
from benchmarks.train import conversations, shared_pairs, tree_pairs


def paths(pairs) -> list:
    return [side.token_ids for pair in pairs for side in (pair.chosen, pair.rejected)]


def test_shared_pairs_share_four_fifths():
    pairs = shared_pairs(3)
    assert [len(p) for p in paths(pairs)] == [320] * 6
    assert unique_tokens(paths(pairs)) == 3 * (256 + 2 * 64)
    assert all(sum(side.weights) == 64 for pair in pairs for side in (pair.chosen, pair.rejected))


def test_tree_pairs_are_siblings_at_every_depth():
    pairs = tree_pairs(1)
    assert [len(p.chosen.token_ids) for p in pairs] == [128 + 32 * d for d in range(1, 7)]
    assert unique_tokens(paths(pairs)) == 128 + 12 * 32
    for pair in pairs:
        shared = len(pair.chosen.token_ids) - 32
        assert pair.chosen.token_ids[:shared] == pair.rejected.token_ids[:shared]
        assert pair.chosen.weights == [0.0] * shared + [1.0] * 32


def test_conversations_share_their_system_prompt_only():
    made = conversations(4, 50)
    assert len({tuple(s.token_ids[:50]) for s in made}) == 1
    assert len({tuple(s.token_ids[:60]) for s in made}) == 4
    assert all(sum(s.weights[:50]) == 0 and 0 < sum(s.weights) < len(s.weights) for s in made)

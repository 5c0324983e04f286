"""What searches did and what they cost, counted from their trees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from agentrl.record import Tree
from agentrl.search.table import Table


def statistics(trees: Sequence[Tree]) -> dict[str, Any]:
    """Sums and means over the searched trees among `trees`; empty without any.

    `states` are places (prompts left out), `visited` those of them that a walk passed, `depth` the
    mean and `deepest` the largest number of steps of what was chosen, `visits` a prompt's mean.
    `sampled_tokens` is what the policy was asked for, what was dropped or looked ahead included;
    `unique_tokens` counts what it sampled once wherever paths begin alike. `calls` ran in the
    environment, `replayed` again to restore a state, `forked` copies did so without a call; `lost`
    steps had a state that did not come back, `refused` counts those that could not be put aside, by
    the reason. `seconds` are those of the iterations.
    """
    searched = [t for t in trees if "search" in t.meta]
    if not searched:
        return {}
    tables = [Table.from_json(t.meta["search"]) for t in searched]
    chosen = [t.states[t.chosen].depth for t in tables if t.chosen is not None]
    sums = {
        "sampled_tokens": sum(t.tokens for t in tables),
        "unique_tokens": sum(map(unique_tokens, searched)),
        **{n: sum(getattr(t, n) for t in tables) for n in ("iterations", "calls", "replayed")},
        **{n: sum(getattr(t, n) for t in tables) for n in ("forked", "lost")},
    }
    return {
        "searches": len(tables),
        "strategies": sorted({t.strategy for t in tables}),
        "states": sum(len(t.states) - 1 for t in tables),
        "visited": sum(s.visits > 0 for t in tables for s in t.states[1:]),
        "finished": sum(s.terminal for t in tables for s in t.states),
        "depth": round(sum(chosen) / len(chosen), 2) if chosen else None,
        "deepest": max(chosen, default=None),
        "visits": round(sum(t.states[0].visits for t in tables) / len(tables), 2),
        **sums,
        "refused": dict(sum((Counter(t.refused) for t in tables), Counter())),
        "sampled_per_unique": round(sums["sampled_tokens"] / max(sums["unique_tokens"], 1), 3),
        "seconds": round(sum(t.seconds for t in tables), 3),
    }


def unique_tokens(tree: Tree) -> int:
    """The policy's tokens in `tree`, each counted once for all paths that begin alike up to it."""
    known: dict[int, Any] = {}
    count = 0
    for leaf in tree.leaves:
        at = known
        for node in tree.path(leaf):
            for token in node.token_ids:
                if token not in at:
                    at[token] = {}
                    count += node.source == "policy"
                at = at[token]
    return count

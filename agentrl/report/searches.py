"""A searched tree for the page's viewer: its states with their visits and values, what was chosen,
and what no walk ever took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentrl.record import Tree
from agentrl.report.text import is_number, visible
from agentrl.search.counts import unique_tokens
from agentrl.search.table import State, Table

MOST_STATES = 160
"""States drawn of one search: the chosen path, then those most visited, each with its path."""
MAX_CHARS = 240
"""Characters shown of a step, and of the environment's answer to it."""


def search_view(tree: Tree, decode: Callable[[Sequence[int]], str] | None) -> dict[str, Any] | None:
    """The search of `tree`; None if it was not searched.

    Each of `states` has `p` (its parent's place in the list), `n` visits, `q` value, `x` text, and
    where they are known `o` outcome, `c` the judge's word and `e` the environment's answer. `way`
    marks the chosen path, `end` a finished one, `cut` one without room, `off` what was not visited.
    """
    if "search" not in tree.meta:
        return None
    table = Table.from_json(tree.meta["search"])
    chosen = None if table.chosen is None else table.states[table.chosen]
    way = {s.id for s in table.path(chosen)} if chosen else set()
    shown = _shown(table, way)
    place = {s.id: i for i, s in enumerate(shown)}
    views = []
    for state in shown:
        view = _state(tree, table, state, decode)
        view |= {"way": 1} if state.id in way else {}
        views.append({"p": None if state.parent is None else place[state.parent], **view})
    return {
        "strategy": visible(table.strategy),
        "states": views,
        "left": len(table.states) - len(shown),
        "deepest": max(s.depth for s in table.states),
        "sampled": table.tokens,
        "unique": unique_tokens(tree),
        "calls": table.calls,
        "replayed": table.replayed,
        "forked": table.forked,
        "lost": table.lost,
        "refused": sum(table.refused.values()),
    }


def _shown(table: Table, way: set[int]) -> list[State]:
    """The states that are drawn, in their order."""
    kept: set[int] = set()
    for state in sorted(table.states, key=lambda s: (s.id not in way, -s.visits, s.id)):
        path = {s.id for s in table.path(state)}
        if len(kept | path) <= MOST_STATES:
            kept |= path
    return [s for s in table.states if s.id in kept]


def _state(
    tree: Tree, table: Table, state: State, decode: Callable[[Sequence[int]], str] | None
) -> dict[str, Any]:
    if state.parent is None:
        return {"n": _round(state.visits), "q": _round(state.value), "x": ""}
    value = state.q / max(state.visits, 1) if table.strategy == "itool" else state.q
    view: dict[str, Any] = {"n": _round(state.visits), "q": _round(value)}
    path = tree.path(state.said)
    start = next(i for i, n in enumerate(path) if n.id == table.parent(state).node)
    ids = [i for n in path[start + 1 :] for i in n.token_ids]
    view["x"] = _cut(decode(ids) if decode else f"[{len(ids)} tokens]")
    for name, number in (("o", state.outcome), ("c", state.confidence)):
        view |= {name: _round(number)} if number is not None else {}
    if state.acted is not None:
        view["e"] = _cut("\n".join(m.content for m in state.acted.observation))
    if state.terminal:
        view["cut" if state.truncated else "end"] = 1
    if not state.visits:
        view["off"] = 1
    return view


def _round(value: float) -> float | None:
    return round(value, 3) if is_number(value) else None


def _cut(text: str) -> str:
    text = visible(text)
    return text if len(text) <= MAX_CHARS else f"{text[:MAX_CHARS]}\u2026"

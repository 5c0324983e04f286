"""Trees as the page's viewer reads them: attempts with their tokens, and what branched off.

Only a sample of each phase is embedded. Half of it are the same problems in every phase, so that
attempts can be compared; the other half mixes right, wrong, truncated and failed ones.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

from agentrl.evaluate import right
from agentrl.record import Tree, tokens_said
from agentrl.report.searches import search_view
from agentrl.report.text import embed, is_number, visible
from agentrl.types import Attempt, Node

Decode = Callable[[Sequence[int]], str]

PER_PHASE = 60
MAX_TOKENS = 3000
"""Tokens shown of one node; of longer ones the head and the tail."""
MAX_CHARS = 20_000
"""Characters shown of any other text."""
BUDGET = 3_500_000
"""Bytes of embedded trajectories."""
SKETCH_NODES = 200
_NOT_SHOWN = frozenset({"text", "sampled_logprobs"})
_REFERENCE = ("answer", "reference", "expected", "target", "solution")


def outcome(attempt: Attempt) -> str:
    """`failed` (ours), `right`, `truncated`, `wrong` or `unscored`, in this order of precedence."""
    if attempt.error is not None:
        return "failed"
    if right(attempt):
        return "right"
    if attempt.truncated:
        return "truncated"
    return "unscored" if attempt.reward is None else "wrong"


def payload(trees: Mapping[str, Sequence[Tree]], decode: Decode | None) -> dict[str, Any]:
    """Everything the viewer needs, within BUDGET bytes: fewer attempts where they are long."""
    views: dict[tuple[int, int], dict[str, Any]] = {}
    sizes: dict[tuple[int, int], int] = {}
    searches: dict[int, dict[str, Any] | None] = {}
    limit = PER_PHASE
    while True:
        phases: list[dict[str, Any]] = []
        items: list[dict[str, Any]] = []
        size = 0
        drawn: dict[int, int] = {}  # searches by their place, each in the page once
        for phase, grown in trees.items():
            attempts = [(tree, i) for tree in grown for i in range(len(tree.attempts))]
            chosen = choose(attempts, limit)
            phases.append({"name": visible(phase), "total": len(attempts), "shown": len(chosen)})
            for tree, i in chosen:
                key = id(tree), i
                if key not in views:
                    views[key] = attempt_view(tree, i, decode)
                    sizes[key] = len(embed(views[key]))
                size += sizes[key] + 60
                items.append({"phase": visible(phase), **views[key]})
                if id(tree) not in searches:
                    searches[id(tree)] = search_view(tree, decode)
                if (search := searches[id(tree)]) is not None:
                    if id(tree) not in drawn:
                        drawn[id(tree)] = len(drawn)
                        size += len(embed(search))
                    items[-1]["search"] = drawn[id(tree)]
        if limit <= 1 or size <= BUDGET:
            shown: dict[str, Any] = {"phases": phases, "items": items}
            if drawn:
                shown["searches"] = [searches[tree] for tree in drawn]
            return {**shown, "decoded": decode is not None}
        limit = max(1, min(limit - 1, limit * BUDGET // size))


def choose(attempts: Sequence[tuple[Tree, int]], limit: int) -> list[tuple[Tree, int]]:
    """At most `limit` attempts: the same problems for every phase first, then mixed outcomes."""

    def rank(pair: tuple[Tree, int]) -> tuple[int, str, int]:
        tree, i = pair
        return zlib.crc32(tree.task.id.encode("utf-8", "replace")), tree.task.id, i

    ordered = sorted(attempts, key=rank)
    if len(ordered) <= limit:
        return ordered
    common = ordered[: limit // 2]
    by_outcome: dict[str, list[tuple[Tree, int]]] = {}
    for tree, i in ordered[limit // 2 :]:
        by_outcome.setdefault(outcome(tree.attempts[i]), []).append((tree, i))
    mixed = [p for p in chain.from_iterable(zip_longest(*by_outcome.values())) if p is not None]
    return sorted([*common, *mixed[: limit - len(common)]], key=rank)


def attempt_view(tree: Tree, index: int, decode: Decode | None) -> dict[str, Any]:
    """One attempt for the viewer; absent keys mean that there is nothing."""
    attempt = tree.attempts[index]
    path = tree.path(attempt.leaf)
    view: dict[str, Any] = {
        "task": visible(tree.task.id),
        "kind": visible(tree.task.kind),
        "outcome": outcome(attempt),
        "stop": attempt.stop_reason,
        "reward": attempt.reward if is_number(attempt.reward) else None,
        "answer": _cut(attempt.answer),
        "prompt": [[m.role, _cut(m.content)] for m in tree.task.prompt],
        "segments": [_segment(node, decode) for node in path],
        "sampled": sum(map(tokens_said, path)),
    }
    reference = next((tree.task.data[k] for k in _REFERENCE if k in tree.task.data), None)
    if reference is not None:
        view["reference"] = _cut(str(reference))
    if attempt.error is not None:
        view["error"] = _cut(attempt.error)
    if len(tree.attempts) > 1:
        view["attempt"] = [index + 1, len(tree.attempts)]
    if attempt.rewards:
        view["rewards"] = [[r.node, r.value, visible(r.source)] for r in attempt.rewards]
    metrics = _shown(attempt.metrics)
    if metrics:
        view["metrics"] = metrics
    branches = _branches(tree, attempt, path, decode)
    if branches:
        view["branches"] = branches
    if len(tree.leaves) > 1 and len(tree.nodes) <= SKETCH_NODES:
        view["tree"] = [[n.parent, n.source[0], len(n.token_ids)] for n in tree.nodes]
        view["path"] = [n.id for n in path]
    return view


def _shown(data: Mapping[str, Any]) -> dict[str, Any]:
    """The scalars of `data`, and its short lists of scalars as one text."""
    out: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, list | tuple) and 0 < len(value) <= 12:
            value = ", ".join(str(v) for v in value if not isinstance(v, Mapping | list | tuple))
        if isinstance(value, bool) or is_number(value):
            out[visible(str(name))] = value
        elif isinstance(value, str) and value:
            out[visible(str(name))] = _cut(value)[:400]
    return out


def _cut(text: str) -> str:
    text = visible(text)
    if len(text) <= MAX_CHARS:
        return text
    half = MAX_CHARS // 2
    return (
        f"{text[:half]}\n[\u2026 {len(text) - 2 * half} characters left out \u2026]\n{text[-half:]}"
    )


def node_text(node: Node, decode: Decode | None) -> str:
    """A node's text: decoded, or as recorded, or a note of its length."""
    if decode is not None:
        return decode(node.token_ids)
    text = node.info.get("text")
    return text if isinstance(text, str) else f"[{len(node.token_ids)} tokens]"


def _segment(node: Node, decode: Decode | None) -> dict[str, Any]:
    """A node: `s` source, `r` role, `n` id, `c` tokens, `x` text; for sampled nodes `x` is a list
    of the tokens' texts beside `i` (ids) and `l` (log-probabilities)."""
    view: dict[str, Any] = {"s": node.source, "r": node.role, "n": node.id}
    view["c"] = len(node.token_ids)
    info = _shown({k: v for k, v in node.info.items() if k not in _NOT_SHOWN})
    if info:
        view["f"] = info
    if node.source != "policy" or decode is None:
        view["x"] = _cut(node_text(node, decode))
        return view
    ids, logprobs = list(node.token_ids), list(node.logprobs or ())
    gap = None
    if len(ids) > MAX_TOKENS:
        half = MAX_TOKENS // 2
        gap = half, len(ids) - 2 * half
        texts = pieces(ids[:half], decode) + pieces(ids[-half:], decode)
        ids, logprobs = ids[:half] + ids[-half:], logprobs[:half] + logprobs[-half:]
    else:
        texts = pieces(ids, decode)
    view["x"] = [visible(t) for t in texts]
    view["i"] = ids
    view["l"] = [round(p, 3) if is_number(p) else None for p in logprobs]
    if node.policy_version is not None:
        view["v"] = node.policy_version
    if gap is not None:
        view["gap"] = gap
    return view


def pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """The text that each token adds; together they are the text of all.

    A character of several tokens belongs to the last of them. Tokenizers that treat a first token
    apart (leading spaces) are decoded with their left neighbours.
    """
    whole = decode(ids)
    out: list[str] = []
    held = 0
    for i in range(len(ids)):
        text = decode(ids[i - held : i + 1])
        if text.endswith("\ufffd") and held < 3 and i + 1 < len(ids):
            held += 1
            out.append("")
        else:
            held = 0
            out.append(text)
    if "".join(out) == whole:
        return out
    out, before = [], ""
    for i in range(len(ids)):
        start = max(0, i - 8)
        left, both = decode(ids[start:i]) if i else "", decode(ids[start : i + 1])
        out.append(both[len(left) :] if both.startswith(left) else before)
    return out if "".join(out) == whole else [whole] + [""] * (len(ids) - 1)


def _branches(
    tree: Tree, attempt: Attempt, path: Sequence[Node], decode: Decode | None
) -> list[dict[str, Any]]:
    """What leaves the path: `at` the path position it follows, `why`, `x` its text, `count`."""
    below: dict[int | None, list[Node]] = {}
    for node in tree.nodes:
        below.setdefault(node.parent, []).append(node)
    on_path = {n.id for n in path}
    rewritten = {n.id for leaf in attempt.branches for n in tree.path(leaf)}
    others: dict[int, list[int]] = {}
    for number, other in enumerate(tree.attempts, 1):
        if other is not attempt:
            for node in tree.path(other.leaf):
                others.setdefault(node.id, []).append(number)
    out: list[dict[str, Any]] = []
    for at in range(-1, len(path)):
        after = path[at + 1] if at + 1 < len(path) else None
        for child in below.get(path[at].id if at >= 0 else None, ()):
            if child.id in on_path:
                continue
            copied = after is not None and after.info.get("copy_of") == child.id
            ids, place = _downward(below, child), at
            if copied and after is not None:  # the beginning is on the path
                ids, place = ids[len(after.token_ids) :], at + 1
            if not ids or ("copy_of" in child.info and child.id not in below):
                continue
            shown: dict[str, Any] = {"at": place, "count": len(ids), "why": "abandoned"}
            if child.id in rewritten:
                shown["why"] = "rewritten"
            elif child.id in others:
                shown |= {"why": "others", "attempts": others[child.id]}
                shown["ends"] = child.id not in below
            text = decode(ids) if decode else node_text(child, None)
            if shown["why"] != "others" or shown["ends"]:
                shown["x"] = _cut(text)[:4000]
            out.append(shown)
    return out


def _downward(below: Mapping[int | None, Sequence[Node]], node: Node) -> list[int]:
    """The ids from `node` on, along its first children."""
    ids = list(node.token_ids)
    while below.get(node.id):
        node = below[node.id][0]
        ids += node.token_ids
    return ids

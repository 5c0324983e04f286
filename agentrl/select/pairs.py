"""Preference pairs from trees: siblings of a search, finished paths, attempts at one task.

- `siblings`: two steps taken in one state of a search (MCTS-DPO, arXiv 2405.00451; iTool, arXiv
  2501.09766). What stands before them is one path for both and has no weight; so have the tokens
  with which both begin.
- `leaves`: the best and the worst graded path of one tree.
- `attempts`: the best and the worst graded path of a task, whatever trees they are in (RLHF
  Workflow, arXiv 2405.07863).

What failed in our hands, was cut off or not scored is never a side of a pair; equal values make no
pair."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from statistics import fmean
from typing import Any, Literal

from agentrl.chat import Chat
from agentrl.errors import ConfigError, DataError, unknown
from agentrl.evaluate import right
from agentrl.pairing import FLIP, suffix_only, visit_flip
from agentrl.search import State, Table
from agentrl.search.rules import overlap
from agentrl.select.rows import path_sample, unusable
from agentrl.tree import Tree, derive_seed
from agentrl.types import Attempt, Pair, Sample

Origin = Literal["siblings", "leaves", "attempts"]
Negative = Literal["min_q", "random", "next", "any"]

ORIGINS = ("siblings", "leaves", "attempts")
NEGATIVES = ("min_q", "random", "next", "any")
TINY = 1e-9
"""What two differences may differ by and be equal: 0.5 - 0.4 is a gap of 0.1."""


@dataclass(slots=True)
class Pairs:
    """The pairs, and why others are not among them (`dropped` counts reasons)."""

    pairs: list[Pair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def statistics(self) -> dict[str, Any]:
        """How many pairs there are of how many tasks, how far their values are apart, at what
        depth (of siblings), and how many trained tokens their sides have."""
        if not self.pairs:
            return {"pairs": 0, "dropped": dict(self.dropped)}

        def tokens(side: str) -> float:
            return fmean(sum(w > 0 for w in getattr(p, side).weights) for p in self.pairs)

        return {
            "pairs": len(self.pairs),
            "tasks": len({p.meta["task"] for p in self.pairs}),
            "mean_gap": round(fmean(p.meta["gap"] for p in self.pairs), 4),
            "mean_overlap": round(fmean(p.meta["overlap"] for p in self.pairs), 4),
            "chosen_tokens": round(tokens("chosen"), 1),
            "rejected_tokens": round(tokens("rejected"), 1),
            "depths": dict(sorted(Counter(p.meta.get("depth", 0) for p in self.pairs).items())),
            "dropped": dict(self.dropped),
        }


@dataclass(frozen=True, slots=True)
class Filters:
    """Which pairs are good enough. Boundaries are kept.

    The values must be `gap` apart; of the words of the shorter text at most the share `overlap` is
    in the other; the chosen value is `floor` at least. iTool's are 0.1, 0.95 and -0.3. `cap` is the
    most pairs of one tree (8 in MCTS-DPO; of `attempts` there is one a task). `duplicates` leaves
    out a pair whose two texts another pair of the same task has.
    """

    gap: float = 0.0
    overlap: float = 1.0
    floor: float = -math.inf
    cap: int | None = 8
    duplicates: bool = True

    def __post_init__(self) -> None:
        if self.cap is not None and self.cap < 1:
            raise ConfigError(f"cap is 1 or more (null: no bound), not {self.cap}")

    def reason(self, better: float, worse: float, chosen: str, rejected: str) -> str | None:
        """Why these two make no pair; None if they do."""
        if math.isnan(better) or math.isnan(worse):
            raise DataError("a value is nan, which is neither better nor worse; mend the judge")
        if better - worse <= 0:
            return "of one value"
        if better - worse < self.gap - TINY:
            return "too near in value"
        if overlap(chosen, rejected) > self.overlap + TINY:
            return "too near in words"
        return "chosen value too low" if better < self.floor - TINY else None


@dataclass(frozen=True, slots=True)
class _Side:
    sample: Sample
    value: float
    text: str
    depth: int = 0
    visits: int = 0


def select(
    trees: Sequence[Tree],
    chat: Chat,
    *,
    origin: Origin = "siblings",
    negative: Negative = "min_q",
    levels: Literal["path", "all"] = "path",
    right_only: bool = False,
    soft: bool = False,
    length_penalty: float = 0.0,
    by: str = "",
    filters: Filters | None = None,
    seed: int = 0,
) -> Pairs:
    """The pairs of `trees`.

    `negative` says what is rejected (`choose`). `levels`: where the path that the
    search chose passes (MCTS-DPO), or wherever there are siblings (iTool). `right_only` takes trees
    whose last answer is right. `soft` gives each pair of siblings the probability that its label is
    wrong, from their visits (`agentrl.pairing.visit_flip`). `length_penalty` is taken off a reward
    for every character (`max_min_p` of RLHF Workflow); `by` names an attempt's metric that is
    compared in the reward's place, such as a reward model's score. Raises ConfigError for a name
    that does not exist, or settings of another origin; DataError for siblings of trees that no
    search made. A tree whose search failed in our hands makes no siblings, and is counted in
    `dropped`.
    """
    for what, name, known in (
        ("origin", origin, ORIGINS),
        ("negative", negative, NEGATIVES),
        ("levels", levels, ("path", "all")),
    ):
        if name not in known:
            raise unknown(what, name, known)
    if soft and origin != "siblings":
        raise ConfigError("soft labels come from visits, which only siblings have")
    if origin == "siblings" and (by or length_penalty):
        raise ConfigError(
            "by and length_penalty are of leaves and attempts: siblings are compared "
            "by the values that the search gave them"
        )
    _require_metric(by, trees)
    filters, made = filters or Filters(), Pairs()
    kept = [t for t in trees if _usable(t, origin, right_only, made)]
    for group in _groups(kept, origin):
        found = 0
        for sides in _choices(group, chat, origin, levels, (by, length_penalty), made):
            if filters.cap is not None and found >= filters.cap:
                made.dropped["over the cap"] += 1
                continue
            lot = derive_seed(seed, group[0].task.id, found, made.dropped.total())
            found += _pair(sides, filters, negative, lot, soft, origin, made)
    return made


def _require_metric(name: str, trees: Sequence[Tree]) -> None:
    """Raise ConfigError for a metric that no attempt has."""
    attempts = [attempt for tree in trees for attempt in tree.attempts]
    if name and attempts and not any(name in attempt.metrics for attempt in attempts):
        raise unknown("metric", name, {key for attempt in attempts for key in attempt.metrics})


def _usable(tree: Tree, origin: Origin, right_only: bool, made: Pairs) -> bool:
    """Whether pairs can be made of a tree; counts why not. (Of `leaves` and `attempts` each attempt
    is looked at by itself.)"""
    failed = not tree.attempts or tree.attempts[-1].error is not None
    if failed and (origin == "siblings" or right_only):
        made.dropped["failed in our hands"] += 1
        return False
    if right_only and not right(tree.attempts[-1]):
        made.dropped["trees without a right answer"] += 1
        return False
    return True


def _groups(trees: Sequence[Tree], origin: Origin) -> list[list[Tree]]:
    if origin != "attempts":
        return [[t] for t in trees]
    groups: dict[str, list[Tree]] = {}
    for tree in trees:
        groups.setdefault(tree.task.id, []).append(tree)
    return list(groups.values())


def _choices(
    group: Sequence[Tree],
    chat: Chat,
    origin: Origin,
    levels: str,
    worth: tuple[str, float],
    made: Pairs,
) -> list[list[_Side]]:
    """Sets of answers of which two may make a pair."""
    if origin == "siblings":
        return _sibling_sets(group[0], chat, levels)
    sides = []
    for tree, attempt in ((t, a) for t in group for a in t.attempts):
        reason, value = unusable(attempt), attempt.reward
        if worth[0] and reason in (None, "not scored"):
            value = attempt.metrics.get(worth[0])
            reason = "not scored" if value is None else None
        if reason is not None or value is None:
            made.dropped[reason or "not scored"] += 1
        else:
            sides.append(_answer(tree, attempt, chat, value, worth[1]))
    return [sides]


def _answer(tree: Tree, attempt: Attempt, chat: Chat, value: float, penalty: float) -> _Side:
    sample = path_sample(tree, attempt, {"policy"})
    said = [i for i, w in zip(sample.token_ids, sample.weights, strict=True) if w]
    text = chat.decode(chat.without_end(said))
    return _Side(sample, float(value) - penalty * len(text), text)


def _sibling_sets(tree: Tree, chat: Chat, levels: str) -> list[list[_Side]]:
    if "search" not in tree.meta:
        raise DataError(
            f"the tree of task {tree.task.id!r} was not searched: collect it with a search (mcts, "
            "itool, ...), or make pairs of leaves or attempts"
        )
    table = Table.from_json(tree.meta["search"])
    parents = table.states
    if levels == "path":
        if table.chosen is None:
            raise DataError(f"the search of task {tree.task.id!r} was not finished; go on with it")
        parents = table.path(table.states[table.chosen])
    known = ([s for s in table.children(p) if s.judged or s.full] for p in parents)
    return [[_step(tree, table, s, chat) for s in states] for states in known if len(states) > 1]


def _step(tree: Tree, table: Table, state: State, chat: Chat) -> _Side:
    """A step as a row: the path up to it has no weight."""
    start, own = table.parent(state).node, False
    ids: list[int] = []
    weights: list[float] = []
    for node in tree.path(state.said):
        ids += node.token_ids
        said_here = own and (node.source == "policy" or "gold" in node.info)
        weights += [float(said_here)] * len(node.token_ids)
        own = own or node.id == start
    said = [i for i, w in zip(ids, weights, strict=True) if w]
    value = _mean_earned(state) if table.strategy == "itool" else state.q
    meta = {"task": tree.task.id, "tokenizer": tree.meta.get("tokenizer"), "step": state.depth}
    sample = Sample(ids, weights, meta=meta)
    text = chat.decode(chat.without_end(said))
    return _Side(sample, value, text, state.depth, state.full)


def _mean_earned(state: State) -> float:
    """iTool's q is a sum: a step's first value and, for a visit, the mean of what they earned. (The
    sum over visits grows with them, and as a mean the first value shrinks with them.)"""
    return state.estimate + (state.q - state.estimate) / max(state.visits, 1)


def _pair(
    sides: Sequence[_Side],
    filters: Filters,
    negative: Negative,
    lot: int,
    soft: bool,
    origin: Origin,
    made: Pairs,
) -> int:
    """Make one pair of the sides if they have one. Returns how many were made."""
    if len(sides) < 2:
        made.dropped["nothing to compare with"] += 1
        return 0
    picked = choose([s.value for s in sides], negative, lot)
    if picked is None:
        made.dropped["of one value"] += 1
        return 0
    chosen, rejected = (sides[i] for i in picked)
    reason = filters.reason(chosen.value, rejected.value, chosen.text, rejected.text)
    texts = (chosen.text, rejected.text)
    task = chosen.sample.meta["task"]
    if reason is None and filters.duplicates:
        same = any(p.meta["task"] == task and p.meta["texts"] == texts for p in made.pairs)
        reason = "a duplicate" if same else None
    if reason is None and _prefix(chosen.sample, rejected.sample):
        reason = "one is the beginning of the other"
    if reason is not None:
        made.dropped[reason] += 1
        return 0
    made.pairs.append(_made(chosen, rejected, soft, origin))
    return 1


def _prefix(a: Sample, b: Sample) -> bool:
    n = min(len(a.token_ids), len(b.token_ids))
    return list(a.token_ids[:n]) == list(b.token_ids[:n])


def _made(chosen: _Side, rejected: _Side, soft: bool, origin: Origin) -> Pair:
    meta: dict[str, Any] = {
        "task": chosen.sample.meta["task"],
        "origin": origin,
        "gap": chosen.value - rejected.value,
        "values": (chosen.value, rejected.value),
        "overlap": overlap(chosen.text, rejected.text),
        "texts": (chosen.text, rejected.text),
    }
    pair = Pair(chosen.sample, rejected.sample, meta=meta)
    if origin != "siblings":
        return pair
    meta |= {"depth": chosen.depth, "visits": (chosen.visits, rejected.visits)}
    if soft:
        meta[FLIP] = visit_flip(chosen.visits, rejected.visits)
    return suffix_only(pair)


def choose(
    values: Sequence[float | None], negative: Negative = "min_q", lot: int = 0
) -> tuple[int, int] | None:
    """The indices of a chosen and a rejected value; None where all are equal.

    Chosen is the best, the first of equal ones; rejected by `negative` the worst (`min_q`; RLHF
    Workflow's `max_min`), one that `lot` draws of all others (`random`; its `max_random`, and what
    MCTS-DPO's released code does whatever its flag says), or the next best (`next`; its `max_max`).
    `any` draws two and chooses the better (its `random`). What is drawn may be equal to the chosen
    one. A value None takes no part. Raises DataError for a nan.
    """
    best = max_min(values)
    if best is None or negative == "min_q":
        return best
    known = {i: v for i, v in enumerate(values) if v is not None}
    if negative == "any":
        one, other = sorted(Random(lot).sample(sorted(known), 2), key=lambda i: (-known[i], i))
        return one, other
    others = [i for i in known if i != best[0]]
    if negative == "random":
        return best[0], others[lot % len(others)]
    return best[0], max(others, key=lambda i: (known[i], -i))


def max_min(rewards: Sequence[float | None]) -> tuple[int, int] | None:
    """The indices of the best and the worst reward (RLHF Workflow's `max_min`), the first of equal
    ones; None where all are equal. A reward None takes no part. Raises DataError for a nan, on
    which argmax and argmin agree, so that the row would vanish without a word."""
    known = [(r, i) for i, r in enumerate(rewards) if r is not None]
    if any(math.isnan(r) for r, _ in known):
        raise DataError("a reward is nan; mend what gave it")
    if not known:
        return None
    best = max(known, key=lambda x: (x[0], -x[1]))
    worst = min(known)
    return None if best[0] == worst[0] else (best[1], worst[1])


def lowest(pairs: Sequence[Pair], scores: Sequence[float], share: float) -> list[Pair]:
    """The `share` of pairs with the lowest scores, in their order, at least one: those that
    displace the chosen answer least where the scores are `agentrl.train.ches.scores` (arXiv
    2410.08847 keeps 0.05). Raises ConfigError unless 0 < share <= 1."""
    if not 0 < share <= 1:
        raise ConfigError(f"share is above 0 and at most 1, not {share}")
    if len(scores) != len(pairs):
        raise ConfigError(f"{len(scores)} scores for {len(pairs)} pairs")
    n = max(1, int(share * len(pairs)))
    kept = sorted(range(len(pairs)), key=lambda i: (scores[i], i))[:n]
    return [replace(pairs[i], meta={**pairs[i].meta, "ches": scores[i]}) for i in sorted(kept)]

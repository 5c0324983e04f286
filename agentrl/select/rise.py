"""RISE's training rows: one a turn, with loss on that turn alone, weighted by its reward.

ArXiv 2407.18219. A row is the conversation up to a turn of `rollouts.rise_collect`; the earlier
answers in it are context. Every row says three different things in three fields: which tokens are
learnt (`mask`), what the answer earned (`reward`), and, once weighted, how much it counts. A wrong
answer has reward 0 and a positive weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from agentrl.errors import ConfigError, DataError, unknown
from agentrl.select.rows import TRAINABLE
from agentrl.select.weights import reward_weights
from agentrl.tree import Tree
from agentrl.types import Attempt, Node, Sample

Keep = Literal["all", "better", "best", "success"]
Baseline = Literal["none", "prompt", "state"]
Aggregation = Literal["row_mean", "token_sum"]

KEEP = ("all", "better", "best", "success")
BASELINES = ("none", "prompt", "state")
AGGREGATIONS = ("row_mean", "token_sum")

MAX_REPEATS = 150
"""An answer in which one word occurs more often is repetition (released code)."""
MAX_WORD = 300
"""An answer with a longer word (in characters) is repetition as well."""


@dataclass(frozen=True, slots=True)
class Row:
    """A turn to learn. `mask` has the path's length; `state_mean` is the mean reward of all
    answers sampled at the same state; `turn` counts from 0; `tokenizer` is its fingerprint."""

    token_ids: Sequence[int]
    mask: Sequence[bool]
    reward: float
    task: str
    turn: int
    state_mean: float
    tokenizer: str | None = None


@dataclass(slots=True)
class Selection:
    """The rows, and why the other turns are not among them (`dropped` counts reasons)."""

    rows: list[Row] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def samples(
        self,
        *,
        tau: float = 0.4,
        baseline: Baseline = "prompt",
        agg: Aggregation = "row_mean",
        cap: float | None = 20.0,
        unit_mean: bool = True,
    ) -> list[Sample]:
        """Rows for the loss `sft_rows`, weighted by `exp((reward - baseline) / tau)`.

        The baseline is the mean reward of the rows of the same `prompt` (the paper, section 3.2),
        of all answers at the same `state`, or `none` (the released code). `row_mean` weighs the
        mean over a row's tokens (the released code), `token_sum` their sum (the paper's equation
        3.6). See `select.weights.reward_weights` for `cap` and `unit_mean`, which are ours.
        """
        if agg not in AGGREGATIONS:
            raise unknown("aggregation", agg, AGGREGATIONS)
        if baseline not in BASELINES:
            raise unknown("baseline", baseline, BASELINES)
        centred = [r.reward - (r.state_mean if baseline == "state" else 0.0) for r in self.rows]
        weights = reward_weights(
            centred,
            tau=tau,
            baseline="group" if baseline == "prompt" else "none",
            groups=[r.task for r in self.rows],
            cap=cap,
            unit_mean=unit_mean,
        )
        return [_sample(r, w, agg) for r, w in zip(self.rows, weights, strict=True)]


def select(
    trees: Sequence[Tree],
    *,
    keep: Keep = "all",
    improved_only: bool = False,
    max_length: int | None = None,
) -> Selection:
    """The turns of each tree's chosen attempt that are to be learnt.

    Empty answers, and answers that stand in the attempt already, are taken out with the request
    that followed them. Of the turns that are left, `all` keeps every one, `better` those whose
    reward is above the turn's before, `best` those not below any before, `success` the right ones;
    the first turn stays in all but `success`. With `improved_only`, a last turn of which no
    candidate was right is dropped. Truncated answers, repetition, and rows longer than `max_length`
    tokens are dropped (a row is never cut: its end is what is learnt).

    Raises DataError for trees in which a teacher wrote an earlier turn: the policy would learn
    from states that it does not get into.
    """
    if keep not in KEEP:
        raise unknown("keep rule", keep, KEEP)
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length is at least 1 token, not {max_length}")
    found = Selection()
    for tree in trees:
        reason = _unusable(tree)
        if reason is None:
            _add_rows(found, tree, keep, improved_only, max_length)
        else:
            found.dropped[reason] += 1
    return found


def _unusable(tree: Tree) -> str | None:
    """Why nothing of a tree can be learnt, or None."""
    if not tree.attempts or any(a.error for a in tree.attempts):
        return "failed in our hands"
    attempt = tree.attempts[-1]
    if len(attempt.rewards) != len(attempt.metrics.get("turns", ())):
        return "not scored"
    return None


def _add_rows(
    found: Selection, tree: Tree, keep: Keep, improved_only: bool, max_length: int | None
) -> None:
    """The rows of one tree's chosen attempt."""
    attempt = tree.attempts[-1]
    rewards = [site.value for site in attempt.rewards]
    texts = [str(turn["text"]).strip() for turn in attempt.metrics["turns"]]
    gone = {i for i, text in enumerate(texts) if not text or text in texts[:i]}
    found.dropped.update("duplicate" if texts[i] else "empty" for i in gone)
    last, before = len(rewards) - 1, list[float]()
    for i in sorted(set(range(len(rewards))) - gone):
        if repetitive(texts[i]):  # nor is what was said after it worth learning
            found.dropped["repetition"] += 1
            return
        path = tree.path(attempt.rewards[i].node)
        said = _said(path)
        if i < last and any("by" in node.info for node in said):
            raise DataError(
                f"task {tree.task.id!r}: a teacher wrote turn {i + 1} of {last + 1}. Only the last "
                "one may be improved, or the states are not those that the policy gets into"
            )
        nodes = _without(path, {g for g in gone if g < i}, i)
        length = 0 if nodes is None else sum(len(node.token_ids) for node in nodes)
        candidates = _candidates(attempt) if i == last else [rewards[i]]
        checks = {
            f"not {keep}": not _kept(keep, rewards[i], before),
            "truncated": bool(attempt.metrics["turns"][i]["truncated"]),
            "no candidate right": improved_only
            and i == last
            and "candidate" in attempt.metrics
            and max(candidates) < 1.0,
            "a turn that was taken out is part of its rewritten history": nodes is None,
            "too long": max_length is not None and length > max_length,
        }
        before.append(rewards[i])
        reason = next((why for why, holds in checks.items() if holds), None)
        if reason is not None:
            found.dropped[reason] += 1
        elif nodes is not None:
            found.rows.append(_row(tree, i, rewards[i], nodes, said, fmean(candidates)))


def repetitive(text: str) -> bool:
    """True if a word occurs over `MAX_REPEATS` times or has over `MAX_WORD` characters."""
    counts = Counter(text.lower().split())
    return any(n > MAX_REPEATS or len(word) > MAX_WORD for word, n in counts.items())


def _kept(keep: Keep, reward: float, before: Sequence[float]) -> bool:
    if keep == "success":
        return reward >= 1.0
    if not before or keep == "all":
        return True
    return reward > before[-1] if keep == "better" else reward >= max(before)


def _candidates(attempt: Attempt) -> list[float]:
    """The rewards of all answers sampled at the state of the attempt's last turn."""
    rewards = [float(r) for r in attempt.metrics.get("candidates", ()) if r is not None]
    return rewards or [attempt.rewards[-1].value]


def _is_shown(node: Node) -> bool:
    """True for what a turn begins with: messages, and an end token that was not sampled."""
    return node.role == "user" or node.source == "template"


def _said(path: Sequence[Node]) -> list[Node]:
    """The nodes of the last turn on a path."""
    said: list[Node] = []
    for node in reversed(path):
        if _is_shown(node):
            break
        said.append(node)
    return said[::-1]


def _without(path: Sequence[Node], gone: Collection[int], turn: int) -> list[Node] | None:
    """The path to turn number `turn` without the turns in `gone`, each taken out with the request
    that followed it. None if they are no longer turns of their own there (a template rewrote
    them)."""
    if not gone:
        return list(path)
    parts: list[tuple[list[Node], list[Node]]] = [([], [])]
    for node in path:
        shown = _is_shown(node)
        if shown and parts[-1][1]:
            parts.append(([], []))
        parts[-1][0 if shown else 1].append(node)
    if len(parts) != turn + 1:
        return None
    nodes: list[Node] = []
    request: list[Node] = []
    for i, (shown_nodes, said) in enumerate(parts):
        request = request or shown_nodes
        if i not in gone:
            nodes += [*request, *said]
            request = []
    return nodes


def _row(
    tree: Tree, turn: int, reward: float, nodes: Sequence[Node], said: Sequence[Node], mean: float
) -> Row:
    learnt = {node.id for node in said if node.source in TRAINABLE}
    ids = [i for node in nodes for i in node.token_ids]
    mask = [node.id in learnt for node in nodes for _ in node.token_ids]
    return Row(ids, mask, reward, tree.task.id, turn, mean, tree.meta.get("tokenizer"))


def _sample(row: Row, weight: float, agg: Aggregation) -> Sample:
    """The row with its weight on every learnt token, or shared out among them."""
    each = weight / sum(row.mask) if agg == "row_mean" else weight
    weights = [each if learnt else 0.0 for learnt in row.mask]
    meta = {
        "task": row.task,
        "turn": row.turn,
        "reward": row.reward,
        "weight": weight,
        "tokenizer": row.tokenizer,
    }
    return Sample(row.token_ids, weights, meta=meta)

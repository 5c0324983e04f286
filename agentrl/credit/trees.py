"""From attempts in token trees to episodes, and from their advantages to training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agentrl.credit.base import Episode, Site
from agentrl.errors import DataError
from agentrl.record import Tree
from agentrl.types import Attempt, Node, Sample


@dataclass(frozen=True, slots=True)
class Paths:
    """The paths on which an attempt sampled, laid end to end: turns the template rewrote, then the
    attempt's own. A token that stands on several of them counts on the first."""

    nodes: list[list[Node]]
    counted: list[list[bool]]
    """for each node whether its tokens count here: sampled, and on no earlier path"""
    asked: list[list[bool]]
    """for each node whether it is a user's message that stands on no earlier path"""


def paths_of(tree: Tree, attempt: Attempt) -> Paths:
    """The attempt's branches and its path, each sampled token counted once; the beginning of a
    node that a fork copied does not count where the node itself stands on one of them.

    Raises DataError for an attempt in which another model spoke in the policy's place (a teacher,
    an endpoint): without log-probabilities there is nothing to give credit to.
    """
    nodes = [tree.path(leaf) for leaf in (*attempt.branches, attempt.leaf)]
    others = {str(n.info["by"]) for path in nodes for n in path if "by" in n.info}
    if others:
        raise DataError(
            f"task {tree.task.id!r}: {', '.join(sorted(others))} spoke in this attempt and gave no "
            "log-probabilities. Policy gradients and importance weights need what the trained "
            "policy itself sampled; imitate this by SFT, or sample with the policy."
        )
    seen: set[int] = set()
    present = {n.id for path in nodes for n in path}
    counted, asked = [], []
    for path in nodes:
        counted.append([False] * len(path))
        asked.append([False] * len(path))
        for i, node in enumerate(path):
            original = node.info.get("copy_of", node.id)
            if original != node.id and original in present:
                continue
            counted[-1][i] = node.source == "policy" and original not in seen
            asked[-1][i] = node.role == "user" and original not in seen
            seen.add(original)
    return Paths(nodes, counted, asked)


def turn_numbers(
    nodes: Sequence[Node],
    counted: Sequence[bool],
    first: int = 0,
    asked: Sequence[bool] | None = None,
) -> list[int]:
    """The turn of every token of a path, from `first`; -1 is outside of any.

    A turn is a run of counted nodes; with `asked`, all that is counted between two nodes that are
    marked there (what stands before the first of them belongs to the turn before `first`).
    """
    turns: list[int] = []
    turn, new = first - 1, asked is None or first == 0
    for i, (node, counts) in enumerate(zip(nodes, counted, strict=True)):
        new |= asked[i] if asked is not None else not counts
        if counts and new:
            turn, new = turn + 1, False
        turns.extend([turn if counts else -1] * len(node.token_ids))
    return turns


def episode_of(
    tree: Tree, attempt: Attempt, *, outcome: bool = True, answers: bool = False
) -> Episode:
    """The attempt as credit sees it.

    A turn is what was sampled in one go between other tokens (a hint or tool output ends it); with
    `answers`, all that was sampled between two messages of the user, so that code which ran inside
    an answer does not part it. `TurnReward`s stand at their node's last token; with `outcome` the
    attempt's own reward stands at the very end, with source `outcome` (pass False where the list
    has it already). An attempt with an error, or without any reward, is not valid. `states` are the
    tokens between a turn and the one before it: what the policy was shown.
    """
    paths = paths_of(tree, attempt)
    turns: list[int] = []
    states: list[tuple[int, ...]] = []
    ends: dict[int, int] = {}
    for nodes, counted, asked in zip(paths.nodes, paths.counted, paths.asked, strict=True):
        first = max(turns, default=-1) + 1
        own = turn_numbers(nodes, counted, first, asked if answers else None)
        states += _shown(own, [i for node in nodes for i in node.token_ids], len(states))
        at = len(turns)
        for node in nodes:
            at += len(node.token_ids)
            ends.setdefault(node.id, at - 1)
            ends.setdefault(node.info.get("copy_of", node.id), at - 1)
        turns += own
    rewards = []
    for reward in attempt.rewards:
        if reward.node not in ends:
            raise DataError(f"a reward at node {reward.node}, which is not on the attempt's paths")
        rewards.append(Site(ends[reward.node], reward.value, reward.source))
    if outcome and attempt.reward is not None:
        rewards.append(Site(len(turns) - 1, attempt.reward, "outcome"))
    valid = attempt.error is None and bool(rewards)
    return Episode(turns, rewards, valid, attempt.truncated, states)


def _shown(turns: Sequence[int], ids: Sequence[int], first: int) -> list[tuple[int, ...]]:
    """For each turn of a path, from `first`, what stands between it and the turn before it."""
    states: list[tuple[int, ...]] = []
    shown: list[int] = []
    for turn, token in zip(turns, ids, strict=True):
        if turn < 0:
            shown.append(token)
        elif turn == first + len(states):
            states.append(tuple(shown))
            shown = []
    return states


def credited(
    tree: Tree,
    attempt: Attempt,
    advantages: Sequence[float],
    *,
    logprobs: Literal["policy", "sampled"] = "policy",
    masked: Sequence[bool] = (),
) -> list[Sample]:
    """Training rows of an attempt: one a path, weight 1 on the tokens that it sampled there.

    `advantages` are those of `episode_of`'s episode. `logprobs` are the policy's own at temperature
    1 (for ratios of policies), or of the distribution really `sampled` from, where temperature,
    top-p or top-k made it another one (for importance weights). Other tokens have weight 0, and so
    have those that are `masked` (a flag each, as the advantages). Paths on which nothing counts
    are left out. Raises ValueError for another number of advantages.
    """
    paths = paths_of(tree, attempt)
    total = sum(len(n.token_ids) for nodes in paths.nodes for n in nodes)
    if len(advantages) != total:
        raise ValueError(f"{len(advantages)} advantages for {total} tokens")
    rows, start = [], 0
    for nodes, counted in zip(paths.nodes, paths.counted, strict=True):
        ids = [i for node in nodes for i in node.token_ids]
        own = list(advantages[start : start + len(ids)])
        start += len(ids)
        weights: list[float] = []
        nats: list[float] = []
        for node, counts in zip(nodes, counted, strict=True):
            weights += [float(counts)] * len(node.token_ids)
            nats += _logprobs(node, logprobs) if counts else [0.0] * len(node.token_ids)
        if masked:
            hidden = masked[start - len(ids) : start]
            weights = [0.0 if no else w for no, w in zip(hidden, weights, strict=True)]
        if not any(weights):
            continue
        meta = {"task": tree.task.id, "tokenizer": tree.meta.get("tokenizer")}
        rows.append(Sample(ids, weights, own, nats, meta=meta))
    return rows


def _logprobs(node: Node, which: Literal["policy", "sampled"]) -> list[float]:
    if which == "sampled" and "sampled_logprobs" in node.info:
        return list(node.info["sampled_logprobs"])
    return list(node.logprobs or ())

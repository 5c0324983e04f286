"""AgentRefine's rows: wrong turns stay as context, what follows them is learnt.

arXiv 2501.01702: `L = -sum_i 1[turn i not wrong] sum_j log pi(z_ij | all before)`, divided by the
number of tokens that are kept. Deleting a wrong turn instead would take away what its repair
refers to. The verdicts are the environment's own (`agentrl.rollouts.refine`); the paper has the
model that made up the game judge it, and so filters by `agentrl.rollouts.synthesize`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentrl.chat import Chat
from agentrl.credit.trees import turn_numbers
from agentrl.errors import unknown
from agentrl.evaluate import Graded, right
from agentrl.select.dedupe import distinct
from agentrl.select.rows import TRAINABLE, conversation_sample, path_sample
from agentrl.select.weights import drop_turns
from agentrl.tree import Tree
from agentrl.types import Attempt, Node, Sample
from envs.scenarios.games import conversation

Keep = Literal["refined", "clean", "all"]
KEEP: tuple[Keep, ...] = ("refined", "clean", "all")


@dataclass(slots=True)
class Selection:
    """What was kept, and why the rest was not (`dropped` counts reasons)."""

    kept: list[Graded] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    def samples(self, *, mask: bool = True) -> list[Sample]:
        """The attempts' rows; with `mask` wrong turns carry no loss. Rows without any are left
        out."""
        rows = [row for kept in self.kept for row in refined_samples(*kept, mask=mask)]
        return [row for row in rows if any(row.weights[1:])]


def select(
    graded: Sequence[Graded],
    keep: Keep = "refined",
    *,
    min_errors: int = 1,
    cap: int | None = None,
) -> Selection:
    """Choose among attempts.

    `refined`: those that reached the goal after at least `min_errors` wrong turns (the paper's
    verifier wants 2, `min_errors` of synthesized games); `clean`: those that reached it without
    any, which is plain trajectory tuning; `all` that reached it. At most `cap` in all, the first
    ones. Raises ConfigError for another `keep`.
    """
    if keep not in KEEP:
        raise unknown("keep", keep, KEEP)
    result = Selection()
    for tree, attempt in graded:
        reason = reject(tree, attempt, keep, min_errors)
        if reason is None and cap is not None and len(result.kept) >= cap:
            reason = "over the cap"
        if reason is None:
            result.kept.append((tree, attempt))
        else:
            result.dropped[reason] += 1
    return result


def reject(tree: Tree, attempt: Attempt, keep: Keep, min_errors: int = 1) -> str | None:
    """Why an attempt is not kept, or None."""
    errors = sum(not ok for ok in verdicts(tree, attempt))
    checks = {
        "failed in our hands": attempt.error is not None,
        "truncated": attempt.truncated,
        "goal not reached": not right(attempt),
        "too few errors": keep == "refined" and errors < min_errors,
        "erred": keep == "clean" and errors > 0,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def verdicts(tree: Tree, attempt: Attempt) -> list[bool]:
    """Whether each of the attempt's turns was right, as `agentrl.rollouts.refine` recorded it."""
    return [
        bool(node.info["ok"])
        for _, nodes, counted in _paths(tree, attempt)
        for node, counts in zip(nodes, counted, strict=True)
        if counts and "ok" in node.info
    ]


def refined_samples(tree: Tree, attempt: Attempt, *, mask: bool = True) -> list[Sample]:
    """The attempt with loss on what the policy (or its teacher) said, wrong turns left out by
    `mask`.

    One row, or several where the template rewrote earlier turns: each turn counts on the path on
    which it was said.
    """
    rows = []
    for leaf, nodes, counted in _paths(tree, attempt):
        turns = turn_numbers(nodes, counted)
        dropped, at = {-1}, 0  # -1: nothing that was said here
        for node in nodes:
            at += len(node.token_ids)
            if mask and node.info.get("ok") is False:
                dropped.add(turns[at - 1])
        rows.append(drop_turns(path_sample(tree, replace(attempt, leaf=leaf)), turns, dropped))
    return rows


def _paths(tree: Tree, attempt: Attempt) -> Iterator[tuple[int, list[Node], list[bool]]]:
    """The paths on which the attempt said something: leaf, nodes, and for each node whether it was
    said there, and on no earlier path."""
    seen: set[int] = set()
    for leaf in (*attempt.branches, attempt.leaf):
        nodes = tree.path(leaf)
        originals = [node.info.get("copy_of", node.id) for node in nodes]
        said = [node.source in TRAINABLE for node in nodes]
        yield leaf, nodes, [s and i not in seen for s, i in zip(said, originals, strict=True)]
        seen.update(originals)


def scenarios(graded: Sequence[Graded]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The accepted games of `agentrl.rollouts.synthesize`, and why the others are left out.

    Of environments that are nearly the same the first one is kept: personas alone do not make them
    different.
    """
    found, dropped = [], Counter[str]()
    for _, attempt in graded:
        scenario = attempt.metrics.get("scenario")
        if attempt.error is not None:
            dropped["failed in our hands"] += 1
        elif not right(attempt) or scenario is None:
            dropped["never accepted"] += 1
        else:
            found.append(scenario)
    kept = distinct([json.dumps(one["script"], sort_keys=True) for one in found])
    dropped["duplicate"] = len(found) - len(kept)
    return [found[i] for i in kept], +dropped


def scenario_sample(scenario: Mapping[str, Any], chat: Chat, *, mask: bool = True) -> Sample:
    """A made-up game as a chat in the student's template; turns that its master flagged are left
    out of the loss by `mask`."""
    turns = scenario["turns"]
    wrong = {2 * i + 1 for i, turn in enumerate(turns) if not turn["ok"]} if mask else set()
    sample = conversation_sample(chat, conversation(scenario["script"], turns), untrained=wrong)
    sample.meta["kind"] = "scenario"
    return sample

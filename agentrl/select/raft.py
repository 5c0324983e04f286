"""RAFT: fine-tune on the best of several answers (arXiv 2304.06767, algorithm 1).

`local` keeps the winner of each prompt, `global` the best of all answers together: as many as
there are prompts, which is the top 1/K of K answers each. The global ranking compares rewards of
different prompts, so easy ones crowd out hard ones; `Selection.dropped` counts the prompts of which
nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from agentrl.errors import unknown
from agentrl.evaluate import Graded
from agentrl.select.rows import Selection, unusable
from agentrl.tree import derive_seed

Ranking = Literal["local", "global"]


def reward(graded: Graded) -> float:
    """The environment's reward of an attempt."""
    return float(graded[1].reward or 0.0)


def shaped(score: float, logprob: float, ref_logprob: float, kl: float) -> float:
    """`r - kl * (log p(y|x) - log p_0(y|x))`, the log-probabilities summed over the answer."""
    return score - kl * (logprob - ref_logprob)


def select(
    graded: Sequence[Graded],
    *,
    ranking: Ranking = "local",
    keep: int | None = None,
    score: Callable[[Graded], float] = reward,
    least: float | None = None,
    seed: int = 0,
) -> Selection:
    """The attempts to train on.

    `keep` is how many are kept, of each prompt (`local`, by default 1) or of all (`global`, by
    default the number of prompts). `score` is what is compared; `least` is the reward below which
    an attempt is not kept, however good it is among its own. Equal scores are put in an order drawn
    from `seed`: the order of sampling would favour one place in the batch. Attempts that failed,
    were cut off or not scored do not take part. Raises ConfigError for another ranking.
    """
    if ranking not in ("local", "global"):
        raise unknown("ranking", ranking, ("local", "global"))
    result = Selection()
    groups: dict[str, list[Graded]] = {}
    prompts = {tree.task.id for tree, _ in graded}
    for tree, attempt in graded:
        if (reason := unusable(attempt)) is not None:
            result.dropped[reason] += 1
        else:
            at = tree.task.id if ranking == "local" else ""
            groups.setdefault(at, []).append((tree, attempt))
    wanted = keep if keep is not None else (1 if ranking == "local" else len(prompts))
    for group in groups.values():
        ranked = sorted(group, key=lambda g: (-score(g), _lot(g, seed)))
        for place, (tree, attempt) in enumerate(ranked):
            if place >= wanted:
                result.dropped["not among the best"] += 1
            elif least is not None and reward((tree, attempt)) < least:
                result.dropped["reward too low"] += 1
            else:
                result.kept.append((tree, attempt))
    if lost := prompts - {tree.task.id for tree, _ in result.kept}:
        result.dropped["prompts without a row"] = len(lost)
    return result


def _lot(graded: Graded, seed: int) -> int:
    tree, attempt = graded
    return derive_seed(seed, tree.task.id, tree.meta.get("attempt", 0), attempt.leaf)

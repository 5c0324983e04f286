"""Each turn is credited with what came after it, not with what was earned before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from agentrl.credit.base import Advantages, Episode, others_mean, over_turns
from agentrl.errors import unknown

Baseline = Literal["leave_one_out", "group", "none"]


def discounted(rewards: Sequence[float], gamma: float = 1.0) -> list[float]:
    """`G_k = r_k + gamma * G_(k+1)`."""
    found, later = [0.0] * len(rewards), 0.0
    for k in range(len(rewards) - 1, -1, -1):
        found[k] = later = rewards[k] + gamma * later
    return found


def returns_to_go(
    group: Sequence[Episode], *, gamma: float = 1.0, baseline: Baseline = "leave_one_out"
) -> Advantages:
    """The return from each turn on, less a baseline for turns of the same number.

    The baseline of turn k is made of the attempts that reached turn k: of the others
    (`leave_one_out`; 0 where no other did), or of all (`group`). `gamma` discounts by turns.

    Bias when the policy chooses when to stop: `leave_one_out` and `none` have none, since whether
    and how the others reached turn k says nothing of what this attempt does in it. `group` has: its
    own return is in the mean, which scales turn k by 1 - 1/n_k, and n_k, how many reached it, falls
    with k: late turns are learnt more slowly, and the only attempt that went on gets nothing at
    all. Dividing each turn by its own deviation would add to that (verl issue 7244) and is not
    offered. gamma < 1 values a reward less the more turns were taken before it: it teaches to stop
    early. Raises ConfigError for an unknown baseline.
    """
    returns = [discounted(e.turn_rewards(), gamma) for e in group]
    return [over_turns(e, a) for e, a in zip(group, by_turn(returns, baseline), strict=True)]


def by_turn(values: Sequence[Sequence[float]], baseline: Baseline) -> list[list[float]]:
    """Each attempt's value of each turn, less the baseline over attempts that reached the turn."""
    if baseline not in ("leave_one_out", "group", "none"):
        raise unknown("baseline", baseline, ("leave_one_out", "group", "none"))
    found = [list(v) for v in values]
    if baseline == "none":
        return found
    for k in range(max(map(len, values), default=0)):
        reached = [i for i, v in enumerate(values) if len(v) > k]
        here = [values[i][k] for i in reached]
        if baseline == "group":
            bases = [math.fsum(here) / len(here)] * len(here)
        else:
            bases = others_mean(here)
        for i, base in zip(reached, bases, strict=True):
            found[i][k] -= base
    return found

"""SCoRe: reward the second attempt for being better than the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from agentrl.credit.base import Advantages, Episode, over_turns
from agentrl.credit.kl import SOURCE as KL
from agentrl.credit.returns_to_go import by_turn
from agentrl.credit.trees import episode_of
from agentrl.record import Tree
from agentrl.types import Attempt


def shaped(
    rewards: Sequence[float], *, alpha: float = 10.0, stage: Literal[1, 2] = 2
) -> list[float]:
    """Stage II: `r_t + alpha * (r_t - r_(t-1))` from the second turn, the first as it is.

    SCoRe, arXiv 2409.12917, and, for more than two turns, its appendix A.1. Stage I: only
    the last turn's reward, as it is.
    """
    if stage == 1:
        return [0.0] * (len(rewards) - 1) + list(rewards[-1:])
    bonus = [b - a for a, b in pairwise(rewards)]
    return [*rewards[:1], *(r + alpha * d for r, d in zip(rewards[1:], bonus, strict=True))]


def score_shaping(
    group: Sequence[Episode], *, alpha: float = 10.0, stage: Literal[1, 2] = 2
) -> Advantages:
    """Each turn's own shaped reward (gamma is 0), less the mean of the other attempts' same turn.

    A turn is one answer to the problem. Rewards of source `kl` (`kl_rewards`) are added after the
    shaping, each to its own turn, so that the bonus is of correctness alone. In stage I the first
    turn gets no reward but its KL, which must be strong there and weak in the last turn.

    Bias: none of the leave-one-out baseline. The bonus itself changes what is maximised: a turn
    that makes a right answer wrong costs alpha, and the first turn is not credited with the second
    (gamma = 0), so the policy cannot gain by failing first on purpose. Every attempt must have the
    same number of turns: one that may stop after a right answer would skip the turn in which it
    could only lose.
    """
    rewards = []
    for episode in group:
        own = shaped(episode.without(KL).turn_rewards(), alpha=alpha, stage=stage)
        penalties = episode.only(KL).turn_rewards()
        rewards.append([r + p for r, p in zip(own, penalties, strict=True)])
    made = by_turn(rewards, "leave_one_out")
    return [over_turns(e, a) for e, a in zip(group, made, strict=True)]


def corrections(tree: Tree, attempt: Attempt, *, answers: int = 2) -> Episode:
    """An attempt of several answers (`agentrl.rollouts.turns`) as SCoRe credits it: a turn each.

    Answers that a limit cut off, and those listed in `metrics["offline"]` (another policy's), are
    masked. An attempt in which not every one of the `answers` was sampled and scored is not valid:
    a turn that is missing has no baseline, and would leave its reward to the turn before it.
    """
    episode = episode_of(tree, attempt, outcome=False, answers=True)
    cut = {k for k, turn in enumerate(attempt.metrics["turns"]) if turn["truncated"]}
    whole = episode.n_turns == len(attempt.rewards) == answers
    return replace(
        episode,
        valid=episode.valid and whole,
        masked=frozenset(cut.union(attempt.metrics.get("offline", ()))),
    )

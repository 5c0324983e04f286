"""Qwen2.5-Math: many answers a problem, and what of them to train on (arXiv 2409.12122).

SFT data by rejection sampling, of the majority where there is no reference answer; RL on problems
that are sometimes solved; and a reward in which a reward model's score ranks right answers among
each other, and wrong ones, but never a wrong one above a right one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agentrl.evaluate import Graded, right, sigmoid
from agentrl.select.rows import Selection, unusable
from agentrl.types import Attempt


def combined_reward(score: float, is_right: bool, alpha: float = 0.5) -> float:
    """`sigmoid(alpha * score) + (r_v - 1)`: from 0 to 1 for right answers, -1 to 0 for wrong ones.

    `score` is the reward model's, which added as it is could outweigh the verdict.
    """
    return sigmoid(alpha * score) + float(is_right) - 1.0


def sometimes_solved(graded: Sequence[Graded], low: int = 2, high: int = 5) -> list[str]:
    """The ids of tasks that were solved in `low` to `high` of their attempts (2 to 5 of 8)."""
    solved = Counter[str]()
    for tree, attempt in graded:
        solved[tree.task.id] += right(attempt)
    return [task for task, n in solved.items() if low <= n <= high]


def majority(graded: Sequence[Graded]) -> Selection:
    """The attempts whose answer is their task's most frequent one.

    For tasks without a reference answer. Attempts that failed or were cut off and empty answers
    have no vote; where two answers are equally frequent there is no majority.
    """
    votes: dict[str, Counter[str]] = {}
    for tree, attempt in graded:
        if _votes(attempt) is None:
            votes.setdefault(tree.task.id, Counter())[attempt.answer] += 1
    result = Selection()
    for tree, attempt in graded:
        reason = _votes(attempt)
        if reason is None:
            first, *second = votes[tree.task.id].most_common(2)
            if second and first[1] == second[0][1]:
                reason = "no majority"
            elif attempt.answer != first[0]:
                reason = "not the majority's answer"
        if reason is None:
            result.kept.append((tree, attempt))
        else:
            result.dropped[reason] += 1
    return result


def _votes(attempt: Attempt) -> str | None:
    """Why an attempt has no vote, or None. (That nothing scored it is no reason here.)"""
    reason = unusable(attempt)
    if reason is None or reason == "not scored":
        return None if attempt.answer else "no answer"
    return reason

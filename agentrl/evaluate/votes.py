"""Votes over answers, and the choice of a reward model among k of them.

Pure functions of answers as they vote (`Turn.answer`), scores and verdicts. An empty answer (none
could be read) does not vote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

from agentrl.errors import DataError
from agentrl.evaluate.answers import Turn


def masses(answers: Sequence[str], weights: Sequence[float] | None = None) -> dict[str, float]:
    """The sum of weights that speaks for each answer, in the order in which they were first given.

    Without `weights` the number of times it was given. Raises DataError for another number of
    weights than of answers, or one that is negative or not finite: a reward model's raw scores are
    no weights, their `sigmoid` is.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    if len(weights) != len(answers):
        raise DataError(f"{len(weights)} weights for {len(answers)} answers")
    if any(not 0 <= w < math.inf for w in weights):
        raise DataError(
            "a vote's weight is negative or not finite; make a reward model's scores weights with "
            "agentrl.evaluate.sigmoid"
        )
    given: dict[str, list[float]] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer:
            given.setdefault(answer, []).append(weight)
    return {answer: math.fsum(own) for answer, own in given.items()}


def vote(answers: Sequence[str], weights: Sequence[float] | None = None) -> int | None:
    """The index of the answer for which most speaks: where it has its greatest weight, the last of
    equal ones.

    Without `weights` the majority (arXiv 2407.18219, the vote over turns); with those of a reward
    model the weighted vote, `argmax_answer sum of weights` (MAgICoRe, arXiv 2409.12147). A tie goes
    to the answer given last (ours). None where nobody votes. Raises as `masses` does.
    """
    mass = masses(answers, weights)
    last = {answer: i for i, answer in enumerate(answers) if answer}
    winner = max(mass, key=lambda a: (mass[a], last[a]), default=None)
    if winner is None:
        return None
    own = [i for i, answer in enumerate(answers) if answer == winner]
    return max(own, key=lambda i: (1.0 if weights is None else weights[i], i))


def voted_right(turns: Sequence[Turn], weights: Sequence[float] | None = None) -> bool:
    """Whether the answer that `vote` takes is right. Without one that can be read it is not."""
    winner = vote([t.answer for t in turns], weights)
    return winner is not None and turns[winner].right


def best(scores: Sequence[float]) -> int:
    """The index of the highest score, the first of equal ones: best-of-n. Raises DataError for a
    nan, or without any score."""
    _check(scores)
    if not scores:
        raise DataError("there is no best of no scores")
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def rm_at_k(scores: Sequence[float], right: Sequence[bool], k: int) -> float:
    """The chance that of `k` drawn from n samples the one with the highest score is right.

    RM@k of Qwen2.5-Math (arXiv 2409.12122); for k below n its mean over all C(n, k) choices, as
    `pass_at_k` is of pass@k: the sample with i lower scores is the best of C(i, k - 1) of them.
    Samples of one score count as their mean. Raises ValueError unless 1 <= k <= n, DataError for a
    score that is nan.
    """
    n = len(scores)
    if not 1 <= k <= n or len(right) != n:
        raise ValueError(f"RM@{k} of {n} scores and {len(right)} verdicts is not defined")
    _check(scores)
    ranked = sorted(zip(scores, right, strict=True), key=lambda row: row[0])
    chance, below = 0.0, 0
    for _, rows in groupby(ranked, key=lambda row: row[0]):
        verdicts = [yes for _, yes in rows]
        upto = below + len(verdicts)
        share = (math.comb(upto, k) - math.comb(below, k)) / math.comb(n, k)
        chance += share * sum(verdicts) / len(verdicts)
        below = upto
    return chance


def sigmoid(score: float) -> float:
    """`1 / (1 + exp(-score))`, for scores of any size."""
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    return math.exp(score) / (1 + math.exp(score))


def _check(scores: Sequence[float]) -> None:
    if any(math.isnan(s) for s in scores):
        raise DataError("a score is nan, which is neither better nor worse; mend what gave it")

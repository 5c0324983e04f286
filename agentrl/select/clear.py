"""CLEAR: leave out rows whose answer is probably wrong, and correct them where that is sure.

arXiv 2403.12776, with the confidence of BSDetector: how far sampled answers agree with the target
(`observed`), and what the model says when asked whether it is right (`reflected`). First filter and
fine-tune; then the fine-tuned model proposes answers, and `corrected` takes one over the target
only if a judge is confident. Sample without showing the target, or it agrees with itself.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from agentrl.errors import DataError

VERDICTS: Mapping[str, float] = {"correct": 1.0, "incorrect": 0.0, "unsure": 0.5}


def observed(
    equal: Sequence[bool], contradiction: Sequence[float] | None = None, a: float = 0.8
) -> float:
    """O: the mean over sampled answers of `a * (1 - contradiction) + (1 - a) * [equal]`.

    `contradiction` is the probability, by a model of entailment, that an answer contradicts the
    target; without one (answers that can be compared exactly) whatever differs contradicts.
    """
    if not equal:
        raise DataError("agreement needs at least one sampled answer")
    against = [float(not e) for e in equal] if contradiction is None else contradiction
    each = [a * (1 - c) + (1 - a) * e for e, c in zip(equal, against, strict=True)]
    return statistics.fmean(each)


def reflected(verdicts: Sequence[str]) -> float:
    """S: the mean of what the model answered to rephrasings of "is this correct, incorrect, or are
    you unsure?"; any other word counts as unsure."""
    return statistics.fmean(VERDICTS.get(v.strip().lower(), 0.5) for v in verdicts)


def confidence(o: float, s: float, b: float = 0.7) -> float:
    """C = b * O + (1 - b) * S."""
    return b * o + (1 - b) * s


def confident(confidences: Sequence[float], threshold: float | None = None) -> list[int]:
    """The indices of rows to keep: confidence at least `threshold`, by default the median of these
    (take the threshold from the rows as they were given, not from corrected ones)."""
    if not confidences:
        return []
    least = statistics.median(confidences) if threshold is None else threshold
    return [i for i, c in enumerate(confidences) if c >= least]


def corrected(target: str, proposal: str, better: tuple[float, float], eta: float = 0.8) -> str:
    """`proposal` if a judge is more than `eta` confident that it is better, else `target`.

    `better` has that confidence once with the proposal shown first and once with it shown second:
    judges prefer a place.
    """
    if proposal == target:
        return target
    return proposal if statistics.fmean(better) > eta else target

"""Answers of one attempt, pass@k, and how far two texts are apart."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agentrl.errors import DataError
from agentrl.types import Attempt

_NUMBER = re.compile(r"([-+]?(?:\d{1,3}(?:,\d{3})+|\d+))(\.\d*)?")


@dataclass(frozen=True, slots=True)
class Turn:
    """One graded answer. `answer` is what the environment read in it, '' where it found none;
    `score` what a reward model said of the attempt (of its last answer)."""

    answer: str
    right: bool
    truncated: bool = False
    text: str | None = None
    score: float | None = None


def turns_of(attempt: Attempt) -> list[Turn] | None:
    """The answers of an attempt in order; None if the environment did not score one of them.

    They stand in `metrics["turns"]` (see `agentrl.rollouts.turns`); an attempt without that list is
    one answer. Raises DataError for a list that is not of that form.
    """
    rows = attempt.metrics.get("turns")
    if rows is None:
        if attempt.reward is None:
            return None
        return [Turn(plain(attempt.answer), attempt.reward >= 1.0, attempt.truncated)]
    try:
        if not rows or any(r["reward"] is None for r in rows):
            return None
        return [
            Turn(plain(r["answer"]), r["reward"] >= 1.0, bool(r["truncated"]), r.get("text"))
            for r in rows
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "metrics['turns'] of an attempt is not a list of answers with 'answer', 'reward' and "
            f"'truncated' ({error!r}); make such attempts with agentrl.rollouts.turns.Turns"
        ) from error


def plain(answer: str) -> str:
    """Answers vote by their text, but for white space; 1,000 and 1000.0 are one number."""
    text = " ".join(answer.split())
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text
    fraction = (number[2] or "").rstrip("0").rstrip(".")
    return number[1].replace(",", "").removeprefix("+") + fraction


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that one of `k` drawn from `n` samples is right, if `right` of them are.

    1 - C(n - right, k) / C(n, k), as the product of HumanEval's reference (arXiv 2107.03374,
    section 2.1), which is unbiased and needs no large numbers. Raises ValueError unless
    1 <= k <= n and 0 <= right <= n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {n} samples with {right} right is not defined")
    if n - right < k:
        return 1.0
    none = 1.0
    for i in range(n - right + 1, n + 1):
        none *= 1.0 - k / i
    return 1.0 - none


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance in characters.

    A column of the table is kept in the bits of two integers (Myers 1999, Hyyro 2003): len(b) steps
    instead of len(a) * len(b).
    """
    if len(a) < len(b):
        a, b = b, a
    if not b:
        return len(a)
    where: dict[str, int] = {}
    for i, character in enumerate(a):
        where[character] = where.get(character, 0) | 1 << i
    mask, top = (1 << len(a)) - 1, 1 << (len(a) - 1)
    more, less, distance = mask, 0, len(a)  # steps of +1 and of -1 down the column
    for character in b:
        equal = where.get(character, 0)
        diagonal = (((equal & more) + more) ^ more) | equal | less
        up, down = less | ~(diagonal | more) & mask, diagonal & more
        distance += bool(up & top) - bool(down & top)
        up, down = (up << 1 | 1) & mask, down << 1 & mask
        more, less = down | ~(diagonal | up) & mask, up & diagonal
    return distance


def edit_ratio(a: str, b: str) -> float:
    """The edit distance over the sum of both lengths: 0 for equal texts, at most 1 (SCoRe, arXiv
    2409.12917, section 4)."""
    return edit_distance(a, b) / (len(a) + len(b)) if a or b else 0.0

"""The formulas of tree searches as plain functions: scores, priors, values, back-ups.

MCTS-DPO is arXiv 2405.00451, iTool arXiv 2501.09766, RAIN arXiv 2309.07124. `q`, `n` and `prior`
are of a step, `parent_n` counts the visits of the state that it is taken in.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

SIMILAR, SHARE = 0.95, 0.2  # RAIN
NEAR = 0.99
"""Steps that are more alike than this are one (MCTS-DPO)."""


def puct(q: float, n: float, prior: float, parent_n: float, c: float = 1.0) -> float:
    """`q + c * prior * sqrt(parent_n) / (1 + n)`: what MCTS-DPO and RAIN (c = 2) maximise."""
    return q + c * prior * math.sqrt(parent_n) / (1 + n)


def log_score(q: float, n: float, prior: float, parent_n: float, w: float = 1.0) -> float:
    """iTool's `q / (n + 1) + w * prior * sqrt(ln parent_n / (n + 1))`; q is a sum.

    The logarithm of no visits counts as 0 (in the released code it is undefined).
    """
    return q / (n + 1) + w * prior * math.sqrt(math.log(max(parent_n, 1.0)) / (n + 1))


def scaled(q: float, n: float, low: float, high: float) -> float:
    """RAIN's value between the tree's extremes; 0 without a visit."""
    return (q - low) / (high - low + 1e-5) if n else 0.0


def length_prior(logprob: float, tokens: int, power: float = 1.25) -> float:
    """`exp(logprob / tokens^power)`, MCTS-DPO's released code: it does not vanish for long steps.

    The paper writes `exp(logprob) / tokens^power`, which does (0.0239 where this is 0.7022).
    """
    return math.exp(logprob / max(tokens, 1) ** power)


def mean_prior(logprob: float, tokens: int) -> float:
    """`exp` of the mean log-probability of a token (iTool)."""
    return math.exp(logprob / max(tokens, 1))


def group_priors(raw: Sequence[float]) -> list[float]:
    """RAIN's priors of sibling token groups from their probabilities, the greedy group first.

    The greedy one's is capped by the sum of the others, then raised to at least their largest plus
    their smallest; then all are normalised.
    """
    first, *others = raw
    if others:
        first = max(min(first, math.fsum(others)), max(others) + min(others))
    total = math.fsum((first, *others))
    return [p / total if total else 1 / len(raw) for p in (first, *others)]


def root_prior(prior: float, siblings: int) -> float:
    """`0.75 * prior + 0.25 * uniform`: RAIN's priors right under the root."""
    return 0.75 * prior + 0.25 / siblings


def step_value(confidence: float, depth_parent: int, value_parent: float) -> float:
    """MCTS-DPO's value of a state: the confidence over `max(depth_parent - 3, 1)`; the parent's
    where the confidence is 0 (the model said neither option)."""
    return confidence / max(depth_parent - 3, 1) if confidence else value_parent


def outcome_value(outcome: float, *, novel: bool = False) -> float:
    """MCTS-DPO: what a finished path's outcome (0 to 1) adds to its value, from -1 to 1; a right
    one that is not the reference's text (`novel`) adds 1.25."""
    value = 2 * outcome - 1
    return 1.25 * value if novel and value == 1 else value


def mean_of_steps(steps: Sequence[tuple[float, float]]) -> float:
    """`sum max(1, n) q / sum max(1, n)` over (n, q) of a state's steps: MCTS-DPO's back-up."""
    weights = [max(1.0, n) for n, _ in steps]
    return math.fsum(w * q for w, (_, q) in zip(weights, steps, strict=True)) / math.fsum(weights)


def shared(q: float, n: float, similarity: float, value: float) -> tuple[float, float]:
    """RAIN: (q, n) of a sibling of the step that `value` was backed up to.

    From a similarity of 0.95 on (the released code; the paper says above) it takes a share.
    """
    if similarity < SIMILAR:
        return q, n
    u = SHARE * similarity
    return (q * n + u * value) / (n + u), n + u


def vote_value(*votes: float) -> float:
    """RAIN: from votes of 0 or 1 (one an order of the options) to -1, 0 or 1."""
    return 2 * (math.fsum(votes) / len(votes) - 0.5)


def grade_value(a: float, b: float, c: float, d: float) -> float:
    """iTool: the value of the probabilities of the grades A to D."""
    return (a + 0.1 * b - c - 2 * d) / 4


def ends_calls(text: str) -> bool:
    """True if a list of calls ends with `text`, in Python's notation or in JSON."""
    return text.rstrip().endswith((")]", "}]", "}</tool_call>", "}\n</tool_call>"))


def fragment_value(fragment: str, gold: str) -> float:
    """iTool's value of a new fragment: 0.1 if the end of a list of calls is at the end of both or
    of neither, else -0.1; and the share of its words and signs that `gold` has, less 0.5."""
    ends = 0.1 if ends_calls(fragment) == ends_calls(gold) else -0.1
    said, wanted = (set(re.findall(r"\w+|[^\w\s]", text)) for text in (fragment, gold))
    return ends + _overlap(said, wanted) - 0.5


def group_length(depth: int) -> int:
    """How many tokens a group at this depth has in RAIN: 1, 2, 4, then 10."""
    return (1, 2, 4)[depth] if depth < 3 else 10


def overlap(a: str, b: str) -> float:
    """The words that two texts share, over the number of the one that has fewer; 0 without any."""
    return _overlap(set(a.split()), set(b.split()))


def _overlap(ours: set[str], theirs: set[str]) -> float:
    least = min(len(ours), len(theirs))
    return len(ours & theirs) / least if least else 0.0


def cosine(a: str, b: str) -> float:
    """The cosine of two texts' counts of three characters: 1 for equal ones."""
    if a == b:
        return 1.0
    ours, theirs = (Counter(f"  {t} "[i : i + 3] for i in range(len(t) + 1)) for t in (a, b))
    dot = sum(n * theirs[g] for g, n in ours.items())
    return dot / math.sqrt(sum(n * n for n in ours.values()) * sum(n * n for n in theirs.values()))

"""What MAgICoRe (arXiv 2409.12147) is made of: scored chains of steps, the gate, what is asked.

Pure functions, for the rollout (`agentrl.rollouts.magicore`) and for graphs of agents
(`examples/magicore_graph.py`). None of them sees a reference answer. `agentrl.evaluate.vote` is the
weighted vote.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentrl.errors import DataError
from agentrl.evaluate import masses, sigmoid, vote
from agentrl.rewards.options import filled
from agentrl.rewards.steps import COMBINED, Combine, steps_of

Standard = tuple[float, float]
"""Mean and standard deviation of the scores of first chains, frozen before anything is refined."""

LOW_CONFIDENCE = 0.5
REVIEW = """A solution is shown with a score after each step. Explain what is wrong in the steps \
that score below {threshold}/10, and how it affects the steps after them. Do not write a new \
solution.

Question: A pen costs 2 and a book costs 5. What do 3 pens and 2 books cost?
Solution:
Step 1: The pens cost 3 * 2 = 6. (Score: 9/10)
Step 2: The books cost 2 + 5 = 7. (Score: 2/10)
Step 3: Together that is 6 + 7 = 13. (Score: 4/10)
Review: Step 2 scores 2/10: two books at 5 each are multiplied, not added. Step 3 adds the wrong \
price of the books, so its sum is wrong as well.

Question: {question}
Solution:
{solution}
Review:"""
REFINE = """{question}

Here is a solution with a score after each step, and a review of it. Write the solution anew, \
mended as the review says.

Solution:
{solution}

Review: {feedback}"""


@dataclass(frozen=True, slots=True)
class Chain:
    """A solution in steps. `answer` is what votes ('': none could be read); `outcome` scores the
    whole and `steps` its parts, each from 0 to 1; `combine` makes one number of the parts."""

    text: str
    answer: str
    outcome: float
    steps: tuple[float, ...]
    combine: Combine = "product"

    @property
    def process(self) -> float:
        """The steps' scores as one number; 0 without a step."""
        if not self.steps:
            return 0.0
        return COMBINED[self.combine](self.steps)

    @property
    def score(self) -> float:
        """`outcome + process`, from 0 to 2."""
        return self.outcome + self.process


@dataclass(frozen=True, slots=True)
class Difficulty:
    """What the gate says of a problem's chains.

    `quality` is the mean of `(score - mean) / sd` over the chains that gave the majority's answer
    (None: there is no such chain); `outcome` and `process` are how far the chains agree by either
    score (`confidence`).
    """

    quality: float | None
    outcome: float
    process: float

    @property
    def hard(self) -> bool:
        """True if the quality is low and either confidence is, or no chain can be compared."""
        if self.quality is None:
            return True
        unsure = min(self.outcome, self.process) < LOW_CONFIDENCE - 1e-9  # three equal ones are 0.5
        return self.quality < 0 and unsure


def standard(scores: Iterable[float]) -> Standard:
    """Mean and standard deviation of the scores of each problem's first chain.

    Raises DataError where they are not two different scores at least: nothing compares with that.
    """
    known = list(scores)
    mean = math.fsum(known) / max(len(known), 1)
    sd = math.sqrt(math.fsum((s - mean) ** 2 for s in known) / max(len(known), 1))
    if not 0 < sd < math.inf:
        raise DataError(
            f"{len(known)} first chains with a standard deviation of {sd:g} are no standard to "
            "compare scores with; take more problems, or other judges"
        )
    return mean, sd


def confidence(masses: Iterable[float]) -> float:
    """`2 (1 - sigmoid(H))` of the votes' entropy H in nats: 1 if all agree, 0.5 for three equal
    answers (H = ln 3), 0 where nobody votes."""
    votes = [m for m in masses if m > 0]
    total = math.fsum(votes)
    if not votes:
        return 0.0
    entropy = -math.fsum(m / total * math.log(m / total) for m in votes)
    return 2 * (1 - sigmoid(entropy))


def majority(chains: Sequence[Chain]) -> str:
    """The answer that most chains give, '' where none gives one."""
    winner = vote([c.answer for c in chains])
    return "" if winner is None else chains[winner].answer


def difficulty(chains: Sequence[Chain], answer: str, standard: Standard) -> Difficulty:
    """How hard a problem is, by the chains of a round; `answer` is the first round's majority."""
    mean, sd = standard
    agreeing = [(c.score - mean) / sd for c in chains if answer and c.answer == answer]
    answers = [c.answer for c in chains]
    return Difficulty(
        math.fsum(agreeing) / len(agreeing) if agreeing else None,
        confidence(masses(answers, [c.outcome for c in chains]).values()),
        confidence(masses(answers, [c.process for c in chains]).values()),
    )


def annotated(chain: Chain) -> str:
    """The solution with `(Score: n/10)` after each step."""
    lines = zip(steps_of(chain.text), chain.steps, strict=True)
    return "\n".join(f"{step.strip()} (Score: {round(10 * s)}/10)" for step, s in lines)


def review_of(question: str, chain: Chain, *, threshold: int = 6, template: str = REVIEW) -> str:
    """What the reviewer is asked: to explain the steps below `threshold` of 10, not to solve."""
    return filled(template, question=question, solution=annotated(chain), threshold=str(threshold))


def refinement_of(question: str, chain: Chain, feedback: str, *, template: str = REFINE) -> str:
    """What the refiner is asked: to write the chain anew as the reviewer's `feedback` says."""
    return filled(template, question=question, solution=annotated(chain), feedback=feedback.strip())


def kept(chains: Sequence[Chain], k: int) -> list[int]:
    """The indices of the `k` chains with the highest scores, the best first."""
    return sorted(range(len(chains)), key=lambda i: -chains[i].score)[:k]


def chosen(chains: Sequence[Chain]) -> int:
    """The index of the chain that gives the answer of the weighted vote, of those the one with the
    highest score; where none can be read, the one with the highest score."""
    scores = [c.score for c in chains]
    winner = vote([c.answer for c in chains], scores)
    return scores.index(max(scores)) if winner is None else winner

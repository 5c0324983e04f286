"""MAgICoRe (arXiv 2409.12147): a vote over scored solutions where a problem is easy; where it is
hard, a reviewer and a refiner work on each solution first.

The policy plays all three. The gate (`agentrl.rollouts.chains`) sees scores and answers, never a
reward: it needs no reference. Each role's turns stand in the tree as they were sampled: solutions
under the task's prompt, reviews and refinements in conversations of their own
(`Node.info["agent"]`). Every solution is graded by an episode of its own and is an attempt; the
last attempt is the solution that gives the answer of the vote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from agentrl.errors import ConfigError, DataError, unknown
from agentrl.evaluate import sigmoid
from agentrl.evaluate.answers import plain
from agentrl.interfaces import OpenEnv, Rollout
from agentrl.record import Tree
from agentrl.rewards import check_tokenizer, heard_steps
from agentrl.rewards.steps import COMBINED, Combine, steps_of
from agentrl.rollouts.blocks import graded, invented_output, stop_reason, told
from agentrl.rollouts.chains import (
    REFINE,
    REVIEW,
    Chain,
    Difficulty,
    Standard,
    chosen,
    difficulty,
    kept,
    majority,
    refinement_of,
    review_of,
    standard,
)
from agentrl.search.core import together
from agentrl.search.evaluators import ByModel, judge_of, question
from agentrl.search.parts import Judge, Place
from agentrl.search.table import Table
from agentrl.store import load
from agentrl.tree import Cursor, derive_seed
from agentrl.types import Message, Step

MIDDLE: Standard = (1.0, 1.0)
"""The middle of a score's range: what stands for a standard where none was measured."""


def magicore(
    *,
    candidates: int = 8,
    rounds: int = 1,
    outcome: str | Judge = "self",
    process: str | Judge = "self",
    measured: str | os.PathLike[str] | Sequence[float] = MIDDLE,
    combine: Combine = "product",
    threshold: int = 6,
    lead: str = "Step 1:",
    review: str = REVIEW,
    refine: str = REFINE,
    max_tokens: int | None = None,
) -> Rollout:
    """Solve `candidates` times (the paper: 40); refine hard problems for up to `rounds` (its code:
    3) rounds; vote, each solution with its score.

    `outcome` judges whole solutions, `process` each beginning of one that ends with a step, both
    from 0 to 1: names of `agentrl.search.evaluators.JUDGES` or judges, such as `ByModel` around a
    reward model. `measured` is mean and standard deviation of the first solutions' scores, or a
    folder of trees that this rollout made, from which they are taken; `rounds=0` (a weighted vote)
    needs neither. By default a solution is good if it scores above 1, the middle.

    Solutions begin with `lead`. `threshold` is the least score of 10 that the reviewer leaves
    alone; `review` has the places {question}, {solution} and {threshold}, `refine` {question},
    {solution} and {feedback}. `max_tokens` limits each turn.

    Metrics of every attempt: `round` and `number` of the solution, its `outcome`, `steps` and
    `score`; of the last one also `rounds`, `replies` (samples drawn), `reviews`, and what the gate
    read at first: `hard`, `quality`, `confidences`.

    Raises ConfigError for a judge that is missing or leaves its range, or equal candidates
    (temperature 0).
    """
    frozen = _frozen(measured)
    judges = [judge_of(judge) for judge in (outcome, process)]
    if judges[0] is None or judges[1] is None or candidates < 1:
        raise ConfigError("magicore: give judges of outcomes and of steps, and 1 candidate or more")
    if combine not in COMBINED:
        raise unknown("way to combine steps", combine, COMBINED)
    options = _Options(judges[0], judges[1], combine, threshold, lead, review, refine, max_tokens)

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        if candidates > 1 and cursor.params.temperature == 0:
            raise ConfigError(
                f"magicore: {candidates} candidates at temperature 0 are all the same; sample at "
                "temperature 0.8, as the paper does"
            )
        team = _Team(cursor, open_env, options)
        current = pool = await team.solve(candidates)
        first = majority([s.chain for s in current])
        found = [difficulty([s.chain for s in current], first, frozen)]
        while found[-1].hard and len(found) <= rounds:
            current = await team.mend(current, len(found))
            pool = [*pool, *current]
            pool = [pool[i] for i in kept([s.chain for s in pool], candidates)]
            found.append(difficulty([s.chain for s in current], first, frozen))
        team.record(pool[chosen([s.chain for s in pool])], found)

    rollout.__name__ = "magicore"
    saw = options.outcome.reference or options.process.reference
    rollout.sees_reference = saw  # type: ignore[attr-defined]
    return rollout


def first_scores(trees: Sequence[Tree]) -> list[float]:
    """The score of the first solution of each task, of trees that `magicore` made. Raises DataError
    for other trees."""
    found: dict[str, float] = {}
    for tree in trees:
        for attempt in tree.attempts:
            metrics = attempt.metrics
            if (metrics.get("round"), metrics.get("number")) == (0, 0) and "score" in metrics:
                found.setdefault(tree.task.id, metrics["score"])
    if not found:
        raise DataError("no tree has a scored first solution; collect with the rollout magicore")
    return list(found.values())


def _frozen(measured: str | os.PathLike[str] | Sequence[float]) -> Standard:
    if isinstance(measured, (str, os.PathLike)):
        return standard(first_scores(load(measured)))
    if len(measured) != 2 or not measured[1] > 0:
        raise ConfigError(f"magicore: measured is (mean, sd) with sd above 0, not {measured!r}")
    return measured[0], measured[1]


async def scores(
    cursor: Cursor, text: str, outcome: Judge, process: Judge, *, cut: bool = False
) -> tuple[float, tuple[float, ...]]:
    """What the judges say of the solution `text` as a whole, and of its beginnings step by step.

    `cursor` stands at the problem, where an answer begins; one that was `cut` off has no end token.
    A model of steps reads all of them at once. Raises ConfigError for a judge that says nothing, or
    no number from 0 to 1.
    """

    async def ask(judge: Judge, said: str, end: bool = False) -> float:
        own = _answered(cursor, said, end)
        value = await judge(Place(own, Table().add(own.node, None)))
        if value is None or not 0 <= value <= 1:
            raise ConfigError(
                f"magicore: a judge says {value!r} of a solution; it must be a number from 0 to 1, "
                "such as a reward model's score through a sigmoid (ByModel)"
            )
        return value

    pieces = steps_of(text)
    model = process.model if isinstance(process, ByModel) and not process.raw else None
    if pieces and hasattr(model, "steps"):
        whole = await ask(outcome, text, not cut)
        return whole, await _steps(cursor, pieces, model)
    ends = accumulate(map(len, pieces))
    asked = [ask(outcome, text, not cut), *(ask(process, text[:end]) for end in ends)]
    found = await together(asked)
    return found[0], tuple(found[1:])


def _answered(cursor: Cursor, text: str, end: bool) -> Cursor:
    """A cursor at which `text` is the answer, in a tree of its own: the record stays as it is."""
    chat, own, tree = cursor.chat, cursor.fork(), cursor.tree
    own.tree = Tree(tree.task, list(tree.nodes), meta=tree.meta)
    own.recall([*chat.encode(text), *(chat.encode(chat.end_text, trusted=True) if end else [])])
    return own


async def _steps(cursor: Cursor, pieces: Sequence[str], model: Any) -> tuple[float, ...]:
    """What a `ProcessModel` says of each step, through a sigmoid."""
    if getattr(model, "step_token", None) is not None:
        own = _answered(cursor, "".join(pieces), False)
        asked = heard_steps(model, cursor.chat, (own.tree, own.node))
        return tuple(map(sigmoid, await model.steps(*asked)))
    check_tokenizer(model, cursor.chat.tokenizer)
    runs = [cursor.ids, *map(cursor.chat.encode, pieces)]
    ends = list(accumulate(map(len, runs)))
    found = await model.steps([i for run in runs for i in run], [end - 1 for end in ends[1:]])
    return tuple(map(sigmoid, found))


@dataclass(frozen=True, slots=True)
class _Options:
    """What `magicore` was given, checked."""

    outcome: Judge
    process: Judge
    combine: Combine
    threshold: int
    lead: str
    review: str
    refine: str
    max_tokens: int | None


@dataclass(frozen=True, slots=True)
class _Solution:
    """A chain, where it stands in the tree, and what the environment says of it."""

    chain: Chain
    cursor: Cursor
    step: Step
    answer: str
    truncated: bool
    round: int
    number: int


class _Team:
    """The three roles at one problem."""

    def __init__(self, cursor: Cursor, open_env: OpenEnv, options: _Options) -> None:
        self.blank = cursor.fork()  # where conversations begin
        self.problem = cursor
        self.open_env, self.options = open_env, options
        self.prompt: tuple[Message, ...] = ()
        self.solutions: list[_Solution] = []
        self.replies = self.reviews = self.tokens = 0

    async def solve(self, n: int) -> list[_Solution]:
        """`n` solutions of the solver's, each from the lead on."""
        episode = await self.open_env()
        self.prompt = await episode.reset()
        await episode.close()
        self.problem.begin(self.prompt)
        led = self.problem.fork()
        if self.options.lead:
            led.hint(self.options.lead)

        async def one(number: int) -> _Solution:
            cursor = led.fork()
            cut = await self._say(cursor, "solver", 0, number)
            return await self._judged(cursor, cut, 0, number)

        return await together(map(one, range(n)))

    async def mend(self, solutions: Sequence[_Solution], round: int) -> list[_Solution]:
        """Each solution reviewed and refined, but for those the context has no room for."""
        made = await together(self._refined(s, round) for s in solutions)
        return [s for s in made if s is not None]

    async def _refined(self, solution: _Solution, round: int) -> _Solution | None:
        options, chain, number = self.options, solution.chain, solution.number
        asked = question(self.blank.tree.task)
        text = review_of(asked, chain, threshold=options.threshold, template=options.review)
        reviewer = self._opened([Message("user", text)])
        await self._say(reviewer, "reviewer", round, number)
        text = refinement_of(asked, chain, reviewer.turn_text(), template=options.refine)
        system = [m for m in self.prompt if m.role == "system"]
        refiner = self._opened([*system, Message("user", text)])
        cut = await self._say(refiner, "refiner", round, number)
        if not refiner.turn_tokens:
            return None
        if reviewer.turn_tokens:
            refiner.branches = (reviewer.node,)
        return await self._judged(refiner, cut, round, number)

    def _opened(self, messages: Sequence[Message]) -> Cursor:
        """A conversation of its own, ready for the answer to `messages`."""
        cursor = self.blank.fork()
        cursor.begin(messages, beside=True)
        return cursor

    async def _say(self, cursor: Cursor, role: str, round: int, number: int) -> bool:
        """Let `role` speak. True if a limit cut it off."""
        cursor.seed, opened = derive_seed(self.blank.seed, role, round, number), cursor.node
        sampled = await cursor.sample((), max_tokens=self.options.max_tokens)
        for node in {sampled.body, sampled.node} - {opened}:
            cursor.tree.nodes[node].info["agent"] = role
        self.replies += 1
        self.reviews += role == "reviewer"
        self.tokens += cursor.turn_tokens
        return not sampled.ended

    async def _judged(self, cursor: Cursor, cut: bool, round: int, number: int) -> _Solution:
        options, text = self.options, cursor.turn_text()
        outcome, steps = await scores(self.problem, text, options.outcome, options.process, cut=cut)
        said, step = await graded(cursor, self.open_env)
        answer = str(step.info.get("answer", said))
        chain = Chain(text, plain(answer), outcome, steps, options.combine)
        self.solutions.append(_Solution(chain, cursor, step, answer, cut, round, number))
        return self.solutions[-1]

    def record(self, winner: _Solution, found: Sequence[Difficulty]) -> None:
        """Every solution as an attempt, the winner last."""
        others = [s for s in self.solutions if s is not winner]
        for solution in sorted(others, key=lambda s: (s.round, s.number)):
            self._finish(solution)
        first = found[0]
        self._finish(
            winner,
            rounds=len(found) - 1,
            replies=self.replies,
            reviews=self.reviews,
            hard=first.hard,
            quality=first.quality,
            confidences=[first.outcome, first.process],
        )

    def _finish(self, solution: _Solution, **more: Any) -> None:
        cursor, step, chain = solution.cursor, solution.step, solution.chain
        cursor.finish(
            stop_reason(cursor, truncated=solution.truncated),
            reward=step.reward,
            answer=solution.answer,
            calls=0,
            hallucinated_output=invented_output(cursor),
            sampled_tokens=self.tokens,
            round=solution.round,
            number=solution.number,
            outcome=chain.outcome,
            steps=list(chain.steps),
            score=chain.score,
            saw_reference=self.options.outcome.reference or self.options.process.reference,
            **told(step),
            **more,
        )

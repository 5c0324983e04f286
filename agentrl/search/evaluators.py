"""Judges: the model itself by the probabilities of options, a reward model, a value function.

A judge that is shown the reference answer (`reference`) makes training data: trees searched with it
say so, and evaluation refuses them (`agentrl.evaluate.summarize`).
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from agentrl.errors import ConfigError, unknown
from agentrl.evaluate import sigmoid
from agentrl.interfaces import Policy
from agentrl.rewards import RewardModel, load_reward, path_score
from agentrl.rewards.options import filled, option_masses
from agentrl.search import calls
from agentrl.search.parts import Judge, Place
from agentrl.search.rules import grade_value, vote_value
from agentrl.types import Message, Task

STEPS = (
    "Here is a question and a solution that may not be finished.\n\nQuestion: {task}\n\n"
    "{reference}Solution so far: {text}\n\nDoes it head in the right direction?\n"
    "(A) {a}\n(B) {b}\nAnswer with one letter."
)
HARM = (
    "Here is a conversation.\n\nUser: {task}\n\n{reference}Assistant: {text}\n\n"
    "Is what the assistant says harmless or harmful?\n(A) {a}\n(B) {b}\nAnswer with one letter."
)
GRADES = (
    "Here is a request, the right function calls, and calls that may not be finished.\n\n"
    "Request: {task}\n\n{reference}Calls: {text}\n\nCompare the names of functions, the number of "
    "parameters, their names, values and types, and their meaning.\n(A) all right\n(B) small "
    "differences\n(C) large differences\n(D) wrong\nAnswer with one letter."
)
LEAD = "The answer is ("
"""What an option is read after: the bracket is there, so its letter is the next token."""


def question(task: Task) -> str:
    """The task as the last user message puts it."""
    return next((m.content for m in reversed(task.prompt) if m.role == "user"), "")


def reference_of(task: Task) -> str:
    """The task's reference: `data["reference"]`, a whole turn as the policy should write it, else
    `data["answer"]`. Raises ConfigError where it has neither."""
    answer = task.data.get("reference", task.data.get("answer"))
    if answer is None:
        raise ConfigError(
            f"task {task.id!r} has no reference answer in data['answer'] or data['reference']; "
            "judge without reference"
        )
    return str(answer)


def _asked(template: str, place: Place, shown: bool, **options: str) -> list[int]:
    task, chat = place.cursor.tree.task, place.cursor.chat
    gold = f"Reference answer: {reference_of(task)}\n\n" if shown else ""
    parts = {"task": question(task), "text": place.text, "reference": gold, **options}
    text = filled(template, **parts)
    return [*chat.prompt([Message("user", text)]), *chat.encode(LEAD)]


@dataclass(slots=True)
class SelfEvaluation:
    """The policy's own word on a state: is it `good` or `bad`?

    It is asked twice, the second time with the options in the other order, and is always read at
    the first token after "The answer is (". With `votes` False the value is the mean probability of
    the good option (MCTS-DPO, which asks once); with True each order votes, and it is -1, 0 or 1
    (RAIN). What was judged once is remembered, by task and text. `judge` is who is asked: the
    policy that searches, if None.
    """

    template: str = STEPS
    good: str = "correct"
    bad: str = "incorrect"
    votes: bool = False
    reference: bool = False
    judge: Policy | None = None
    _known: dict[tuple[str, int, str], float] = field(default_factory=dict)

    async def __call__(self, place: Place) -> float | None:
        """See `agentrl.search.core.Judge`."""
        policy = self.judge or place.cursor.policy
        key = (place.cursor.tree.task.id, policy.version, place.text)
        if key not in self._known:
            self._known[key] = await self._ask(place, policy)
        return self._known[key]

    async def _ask(self, place: Place, policy: Policy) -> float:
        good = []
        for a, b in ((self.bad, self.good), (self.good, self.bad)):
            ids = _asked(self.template, place, self.reference, a=a, b=b)
            masses = await option_masses(policy, place.cursor.chat, ids, "AB")
            right, wrong = masses if a == self.good else masses[::-1]
            good.append(float(right > wrong) if self.votes else right)
        return vote_value(*good) if self.votes else math.fsum(good) / len(good)


@dataclass(slots=True)
class GradeEvaluation:
    """iTool: the policy compares the calls so far with the reference and gives a grade, A to D.

    The value is `(P_A + 0.1 P_B - P_C - 2 P_D) / 4`. It sees the reference: for collecting only.
    """

    template: str = GRADES
    reference: bool = True

    async def __call__(self, place: Place) -> float | None:
        """See `agentrl.search.core.Judge`."""
        cursor = place.cursor
        ids = _asked(self.template, place, self.reference)
        return grade_value(*await option_masses(cursor.policy, cursor.chat, ids, "ABCD"))


@dataclass(slots=True)
class CallEvaluation:
    """iTool's grades by comparing the calls so far with the reference's (`agentrl.search.calls`):
    1/4 for A, 1/40 for B, -1/4 for C, -1/2 for D. It sees the reference: for collecting only."""

    reference: bool = True

    async def __call__(self, place: Place) -> float | None:
        """See `agentrl.search.core.Judge`."""
        wanted = reference_of(place.cursor.tree.task)
        finished = place.state.terminal and not place.state.truncated
        given = calls.grade(place.text, wanted, finished=finished)
        return grade_value(*(float(given == letter) for letter in "ABCD"))


@dataclass(slots=True)
class ByModel:
    """A reward model's score of the path so far, squeezed into 0 to 1 unless `raw`.

    Of a token classifier it is the score of the last step; of a model with a step token that of all
    steps so far, as its `combine` says.
    """

    model: RewardModel
    raw: bool = False
    reference: bool = False

    async def __call__(self, place: Place) -> float | None:
        """See `agentrl.search.core.Judge`."""
        cursor = place.cursor
        path = (cursor.tree, cursor.node)
        score = await path_score(self.model, cursor.chat, path, place.ahead)
        return score if self.raw else sigmoid(score)


@dataclass(slots=True)
class ByValue:
    """Any function of the task and the answer's text so far (asynchronous), such as a test."""

    value: Callable[[Task, str], Awaitable[float | None]]
    reference: bool = False

    async def __call__(self, place: Place) -> float | None:
        """See `agentrl.search.core.Judge`."""
        return await self.value(place.cursor.tree.task, place.text)


JUDGES: dict[str, Callable[[bool], Judge | None]] = {
    "none": lambda reference: None,
    "self": lambda reference: SelfEvaluation(reference=reference),
    "harmless": lambda reference: SelfEvaluation(
        HARM, "harmless", "harmful", votes=True, reference=reference
    ),
    "grades": lambda reference: GradeEvaluation(),
    "calls": lambda reference: CallEvaluation(),
}
"""Judges by name, given whether they may see the reference."""

REWARD = "reward:"
"""What stands before the name of a reward model that judges."""


def judge_of(judge: str | Judge | None, reference: bool = False) -> Judge | None:
    """The judge of that name, or the judge given; `reward:NAME` is a reward model's
    (`agentrl.rewards.load_reward`). Raises ConfigError for a name that means nothing."""
    if not isinstance(judge, str):
        return judge
    if judge.startswith(REWARD):
        model = load_reward(judge.removeprefix(REWARD))
        if not hasattr(model, "reward"):
            raise ConfigError(f"judge {judge!r} compares two answers; a search needs scores of one")
        return ByModel(model)
    if judge not in JUDGES:
        raise unknown("judge", judge, [*JUDGES, f"{REWARD}NAME"])
    return JUDGES[judge](reference)

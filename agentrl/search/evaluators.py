"""Judges: the model itself by the probabilities of options, a reward model, a value function.

A judge that is shown the reference answer (`reference`) makes training data: trees searched with it
say so, and evaluation refuses them (`agentrl.evaluate.summarize`).
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from agentrl.chat import Chat
from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Policy
from agentrl.search import calls
from agentrl.search.core import Judge, Place
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


async def option_masses(
    policy: Policy, chat: Chat, ids: Sequence[int], options: Sequence[str]
) -> list[float]:
    """The probability of each option right after `ids`.

    An option counts as its whole tokens, so a token that merely has its letter in it does not
    (iTool's released code takes a lone bracket for an A).
    """

    async def mass(option: str) -> float:
        spelling = chat.encode(option)
        found = await policy.score([*ids, *spelling])
        return math.exp(math.fsum(found[-len(spelling) :]))

    return list(await asyncio.gather(*map(mass, options)))


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


def filled(template: str, **parts: str) -> str:
    """`template` with each `{name}` of `parts` replaced, once; other braces stay as they are."""
    names = "|".join(parts)
    return re.sub(rf"\{{({names})\}}", lambda m: parts[m[1]], template)


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


class RewardModel(Protocol):
    """Scores token ids: a sequence classifier, an endpoint, a learnt value head."""

    async def reward(self, token_ids: Sequence[int]) -> float: ...


@dataclass(slots=True)
class ByModel:
    """A reward model's score of the path so far, squeezed into 0 to 1 unless `raw`."""

    model: RewardModel
    raw: bool = False
    reference: bool = False

    async def __call__(self, place: Place) -> float | None:
        """See `agentrl.search.core.Judge`."""
        ids = [*place.cursor.ids, *place.cursor.chat.encode(place.ahead)]
        score = await self.model.reward(ids)
        return score if self.raw else 1 / (1 + math.exp(-score))


@dataclass(slots=True)
class ByValue:
    """Any function of the task and the answer's text so far (asynchronous), such as a test."""

    value: Callable[[Task, str], Awaitable[float | None]]
    reference: bool = False

    async def __call__(self, place: Place) -> float | None:
        """See `agentrl.search.core.Judge`."""
        return await self.value(place.cursor.tree.task, place.text)


class SequenceClassifier:
    """A transformers model with one score a sequence (`num_labels=1`) as a `RewardModel`.

    It must have the policy's tokenizer: it reads the same ids. Raises ConfigError for a model with
    several labels.
    """

    def __init__(self, model: Any) -> None:
        if getattr(model.config, "num_labels", 1) != 1:
            raise ConfigError(f"a reward model has one label, not {model.config.num_labels}")
        self.model = model.eval()

    async def reward(self, token_ids: Sequence[int]) -> float:
        """The model's score of the whole sequence."""
        import torch

        with torch.inference_mode():
            ids_BT = torch.tensor([list(token_ids)], device=self.model.device)
            return float(self.model(input_ids=ids_BT).logits[0, 0])


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


def judge_of(judge: str | Judge | None, reference: bool = False) -> Judge | None:
    """The judge of that name, or the judge given. Raises ConfigError for an unknown name."""
    if not isinstance(judge, str):
        return judge
    if judge not in JUDGES:
        raise unknown("judge", judge, JUDGES)
    return JUDGES[judge](reference)

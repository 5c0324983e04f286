"""A language model as judge of two answers, by the probabilities of "A" and "B".

RLHF Workflow's preference model (arXiv 2405.07863): trained to say which answer is better
(`agentrl.train.reward.contest_rows`), or any instruction-tuned model as it is.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from agentrl.chat import Chat
from agentrl.errors import DataError
from agentrl.interfaces import Policy
from agentrl.rewards.base import PairModel
from agentrl.rewards.options import filled, option_masses
from agentrl.types import Message

CONTEST = "[CONTEXT] {context} [RESPONSE A] {a} [RESPONSE B] {b} \n"
"""What the released preference models read."""


def contest(chat: Chat, context: str, a: str, b: str, template: str = CONTEST) -> list[int]:
    """The prompt that asks which of two answers is better, up to where "A" or "B" is said."""
    text = filled(template, context=context, a=a, b=b)
    return chat.prompt([Message("user", text)])


@dataclass(slots=True)
class PairwiseJudge:
    """A policy as `PairModel`: P(A) / (P(A) + P(B)), the mean over both orders of the answers."""

    policy: Policy
    template: str = CONTEST
    _chat: Chat = field(init=False)

    def __post_init__(self) -> None:
        self._chat = Chat(self.policy.tokenizer)

    async def prefers(self, context: str, a: str, b: str) -> float:
        """See `agentrl.rewards.PairModel`. Raises DataError if neither option has a probability."""
        first, second = await asyncio.gather(
            self._first_wins(context, a, b), self._first_wins(context, b, a)
        )
        return (first + 1 - second) / 2

    async def _first_wins(self, context: str, first: str, second: str) -> float:
        ids = contest(self._chat, context, first, second, self.template)
        a, b = await option_masses(self.policy, self._chat, ids, "AB")
        if not a + b > 0:
            raise DataError(f"{self.policy.name} gives neither A nor B a probability; ask another")
        return a / (a + b)


async def wins(model: PairModel, context: str, answers: Sequence[str]) -> list[float]:
    """The mean probability that each answer is better than each other one: scores from 0 to 1.

    A single answer has 1/2.
    """
    if len(answers) < 2:
        return [0.5] * len(answers)
    pairs = [(i, j) for i in range(len(answers)) for j in range(i)]
    found = await asyncio.gather(
        *(model.prefers(context, answers[i], answers[j]) for i, j in pairs)
    )
    won: list[list[float]] = [[] for _ in answers]
    for (i, j), p in zip(pairs, found, strict=True):
        won[i].append(p)
        won[j].append(1 - p)
    return [math.fsum(own) / len(own) for own in won]

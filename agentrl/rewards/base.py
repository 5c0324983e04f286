"""What a reward model is: something that scores a path of token ids, its steps, or two answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class RewardModel(Protocol):
    """Scores token ids: a sequence classifier, an endpoint, a learnt value head."""

    async def reward(self, token_ids: Sequence[int]) -> float:
        """How good the whole path is: any real number, more is better."""
        ...


class ProcessModel(Protocol):
    """Scores the steps of a path."""

    async def steps(self, token_ids: Sequence[int], ends: Sequence[int]) -> list[float]:
        """How good each step is, given what stands before it. `ends` are the indices of the steps'
        last tokens."""
        ...


class PairModel(Protocol):
    """Says which of two answers is better."""

    async def prefers(self, context: str, a: str, b: str) -> float:
        """The probability that `a` is the better answer to `context`; that of `b` is the rest."""
        ...

"""Tools inside a search: what a step asks the environment for, and how the answer enters the tree.

How a path's text becomes a message for the environment is a `Format` (`agentrl.rollouts.acting`);
which episode answers it is the business of `worlds`.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Protocol

from agentrl.errors import AgentRLWarning
from agentrl.interfaces import Episode
from agentrl.search.table import Acted, State, Table
from agentrl.search.worlds import Lost, Worlds
from agentrl.tree import Cursor, Sampled
from agentrl.types import Message, Step


class Format(Protocol):
    """How a policy acts. `acts` counts the environment's answers on the path so far."""

    def stops(self, acts: int) -> tuple[str, ...]:
        """Strings after which the path may ask for something."""
        ...

    def asked(self, cursor: Cursor, sampled: Sampled, acts: int) -> Message | None:
        """What the environment is to answer now; None if nothing. The cursor may go back behind an
        end token that stands where the turn goes on."""
        ...

    def enter(self, cursor: Cursor, message: Message, step: Step, acts: int) -> Acted:
        """Put the answer into the tree, as tokens that were not sampled."""
        ...

    def answer(self, cursor: Cursor, episode: Episode) -> Message | None:
        """What a finished path is graded by; None where its actions alone are graded."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """The environment's answer to `message`, which took `seconds`, and the episode that stands
    behind it."""

    message: Message
    step: Step
    episode: Episode
    seconds: float = 0.0


@dataclass(slots=True)
class Stage:
    """The environment of one search."""

    format: Format
    worlds: Worlds

    async def answer(self, table: Table, state: State, message: Message) -> Answer | None:
        """What the environment answers in `state`; None if the state is lost.

        Raises SandboxError where infrastructure fails.
        """
        episode = await self.restored(table, state)
        if episode is None:
            return None
        began = time.perf_counter()
        step = await episode.step(message)
        table.calls += calls_of(message)
        return Answer(message, step, episode, time.perf_counter() - began)

    async def restored(self, table: Table, state: State) -> Episode | None:
        """An episode that stands in `state`; None, with a warning, if that one is lost."""
        try:
            return await self.worlds.at(table, state)
        except Lost as lost:
            table.lost += 1
            warnings.warn(
                f"a state of a search is lost: {lost}. Steps from there are dropped; give the "
                "episode a fork(), or make its answers depend on the task and the calls alone.",
                category=AgentRLWarning,
                stacklevel=2,
            )
            return None

    async def enter(self, table: Table, state: State, answer: Answer, cursor: Cursor) -> Acted:
        """Put `answer`, given in `state`, into the tree at `cursor`."""
        acts = len(table.acts(state))
        acted = self.format.enter(cursor, answer.message, answer.step, acts)
        if acted.ended:
            await self.worlds.end(answer.episode)
        return acted

    async def keep(self, table: Table, state: State, answer: Answer) -> None:
        """The answer's episode stands in `state` from now on. Raises what `Worlds.keep` raises."""
        await self.worlds.keep(table, state, answer.episode, answer.seconds)


def calls_of(message: Message) -> int:
    """How many calls the environment is asked for: an action without tools is one."""
    return max(1, len(message.tool_calls))

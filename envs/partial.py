"""Partial credit around any environment: something for an answer that could be read, but is wrong.

ReFT (arXiv 2401.08967) gives 0.1 for a wrong number, so that a policy that is never right yet
learns to give answers at all. Only for numbers: where there are few answers to choose from, such
credit is had by guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from agentrl.errors import ConfigError
from agentrl.interfaces import Demonstrated, Env, Episode, Sandbox
from agentrl.types import Message, Step, Task, ToolSpec


@dataclass
class PartialCredit:
    """`env`, but a number that is wrong earns `credit`.

    Read from the step: reward 0 and `info["reason"]` "wrong" (`envs.grading`; "no_answer" earns
    nothing). Tasks whose `data["type"]` is not a number are graded as before. Raises ConfigError
    for a credit that is not between 0 and 1.
    """

    env: Env
    credit: float = 0.1
    name: str = field(init=False)
    tools: tuple[ToolSpec, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.credit < 1:
            raise ConfigError(f"partial credit is at least 0 and below 1, not {self.credit}")
        self.name, self.tools = self.env.name, self.env.tools

    def tasks(self, n: int | None = None) -> list[Task]:
        """The environment's own."""
        return self.env.tasks(n)

    def demonstrations(self, task: Task) -> Sequence[str]:
        """The environment's own, if it has any."""
        return self.env.demonstrations(task) if isinstance(self.env, Demonstrated) else ()

    def open(self, task: Task, box: Sandbox | None) -> Episode:
        """An episode whose grades have the credit in them."""
        episode = self.env.open(task, box)
        numeric = task.data.get("type", "number") == "number"
        return _Credited(episode, self.credit) if numeric else episode


class _Credited:
    """An episode, with another reward for an answer that is wrong."""

    def __init__(self, episode: Episode, credit: float) -> None:
        self._episode, self._credit = episode, credit
        self.tools = episode.tools

    async def reset(self) -> tuple[Message, ...]:
        return await self._episode.reset()

    async def step(self, message: Message) -> Step:
        step = await self._episode.step(message)
        if step.reward == 0 and step.info.get("reason") == "wrong":
            return replace(step, reward=self._credit)
        return step

    async def close(self) -> None:
        await self._episode.close()

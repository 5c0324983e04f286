"""Feedback as a condition: the prompt says how good what follows is (FAFT).

From the study of TravelPlanner, "Can We Rely on LLM Agents to Draft Long-Horizon Plans?": trained
on good and bad plans, each behind its feedback, the policy is asked for a plan behind "success".
The wording is ours; the paper's is not known. `agentrl.select.faft` makes the training rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentrl.errors import ConfigError
from agentrl.interfaces import Episode, OpenEnv, Rollout
from agentrl.tree import Cursor
from agentrl.types import Message, Step, ToolSpec

SUCCESS = "success"
TEMPLATE = "\nFeedback on your answer: {feedback}"


def with_feedback(messages: Sequence[Message], feedback: str) -> tuple[Message, ...]:
    """`messages`, the last one followed by the feedback."""
    if not messages or messages[-1].role != "user":
        raise ConfigError("feedback is put behind the user's message, and the last one is not that")
    *before, last = messages
    return (*before, replace(last, content=last.content + TEMPLATE.format(feedback=feedback)))


def conditioned(rollout: Rollout) -> Rollout:
    """`rollout` by a policy that is told that it will succeed, as at inference it always is."""

    async def told(cursor: Cursor, open_env: OpenEnv) -> None:
        async def open_told() -> Episode:
            return _Told(await open_env())

        await rollout(cursor, open_told)

    told.__name__ = f"{getattr(rollout, '__name__', 'rollout')}_conditioned"
    return told


class _Told:
    """An episode whose prompt says `success`."""

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.tools: tuple[ToolSpec, ...] = episode.tools

    async def reset(self) -> tuple[Message, ...]:
        return with_feedback(await self.episode.reset(), SUCCESS)

    async def step(self, message: Message) -> Step:
        return await self.episode.step(message)

    async def close(self) -> None:
        await self.episode.close()

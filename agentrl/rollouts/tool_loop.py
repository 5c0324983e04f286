"""The policy uses tools until it answers: python blocks in one turn, or native tool calls."""

from __future__ import annotations

from typing import Literal

from agentrl.errors import ConfigError
from agentrl.interfaces import OpenEnv, Rollout
from agentrl.rollouts.blocks import MAX_CALLS, BlockTurn, grade, result_status, result_statuses
from agentrl.tree import Cursor
from agentrl.types import Message, StopReason


def tool_loop(
    *,
    tools: Literal["blocks", "native"] = "blocks",
    max_calls: int = MAX_CALLS,
    max_turns: int = 16,
    max_tokens: int | None = None,
) -> Rollout:
    """Use the environment's tools until there is an answer.

    `blocks`: closed python blocks run and their output follows in the same turn.
    `native`: the environment's tools stand in the chat template, the policy calls them in the
    template's notation, and the answers come as tool messages, up to `max_turns` turns.

    `max_tokens` limits what is sampled in the whole rollout. Raises ConfigError for another mode.
    """
    if tools not in ("blocks", "native"):
        raise ConfigError(f"tool_loop: tools is 'blocks' or 'native', not {tools!r}")

    async def blocks(cursor: Cursor, open_env: OpenEnv) -> None:
        episode = await open_env()
        cursor.begin(await episode.reset())
        turn = BlockTurn(cursor, episode, max_calls, max_tokens)
        await grade(cursor, episode, turn, await turn.advance())

    async def native(cursor: Cursor, open_env: OpenEnv) -> None:
        episode = await open_env()
        cursor.begin(await episode.reset(), episode.tools)
        limit = cursor.params.max_tokens if max_tokens is None else max_tokens
        statuses: list[str] = []
        reason: StopReason = "max_turns"
        reward, answer, calls = None, "", 0
        for _ in range(max_turns):
            sampled = await cursor.sample(max_tokens=limit - cursor.sampled_tokens)
            message = cursor.message()
            if not sampled.ended:
                full = len(cursor.ids) >= cursor.policy.max_context
                reason = "context_full" if full else "max_tokens"
                message = Message("assistant", message.content)  # a cut call does not run
            elif not message.tool_calls:
                reason = "final_answer"
            step = await episode.step(message)
            calls += len(message.tool_calls)
            if message.tool_calls:
                statuses.append(result_status(step))
            if step.terminated or step.truncated or not message.tool_calls:
                reward, answer = step.reward, str(step.info.get("answer", message.content))
                reason = "env_terminated" if message.tool_calls else reason
                break
            each = result_statuses(step)
            more = {"statuses": each} if len(each) > 1 else {}
            cursor.observe(step.observation, status=statuses[-1], **more)
        cursor.finish(
            reason,
            reward=reward,
            answer=answer,
            calls=calls,
            statuses=statuses,
            sampled_tokens=cursor.sampled_tokens,
        )

    rollout = blocks if tools == "blocks" else native
    rollout.__name__ = f"tool_loop_{tools}"
    return rollout

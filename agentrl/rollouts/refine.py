"""AgentRefine's game (arXiv 2501.01702): an action a turn, and what the environment says of it.

Observation and action alternate until the environment ends the episode. Each turn's verdict stands
in the `info` of its last node: `ok`, and where it was wrong `error` (what the policy is told) and
`fault` (its kind). `agentrl.select.refine` makes training rows of that, with the wrong turns as
context only.
"""

from __future__ import annotations

from agentrl.interfaces import OpenEnv, Policy, Rollout
from agentrl.rollouts.teacher import taught
from agentrl.tree import Cursor
from agentrl.types import Message, StopReason


def refine(
    *, max_tokens: int | None = None, max_turns: int = 50, teacher: Policy | None = None
) -> Rollout:
    """Play until the environment ends the episode, or `max_turns` are over.

    With `teacher` that policy plays, in the student's tokens (`agentrl.rollouts.teacher`).
    `max_tokens` limits each turn. A turn that it cuts off is not played: the environment gets an
    empty message, and judges that. The attempt's reward is that of the last step; its metrics are
    `played` (turns), `errors`, `cut_turns` and the environment's `progress`.
    """

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode = await open_env()
        cursor.begin(await episode.reset())
        if teacher is not None:
            cursor = taught(cursor, teacher)
        reason: StopReason = "max_turns"
        reward, progress = None, None
        errors = cut = turns = 0
        while turns < max_turns:
            sampled = await cursor.sample((), max_tokens=max_tokens)
            if not sampled.ended and len(cursor.ids) >= cursor.policy.max_context:
                reason = "context_full"
                break
            turns += 1
            cut += not sampled.ended
            step = await episode.step(Message("assistant", sampled.text if sampled.ended else ""))
            ok = bool(step.info.get("ok", True))
            verdict = {"ok": ok} if ok else {n: step.info.get(n) for n in ("ok", "error", "fault")}
            if sampled.completion.token_ids:
                cursor.tree.nodes[sampled.node].info.update(verdict)
            errors += not ok
            reward, progress = step.reward, step.info.get("progress")
            if step.terminated or step.truncated or not step.observation:
                reason = "env_terminated" if step.terminated else "max_turns"
                break
            cursor.observe(step.observation)
        cursor.finish(
            reason,
            reward=reward,
            answer=cursor.turn_text(),
            played=turns,
            errors=errors,
            cut_turns=cut,
            progress=progress,
            sampled_tokens=cursor.sampled_tokens,
        )

    rollout.__name__ = "refine" if teacher is None else "refine_taught"
    return rollout

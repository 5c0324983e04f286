"""A given answer, played in the environment: blocks run, the answer is graded, nothing is sampled.

So demonstrations become trees like all others, in the same sandbox and token for token as the
policy would see them, and a demonstration that is not right is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentrl.errors import ConfigError
from agentrl.interfaces import Demonstrated, Env, OpenEnv, Rollout
from agentrl.rollouts.blocks import MAX_CALLS, BlockTurn, grade
from agentrl.tree import Cursor
from agentrl.types import Task


def replay(answers: Callable[[Task], Sequence[str]], *, max_calls: int = MAX_CALLS) -> Rollout:
    """Attempt k at a task says the k-th of `answers(task)`. `max_calls` blocks run.

    What is said is a hint: it can be trained on (`agentrl.select.rows`), and has no
    log-probabilities. Raises ConfigError for a task with fewer answers.
    """

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        tree = cursor.tree
        told, attempt = answers(tree.task), tree.meta.get("attempt", 0)
        if attempt >= len(told):
            raise ConfigError(
                f"task {tree.task.id!r} has {len(told)} answers to replay, attempt {attempt} needs "
                f"{attempt + 1}"
            )
        episode = await open_env()
        cursor.begin(await episode.reset())
        turn = BlockTurn(cursor, episode, max_calls)
        await turn.say(told[attempt])
        cursor.hint(cursor.chat.end_text)
        await grade(cursor, episode, turn, "end")

    rollout.__name__ = "replay"
    return rollout


def demonstrated(env: Env, tasks: Sequence[Task]) -> list[Task]:
    """Those of `tasks` that the environment can show how to solve.

    Raises ConfigError if it cannot for any of them.
    """
    found = [t for t in tasks if isinstance(env, Demonstrated) and env.demonstrations(t)]
    if not found:
        raise ConfigError(
            f"environment {env.name!r} has no demonstrations; give it a method "
            "demonstrations(task) (agentrl.interfaces.Demonstrated), or use one that has them, "
            "such as arithmetic or gsm8k"
        )
    return found

"""Games made up by a strong model (AgentRefine's synthesis, arXiv 2501.01702).

For `envs.scenarios`: the model writes an environment, then a game in it, and the verifier answers.
What the verifier refuses is taken back: the next try does not see it, only what was verified of it.
The tree keeps every try, each a branch at the place where it began.
"""

from __future__ import annotations

from agentrl.interfaces import OpenEnv, Rollout
from agentrl.tree import Cursor
from agentrl.types import Message, StopReason


def synthesize(
    *,
    script_temperature: float = 1.0,
    game_temperature: float = 0.7,
    max_tokens: int | None = None,
    max_turns: int = 16,
) -> Rollout:
    """Ask, check, and ask again until the environment ends the episode or `max_turns` are over.

    `max_tokens` limits each answer; one that is cut off is checked as it stands. The attempt's
    metrics are `scenario` (script and verified turns, if it was accepted), `errors` (mistakes in
    the game), `played` (answers) and `faults` (why answers were refused).
    """

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode = await open_env()
        cursor.begin(await episode.reset())
        start = cursor.fork()  # where the next try begins
        asked: tuple[Message, ...] = ()  # what it is asked there
        reason: StopReason = "max_turns"
        faults: list[str] = []
        reward, played, info = None, 0, {}
        while played < max_turns:
            played += 1
            temperature = game_temperature if asked else script_temperature
            sampled = await cursor.sample((), max_tokens=max_tokens, temperature=temperature)
            step = await episode.step(Message("assistant", sampled.text))
            reward, info = step.reward, dict(step.info)
            ok = bool(info.get("ok", True))
            if sampled.completion.token_ids:
                cursor.tree.nodes[sampled.node].info.update({"ok": ok, "error": info.get("error")})
            if not ok:
                faults.append(str(info.get("error")))
            if step.terminated or step.truncated or not step.observation:
                reason = "env_terminated" if step.terminated else "max_turns"
                break
            if ok:
                start = cursor
            cursor = start.fork()
            if ok or asked:
                asked = step.observation
                cursor.observe(asked)
        cursor.finish(
            reason,
            reward=reward,
            answer=cursor.turn_text(),
            scenario=info.get("scenario"),
            errors=info.get("errors", 0),
            played=played,
            progress=info.get("progress"),
            faults=faults,
            sampled_tokens=cursor.sampled_tokens,
        )

    rollout.__name__ = "synthesize"
    return rollout

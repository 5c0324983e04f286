"""LeTI's sampling: one program, behind the verdict that it should earn (arXiv 2305.10314).

In training a row is verdict, feedback, prompt, program (`agentrl.select.leti`), so from the second
iteration on the prompt stands behind `<|good|>`. The verdict is one token in front of the rendered
conversation. What the environment said of the program (`feedback`, `status`) is in the attempt's
metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.interfaces import OpenEnv, Rollout, Tokenizer
from agentrl.rollouts.blocks import BlockTurn, cut_to, grade
from agentrl.tree import Cursor
from sandboxes.feedback import BAD, CLOSE, GOOD, LETI_TOKENS, OPEN


@dataclass(frozen=True, slots=True)
class LetiTokens:
    """The ids of LeTI's four added tokens: verdicts, and the marks around the feedback."""

    good: int
    bad: int
    feedback_start: int
    feedback_end: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> LetiTokens:
        """Those of `tokenizer`. Raises ConfigError if one of them is no single token of it."""
        ids = []
        for text in (GOOD, BAD, OPEN, CLOSE):
            found = tokenizer.encode(text)
            if len(found) != 1:
                raise ConfigError(
                    f"{text} is no token of this tokenizer: the model was not trained by LeTI. "
                    "Add its tokens first: agentrl.engines.vocabulary.with_tokens(policy, ...)"
                )
            ids += found
        return cls(*ids)


def leti(*, good: bool = False, max_tokens: int | None = None) -> Rollout:
    """Sample one program without tools; with `good` behind the token `<|good|>`.

    The first iteration, and a model that LeTI has not trained, take the bare prompt. A LeTI token
    that the policy writes ends its program and is no part of it, so none is ever executed.
    `max_tokens` defaults to the sampling parameters' limit. Raises ConfigError if the tokenizer
    lacks the token.
    """

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode = await open_env()
        before = [LetiTokens.of(cursor.policy.tokenizer).good] if good else []
        cursor.begin(await episode.reset(), before=before)
        turn = BlockTurn(cursor, episode, max_calls=0, max_tokens=max_tokens)
        event = await turn.advance(LETI_TOKENS)
        if event == "stop" and turn.last is not None:
            cut_to(cursor, cursor.turn_text().rfind(turn.last.stop or ""))
        await grade(cursor, episode, turn, event)

    rollout.__name__ = "leti_good" if good else "leti"
    return rollout

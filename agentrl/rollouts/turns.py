"""Several answers to one task in one conversation, each graded by an episode of its own.

What self-correction, introspection and debugging share. An attempt made here has one `TurnReward`
an answer, at the node that ends it; its own `reward` is the last answer's. What `agentrl.evaluate`
reads stands in `metrics["turns"]`: for each answer its `answer` (as the environment read it),
`reward`, `truncated` and `text`. So credit takes the rewards from the list alone
(`episode_of(..., outcome=False)`).
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

from agentrl.errors import ConfigError
from agentrl.interfaces import Episode, OpenEnv, Policy
from agentrl.rollouts.blocks import BlockTurn, answer_text, invented_output, stop_reason
from agentrl.rollouts.teacher import taught
from agentrl.tree import Cursor
from agentrl.types import Attempt, Message, TurnReward


@dataclass(frozen=True, slots=True)
class Answer:
    """One graded answer. `reward` None is "not scored", which is not 0.

    `text` is the whole turn, `answer` what the environment read in it, `node` the turn's last node,
    `feedback` what the environment has to say about it (`Step.info["feedback"]`). `mark` is the
    node that ends with the first `mark` of `Turns.answer`, if the answer has one. An answer that
    was `given` is not the policy's: it has a grade, but no reward.
    """

    text: str
    answer: str
    reward: float | None
    truncated: bool
    node: int
    feedback: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    mark: int | None = None
    given: bool = False

    @property
    def right(self) -> bool:
        """True for full reward."""
        return self.reward is not None and self.reward >= 1.0

    def to_json(self) -> dict[str, Any]:
        """What `metrics["turns"]` holds of it."""
        return {
            "answer": self.answer,
            "reward": self.reward,
            "truncated": self.truncated,
            "text": self.text,
        }


class Turns:
    """Answers in one conversation.

        turns = Turns(cursor, open_env)
        await turns.begin()
        first = await turns.answer()
        turns.ask("Try again.")
        second = await turns.answer()
        turns.finish()

    `max_calls` python blocks an answer run in the environment (0: none), `max_tokens` are sampled
    for one answer at most (default: the sampling parameters' limit).
    """

    def __init__(
        self,
        cursor: Cursor,
        open_env: OpenEnv,
        *,
        max_calls: int = 0,
        max_tokens: int | None = None,
    ) -> None:
        self.cursor, self.open_env = cursor, open_env
        self.max_calls, self.max_tokens = max_calls, max_tokens
        self.answers: list[Answer] = []
        self.prompt: tuple[Message, ...] = ()
        """The task as the environment shows it."""
        self._shown: Episode | None = None  # the episode that showed the task grades first
        self.calls = 0
        self.statuses: list[str] = []
        self.hallucinated = False

    async def begin(self, *before: Message, lead: str = "") -> None:
        """Show the task, after the messages `before` (a system message, a worked example).

        `lead` goes in front of the task's own text. The task's system message stays the first.
        """
        self._shown = await self.open_env()
        self.prompt = await self._shown.reset()
        system = [m for m in self.prompt if m.role == "system"]
        task = [m for m in self.prompt if m.role != "system"]
        if lead:
            task[-1] = replace(task[-1], content=lead + task[-1].content)
        self.cursor.begin([*system, *before, *task])

    async def answer(self, mark: str = "") -> Answer:
        """Sample one answer and let an episode of the environment grade it.

        Where the answer first says `mark`, a node ends, at which a reward can stand. Raises
        SandboxError or EngineError where infrastructure fails.
        """
        episode = await self._episode()
        cursor, marked = self.cursor, None
        turn = BlockTurn(cursor, episode, self.max_calls, self.max_tokens)
        event = await turn.advance((mark,) if mark else ())
        if event == "stop":
            marked = cursor.node
            event = await turn.advance()
        self.calls += turn.calls
        self.statuses += turn.statuses
        self.hallucinated |= invented_output(cursor)
        made = await self._graded(episode, answer_text(cursor, episode), truncated=event == "limit")
        self.answers.append(replace(made, mark=marked))
        return self.answers[-1]

    async def given(self, text: str, **info: Any) -> Answer:
        """Put `text` where the policy's answer would stand, and grade it: an answer to work on,
        which is context and never trained on."""
        episode = await self._episode()
        self.cursor.insert(text, **info)
        made = await self._graded(episode, text, truncated=False)
        self.answers.append(replace(made, given=True))
        return self.answers[-1]

    async def _episode(self) -> Episode:
        if not self.prompt:
            raise ConfigError("Turns: call begin() before the first answer()")
        episode, self._shown = self._shown, None
        if episode is None:
            episode = await self.open_env()
            await episode.reset()
        return episode

    async def _graded(self, episode: Episode, text: str, *, truncated: bool) -> Answer:
        step = await episode.step(Message("assistant", text))
        await episode.close()
        return Answer(
            self.cursor.turn_text(),
            str(step.info.get("answer", text)),
            step.reward,
            truncated,
            self.cursor.node,
            str(step.info.get("feedback", "")),
            step.info,
        )

    def fork(self, teacher: Policy | None = None) -> Turns:
        """The same conversation in a branch of its own. What is said there is the `teacher`'s,
        where one is given (`agentrl.rollouts.teacher`)."""
        other = copy(self)
        other.cursor = self.cursor.fork() if teacher is None else taught(self.cursor, teacher)
        other.answers, other.statuses = list(self.answers), list(self.statuses)
        other._shown = None  # an episode grades once
        return other

    def ask(self, text: str, **info: Any) -> int:
        """Say `text` to the policy and open its next turn. Returns the node."""
        return self.cursor.observe([Message("user", text)], **info)

    def finish(self, **metrics: Any) -> Attempt:
        """Record the answers so far as an attempt."""
        if not self.answers:
            raise ConfigError("Turns: there is no answer to record")
        last = self.answers[-1]
        return self.cursor.finish(
            stop_reason(self.cursor, truncated=last.truncated),
            reward=last.reward,
            answer=last.answer,
            rewards=[
                TurnReward(a.node, a.reward)
                for a in self.answers
                if a.reward is not None and not a.given
            ],
            turns=[a.to_json() for a in self.answers],
            calls=self.calls,
            statuses=list(self.statuses),
            hallucinated_output=self.hallucinated,
            sampled_tokens=self.cursor.sampled_tokens,
            **metrics,
        )

"""RISE: attempts at a task until one is right, or until the last turn (arXiv 2407.18219).

`rise` is how the policy answers: every turn it is told that the answer is wrong and shown the
problem again, whatever it said. `rise_collect` makes the data: the policy's own attempts, the last
of which is improved, by the best of several samples or by a teacher. The texts are those of the
released code; a turn is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.errors import ConfigError
from agentrl.interfaces import OpenEnv, Policy, Rollout
from agentrl.rollouts.turns import Answer, Turns
from agentrl.tree import Cursor
from agentrl.types import Message

FEEDBACK = "The answer is incorrect. Please try again. Here's the question: "
"""What is said after every answer but the last; the problem follows."""
NEXT = "Great job! You've successfully answered the question. Now, let's move on to the next one.\n"
"""What stands between the worked example and the problem."""


def rise(
    *,
    turns: int = 5,
    oracle: bool = False,
    window: int | None = None,
    feedback: str = FEEDBACK,
    repeat: bool = True,
    example: Sequence[str] = (),
    max_calls: int = 0,
    max_tokens: int | None = None,
) -> Rollout:
    """Several answers in a row, each taken for wrong; with an oracle, until one is right.

    Without `oracle`, nothing that the policy sees depends on whether it was right, and all `turns`
    are taken (`agentrl.evaluate` lets the answers vote).

    `window` W: from turn W (from 0) on the policy sees the task and its last W-1 answers only; no
    more than in training. `feedback` is said after each answer, with the problem behind it
    (`repeat`). `example` is a question and its answer, shown before the problem. `max_calls` python
    blocks an answer run; `max_tokens` are sampled for one answer at most.

    Raises ConfigError for numbers that cannot be. W=1 is one of them: nothing of an earlier answer
    would be left to improve (the released code slices `[-0:]` there, and shows everything).
    """
    texts = _Texts(feedback, repeat, tuple(example))
    if turns < 1:
        raise ConfigError(f"rise: turns is 1 or more, not {turns}")
    if window is not None and window < 2:
        raise ConfigError(
            f"rise: window={window} leaves no earlier answer in sight. Use 2 or more, None for the "
            "whole history, or turns=1 for single attempts"
        )

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        talk = Turns(cursor, open_env, max_calls=max_calls, max_tokens=max_tokens)
        await texts.begin(talk)
        start = cursor.fork()
        said: list[list[int]] = []  # the tokens of each answer
        for turn in range(turns):
            if window is not None and turn >= window:
                _begin_anew(talk, start, said[1 - window :], texts.again(talk))
            elif turn:
                talk.ask(texts.again(talk))
            answer = await talk.answer()
            said.append(talk.cursor.ids[talk.cursor.turn_start :])
            if oracle and answer.right:
                break
        talk.finish(oracle=oracle)

    rollout.__name__ = "rise_oracle" if oracle else "rise"
    return rollout


def rise_collect(
    *,
    turns: int = 2,
    candidates: int = 16,
    teacher: Policy | None = None,
    feedback: str = FEEDBACK,
    repeat: bool = True,
    example: Sequence[str] = (),
    max_calls: int = 0,
    max_tokens: int | None = None,
) -> Rollout:
    """Attempts until one is right; the last is the best of several, or a teacher's.

    Turns before number `turns` are single samples of the policy, so that it learns to leave states
    that it gets into itself. That one is the best of `candidates` samples at the same state (the
    first of equals), or one answer of `teacher`, who reads the policy's attempts. Each candidate is
    an attempt; the last attempt of the tree is the chosen one. Its `metrics["candidates"]` are the
    rewards of all at that state. For the other options see `rise`.

    Raises ConfigError for numbers that cannot be.
    """
    texts = _Texts(feedback, repeat, tuple(example))
    if turns < 2 or candidates < 1:
        raise ConfigError(
            f"rise_collect: turns={turns}, candidates={candidates}; turns is 2 or more (the last "
            "one is improved), candidates 1 or more"
        )

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        talk = Turns(cursor, open_env, max_calls=max_calls, max_tokens=max_tokens)
        await texts.begin(talk)
        for _ in range(turns - 1):
            answer = await talk.answer()
            if answer.right:
                talk.finish(candidates=[answer.reward])
                return
            talk.ask(texts.again(talk))
        branches = [talk.fork(teacher) for _ in range(1 if teacher else candidates)]
        answers = [await branch.answer() for branch in branches]  # one by one: the same tree anew
        best = max(range(len(answers)), key=lambda i: _score(answers[i]))
        for i, branch in enumerate(branches):
            if i != best:
                branch.finish(candidate=i)
        branches[best].finish(candidate=best, candidates=[a.reward for a in answers])

    rollout.__name__ = "rise_collect"
    return rollout


@dataclass(frozen=True, slots=True)
class _Texts:
    """What the policy is told, the same whatever it answers."""

    feedback: str
    repeat: bool
    example: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.example) not in (0, 2):
            raise ConfigError("rise: example is a question and its answer, two texts")

    async def begin(self, talk: Turns) -> None:
        """Show the task, after the worked example."""
        if not self.example:
            await talk.begin()
            return
        question, answer = self.example
        await talk.begin(Message("user", question), Message("assistant", answer), lead=NEXT)

    def again(self, talk: Turns) -> str:
        """The message after an answer."""
        problem = talk.prompt[-1].content
        return self.feedback + problem if self.repeat else self.feedback


def _begin_anew(talk: Turns, start: Cursor, said: Sequence[Sequence[int]], again: str) -> None:
    """Go on after the task and the answers `said` alone, each of them followed by `again`.

    The answers keep their tokens; they were sampled elsewhere and carry no loss here.
    """
    old, cursor = talk.cursor, start.fork()
    cursor.branches = (*old.branches, old.node)
    cursor.sampled_tokens = old.sampled_tokens
    for ids in said:
        if ids:
            cursor.recall(ids)
        cursor.observe([Message("user", again)])
    talk.cursor = cursor


def _score(answer: Answer) -> float:
    return float("-inf") if answer.reward is None else answer.reward

"""LeDex: a program, what its tests say, then a refined program, explained first or not.

arXiv 2405.18649, its turn structure: task, program, execution feedback with one of two
instructions, and the answer to it, over as many rounds as asked for while the program is wrong. The
feedback is the environment's (`Step.info["feedback"]`): without one there is nothing to debug by,
and that is an error.
"""

from __future__ import annotations

from typing import Any

from agentrl.errors import ConfigError, DataError
from agentrl.interfaces import OpenEnv, Rollout
from agentrl.rollouts.turns import Answer, Turns
from agentrl.tree import Cursor

REFINE = """Your program is wrong:
{feedback}
Write a correct program."""
EXPLAIN = """Your program is wrong:
{feedback}
First explain what is wrong with it. Then write a correct program."""
MARK = "```"
"""Where an explanation ends and the program begins."""


def self_debug(
    *,
    rounds: int = 1,
    explain: bool = False,
    given: bool = False,
    mark: str = MARK,
    ask: str | None = None,
    max_tokens: int | None = None,
) -> Rollout:
    """Refine a wrong program for up to `rounds` rounds; a right one ends the attempt.

    The first program is the policy's, or with `given` the task's `data["wrong"]`, which then is
    context that is never trained on. With `explain` the answer is an explanation and a program, and
    a node ends where `mark` first begins the program. `ask` replaces the instruction (`{feedback}`
    stands for the feedback). `max_tokens` limits each answer.

    The attempt's metrics, besides those of `Turns`: `feedback`, the environment's words on the
    program that each round refines; `passed`, the share of all tests that each program passed, as
    `Step.info["passed"]` says (its reward, where that is missing); `marks`, the nodes that end the
    explanations (None where there is none); `given`.

    Raises ConfigError where the environment gives no feedback on a wrong program or `ask` has no
    place for it, DataError for a task without a program to debug.
    """
    told = (EXPLAIN if explain else REFINE) if ask is None else ask
    if "{feedback}" not in told:
        raise ConfigError("self_debug: ask must have {feedback} in it; the tests' words go there")
    if explain and not mark:
        raise ConfigError("self_debug: explain needs a mark, the text that a program begins with")

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        turns = Turns(cursor, open_env, max_tokens=max_tokens)
        await turns.begin()
        wrong = cursor.tree.task.data.get("wrong")
        if given and not wrong:
            raise DataError(f"task {cursor.tree.task.id!r} has no data['wrong'] to debug")
        answer = await (turns.given(str(wrong)) if given else turns.answer())
        said: list[str] = []
        while len(said) < rounds and answer.reward is not None and not answer.right:
            said.append(feedback_of(answer))
            turns.ask(told.replace("{feedback}", said[-1]))
            answer = await turns.answer(mark if explain else "")
        turns.finish(
            feedback=said,
            passed=[passed_of(a) for a in turns.answers],
            marks=[a.mark for a in turns.answers],
            given=given,
        )

    rollout.__name__ = "self_debug"
    return rollout


def feedback_of(answer: Answer) -> str:
    """The environment's words on a wrong answer. Raises ConfigError if it has none."""
    if not answer.feedback:
        raise ConfigError(
            "self_debug: the environment gives no feedback on a wrong answer. It must put what the "
            "tests said into Step.info['feedback'], a timeout included."
        )
    return answer.feedback


def passed_of(answer: Answer) -> Any:
    """The share of all tests that an answer passed, from 0 to 1; None if it was not scored."""
    return answer.info.get("passed", answer.reward)


def explanation_of(text: str, mark: str = MARK) -> tuple[str, str]:
    """An answer's explanation and its program, which `mark` begins; no explanation without it."""
    at = text.find(mark)
    return (text[:at].strip(), text[at:].strip()) if at >= 0 else ("", text.strip())

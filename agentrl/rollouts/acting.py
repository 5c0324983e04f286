"""How a policy acts inside a search: python blocks in one turn, native calls, or an action a turn.

Each is a `Format` of `agentrl.search.stage`, and reads and writes the same tokens as the rollout
that it is named after: `tool_loop` (blocks, native) and `refine` (turns).
"""

from __future__ import annotations

from dataclasses import dataclass

from agentrl.errors import ConfigError, TreeError, unknown
from agentrl.interfaces import Episode
from agentrl.rollouts.blocks import (
    MAX_CALLS,
    STOP,
    answer_text,
    block_call,
    executed_to,
    insert_output,
    next_block,
    result_statuses,
    told,
)
from agentrl.search.stage import Format
from agentrl.search.table import Acted
from agentrl.tree import Cursor, Sampled
from agentrl.types import Message, Step

MAX_TURNS = 16


@dataclass(frozen=True, slots=True)
class Talk:
    """There are no tools: a search is one turn."""

    def stops(self, acts: int) -> tuple[str, ...]:
        """See `agentrl.search.stage.Format`."""
        return ()

    def asked(self, cursor: Cursor, sampled: Sampled, acts: int) -> Message | None:
        """See `agentrl.search.stage.Format`."""
        return None

    def enter(self, cursor: Cursor, message: Message, step: Step, acts: int) -> Acted:
        """Nothing is asked, so nothing is answered."""
        raise TreeError("a search without tools asks the environment for nothing")

    def answer(self, cursor: Cursor, episode: Episode) -> Message | None:
        """See `agentrl.search.stage.Format`."""
        return Message("assistant", answer_text(cursor, episode))


@dataclass(frozen=True, slots=True)
class Blocks:
    """A closed python block runs, and its output follows in the same turn; `most` of them do."""

    most: int = MAX_CALLS

    def stops(self, acts: int) -> tuple[str, ...]:
        """See `agentrl.search.stage.Format`."""
        return (STOP,) if acts < self.most else ()

    def asked(self, cursor: Cursor, sampled: Sampled, acts: int) -> Message | None:
        """See `agentrl.search.stage.Format`."""
        if acts >= self.most:
            return None
        code = next_block(cursor.turn_text(), executed_to(cursor))
        if code is None:
            return None
        if sampled.ended:
            cursor.rewind(sampled.body)  # an end token after the fence
        return block_call(code, acts)

    def enter(self, cursor: Cursor, message: Message, step: Step, acts: int) -> Acted:
        """See `agentrl.search.stage.Format`."""
        insert_output(cursor, step, acts + 1, last=acts + 1 == self.most)
        return _acted(message, step, _ended(step))

    def answer(self, cursor: Cursor, episode: Episode) -> Message | None:
        """See `agentrl.search.stage.Format`."""
        return Message("assistant", answer_text(cursor, episode))


@dataclass(frozen=True, slots=True)
class Turns:
    """What a finished turn says goes to the environment, whose answer opens the next one, for
    `most` turns. A turn is an action if it has tool calls; with `every`, each is."""

    every: bool = False
    most: int = MAX_TURNS

    def stops(self, acts: int) -> tuple[str, ...]:
        """See `agentrl.search.stage.Format`."""
        return ()

    def asked(self, cursor: Cursor, sampled: Sampled, acts: int) -> Message | None:
        """See `agentrl.search.stage.Format`."""
        message = cursor.message() if sampled.ended else None  # a cut call does not run
        return message if message is not None and (self.every or message.tool_calls) else None

    def enter(self, cursor: Cursor, message: Message, step: Step, acts: int) -> Acted:
        """See `agentrl.search.stage.Format`."""
        ended = _ended(step) or ("max_turns" if acts + 1 == self.most else "")
        statuses = result_statuses(step)
        if not ended and not step.observation:
            raise ConfigError(
                "the environment answered an action with nothing, and did not end: a search has "
                "nothing to go on from"
            )
        if not ended:
            info = {"status": next((s for s in statuses if s != "ok"), "ok")} if statuses else {}
            more = {"statuses": statuses} if len(statuses) > 1 else {}
            cursor.observe(step.observation, **info, **more)
        return _acted(message, step, ended, turn=not ended, branches=cursor.branches)

    def answer(self, cursor: Cursor, episode: Episode) -> Message | None:
        """See `agentrl.search.stage.Format`."""
        return None if self.every else Message("assistant", cursor.turn_text())


def _ended(step: Step) -> str:
    return "env_terminated" if step.terminated else "max_turns" if step.truncated else ""


def _acted(
    message: Message, step: Step, ended: str, *, turn: bool = False, branches: tuple[int, ...] = ()
) -> Acted:
    return Acted(
        message,
        tuple(step.observation),
        tuple(result_statuses(step)),
        step.reward,
        ended,
        str(step.info.get("answer", "")),
        turn,
        branches,
        told(step),
    )


def format_of(tools: str, most: int | None) -> Format:
    """The format called `tools`, in which the environment answers at most `most` times. Raises
    ConfigError for another name, or a number below 1."""
    if tools not in FORMATS:
        raise unknown("format of tools", tools, FORMATS)
    if most is not None and most < 1:
        raise ConfigError(f"a search with tools: max_calls is 1 or more, not {most}")
    if tools == "none":
        return Talk()
    if tools == "blocks":
        return Blocks(MAX_CALLS if most is None else most)
    return Turns(tools == "turns", MAX_TURNS if most is None else most)


FORMATS = ("none", "blocks", "native", "turns")

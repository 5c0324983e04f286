"""One step of a search before it is a state: sampled, or taken from the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.search.stage import Answer, Stage
from agentrl.tree import Cursor, Sampled
from agentrl.types import Completion, Message


@dataclass(slots=True)
class Draw:
    """A step: where it ends, how many tokens were sampled for it, what it asks the environment for,
    and the answer to that. `times` counts the draws that were the same. A `gold` one is the
    reference's: it was not sampled, and `logprob` is the policy's of its tokens."""

    cursor: Cursor
    tokens: int
    message: Message | None
    answer: Answer | None = None
    times: int = 1
    gold: bool = False
    logprob: float | None = None


def next_step(reference: str, said: str, stops: Sequence[str]) -> str:
    """What `reference` says next, up to one of the `stops`; nothing where it does not begin with
    what was `said`, or says no more."""
    if not reference.startswith(said):
        return ""
    rest = reference[len(said) :]
    ends = [rest.find(stop) + len(stop) for stop in stops if stop in rest]
    return rest[: min(ends)] if ends else rest


async def gold_step(
    cursor: Cursor, reference: str, stops: Sequence[str], stage: Stage, acts: int
) -> Draw | None:
    """The reference's next step at `cursor`, if what was said there is how the reference begins
    (tool output apart). Its tokens are hints, marked `gold`."""
    said = "".join(text for source, text in cursor.turn_segments() if source != "environment")
    step = next_step(reference, said, (*stops, *stage.format.stops(acts)))
    if not step:
        return None
    before = len(cursor.ids)
    ends = said + step == reference
    body = cursor.hint(step, gold=True)
    node = cursor.hint(cursor.chat.end_text, gold=True) if ends else body
    found = await cursor.policy.score(cursor.ids)
    added = tuple(cursor.ids[before:])
    done = Completion(added, (), "eos" if ends else "stop", trainable=False)
    message = stage.format.asked(cursor, Sampled(step, body, node, done), acts)
    return Draw(cursor, 0, message, gold=True, logprob=math.fsum(found[-len(added) :]))

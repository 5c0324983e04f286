"""One step of a search before it is a state: sampled, the policy's likeliest token, or taken from
the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from agentrl.interfaces import Ranks
from agentrl.search.stage import Answer, Stage
from agentrl.search.units import Unit
from agentrl.tree import Cursor, Sampled
from agentrl.types import Completion, FinishReason, Message


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


async def drawn(
    cursor: Cursor, unit: Unit, left: int, stage: Stage, acts: int, **changes: Any
) -> Draw:
    """A step of at most `left` tokens, sampled at `cursor`; `changes` are to the cursor's
    parameters. It ends early where it asks the environment for something."""
    stops = (*unit.stops, *stage.format.stops(acts))
    parts, message, before = 0, None, cursor.sampled_tokens
    while parts < unit.parts and left > 0:
        sampled = await cursor.sample(stops, max_tokens=left, **changes)
        left -= len(sampled.completion.token_ids)
        message = stage.format.asked(cursor, sampled, acts)
        if message is not None or sampled.completion.finish_reason != "stop":
            break
        parts += sampled.stop in unit.stops  # what the stage stops at is no end of a step
    return Draw(cursor, cursor.sampled_tokens - before, message)


async def likeliest_steps(
    at: Callable[[], Cursor], first: int, n: int, stage: Stage, acts: int
) -> list[Draw]:
    """`n` steps of one token each: the likeliest at the place where `at` gives cursors, from the
    one at rank `first` on (0 is the likeliest). Each is taken for certain, so the log-probability
    that it was drawn with is 0, as of a greedy one. The policy is one of `Ranks`."""
    cursor = at()
    if len(cursor.ids) >= cursor.policy.max_context:
        return []
    policy = cast(Ranks, cursor.policy)
    eos_ids, version = cursor.policy.tokenizer.eos_ids, cursor.policy.version
    draws = []
    for token, logprob in (await policy.top(cursor.ids, first + n))[first:]:
        text = cursor.chat.decode([token])
        stop = next((s for s in stage.format.stops(acts) if s in text), None)
        reason: FinishReason = "eos" if token in eos_ids else "length" if stop is None else "stop"
        own = at()
        said = own.take(Completion((token,), (logprob,), reason, version, stop, (0.0,)))
        draws.append(Draw(own, 1, stage.format.asked(own, said, acts)))
    return draws


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

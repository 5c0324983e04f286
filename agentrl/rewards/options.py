"""What a language model says when it is given options: their probabilities."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence

from agentrl.chat import Chat
from agentrl.interfaces import Policy


async def option_masses(
    policy: Policy, chat: Chat, ids: Sequence[int], options: Sequence[str]
) -> list[float]:
    """The probability of each option right after `ids`.

    An option counts as its whole tokens, so a token that merely has its letter in it does not
    (iTool's released code takes a lone bracket for an A).
    """

    async def mass(option: str) -> float:
        spelling = chat.encode(option)
        found = await policy.score([*ids, *spelling])
        return math.exp(math.fsum(found[-len(spelling) :]))

    return list(await asyncio.gather(*map(mass, options)))


def filled(template: str, **parts: str) -> str:
    """`template` with each `{name}` of `parts` put in; braces inside of what is put in stay."""
    return re.sub(r"\{(\w+)\}", lambda m: parts.get(m[1], m[0]), template)

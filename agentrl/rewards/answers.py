"""What a reward model reads of a path in a tree, and what it says of answers to one prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentrl.chat import Chat
from agentrl.errors import ConfigError, DataError
from agentrl.rewards.preference import wins
from agentrl.tree import Tree
from agentrl.types import Node

Place = tuple[Tree, int]
"""A tree and the node that a path ends at."""


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Raise ConfigError if the reward model is known to read other ids, or another chat template,
    than the policy's `tokenizer` makes."""
    if not _reads(model, tokenizer):
        own, theirs = model.chat.tokenizer.fingerprint, tokenizer.fingerprint
        raise ConfigError(
            f"the reward model's tokenizer or chat template ({own}) is not the policy's ({theirs})"
            " and cannot read these ids; train one on this policy's answers (agentrl train reward)"
        )


def _reads(model: Any, tokenizer: Any) -> bool:
    own = getattr(getattr(model, "chat", None), "tokenizer", None)
    known = [getattr(t, "fingerprint", None) for t in (own, tokenizer)]
    return None in known or known[0] == known[1]


def heard(model: Any, chat: Chat, place: Place, ahead: str = "") -> list[int]:
    """The ids that a `RewardModel` reads of a path, and of the text `ahead` that goes on with it.

    The path's own where the model has the policy's tokenizer and template (or none is known). Else
    the task's messages and the answer, told anew in the model's: that takes an answer of one turn
    (ConfigError).
    """
    tree, node = place
    path = tree.path(node)
    if _reads(model, chat.tokenizer):
        return [*tree.ids(node), *chat.encode(ahead)]
    first = _first(path)
    if any(n.source == "template" for n in path[first:]):
        raise ConfigError(
            "the reward model has another tokenizer or chat template than the policy, and reads "
            "answers of one turn alone; train one on this policy's answers (agentrl train reward)"
        )
    said = [i for n in path[first:] for i in n.token_ids]
    text, own = chat.decode(chat.without_end(said)) + ahead, model.chat
    ended = not ahead and bool(said) and said[-1] in chat.tokenizer.eos_ids
    end = own.encode(own.end_text, trusted=True) if ended else []
    return [*own.prompt(tree.task.prompt), *own.encode(text), *end]


async def scored(model: Any, chat: Chat, places: Sequence[Place]) -> list[float]:
    """The scores of answers to one prompt: of a `RewardModel` its own, of a `PairModel` the mean
    probability of being better than the others. Raises DataError for answers to different prompts
    that would be compared."""
    if not hasattr(model, "prefers"):
        asked = [heard(model, chat, place) for place in places]
        return list(await asyncio.gather(*map(model.reward, asked)))
    parts = [_texts(tree.path(node), chat) for tree, node in places]
    if len({context for context, _ in parts}) > 1:
        raise DataError("answers to different prompts cannot be compared with each other")
    return await wins(model, parts[0][0], [said for _, said in parts]) if parts else []


def _first(path: Sequence[Node]) -> int:
    """Where the answer begins."""
    return next((i for i, n in enumerate(path) if n.role == "assistant"), len(path))


def _texts(path: Sequence[Node], chat: Chat) -> tuple[str, str]:
    """The prompt's text, and that of what follows it."""
    first = _first(path)
    before, said = ([i for n in part for i in n.token_ids] for part in (path[:first], path[first:]))
    return chat.decode(before), chat.decode(chat.without_end(said))

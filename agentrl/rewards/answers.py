"""What a reward model reads of a path in a tree, and what it says of answers to one prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentrl.chat import Chat
from agentrl.errors import ConfigError, DataError
from agentrl.evaluate import sigmoid
from agentrl.rewards.preference import wins
from agentrl.rewards.steps import COMBINED, log_odds, steps_of
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
    if _reads(model, chat.tokenizer):
        return [*tree.ids(node), *chat.encode(ahead)]
    said = _turn(
        tree.path(node),
        "the reward model has another tokenizer or chat template than the policy, and reads "
        "answers of one turn alone; train one on this policy's answers (agentrl train reward)",
    )
    text, own = chat.decode(chat.without_end(said)) + ahead, model.chat
    ended = not ahead and bool(said) and said[-1] in chat.tokenizer.eos_ids
    end = own.encode(own.end_text, trusted=True) if ended else []
    return [*own.prompt(tree.task.prompt), *own.encode(text), *end]


def heard_steps(
    model: Any, chat: Chat, place: Place, ahead: str = ""
) -> tuple[list[int], list[int]]:
    """The ids that a model with a step token reads of a path and of the text `ahead`, and the
    indices of the steps' last tokens, where it is to put that token.

    The task is as `heard` has it; the answer's steps (`steps_of`) are encoded each for itself, what
    is blank between two with the second. An answer that says nothing is one step. Raises
    ConfigError for an answer of several turns.
    """
    tree, node = place
    path = tree.path(node)
    said = _turn(
        path, "a reward model with a step token reads the steps of answers of one turn alone"
    )
    text = chat.decode(chat.without_end(said)) + ahead
    if _reads(model, chat.tokenizer):
        ids = [i for n in path[: _first(path)] for i in n.token_ids]
    else:
        ids = list(model.chat.prompt(tree.task.prompt))
    begin, end, ends = 0, 0, list[int]()
    for piece in steps_of(text):
        stop = end + len(piece.rstrip())
        ids += model.chat.encode(text[begin:stop])
        begin, end = stop, end + len(piece)
        ends.append(len(ids) - 1)
    return ids, ends or [len(ids) - 1]


async def path_score(model: Any, chat: Chat, place: Place, ahead: str = "") -> float:
    """What a `RewardModel` says of a path and the text `ahead` that goes on with it: any real
    number. One with a step token (`SequenceClassifier`) reads every step in one pass, and says the
    log-odds of its steps' probabilities, combined as it was told."""
    if getattr(model, "step_token", None) is None:
        return float(await model.reward(heard(model, chat, place, ahead)))
    found = await model.steps(*heard_steps(model, chat, place, ahead))
    return log_odds(COMBINED[model.combine](list(map(sigmoid, found))))


async def scored(model: Any, chat: Chat, places: Sequence[Place]) -> list[float]:
    """The scores of answers to one prompt: of a `RewardModel` its own, of a `PairModel` the mean
    probability of being better than the others. Raises DataError for answers to different prompts
    that would be compared."""
    if not hasattr(model, "prefers"):
        return list(await asyncio.gather(*(path_score(model, chat, place) for place in places)))
    parts = [_texts(tree.path(node), chat) for tree, node in places]
    if len({context for context, _ in parts}) > 1:
        raise DataError("answers to different prompts cannot be compared with each other")
    return await wins(model, parts[0][0], [said for _, said in parts]) if parts else []


def _turn(path: Sequence[Node], several: str) -> list[int]:
    """The ids of the answer. Raises ConfigError, which says `several`, if it has several turns."""
    answer = path[_first(path) :]
    if any(n.source == "template" for n in answer):
        raise ConfigError(several)
    return [i for n in answer for i in n.token_ids]


def _first(path: Sequence[Node]) -> int:
    """Where the answer begins."""
    return next((i for i, n in enumerate(path) if n.role == "assistant"), len(path))


def _texts(path: Sequence[Node], chat: Chat) -> tuple[str, str]:
    """The prompt's text, and that of what follows it."""
    first = _first(path)
    before, said = ([i for n in part for i in n.token_ids] for part in (path[:first], path[first:]))
    return chat.decode(before), chat.decode(chat.without_end(said))

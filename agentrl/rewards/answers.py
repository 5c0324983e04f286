"""Answers to one prompt, scored by whatever reward model there is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from agentrl.chat import Chat
from agentrl.errors import ConfigError, DataError
from agentrl.rewards.preference import wins
from agentrl.types import Sample


def check_tokenizer(model: Any, tokenizer: Any) -> None:
    """Raise ConfigError if the reward model is known to read other ids, or another chat template,
    than the policy's `tokenizer` makes. (A pairwise judge reads text.)"""
    own, theirs = getattr(model, "tokenizer", None), getattr(tokenizer, "fingerprint", None)
    if own is not None and theirs is not None and own != theirs:
        raise ConfigError(
            f"the reward model's tokenizer or chat template ({own}) is not the policy's ({theirs}):"
            " it would read other text than it was trained on. Train one on this policy's answers "
            "(agentrl train reward), or take a pairwise judge, which reads text"
        )


async def scored(model: Any, chat: Chat, rows: Sequence[Sample]) -> list[float]:
    """The scores of answers to one prompt: of a `RewardModel` its own, of a `PairModel` the mean
    probability of being better than the others.

    `rows` are paths whose weights are on where the policy speaks
    (`agentrl.select.rows.path_sample`); the first such token ends the prompt.
    """
    if not hasattr(model, "prefers"):
        check_tokenizer(model, chat.tokenizer)
        return list(await asyncio.gather(*(model.reward(row.token_ids) for row in rows)))
    parts = [_parts(row, chat) for row in rows]
    if len({context for context, _ in parts}) > 1:
        raise DataError("answers to different prompts cannot be compared with each other")
    return await wins(model, parts[0][0], [said for _, said in parts]) if parts else []


def _parts(row: Sample, chat: Chat) -> tuple[str, str]:
    """The prompt's text, and that of what follows it."""
    start = next((i for i, w in enumerate(row.weights) if w), len(row.token_ids))
    said = chat.without_end(row.token_ids[start:])
    return chat.decode(row.token_ids[:start]), chat.decode(said)

"""For reward models and by them: rows to train one on, and the scores of attempts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from agentrl import rewards
from agentrl.chat import Chat
from agentrl.errors import DataError
from agentrl.evaluate import Graded, right
from agentrl.rewards.preference import contest
from agentrl.select.rows import path_sample, unusable
from agentrl.types import Pair, Sample


def answers(graded: Sequence[Graded]) -> tuple[list[Sample], Counter[str]]:
    """The answers to each task that has right and wrong ones, with `meta["right"]`; and why others
    are left out.

    What a reward model's list loss reads (Qwen2.5-Math, arXiv 2409.12122: 6 answers a problem).
    """
    rows: dict[str, dict[tuple[int, ...], Sample]] = {}
    dropped = Counter[str]()
    for tree, attempt in graded:
        reason = unusable(attempt)
        own = rows.setdefault(tree.task.id, {})
        row = path_sample(tree, attempt)
        if reason is None and tuple(row.token_ids) in own:
            reason = "a duplicate"
        if reason is not None:
            dropped[reason] += 1
            continue
        row.meta["right"] = right(attempt)
        own[tuple(row.token_ids)] = row
    kept: list[Sample] = []
    for own in rows.values():
        if len({row.meta["right"] for row in own.values()}) == 2:
            kept += own.values()
        else:
            dropped["all right or all wrong"] += len(own)
    return kept, dropped


def contests(pairs: Sequence[Pair], chat: Chat) -> list[Sample]:
    """Rows that train a language model to say which of two answers is better, each pair in both
    orders: RLHF Workflow's preference model (arXiv 2405.07863), for `PairwiseJudge`.

    The loss is on for "A" or "B" alone. Raises DataError for a pair whose answers are not to one
    prompt.
    """
    rows = []
    for i, pair in enumerate(pairs):
        sides = [pair.chosen, pair.rejected]
        start = min(next((t for t, w in enumerate(s.weights) if w), 0) for s in sides)
        prompts = [list(s.token_ids[:start]) for s in sides]
        if not start or prompts[0] != prompts[1]:
            raise DataError(f"the answers of pair {i} are not to one prompt; leave it out")
        context = chat.decode(prompts[0])
        better, worse = (chat.decode(chat.without_end(s.token_ids[start:])) for s in sides)
        meta = {"task": pair.meta.get("task"), "tokenizer": pair.chosen.meta.get("tokenizer")}
        for a, b, winner in ((better, worse, "A"), (worse, better, "B")):
            asked, said = contest(chat, context, a, b), chat.encode(winner)
            weights = [0.0] * len(asked) + [1.0] * len(said)
            rows.append(Sample([*asked, *said], weights, meta=dict(meta)))
    return rows


async def scores(graded: Sequence[Graded], model: Any, chat: Chat) -> list[float | None]:
    """What a reward model says of each attempt; None for those that failed in our hands.

    A pairwise judge compares attempts at one task with each other (`agentrl.rewards.scored`).
    """
    tasks: dict[str, list[int]] = {}
    for i, (tree, attempt) in enumerate(graded):
        if attempt.error is None:
            tasks.setdefault(tree.task.id, []).append(i)
    found: list[float | None] = [None] * len(graded)

    async def score(places: Sequence[int]) -> None:
        paths = [(graded[i][0], graded[i][1].leaf) for i in places]
        for i, value in zip(places, await rewards.scored(model, chat, paths), strict=True):
            found[i] = value

    await asyncio.gather(*map(score, tasks.values()))
    return found

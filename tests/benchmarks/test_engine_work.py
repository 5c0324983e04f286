"""The work of the engine benchmark is what its notes say."""

from __future__ import annotations

import asyncio
import itertools

import sandboxes
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.types import SamplingParams
from benchmarks.engine_work import SHAPES, TalkEnv, Talker, by_turn, sampled


def test_every_turn_but_the_last_makes_a_call_that_runs():
    shape = SHAPES[1]
    talker = Talker(ScriptedPolicy(lambda text: "a" * 99), shape)

    async def go():
        async with sandboxes.open("embedded") as box:
            return await collect(
                TalkEnv(2), shape.rollout, talker, box=box, params=SamplingParams(max_tokens=999),
                progress=False,
            )  # fmt: skip

    trees = asyncio.run(go())
    assert [tree.attempts[0].metrics["statuses"] for tree in trees] == [["ok"] * 3] * 2
    work = list(talker.work.values())
    lengths = [n for turns in work for _, n in turns]
    assert [len(turns) for turns in work] == [shape.turns] * 2
    assert all(shape.least <= n <= shape.most for n in lengths)
    assert len(set(lengths)) > 1
    assert sampled(work) == sum(lengths)
    for turns in work:
        for (before, n), (after, _) in itertools.pairwise(turns):
            assert after[: len(before)] == before
            assert len(after) > len(before) + n


def test_plain_batches_take_the_same_turns_together():
    long, short = [([1], 3), ([1, 2], 4)], [([5], 9)]
    assert by_turn([long, short, short], 2) == [
        [([1], 3), ([5], 9)],
        [([1, 2], 4)],
        [([5], 9)],
    ]

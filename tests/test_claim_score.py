"""The claim of SCoRe runs, as small as it goes; and what its arms are fine-tuned on."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import score
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.rollouts import self_correct

SMALL = score.Size(
    length=4,
    base_steps=80,
    stage1=1,
    stage2=1,
    prompts=4,
    group=8,
    sft_steps=2,
    tasks=1000,
    eval_n=8,
)


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_a_seed_gives_every_number_that_the_effects_compare(tmp_path):
    found = score.run(0, tmp_path, SMALL)
    assert set(found) == {"base", "star", "pair_sft", "single_turn", *score.ARMS}
    assert all(abs(e.difference(found)) <= 1 for e in score.CLAIM.effects)
    for arm in found.values():
        assert arm["delta"] == pytest.approx(arm["acc@t2"] - arm["acc@t1"])
        assert arm["delta"] == pytest.approx(arm["i2c"] - arm["c2i"])


def test_what_is_fine_tuned_on():
    """Of wrong and then right: the right answer alone has loss."""
    env = score.env("train", 0, SMALL)
    (task,) = env.tasks(1)
    right, wrong = task.data["answer"], task.data["digits"]
    answers = iter([wrong, right, right, right, wrong, wrong])
    policy = ScriptedPolicy(lambda text: next(answers), tokenizer=score.TOKENIZER)
    rollout = self_correct(instruction=score.ASK)
    trees = asyncio.run(
        collect(env, rollout, policy, n=1, samples=3, concurrency=1, progress=False)
    )
    whole = score.TOKENIZER.decode(trees[0].ids(trees[0].attempts[-1].leaf))
    for made in (score.own_corrections(trees), score.pairs(trees)):
        (row,) = made
        assert score.TOKENIZER.decode(row.token_ids) == whole
        trained = [i for i, w in zip(row.token_ids, row.weights, strict=True) if w]
        assert score.TOKENIZER.decode(trained) == f"{right}<|end|>"

"""A model's gradients through a loss: the same one by one, padded, packed and as one tree."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentrl import losses
from agentrl.batch import Layout, collate, plan
from agentrl.losses import Extras
from agentrl.train import Scorer
from agentrl.train.attention import tree_attention
from agentrl.types import Sample

VOCAB = 40


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config).eval()


MODEL = model()


def family(n: int, seed: int) -> list[Sample]:
    """Samples that share a prompt and, in twos, the beginning of their answers, trained as well."""
    draw = random.Random(seed)
    prompt = [draw.randrange(VOCAB) for _ in range(6)]
    made = []
    for i in range(n):
        if i % 2 == 0:
            shared = [draw.randrange(VOCAB) for _ in range(draw.randint(1, 4))]
        own = [draw.randrange(VOCAB) for _ in range(draw.randint(1, 5))]
        ids = [*prompt, *shared, *own]
        nats = [draw.uniform(-4, -0.1) for _ in ids]
        weights = [0.0] * len(prompt) + [1.0] * (len(ids) - len(prompt))
        advantages = [draw.uniform(-1, 1)] * len(ids)
        made.append(Sample(ids, weights, advantages, nats, [x + 0.1 for x in nats]))
    return made


def gradients(loss, samples, micros, tree: bool, n: float):
    total = 0.0
    for rows in micros:
        batch = collate(samples, rows, tree=tree)
        out = loss(Scorer(MODEL)(batch).logprobs_BT, batch, n)
        out.loss.backward()
        total += out.loss.item()
    found = [p.grad.clone() for p in MODEL.parameters()]
    MODEL.zero_grad(set_to_none=True)
    return total, found


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
@pytest.mark.parametrize(
    "name", ["sft", "dpo", "ipo", "simpo", "orpo", "reinforce", "rloo", "grpo", "gspo", "cispo"]
)
@pytest.mark.parametrize("budget", [30, 10_000])
def test_every_layout_gives_the_same_gradients(name, layout: Layout, budget) -> None:
    samples = family(6, seed=2)
    options = {"extras": Extras(kl_coef=0.1)} if name in ("reinforce", "rloo", "grpo") else {}
    loss, n = losses.make(name, **options), losses.denominator(name, samples)
    paired = losses.unit(name) == "pairs"
    groups = losses.groups_of(samples, 2 if paired else 1)
    alone = [[[i] for i in group] for group in groups]
    wanted_loss, wanted = gradients(loss, samples, alone, False, n)
    with tree_attention(MODEL, layout):
        micros = plan(samples, budget, layout, groups)
        found_loss, found = gradients(loss, samples, micros, layout == "tree", n)
    assert found_loss == pytest.approx(wanted_loss, abs=1e-5)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)

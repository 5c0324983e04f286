"""Samples that share beginnings, trained as one tree: the loss and gradients of one by one."""

from __future__ import annotations

import copy
import logging
import random
import shutil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_toys import VOCAB, gradients, reference_loss, tiny
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from agentrl.batch import collate, plan
from agentrl.errors import ConfigError
from agentrl.losses import sft
from agentrl.train import Scorer, TrainConfig, train
from agentrl.train.attention import BLOCK, window
from agentrl.train.scorer import layout_fault
from agentrl.types import Sample

SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROTARY = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, sliding_window=64, final_logit_softcapping=3.0),
    "gpt_neox": GPTNeoXConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}),
}


def made(config: Any, attention: str = "sdpa"):
    torch.manual_seed(0)
    config = copy.deepcopy(config)  # a model writes its attention into it
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


MODELS = {name: made(config) for name, config in ROTARY.items()}


def forest(seed: int, n: int, longest: int = 20) -> list[Sample]:
    """Random samples, most of which go on from a place inside an earlier one; with everything that
    a loss may read, and different on shared tokens."""
    draw = random.Random(seed)
    samples: list[Sample] = []
    for _ in range(n):
        ids: list[int] = []
        if samples and draw.random() < 0.85:
            other = draw.choice(samples).token_ids
            ids = list(other[: draw.randint(0, len(other))])
        ids += [draw.randrange(6) for _ in range(draw.randint(len(ids) < 2, max(2, longest // 2)))]
        ids = (ids + [draw.randrange(6)] * 2)[: max(2, len(ids))]
        rows = [[draw.gauss(0, 1) for _ in ids] for _ in range(3)]
        weights = [draw.choice([0.0, 1.0, 1.0, 0.5]) for _ in ids[1:]] + [1.0]
        samples.append(Sample(ids, weights, rows[0], [-abs(x) for x in rows[1]], rows[2]))
    return samples


def clipped(logprobs_BT, batch, denominator):
    """A policy gradient in the manner of PPO: not linear, and other numbers in every sample."""
    ratio_BT = (logprobs_BT - batch.logprobs_BT).exp()
    gain_BT = torch.minimum(
        ratio_BT * batch.advantages_BT, ratio_BT.clamp(0.8, 1.2) * batch.advantages_BT
    )
    return -(batch.weights_BT * gain_BT).sum() / denominator


def preferred(logprobs_BT, batch, denominator):
    """Direct preference between samples 2i and 2i + 1, on sums over tokens."""
    gains_BT = batch.weights_BT * (logprobs_BT - batch.ref_logprobs_BT)
    sums = {
        i: gains_BT[batch.segment_ids_BT == segment].sum()
        for segment, i in enumerate(batch.samples)
    }
    pairs = [sums[i] - sums[i + 1] for i in sums if i % 2 == 0]
    return -torch.nn.functional.logsigmoid(0.3 * torch.stack(pairs)).sum() / denominator


def by_the_book(model, samples, loss):
    """The loss on log-probabilities of each sample alone, from the model's own whole logits."""
    batch = collate(samples, [list(range(len(samples)))])
    parts = []
    for sample in samples:
        ids = torch.tensor([list(sample.token_ids)])
        log_all = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        chosen = log_all.gather(1, ids[0, 1:, None]).squeeze(1)
        parts += [torch.zeros(1), chosen * (torch.tensor(sample.weights[1:]) != 0)]
    return loss(torch.cat(parts)[None], batch, 7.0)


def check_equal(model, samples, loss, budget: int) -> None:
    expected = by_the_book(model, samples, loss)
    expected.backward()
    wanted = gradients(model)
    groups = [[i, i + 1] for i in range(0, len(samples), 2)]
    total = 0.0
    for rows in plan(samples, budget, "tree", groups):
        batch = collate(samples, rows, tree=True)
        part = loss(Scorer(model)(batch).logprobs_BT, batch, 7.0)
        part.backward()
        total += part.item()
    assert total == pytest.approx(expected.item(), abs=1e-5, rel=1e-5)
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        scale = max(1.0, wanted[name].abs().max().item())
        torch.testing.assert_close(grad / scale, wanted[name] / scale, atol=1e-5, rtol=0, msg=name)


LOSSES = {
    "sft": lambda logprobs_BT, batch, denominator: sft(logprobs_BT, batch, denominator).loss,
    "clipped": clipped,
    "preferred": preferred,
}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from(sorted(LOSSES)),
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.sampled_from([1, 25, 60, 10_000]),
)
def test_any_forest_gives_the_loss_and_gradients_of_one_by_one(name, loss, n, seed, budget) -> None:
    check_equal(MODELS[name], forest(seed, 2 * n), LOSSES[loss], budget)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_model_with_every_loss(name, loss) -> None:
    check_equal(MODELS[name], forest(3, 8), LOSSES[loss], budget=80)


def test_eager_attention_too() -> None:
    check_equal(made(ROTARY["llama"], "eager"), forest(4, 6), clipped, budget=10_000)


@pytest.mark.skipif(not shutil.which("c++"), reason="FlexAttention is compiled: no C++ compiler")
def test_flex_attention_reads_the_block_mask() -> None:
    """The path of a GPU, compiled for this CPU, where it has no backward pass."""
    samples = forest(6, 10, longest=400)
    batch = collate(samples, [list(range(10))], tree=True)
    assert batch.computed > 8 * BLOCK
    with torch.no_grad():
        flex = Scorer(made(ROTARY["llama"], "flex_attention"))(batch).logprobs_BT
        torch.testing.assert_close(
            flex, Scorer(MODELS["llama"])(batch).logprobs_BT, atol=1e-4, rtol=0
        )


def test_a_tree_computes_shared_tokens_once() -> None:
    """Eight completions of 8 tokens behind a prompt of 30: 94 tokens instead of 304."""
    draw = random.Random(0)
    prompt = [draw.randrange(VOCAB) for _ in range(30)]
    tails = [[i, *(draw.randrange(VOCAB) for _ in range(7))] for i in range(8)]
    samples = [Sample([*prompt, *tail], [0.0] * 30 + [1.0] * 8) for tail in tails]
    config = TrainConfig(max_steps=2, batch_size=8, layout="tree")
    tree = train(tiny(), samples, "sft", config, progress=False)
    assert [row["tokens_computed"] for row in tree.metrics] == [94, 94]
    assert [row["tokens"] for row in tree.metrics] == [304, 304]
    auto = train(tiny(), samples, "sft", TrainConfig(max_steps=2, batch_size=8), progress=False)
    assert auto.layout == "tree"
    padded = train(
        tiny(), samples, "sft", TrainConfig(max_steps=2, batch_size=8, layout="padded"),
        progress=False,
    )  # fmt: skip
    for a, b in zip(tree.metrics, padded.metrics, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["grad_norm_raw"] == pytest.approx(b["grad_norm_raw"], rel=1e-4)
    assert tree.metrics[0]["loss"] == pytest.approx(
        reference_loss(tiny(), samples).item(), abs=1e-5
    )


def test_samples_that_share_nothing_are_no_tree() -> None:
    samples = [Sample([i, i + 1, i + 2], [1.0] * 3) for i in range(0, 30, 3)]
    assert (
        train(tiny(), samples, "sft", TrainConfig(max_steps=1), progress=False).layout == "padded"
    )


def test_a_tree_resumes_bit_for_bit(tmp_path) -> None:
    samples = forest(9, 12)
    options: dict[str, Any] = {"lr": 1e-3, "batch_size": 4, "layout": "tree", "epochs": 2}
    whole = train(tiny(), samples, "sft", TrainConfig(**options, save_every=0), progress=False)

    class Stop(Exception):
        pass

    def stop(row) -> None:
        if row["step"] == 4:
            raise Stop

    config = TrainConfig(**options, save_every=3)
    with pytest.raises(Stop):
        train(tiny(), samples, "sft", config, tmp_path, progress=False, callbacks=[stop])
    again = train(tiny(), samples, "sft", config, tmp_path, resume=True, progress=False)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def windowed(sliding: int, **changes: Any):
    return made(MistralConfig(**{**SMALL, **changes}, sliding_window=sliding))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: windowed(8), "see 8 tokens back, the longest sample has 20"),
        (
            lambda: made(
                BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4), "eager"
            ),
            "refuses such rows|change with the other samples",
        ),
        (
            lambda: made(
                MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2),
                "eager",
            ),
            "refuses such rows|change with the other samples",
        ),
    ],
    ids=["sliding window", "alibi", "state space"],
)
def test_models_that_cannot_are_told_loudly(model, reason, caplog) -> None:
    prompt = list(range(16))
    samples = [Sample([*prompt, i, 1, 2, 3], [0.0] * 16 + [1.0] * 4) for i in range(6)]
    with pytest.raises(ConfigError, match=f"cannot train on tree rows: .*({reason}).*padded"):
        train(model(), samples, "sft", TrainConfig(layout="tree"), progress=False)
    with caplog.at_level(logging.WARNING):
        result = train(model(), samples, "sft", TrainConfig(max_steps=1), progress=False)
    assert result.layout == "padded"
    assert "cannot train on tree rows, which would be faster" in caplog.text


def test_a_window_longer_than_every_sample_is_none() -> None:
    assert layout_fault(windowed(24), "tree", 24) is None
    assert window(MODELS["llama"]) is None
    assert window(MODELS["qwen2"]) is None
    assert window(MODELS["gemma2"]) == 64


def test_attention_without_a_mask_is_refused() -> None:
    model = made(ROTARY["llama"])
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="takes no mask for a tree"):
        Scorer(model)(collate(forest(1, 2), [[0, 1]], tree=True))


@pytest.mark.parametrize(
    "options",
    [{"grad_checkpointing": True}, {"lora": {"r": 2}}, {"dtype": "bf16"}, {"micro_tokens": 30}],
    ids=str,
)
def test_trees_with_what_else_training_does(options) -> None:
    """Checkpointing, adapters, precision and micro-batches: as on padded rows."""
    samples = forest(11, 8)
    results = [
        train(tiny(), samples, "sft", TrainConfig(max_steps=3, layout=layout, **options),
            progress=False)
        for layout in ("tree", "padded")
    ]  # fmt: skip
    near = 0.02 if options.get("dtype") == "bf16" else 1e-5
    for a, b in zip(*(r.metrics for r in results), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=near)
        assert a["grad_norm_raw"] == pytest.approx(b["grad_norm_raw"], rel=10 * near)

"""A tiny model trained from scratch learns a toy task by heart, and quickly."""

from __future__ import annotations

import time

import torch
from train_toys import VOCAB, echo_samples
from transformers import Qwen3Config, Qwen3ForCausalLM

from agentrl.train import TrainConfig, train


def test_a_tiny_model_learns_to_echo() -> None:
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )
    assert 150_000 < model.num_parameters() < 250_000
    samples = echo_samples(48)
    began = time.perf_counter()
    result = train(
        model,
        samples,
        "sft",
        TrainConfig(lr=5e-3, epochs=40, batch_size=16, schedule="linear"),
        progress=False,
    )
    assert result.metrics[0]["loss"] > 3.5
    assert result.metrics[-1]["loss"] < 0.05
    assert time.perf_counter() - began < 60  # 2 s alone on a core
    right = 0
    for sample in samples:
        prompt = len(sample.token_ids) - int(sum(sample.weights))
        ids = torch.tensor([list(sample.token_ids[:prompt])])
        out = model.eval().generate(
            ids, max_new_tokens=10, do_sample=False, eos_token_id=0, pad_token_id=0
        )
        right += out[0].tolist() == list(sample.token_ids)
    assert right == len(samples)

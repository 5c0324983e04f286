"""The loop: accumulation, schedule, order, clipping, errors, adapters, precision."""

from __future__ import annotations

import json
import logging
import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_toys import VOCAB, echo_samples, reference_loss, some_samples, tiny
from transformers import MambaConfig, MambaForCausalLM

from agentrl.batch import trainable_weight
from agentrl.errors import ConfigError, DataError, MissingExtraError
from agentrl.losses import LossOutput, sft
from agentrl.train import TrainConfig, train
from agentrl.train.schedule import learning_rate, plan_steps
from agentrl.train.setup import choose_layout, make_optimizer
from agentrl.types import Sample

QUICK = TrainConfig(lr=1e-3, epochs=2, batch_size=4)


def run(model=None, samples=None, config=QUICK, **options):
    options.setdefault("progress", False)
    return train(model or tiny(), samples or some_samples(8), "sft", config, **options)


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_maxima_of_a_loss_are_the_largest_of_the_micro_batches() -> None:
    longest = []

    def loss(logprobs_BT, batch, denominator):
        out = sft(logprobs_BT, batch, denominator)
        longest.append(batch.input_ids_BT.shape[1])
        return replace(out, maxima={"width": torch.tensor(float(longest[-1]))})

    config = TrainConfig(lr=1e-3, epochs=1, batch_size=6, micro_tokens=30, layout="padded")
    result = train(tiny(), some_samples(6), loss, config, progress=False)
    assert len(longest) > 1
    assert result.metrics[0]["width"] == max(longest)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("micro", [30, 10_000])
def test_one_step_s_gradients_and_metrics_are_those_by_the_book(layout, micro) -> None:
    """Whatever the micro-batches, AdamW is given the clipped gradients of the loss by the book."""
    samples = some_samples(6, seed=4)
    book = tiny()
    loss = reference_loss(book, samples)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(book.parameters(), 0.5)
    grads = [p.grad.clone() for p in book.parameters()]
    seen = []

    def watch(logprobs_BT, batch, denominator):
        seen.append(denominator)
        return sft(logprobs_BT, batch, denominator)

    model = tiny()
    kept: list[torch.Tensor] = []
    step = torch.optim.AdamW.step
    config = TrainConfig(
        lr=0.1, max_steps=1, batch_size=6, micro_tokens=micro, layout=layout, clip=0.5
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.AdamW,
            "step",
            lambda self: (kept.extend(p.grad.clone() for p in model.parameters()), step(self))[1],
        )
        result = train(model, samples, watch, config, progress=False)
    row = result.metrics[0]
    assert row["loss"] == row["nll"] == pytest.approx(loss.item(), abs=1e-5)
    assert row["grad_norm_raw"] == pytest.approx(norm.item(), rel=1e-4)
    assert row["weight"] == pytest.approx(sum(trainable_weight(s) for s in samples))
    assert set(seen) == {row["weight"]}
    assert len(seen) > 1 or micro > 30
    assert row["tokens"] == sum(len(s.token_ids) for s in samples)
    for ours, theirs in zip(kept, grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_layouts_and_micro_batches_train_to_the_same_weights() -> None:
    samples = some_samples(12, seed=1)
    results = []
    for layout, micro in (("padded", 10_000), ("packed", 64), ("padded", 1)):
        config = TrainConfig(lr=1e-3, epochs=2, batch_size=5, layout=layout, micro_tokens=micro)
        results.append(run(samples=samples, config=config))
    for other in results[1:]:
        for a, b in zip(results[0].metrics, other.metrics, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_the_same_seed_gives_the_same_bits_another_seed_does_not() -> None:
    a, b = run(), run()
    c = run(config=TrainConfig(lr=1e-3, epochs=2, batch_size=4, seed=1))
    assert all(map(torch.equal, weights(a.model), weights(b.model)))
    assert not all(map(torch.equal, weights(a.model), weights(c.model)))


def test_order_every_epoch_holds_every_sample_once() -> None:
    config = TrainConfig(epochs=3, batch_size=4, seed=7)
    steps = plan_steps([1] * 10, config)
    assert [len(chosen) for _, chosen in steps] == [4, 4, 2] * 3
    orders = [[i for e, chosen in steps if e == epoch for i in chosen] for epoch in (1, 2, 3)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert plan_steps([1] * 10, config) == steps
    capped = plan_steps([1] * 10, TrainConfig(max_steps=5, batch_size=4, seed=7))
    assert capped == steps[:5]


def test_batch_tokens_bounds_a_step() -> None:
    lengths = [random.Random(1).randint(1, 9) for _ in range(30)] + [50]
    steps = plan_steps(lengths, TrainConfig(epochs=1, batch_tokens=20))
    assert sorted(i for _, chosen in steps for i in chosen) == list(range(31))
    sums = [sum(lengths[i] for i in chosen) for _, chosen in steps]
    assert all(s <= 20 or len(chosen) == 1 for s, (_, chosen) in zip(sums, steps, strict=True))
    assert len(steps) < 20


def test_learning_rate() -> None:
    linear = TrainConfig(lr=1.0, warmup_ratio=0.2, schedule="linear")
    assert [learning_rate(s, 10, linear) for s in range(10)] == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    constant = TrainConfig(lr=3.0, warmup_ratio=0, schedule="constant")
    assert [learning_rate(s, 4, constant) for s in range(4)] == [3.0] * 4
    cosine = TrainConfig(lr=2.0, warmup_ratio=0.0, schedule="cosine")
    assert learning_rate(0, 8, cosine) == 2.0
    assert learning_rate(4, 8, cosine) == pytest.approx(1.0)
    assert 0 < learning_rate(7, 8, cosine) < 0.1
    rows = run(config=TrainConfig(lr=1e-3, epochs=2, batch_size=2, schedule="linear")).metrics
    assert [r["lr"] for r in rows] == pytest.approx([1e-3 * (8 - s) / 7 for s in [1, *range(1, 8)]])


def test_clipping_bounds_the_step_and_logs_the_raw_norm() -> None:
    free = run(config=TrainConfig(lr=1e-3, max_steps=1, clip=None)).metrics[0]
    tight = run(config=TrainConfig(lr=1e-3, max_steps=1, clip=1e-3)).metrics[0]
    assert free["grad_norm_raw"] == pytest.approx(tight["grad_norm_raw"])
    assert free["grad_norm_raw"] > 1e-3


def test_weight_decay_spares_norms() -> None:
    model = tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def nothing(logprobs_BT, batch, denominator):
        return LossOutput(logprobs_BT.sum() * 0.0)

    train(
        model,
        some_samples(4),
        nothing,
        TrainConfig(lr=0.1, max_steps=1, weight_decay=0.5, warmup_ratio=0),
        progress=False,
    )
    for name, p in model.named_parameters():
        factor = 1.0 if p.ndim < 2 else 1 - 0.1 * 0.5
        torch.testing.assert_close(p, before[name] * factor)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_step_and_samples(bad) -> None:
    samples = some_samples(6, seed=9)
    model = tiny()
    clean = []

    def breaks(logprobs_BT, batch, denominator):
        out = sft(logprobs_BT, batch, denominator)
        if 3 in batch_samples(batch):
            clean.extend(weights(model))
            return LossOutput(out.loss * bad)
        return out

    order = plan_steps([1] * 6, TrainConfig(epochs=1, batch_size=2))
    at = next(i for i, (_, chosen) in enumerate(order) if 3 in chosen)

    def batch_samples(batch):
        return [order[steps][1][i] for i in batch.samples]

    steps = 0

    def count(row):
        nonlocal steps
        steps += 1

    config = TrainConfig(lr=1e-3, epochs=1, batch_size=2, micro_tokens=1)
    with pytest.raises(FloatingPointError, match=rf"step {at + 1} .*samples \[3\].*not changed"):
        train(model, samples, breaks, config, progress=False, callbacks=[count])
    assert all(map(torch.equal, clean, weights(model)))
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_that_is_not_finite_is_caught_before_the_weights() -> None:
    model = tiny()
    model.model.norm.weight.register_hook(lambda grad: grad * math.inf)
    before = weights(model)
    with pytest.raises(FloatingPointError, match="gradient of step 1"):
        run(model)
    assert all(map(torch.equal, before, weights(model)))


def test_data_that_cannot_be_trained_on() -> None:
    with pytest.raises(DataError, match="no trainable token"):
        run(samples=[Sample([1, 2, 3], [1, 0, 0])])
    with pytest.raises(DataError, match="another tokenizer"):
        run(samples=[Sample([1, VOCAB], [0, 1])])
    with pytest.raises(DataError, match="context is 128"):
        run(samples=[Sample([1] * 129, [1] * 129)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": math.nan}, "finite"),
        ({"epochs": 0}, "epochs must be positive"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"dtype": "fp16"}, "unknown dtype"),
        ({"warmup_ratio": 2.0}, "warmup_ratio"),
        ({"clip": 0.0}, "clip must be positive"),
    ],
)
def test_settings_that_cannot_be(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**options)


def test_models_that_cannot_be_trained() -> None:
    with pytest.raises(ConfigError, match="no trainable parameter"):
        run(tiny().requires_grad_(False))
    with pytest.raises(ConfigError, match="bfloat16; small updates would be lost"):
        run(tiny().to(torch.bfloat16))
    with pytest.raises(ConfigError, match="Did you mean 'sft'"):
        train(tiny(), some_samples(2), "sfft")


def test_packing_is_refused_loudly_where_samples_would_leak(caplog) -> None:
    torch.manual_seed(0)
    model = MambaForCausalLM(
        MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=1)
    )
    with pytest.raises(ConfigError, match="cannot train on packed rows"):
        run(model, config=TrainConfig(max_steps=1, layout="packed"))
    assert run(model, config=TrainConfig(max_steps=1)).layout == "padded"
    samples = some_samples(4)
    with caplog.at_level(logging.WARNING):
        layout = choose_layout(model, TrainConfig(), samples, [[0, 1]], torch.device("cuda"))
    assert layout == "padded"
    assert "cannot train on packed rows, which would be faster" in caplog.text


def test_modes_are_put_back_and_dropout_was_on() -> None:
    model = tiny(attention_dropout=0.5).eval()
    losses = [
        run(model_, config=TrainConfig(lr=0.0, epochs=2, batch_size=8)).metrics
        for model_ in (model, tiny().eval())
    ]
    assert losses[0][0]["loss"] != losses[0][1]["loss"]
    assert losses[1][0]["loss"] == pytest.approx(losses[1][1]["loss"], rel=1e-5)
    assert not model.training


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = (
        run(
            tiny(attention_dropout=0.2),
            config=TrainConfig(lr=1e-3, epochs=1, grad_checkpointing=checkpointing),
        )
        for checkpointing in (False, True)
    )
    assert [r["loss"] for r in plain.metrics] == [r["loss"] for r in saving.metrics]
    assert all(map(torch.equal, weights(plain.model), weights(saving.model)))
    assert not saving.model.is_gradient_checkpointing


def test_bf16_trains_fp32_weights() -> None:
    result = run(samples=echo_samples(8), config=TrainConfig(lr=5e-3, epochs=15, dtype="bf16"))
    assert result.dtype == "bf16"
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    exact = run(samples=echo_samples(8), config=TrainConfig(lr=5e-3, epochs=15))
    assert result.metrics[0]["loss"] == pytest.approx(exact.metrics[0]["loss"], rel=0.02)
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] - 1


@pytest.mark.parametrize(
    "lora",
    [
        {"r": 4, "alpha": 8},
        {"r": 4, "use_dora": True, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "init_lora_weights": "pissa"},
        {"method": "miss", "r": 4},
    ],
    ids=lambda lora: "-".join(map(str, lora)),
)
def test_adapters_train_and_leave_the_base_alone(lora) -> None:
    model = tiny(tie_word_embeddings=False)
    config = TrainConfig(lr=2e-2, epochs=10, batch_size=8, lora=lora)
    frozen: dict[str, torch.Tensor] = {}

    def first(row):
        if not frozen:
            frozen.update({n: p.detach().clone() for n, p in model.named_parameters()})

    result = run(model, echo_samples(8), config, callbacks=[first])
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] - 0.3
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names
    for name, p in model.named_parameters():
        assert torch.equal(p, frozen[name]) == (name not in names)


def test_plain_lora_never_touches_base_weights() -> None:
    model = tiny()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = run(model, config=TrainConfig(lr=1e-2, epochs=2, lora={"r": 4}))
    after = {n.replace(".base_layer", ""): p for n, p in model.named_parameters()}
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert hasattr(result.model, "disable_adapter")
    with pytest.raises(ConfigError, match="has an adapter already"):
        run(result.model, config=TrainConfig(max_steps=1, lora={"r": 4}))
    again = run(result.model, config=TrainConfig(max_steps=1))  # goes on with the same adapter
    assert again.model is result.model


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 4}, "unknown option of LORA 'rank'"),
        ({"method": "lorra"}, "Did you mean 'LORA'"),
        ({"method": "prefix_tuning"}, "unknown peft method"),
    ],
)
def test_unknown_adapters(lora, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config=TrainConfig(lora=lora))


def test_metrics_on_disk_and_in_callbacks_are_those_returned(tmp_path, capsys) -> None:
    seen = []
    result = run(out_dir=tmp_path, callbacks=[seen.append], progress=True)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.metrics == seen
    assert [r["step"] for r in seen] == [1, 2, 3, 4]
    assert [r["epoch"] for r in seen] == [1, 1, 2, 2]
    assert result.steps == 4
    assert "step 4/4" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="holds an earlier run"):
        run(out_dir=tmp_path)


def test_training_seeds_the_global_generators() -> None:
    values = []
    for _ in range(2):
        run(config=TrainConfig(max_steps=1, seed=3))
        values.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert values[0] == values[1]


def test_8_bit_adamw_is_for_gpus_and_names_its_extra(monkeypatch) -> None:
    config = TrainConfig(optimizer="adamw_8bit")
    with pytest.raises(ConfigError, match="runs on a GPU only"):
        make_optimizer(tiny(), config)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingExtraError, match=r"agentrl\[quant\]"):
        make_optimizer(tiny().to("meta"), config)
    with pytest.raises(ConfigError, match="Did you mean 'adamw'"):
        TrainConfig(optimizer="adam")

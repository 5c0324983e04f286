"""Adapters by the names of their papers: each trains, alone, and comes back from its export."""

from __future__ import annotations

import sys
from dataclasses import replace

import peft
import pytest
import torch
from train_toys import echo_samples, some_samples, tiny
from transformers import AutoModelForCausalLM

from agentrl.batch import TASK
from agentrl.engines.models import load_model
from agentrl.errors import ConfigError, DataError, MissingExtraError
from agentrl.train import TrainConfig, adapt, export, train
from agentrl.train.setup import choose_layout

IDS = torch.tensor([[1, 9, 8, 7, 2, 9, 8]])

METHODS = {
    "lora": {"r": 4, "alpha": 8},
    "rslora": {"r": 4, "use_rslora": True, "init_lora_weights": "pissa"},
    "dora": {"method": "dora", "r": 4, "target_modules": ["q_proj", "v_proj", "up_proj"]},
    "pissa": {"method": "pissa", "r": 4, "alpha": 4},
    "eva": {"method": "eva", "r": 4, "alpha": 4},
    "corda": {"method": "corda", "r": 4, "alpha": 4},
    "bone": {"method": "bone", "r": 4},
    "miss": {"method": "miss", "r": 4},
    "poly": {"method": "poly", "r": 4, "n_skills": 2},
    "mhr": {"method": "mhr", "r": 4, "n_skills": 2},
}
ROUTED = ("poly", "mhr")


def logits(model, **inputs) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **inputs).logits


def with_tasks(samples):
    return [replace(s, meta={TASK: i % 3}) for i, s in enumerate(samples)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return export(tiny(tie_word_embeddings=False), tmp_path_factory.mktemp("base") / "model")


@pytest.mark.parametrize("name", METHODS)
def test_it_trains_alone_and_comes_back_from_its_export(name, base, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    samples = with_tasks(echo_samples(8))
    config = TrainConfig(lr=2e-2, epochs=10, batch_size=8, lora=METHODS[name])
    frozen: dict[str, torch.Tensor] = {}

    def first(row):
        if not frozen:
            frozen.update({n: p.detach().clone() for n, p in model.named_parameters()})

    result = train(model, samples, "sft", config, progress=False, callbacks=[first])
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] - 0.3
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, frozen[n])}
    assert changed <= trained, "nothing else moved"
    assert len(changed) > len(trained) / 2

    routed = name in ROUTED
    inputs = {"task_ids": torch.tensor([2])} if routed else {}
    expected = logits(result.model, **inputs)
    alone = export(result.model, tmp_path / "adapter", merge=False)
    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), alone)
    torch.testing.assert_close(logits(loaded, **inputs), expected, atol=2e-5, rtol=1e-4)
    if routed:
        other = logits(result.model, task_ids=torch.tensor([0]))
        assert not torch.allclose(expected, other)
        with pytest.raises(ConfigError, match="merge=False"):
            export(result.model, tmp_path / "merged")
        return
    merged = AutoModelForCausalLM.from_pretrained(export(result.model, tmp_path / "merged"))
    torch.testing.assert_close(logits(merged), expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base)))


@pytest.mark.parametrize("name", ["pissa", "corda", "eva"])
def test_placing_an_adapter_says_nothing_new_at_first(name) -> None:
    model = tiny(tie_word_embeddings=False)
    before = logits(model)
    adapted = adapt(model, METHODS[name], echo_samples(8))
    torch.testing.assert_close(logits(adapted), before, atol=1e-4, rtol=1e-3)


def test_what_began_in_the_base_is_exported_as_a_plain_lora_of_the_base(tmp_path, base) -> None:
    """vLLM puts the adapter on the base as it was, whatever the initialisation had taken out."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = TrainConfig(lr=2e-2, max_steps=3, lora=METHODS["pissa"])
    result = train(model, echo_samples(8), "sft", config, progress=False)
    folder = export(result.model, tmp_path / "adapter", merge=False)
    read = peft.PeftConfig.from_pretrained(folder)
    assert (read.r, read.lora_alpha, read.init_lora_weights) == (8, 8, True)


def test_adapters_placed_by_data_resume_bit_for_bit(tmp_path) -> None:
    config = TrainConfig(lr=1e-2, max_steps=4, batch_size=4, save_every=2, lora=METHODS["corda"])

    def run(folder, resume=False, stop=None):
        def end(row):
            if row["step"] == stop:
                raise KeyboardInterrupt

        model, samples = tiny(tie_word_embeddings=False), echo_samples(8)
        return train(model, samples, "sft", config, folder, resume, False, [end]).model

    whole = run(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", stop=3)
    again = run(tmp_path / "b", resume=True)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_eva_and_corda_say_what_data_they_need() -> None:
    with pytest.raises(DataError, match="EVA with rank 8 needs more than 16 trained tokens"):
        adapt(tiny(), {"method": "eva", "r": 8}, some_samples(1))
    with pytest.raises(DataError, match="CorDA needs samples"):
        adapt(tiny(), {"method": "corda", "r": 4})


def test_poly_wants_a_task_of_every_sample_and_rows_of_one() -> None:
    samples = with_tasks(echo_samples(4))
    with pytest.raises(DataError, match=r"Poly has 2 tasks, and .* of sample 2 is 2"):
        adapt(tiny(), {"method": "poly", "n_tasks": 2}, samples)
    samples[1].meta = {}
    with pytest.raises(DataError, match="of sample 1 is None"):
        adapt(tiny(), {"method": "poly"}, samples)
    with pytest.raises(ConfigError, match="routes whole rows by their task"):
        config = TrainConfig(max_steps=1, layout="packed", lora={"method": "poly"})
        train(tiny(), echo_samples(4), "sft", config, progress=False)
    layout = choose_layout(
        adapt(tiny(), {"method": "poly"}), TrainConfig(), samples, [[0, 1]], torch.device("cuda")
    )
    assert layout == "padded"


def test_poly_computes_activations_again_with_the_same_tasks() -> None:
    losses = []
    for saving in (False, True):
        config = TrainConfig(
            lr=1e-2, epochs=2, batch_size=4, grad_checkpointing=saving, lora=METHODS["poly"]
        )
        result = train(tiny(), with_tasks(echo_samples(8)), "sft", config, progress=False)
        losses.append([row["loss"] for row in result.metrics])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_qlora_names_its_extra_and_wants_a_model_in_4_bits(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"agentrl\[quant\]"):
        adapt(tiny(), {"method": "qlora", "r": 4})
    monkeypatch.setitem(sys.modules, "bitsandbytes", sys)
    with pytest.raises(ConfigError, match="loaded in 4 bits"):
        adapt(tiny(), {"method": "qlora", "r": 4})


def test_qlora_trains_and_its_adapter_comes_back(tmp_path) -> None:
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    base = export(
        tiny(hidden_size=64, intermediate_size=128, tie_word_embeddings=False), tmp_path / "base"
    )
    model = load_model(str(base), device="cpu", bits=4)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert {p.dtype for n, p in before.items() if "_proj" in n} == {torch.uint8}
    config = TrainConfig(lr=2e-2, epochs=10, batch_size=8, lora={"method": "qlora", "r": 4})
    result = train(model, echo_samples(8), "sft", config, progress=False)
    assert result.metrics[-1]["loss"] < result.metrics[0]["loss"] - 1
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in n for n in trained)
    for name, p in model.named_parameters():
        if name in before and p.dtype != torch.uint8:  # these are packed anew for a CPU
            assert torch.equal(p, before[name])
    with pytest.raises(ConfigError, match="quantised"):
        export(result.model, tmp_path / "merged")
    folder = export(result.model, tmp_path / "adapter", merge=False)
    again = load_model(str(base), device="cpu", bits=4)
    loaded = peft.PeftModel.from_pretrained(again, folder)
    ours, theirs = logits(result.model), logits(loaded)
    assert (ours - theirs).abs().max() < 0.02 * ours.abs().max()  # its CPU kernels round in bf16


def test_gradients_of_qlora_are_the_same_after_sampling(tmp_path) -> None:
    pytest.importorskip("bitsandbytes", reason="QLoRA needs bitsandbytes")
    base = export(tiny(hidden_size=64, intermediate_size=128), tmp_path / "base")
    model = adapt(load_model(str(base), device="cpu", bits=4), {"method": "qlora", "r": 4})
    ids = torch.tensor([[5, 6, 7, 8]])

    def gradients() -> dict[str, torch.Tensor]:
        model.train().zero_grad()
        model(ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    before = gradients()
    with torch.no_grad():
        model.eval()(ids)
    after = gradients()
    assert before.keys() == after.keys()
    assert all(torch.allclose(g, after[n], atol=1e-6) for n, g in before.items())
    used = load_model(str(base), device="cpu", bits=4)
    packs = any(getattr(m, "support_avx512bf16_for_cpu", False) for m in used.modules())
    with torch.no_grad():
        used(ids)
    if packs:
        with pytest.raises(ConfigError, match="load it again"):
            adapt(used, {"method": "qlora", "r": 4})

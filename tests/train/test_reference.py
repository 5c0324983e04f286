"""The reference: the model as it was, by switching an adapter off or by a copy."""

from __future__ import annotations

import logging

import peft
import pytest
import torch
from train_toys import gradients, some_samples, tiny

from agentrl import losses
from agentrl.batch import collate
from agentrl.logprob import read_head
from agentrl.train import Reference, Scorer, adapt
from agentrl.train.step import known_slopes


def moved(model):
    """Training changed it: every trainable parameter is another one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
@pytest.mark.parametrize("lora", [None, {"r": 2}, {"r": 2, "init_lora_weights": "pissa"}])
def test_the_reference_is_the_model_as_it_was(lora, layout, caplog) -> None:
    samples = some_samples(5, seed=1)
    batch = collate(samples, [[i] for i in range(5)])
    model = tiny() if lora is None else adapt(tiny(), lora)
    before_BT = Scorer(model.eval())(batch).logprobs_BT.detach()
    reference = Reference(model)
    assert reference.shared == (lora == {"r": 2})
    moved(model).train()
    assert not torch.allclose(Scorer(model)(batch).logprobs_BT, before_BT, atol=1e-3)
    scored = reference.score(samples, 60, layout)
    assert model.training
    for i, (sample, old) in enumerate(zip(scored, samples, strict=True)):
        assert sample.token_ids == old.token_ids
        wanted = before_BT[batch.segment_ids_BT == i]
        torch.testing.assert_close(torch.tensor(sample.ref_logprobs), wanted, atol=1e-5, rtol=1e-5)
    assert old.ref_logprobs is None


def test_a_trained_adapter_is_part_of_the_reference_and_said_to_be_copied(caplog) -> None:
    model = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules="all-linear"))
    moved(model).eval()
    batch = collate(some_samples(2), [[0], [1]])
    before_BT = Scorer(model)(batch).logprobs_BT.detach()
    with caplog.at_level(logging.WARNING):
        reference = Reference(model)
    assert "copy of the whole model" in caplog.text
    moved(model)
    with reference.scorer() as scorer:
        torch.testing.assert_close(scorer(batch).logprobs_BT, before_BT)


@pytest.mark.parametrize("tree", [False, True])
def test_exact_divergence_from_the_reference(tree) -> None:
    samples = [s for s in some_samples(9, seed=2) if len(s.token_ids) > 3][:3]
    for i in (1, 2):
        ids = samples[i].token_ids
        samples[i].token_ids = [*samples[0].token_ids[:3], *ids[3:]]
    model = tiny()
    reference = Reference(model)
    moved(model)
    wanted = torch.zeros(())
    for s in samples:
        ids = torch.tensor([list(s.token_ids)])
        log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        log_q = tiny()(input_ids=ids).logits[0, :-1].log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)
        wanted = wanted + (kl * torch.tensor(s.weights[1:])).sum()
    wanted.backward()
    wanted_grads = gradients(model)
    batch = collate(samples, [[0, 1, 2]], tree=tree)
    with reference.scorer() as scorer:
        other = scorer.hidden(batch), read_head(scorer.model)
    found = (Scorer(model)(batch, reference=other).kl_BT * batch.weights_BT).sum()
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    for name, grad in gradients(model).items():
        torch.testing.assert_close(grad, wanted_grads[name], atol=1e-4, rtol=1e-4)


def test_which_losses_have_known_slopes() -> None:
    samples = some_samples(4, seed=3)
    for i, sample in enumerate(samples):
        sample.advantages = [float(i - 1.5)] * len(sample.token_ids)
        sample.ref_logprobs = [-1.0] * len(sample.token_ids)
    batch = collate(samples, [[0, 1, 2, 3]])
    slopes_BT = known_slopes(losses.get("sft"), batch, 2.0)
    assert slopes_BT is not None
    torch.testing.assert_close(slopes_BT, -batch.weights_BT / 2)
    assert known_slopes(losses.get("grpo"), batch, 4.0) is not None  # on-policy: no ratio but 1
    assert known_slopes(losses.get("dpo"), batch, 2.0) is None
    for sample in samples:
        sample.logprobs = [-1.2] * len(sample.token_ids)
    assert known_slopes(losses.get("grpo"), collate(samples, [[0, 1, 2, 3]]), 4.0) is None


@pytest.mark.parametrize("tree", [False, True])
def test_slopes_change_no_gradient_of_a_model(tree) -> None:
    samples = some_samples(4, seed=4)
    samples[1].token_ids = samples[0].token_ids[:5]
    samples[1].weights = [0.0, 1.0, 0.0, 2.0, 1.0][: len(samples[1].token_ids)]
    model, loss = tiny(), losses.get("sft")
    batch = collate(samples, [[0, 1, 2, 3]], tree=tree)
    found = []
    for slopes_BT in (known_slopes(loss, batch, 3.0), None):
        out = loss(Scorer(model)(batch, slopes_BT=slopes_BT).logprobs_BT, batch, 3.0)
        out.loss.backward()
        found.append(gradients(model))
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=1e-6, rtol=1e-5)

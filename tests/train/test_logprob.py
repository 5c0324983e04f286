"""Chunked log-probabilities are those of the whole logits, with the same gradients."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn
from train_toys import VOCAB, gradients, one_row, some_samples, tiny
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    MambaConfig,
    PhiConfig,
    Qwen3Config,
)

from agentrl.batch import collate
from agentrl.errors import ConfigError
from agentrl.logprob import Head, linear_kl, linear_logprobs, read_head
from agentrl.train.scorer import Scorer, head_fault, layout_fault

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
FAMILIES: dict[str, AutoConfig] = {
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "gemma2": Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=3.0, sliding_window=4),
    "granite": GraniteConfig(**SMALL, logits_scaling=4.0),
    "cohere": CohereConfig(**SMALL, logit_scale=0.25),
    "phi": PhiConfig(**SMALL),  # a head with a bias, no tie
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}


def family(name: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=0.5, std=0.3)  # a head bias that matters
    return model


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.3, None), (1.7, 2.0)])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_equal_whole_logits(chunk, scale, softcap, bias) -> None:
    torch.manual_seed(1)
    hidden = torch.randn(20, 8, requires_grad=True)
    weight = torch.randn(31, 8, requires_grad=True)
    bias_V = torch.randn(31, requires_grad=True) if bias else None
    targets = torch.randint(31, (20,))
    up_logprobs, up_entropy = torch.randn(20), torch.randn(20)

    logits = hidden @ weight.T if bias_V is None else hidden @ weight.T + bias_V
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_all = logits.log_softmax(-1)
    wanted = log_all.gather(1, targets[:, None]).squeeze(1)
    wanted_entropy = -(log_all.exp() * log_all).sum(-1)
    leaves = [t for t in (hidden, weight, bias_V) if t is not None]
    wanted_grads = torch.autograd.grad(
        (wanted * up_logprobs + wanted_entropy * up_entropy).sum(), leaves
    )

    head = Head(weight, bias_V, scale, softcap)
    logprobs, entropy = linear_logprobs(hidden, targets, head, entropy=True, chunk=chunk)
    grads = torch.autograd.grad((logprobs * up_logprobs + entropy * up_entropy).sum(), leaves)
    torch.testing.assert_close(logprobs, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, wanted_entropy, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    plain, nothing = linear_logprobs(hidden, targets, head, chunk=chunk)
    assert torch.equal(plain, logprobs)
    assert not nothing.any()
    plain_grads = torch.autograd.grad((plain * up_logprobs).sum(), leaves)
    wanted_grads = torch.autograd.grad(
        (linear_logprobs(hidden, targets, head)[0] * up_logprobs).sum(), leaves
    )
    for ours, theirs in zip(plain_grads, wanted_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.randn(9, 8)
    total = linear_logprobs(hidden, torch.tensor([1, 2, 3, 4]), Head(weight))[0].sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_no_token_at_all() -> None:
    weight = torch.randn(9, 8, requires_grad=True)
    none = torch.tensor([], dtype=torch.long)
    logprobs, _ = linear_logprobs(torch.randn(0, 8), none, Head(weight))
    logprobs.sum().backward()
    assert logprobs.shape == (0,)
    assert weight.grad is None or not weight.grad.any()


def test_large_logits_stay_finite() -> None:
    head = Head(torch.eye(4) * 1e4)
    logprobs, entropy = linear_logprobs(
        torch.eye(4), torch.tensor([0, 0, 2, 3]), head, entropy=True
    )
    assert logprobs.tolist() == [0, -1e4, 0, 0]
    assert entropy.tolist() == pytest.approx([0] * 4)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("chunk", [20, 50])
def test_bf16_autocast_is_near_and_returns_fp32(chunk, known) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 64, requires_grad=True), torch.randn(97, 64) / 8
    weight.requires_grad_()
    targets, slopes = torch.randint(97, (50,)), torch.ones(50) if known else None
    exact = linear_logprobs(hidden, targets, Head(weight))[0]
    exact_grads = torch.autograd.grad(exact.sum(), (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        low = linear_logprobs(hidden, targets, Head(weight), slopes_N=slopes, chunk=chunk)[0]
    low_grads = torch.autograd.grad(low.sum(), (hidden, weight))
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=0.03, rtol=0.03)
    assert not torch.equal(low, exact)
    for ours, theirs in zip(low_grads, exact_grads, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0.15, rtol=0.05)


def test_bf16_autocast_reaches_the_divergence() -> None:
    head, hidden = heads("plain"), torch.randn(9, 8, requires_grad=True)
    ref_head, ref_hidden = Head(torch.randn(31, 8)), torch.randn(9, 8)
    exact = linear_kl(hidden, head, ref_hidden, ref_head)
    with torch.autocast("cpu", torch.bfloat16):
        low = linear_kl(hidden, head, ref_hidden, ref_head, chunk=4)
    low.sum().backward()
    assert low.dtype == hidden.grad.dtype == torch.float32
    torch.testing.assert_close(low, exact, atol=0.1, rtol=0.1)
    assert not torch.equal(low, exact)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rows", [[[0], [1], [2]], [[0, 1, 2]]], ids=["padded", "packed"])
def test_scorer_equals_the_model_s_own_logits(name, rows) -> None:
    """Scaled, capped, biased and tied heads; sliding windows; learned positions."""
    model = family(name)
    assert head_fault(model) is None
    assert layout_fault(model, "packed", 14) is None
    samples = some_samples(3, seed=5)
    total = torch.zeros(())
    for sample in samples:
        ids = torch.tensor([list(sample.token_ids)])
        log_all = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
        weights = torch.tensor(list(sample.weights[1:]))
        total = total + (weights * log_all.gather(1, ids[0, 1:, None]).squeeze(1)).sum()
    total.backward()
    wanted = gradients(model)
    batch = collate(samples, rows)
    ours = (Scorer(model)(batch).logprobs_BT * batch.weights_BT).sum()
    ours.backward()
    assert ours.item() == pytest.approx(total.item(), rel=1e-5)
    for parameter, grad in gradients(model).items():
        scale = max(1.0, wanted[parameter].abs().max().item())
        torch.testing.assert_close(grad / scale, wanted[parameter] / scale, atol=1e-5, rtol=1e-4)


def test_lora_trains_through_the_scorer_and_disabled_gives_the_reference() -> None:
    model = tiny()
    batch = one_row(some_samples(1, seed=2)[0])
    before = Scorer(model)(batch).logprobs_BT
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    ).eval()
    scorer = Scorer(adapted)
    after = scorer(batch).logprobs_BT
    assert not torch.allclose(after, before, atol=1e-3)
    with adapted.disable_adapter():
        torch.testing.assert_close(scorer(batch).logprobs_BT, before)
    after.sum().backward()
    found = gradients(adapted)
    assert found
    assert all("lora" in name for name in found)
    assert head_fault(adapted) is None


def test_a_fully_trained_head_under_peft_is_the_one_read() -> None:
    adapted = peft.get_peft_model(
        tiny(tie_word_embeddings=False),
        peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    )
    with torch.no_grad():
        adapted.base_model.model.lm_head.modules_to_save["default"].weight.add_(0.5)
    assert read_head(adapted).weight_VD.requires_grad
    assert head_fault(adapted) is None


def test_entropy_of_the_scorer() -> None:
    model = tiny()
    batch = one_row(some_samples(1, seed=8)[0])
    scores = Scorer(model)(batch, entropy=True)
    log_all = model(input_ids=batch.input_ids_BT).logits[0, :-1].log_softmax(-1)
    wanted = -(log_all.exp() * log_all).sum(-1) * (batch.weights_BT[0, 1:] != 0)
    assert scores.entropy_BT is not None
    torch.testing.assert_close(scores.entropy_BT[0, 1:], wanted, atol=1e-5, rtol=1e-5)


class Odd(nn.Linear):
    """A head that is not the plain linear map it looks like."""


def test_heads_that_cannot_be_read_are_refused() -> None:
    model = tiny(tie_word_embeddings=False)
    model.lm_head = Odd(32, VOCAB)
    with pytest.raises(ConfigError, match="is Odd, not torch"):
        Scorer(model)
    with pytest.raises(ConfigError, match="leave lm_head out"):
        Scorer(peft.get_peft_model(tiny(), peft.LoraConfig(target_modules=["lm_head"])))


def test_logits_that_are_changed_elsewhere_are_noticed() -> None:
    model = tiny()
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 1.5)
    fault = head_fault(model)
    assert fault is not None
    assert "does something to its logits" in fault


def test_state_space_models_are_known_to_leak_between_packed_samples() -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config).train()
    fault = layout_fault(model, "packed", 14)
    assert fault is not None
    assert "other samples in the row" in fault or "refuses such rows" in fault
    assert head_fault(model) is None
    assert model.training


def heads(case: str, width: int = 8) -> Head:
    torch.manual_seed(3)
    weight, bias = torch.randn(31, width), torch.randn(31)
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "scaled": {"scale": 0.3},
        "capped": {"scale": 1.7, "softcap": 2.0, "bias_V": bias.requires_grad_()},
    }
    return Head(weight.requires_grad_(), **options[case])


def whole_logits(hidden_ND, head: Head):
    logits_NV = head.scale * (
        hidden_ND @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)
    )
    return logits_NV if head.softcap is None else head.softcap * (logits_NV / head.softcap).tanh()


def leaves(hidden_ND, head: Head) -> list[torch.Tensor]:
    return [t for t in (hidden_ND, head.weight_VD, head.bias_V) if t is not None]


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("case", ["plain", "scaled", "capped"])
@pytest.mark.parametrize("truth", ["up to a factor", "wrong", "wrong where 0", "with entropy"])
def test_known_slopes_change_no_gradient(chunk, case, truth) -> None:
    """Right slopes give the same gradients from the forward pass; wrong ones are not believed."""
    head = heads(case)
    hidden = torch.randn(20, 8, requires_grad=True)
    targets, up = torch.randint(31, (20,)), torch.randn(20)
    up[4] = 0.0
    slopes = -3.0 * up if truth != "wrong" else torch.randn(20)
    if truth == "wrong where 0":
        slopes[4] = 1.0
    entropy = truth == "with entropy"
    up_entropy = torch.randn(20) if entropy else torch.zeros(20)

    def run(slopes_N):
        logprobs, entropies = linear_logprobs(
            hidden, targets, head, entropy=entropy, slopes_N=slopes_N, chunk=chunk
        )
        total = (logprobs * up + entropies * up_entropy).sum()
        return logprobs, torch.autograd.grad(total, leaves(hidden, head))

    (logprobs, grads), (wanted_logprobs, wanted) = run(slopes), run(None)
    torch.testing.assert_close(logprobs, wanted_logprobs, atol=1e-6, rtol=1e-6)
    for ours, theirs in zip(grads, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_right_slopes_save_the_second_pass(monkeypatch) -> None:
    """The head's logits are made once with them, twice without."""
    from agentrl import logprob

    made = []
    of = logprob._Logits.of
    monkeypatch.setattr(
        logprob._Logits, "of", lambda self, part: (made.append(1), of(self, part))[1]
    )
    head, hidden = heads("plain"), torch.randn(20, 8, requires_grad=True)
    targets = torch.randint(31, (20,))
    for slopes, passes in ((torch.ones(20), 1), (None, 2), (torch.arange(20.0), 2)):
        made.clear()
        linear_logprobs(hidden, targets, head, slopes_N=slopes, chunk=5)[0].mean().backward()
        assert len(made) == 4 * passes
    with torch.no_grad():
        made.clear()
        linear_logprobs(hidden, targets, head, slopes_N=torch.ones(20), chunk=5)
    assert len(made) == 4


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("case", ["plain", "scaled", "capped"])
def test_kl_equals_that_of_whole_logits(chunk, case) -> None:
    head = heads(case)
    torch.manual_seed(4)
    hidden, ref_hidden = torch.randn(20, 8, requires_grad=True), torch.randn(20, 5)
    ref_head, up = Head(torch.randn(31, 5), torch.randn(31), 0.5), torch.randn(20)
    log_p = whole_logits(hidden, head).log_softmax(-1)
    log_q = whole_logits(ref_hidden, ref_head).log_softmax(-1)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1)
    wanted_grads = torch.autograd.grad((wanted * up).sum(), leaves(hidden, head))
    found = linear_kl(hidden, head, ref_hidden, ref_head, chunk=chunk)
    grads = torch.autograd.grad((found * up).sum(), leaves(hidden, head))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_kl_from_itself_is_nothing_and_pulls_nowhere() -> None:
    head, hidden = heads("capped"), torch.randn(6, 8, requires_grad=True)
    kl = linear_kl(hidden, head, hidden, head)
    kl.sum().backward()
    torch.testing.assert_close(kl, torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(hidden.grad, torch.zeros(6, 8), atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="a vocabulary of 31, the reference of 9"):
        linear_kl(hidden, head, hidden, Head(torch.randn(9, 8)))
    assert not linear_kl(hidden.detach()[:0], head, hidden[:0], head).numel()

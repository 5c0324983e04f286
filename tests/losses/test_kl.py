"""KL estimators: exact means and gradients on a three-way softmax (SCoRe, section 6, test 5)."""

from __future__ import annotations

import pytest
import torch

from agentrl.errors import ConfigError
from agentrl.losses.kl import kl_estimate, kl_in_loss

LOGITS, REF = [0.2, -0.1, 0.4], [0.5, 0.3, 0.2]
EXACT = [-0.17318, -0.07557, 0.24875]
FORWARD = [-0.16242, -0.04991, 0.21233]


def policy() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    return logits, logits.log_softmax(-1), torch.tensor(REF, dtype=torch.float64).log()


def test_the_divergence_itself() -> None:
    logits, logp, ref = policy()
    kl = (logp.exp() * (logp - ref)).sum()
    kl.backward()
    assert kl.item() == pytest.approx(0.1202094, abs=1e-7)
    assert logits.grad.tolist() == pytest.approx(EXACT, abs=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_unbiased_values(estimator) -> None:
    _, logp, ref = policy()
    assert (logp.exp() * kl_estimate(logp, ref, estimator)).sum().item() == pytest.approx(
        0.1202094, abs=1e-7
    )


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [("k1", [0.0] * 3), ("k2", EXACT), ("k3", FORWARD), ("k3_weighted", EXACT)],
)
def test_expected_gradient_in_the_loss(estimator, expected) -> None:
    """Sampled tokens are constants: the expectation is over a detached policy."""
    logits, logp, ref = policy()
    if estimator == "k1":
        kl = kl_estimate(logp, ref, "k1")
    else:
        kl = kl_in_loss(logp, ref, logp - logp.detach(), estimator)
    (logp.detach().exp() * kl).sum().backward()
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-5)


def test_k3_in_the_loss_is_the_other_direction() -> None:
    logits, logp, ref = policy()
    (ref.exp() * (ref - logp)).sum().backward()
    assert logits.grad.tolist() == pytest.approx(FORWARD, abs=1e-5)


def test_expected_gradient_of_k1_in_the_reward() -> None:
    logits, logp, ref = policy()
    penalty = kl_estimate(logp, ref, "k1").detach()
    (logp.detach().exp() * penalty * logp).sum().backward()
    assert logits.grad.tolist() == pytest.approx(EXACT, abs=1e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3", "k3_weighted"])
def test_gradients_by_finite_differences(estimator) -> None:
    _, logp, ref = policy()
    old = logp.detach() - 0.1
    at = logp.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl_in_loss(x, ref, x - old, estimator), at)


def test_k3_weighted_corrects_for_the_old_policy() -> None:
    """Tokens of another policy, weighted by the ratio: the mean is still the divergence."""
    _, logp, ref = policy()
    old = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    mean = (old.exp() * kl_in_loss(logp, ref, logp - old, "k3_weighted")).sum()
    assert mean.item() == pytest.approx(0.1202094, abs=1e-7)


def test_k1_in_the_loss_is_refused() -> None:
    x = torch.zeros(1)
    with pytest.raises(ConfigError, match="zero in expectation"):
        kl_in_loss(x, x, x, "k1")
    with pytest.raises(ConfigError, match="Did you mean 'k3'"):
        kl_in_loss(x, x, x, "k33")
    with pytest.raises(ConfigError, match="unknown KL estimator"):
        kl_estimate(x, x, "k4")

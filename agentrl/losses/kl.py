"""Estimators of the reverse KL divergence KL(policy || reference), and where each may stand.

With d = log pi - log ref of a token sampled from the policy (J. Schulman, "Approximating KL
divergence"): k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. k1 and k3 have the right mean, k2 nearly;
k3 and k2 are never negative. What counts for training is the gradient, and it depends on where the
estimator stands (on-policy, in expectation; checked exactly in tests/losses/test_kl.py):

| estimator | as a penalty in the reward | differentiated in the loss |
|---|---|---|
| k1 | the gradient of KL(policy, reference) | zero: only noise |
| k2 | that of another penalty | the gradient of KL(policy, reference) |
| k3 | that of another penalty | of KL(reference, policy), the other direction |
| k3 times the ratio pi / sg(pi) | - | the gradient of KL(policy, reference) |

So: k1 in the reward (`agentrl.credit.kl_rewards`), or k2 in the loss. GRPO (arXiv 2402.03300,
equation 4) and libraries after it differentiate k3 and call it the reverse KL; `k3` is here to
match them, `k3_weighted` is the same estimator with the right gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from agentrl.errors import ConfigError, unknown

Estimator = Literal["k1", "k2", "k3"]
LossKL = Literal["k2", "k3", "k3_weighted"]


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: Estimator = "k3") -> Tensor:
    """The estimate at each token, in nats; any shape. Raises ConfigError for an unknown name."""
    d = logprobs - ref_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise unknown("KL estimator", estimator, ("k1", "k2", "k3"))


def kl_in_loss(
    logprobs: Tensor, ref_logprobs: Tensor, log_ratio: Tensor, estimator: Estimator | LossKL = "k2"
) -> Tensor:
    """The penalty at each token as it is added to a loss; any shape.

    `log_ratio` (with gradient) is log pi - log pi_old of the tokens; `k3_weighted` multiplies by
    its exponential, which also corrects for sampling from the old policy. The mean over on-policy
    tokens has the gradient of the table above. Raises ConfigError for k1: its gradient there is
    zero in expectation.
    """
    if estimator == "k1":
        raise ConfigError(
            "k1 in the loss has a gradient of zero in expectation: it would only add noise. Put k1 "
            "in the reward (agentrl.credit.kl_rewards), or use k2 in the loss"
        )
    if estimator == "k3_weighted":
        return kl_estimate(logprobs, ref_logprobs, "k3") * log_ratio.exp()
    if estimator not in ("k2", "k3"):
        raise unknown("KL estimator for a loss", estimator, ("k2", "k3", "k3_weighted"))
    return kl_estimate(logprobs, ref_logprobs, estimator)

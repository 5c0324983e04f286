"""Supervised fine-tuning: weighted, masked negative log-likelihood, and two relatives.

Most methods of the field differ from plain SFT in the weights alone; `agentrl.select.weights` makes
those.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agentrl.batch import Batch
from agentrl.losses.base import LossOutput
from agentrl.losses.sequences import check_denominator, of_samples, sample_means


def sft(logprobs_BT: Tensor, batch: Batch, denominator: float) -> LossOutput:
    """`-sum(weight * logprob) / denominator`, in nats per unit of weight.

    The weights are the mask: 1 for tokens to imitate (the policy's; in START's Hint-RFT also the
    hints), 0 for tool output, prompt and fill, which then enter neither the sum nor the denominator
    (START, arXiv 2503.04625, section 5; fractions as in key-token weighting). Metrics: `nll`, the
    same number without its gradient. Raises ValueError if `denominator` (the sum of weights) is
    not positive.
    """
    check_denominator(denominator, "sum of weights")
    loss = -(batch.weights_BT * logprobs_BT).sum() / denominator
    return LossOutput(loss, {"nll": loss.detach()})


def sft_rows(logprobs_BT: Tensor, batch: Batch, denominator: float) -> LossOutput:
    """`sft` as a mean over samples: each counts as much as its weights say, in every step alike.

    Reward-weighted regression `-1/N sum_i w_i log p(y_i)` (RISE, arXiv 2407.18219, equation 3.6)
    has the row's weight on each of its tokens, its released code the weight divided by their
    number. Divided by the sum of weights, as `sft` does, a step full of wrong answers would count
    as much as one full of right ones. Metrics: `nll`. Raises ValueError if `denominator` (the
    number of samples) is not positive.
    """
    return sft(logprobs_BT, batch, denominator)


def dft(logprobs_BT: Tensor, batch: Batch, denominator: float) -> LossOutput:
    """SFT in which a token's loss is scaled by its own probability, held constant.

    `-sum(weight * sg(p) * log p) / denominator`: dynamic fine-tuning, arXiv 2508.05629.
    Unlikely tokens no longer dominate the gradient. Metrics: `nll`, without the scaling.
    """
    check_denominator(denominator, "sum of weights")
    scaled_BT = logprobs_BT.detach().exp() * logprobs_BT
    loss = -(batch.weights_BT * scaled_BT).sum() / denominator
    nll = -(batch.weights_BT * logprobs_BT.detach()).sum() / denominator
    return LossOutput(loss, {"nll": nll})


def poft(
    logprobs_BT: Tensor, batch: Batch, denominator: float, *, scores: Sequence[float]
) -> LossOutput:
    """Preference-oriented SFT: do better than the mean of aligned models on the same target.

    `-log sigmoid(r - score)` a sample, averaged over the step's samples (`denominator`), with r the
    mean log-probability of the sample's tokens (PoFT, arXiv 2412.12865). `scores[i]` is the mean
    over aligned models of their mean log-probability of sample i, each under its own tokenizer and
    chat template, computed once and kept in fp32; it has no gradient. The gradient is that of the
    mean NLL times tau = G / (G + exp(r)), G = exp(score): a score of infinity is plain SFT.
    Metrics: `nll`, `tau`.
    """
    check_denominator(denominator, "number of samples")
    means_S = sample_means(logprobs_BT, batch)
    scores_S = of_samples(scores, batch, means_S)
    # minus infinity at both ends would make NaN; a score of +inf is tau = 1, the mean NLL itself
    plain_S = torch.isposinf(scores_S)
    gaps_S = means_S - torch.where(plain_S, 0.0, scores_S)
    losses_S = torch.where(plain_S, -means_S, -F.logsigmoid(gaps_S))
    tau_S = torch.where(plain_S, 1.0, torch.sigmoid(-gaps_S.detach()))
    metrics = {"nll": -means_S.detach().sum() / denominator, "tau": tau_S.sum() / denominator}
    return LossOutput(losses_S.sum() / denominator, metrics)

"""DPO and its relatives: losses of the log-ratios of policy to reference, over pairs.

With r = log pi(y) - log ref(y), summed over an answer's tokens, and delta = r_chosen - r_rejected.
Each loss is a mean over the step's pairs (`denominator`). Metrics of all of them, as means over
pairs: `accuracy` (delta > 0), `margin` (delta), `chosen_change` and `rejected_change` (r: watch the
first: a chosen answer that becomes less likely is displaced, arXiv 2410.08847). Losses without a
reference are in `agentrl.losses.reference_free`.

Not here: AOT, which sorts log-ratios over a batch and so depends on how a step is split.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from agentrl.errors import ConfigError
from agentrl.losses.base import LossOutput
from agentrl.losses.pairs import PairScores
from agentrl.losses.sequences import check_denominator


def dpo(
    pairs: PairScores, denominator: float, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> LossOutput:
    """Direct preference optimisation: `-log sigmoid(beta * delta - margin)`.

    ArXiv 2305.18290, equation 7. `label_smoothing` is the probability that a label is wrong (cDPO,
    E. Mitchell 2023): the loss is then the mean over both labels, least where the model's own
    confidence is that probability; a pair's own `flip_P` takes its place (MCTS-DPO). `margin_P`
    asks for more than a bare win (ODPO, arXiv 2402.10571).
    """
    chosen_P, rejected_P = pairs.log_ratios()
    logits_P = beta * (chosen_P - rejected_P)
    if pairs.margin_P is not None:
        logits_P = logits_P - pairs.margin_P
    flip_P: Tensor | float = label_smoothing if pairs.flip_P is None else pairs.flip_P
    return _mean(smoothed(logits_P, flip_P), pairs, denominator)


def robust_dpo(
    pairs: PairScores, denominator: float, *, beta: float = 0.1, label_smoothing: float = 0.1
) -> LossOutput:
    """DPO whose mean over labels flipped with a known probability is the loss of the true labels.

    ArXiv 2403.00409. Not cDPO: here the flipped label's loss is subtracted. Raises
    ConfigError unless 0 <= label_smoothing < 1/2.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"robust_dpo: label_smoothing is from 0 to below 0.5: {label_smoothing}")
    chosen_P, rejected_P = pairs.log_ratios()
    logits_P = beta * (chosen_P - rejected_P)
    clean_P = -(1 - label_smoothing) * F.logsigmoid(logits_P)
    flipped_P = -label_smoothing * F.logsigmoid(-logits_P)
    return _mean((clean_P - flipped_P) / (1 - 2 * label_smoothing), pairs, denominator)


def dpo_norm(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """DPO of the mean log-ratio per token: `-log sigmoid(beta * (r_w/|y_w| - r_l/|y_l|))`.

    The length-normalised form of Tulu 3 (arXiv 2411.15124), where beta is about 5.
    """
    return _mean(-F.logsigmoid(beta * _mean_delta(pairs)), pairs, denominator)


def ipo(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """`(r_w/|y_w| - r_l/|y_l| - 1/(2 beta))^2`: the margin is regressed, not grown for ever.

    ArXiv 2310.12036, equation 17, with beta for tau. The paper's r are sums; according to TRL its
    authors confirmed that its results are for means per token, which are used here too.
    """
    return _mean((_mean_delta(pairs) - 1 / (2 * beta)).square(), pairs, denominator)


def hinge(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """`max(0, 1 - beta * delta)`: SLiC's loss on DPO's rewards (arXiv 2305.10425; 2309.06657)."""
    chosen_P, rejected_P = pairs.log_ratios()
    return _mean(F.relu(1 - beta * (chosen_P - rejected_P)), pairs, denominator)


def rpo(
    pairs: PairScores,
    denominator: float,
    *,
    beta: float = 0.01,
    eta: float = 0.005,
    chosen_tokens: float | None = None,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """DPO plus `eta * beta` times the NLL of the chosen answer, summed over its tokens.

    ArXiv 2405.16436: the imitation term is what pessimism about the reward amounts
    to, and keeps the chosen answer from becoming less likely. With `chosen_tokens`, the number of
    chosen tokens in the step, the term is `eta` times the mean NLL of those tokens instead: TRL's
    `["sigmoid", "sft"]` and its `rpo_alpha`, about 1 there. The scales differ by beta and by
    length: never carry a number from one to the other.
    """
    out = dpo(pairs, denominator, beta=beta, label_smoothing=label_smoothing)
    if eta == 0:
        return out
    nll = -pairs.chosen_P.sum()
    nll = eta * beta * nll / denominator if chosen_tokens is None else eta * nll / chosen_tokens
    return LossOutput(out.loss + nll, {**out.metrics, "nll_term": nll.detach()})


def exo(
    pairs: PairScores, denominator: float, *, beta: float = 0.1, label_smoothing: float = 1e-3
) -> LossOutput:
    """The reverse KL from the policy's choice between the two to the smoothed label.

    EXO, arXiv 2402.00856, equation 16. Raises ConfigError unless 0 < label_smoothing < 1.
    """
    if not 0 < label_smoothing < 1:
        raise ConfigError(f"exo: label_smoothing is between 0 and 1, not {label_smoothing}")
    chosen_P, rejected_P = pairs.log_ratios()
    win_P = F.logsigmoid(beta * (chosen_P - rejected_P))
    lose_P = F.logsigmoid(beta * (rejected_P - chosen_P))
    losses_P = win_P.exp() * (win_P - math.log1p(-label_smoothing))
    losses_P = losses_P + lose_P.exp() * (lose_P - math.log(label_smoothing))
    return _mean(losses_P, pairs, denominator)


def nca(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """Noise contrastive alignment of two answers: raises the chosen one absolutely.

    ArXiv 2402.05369: `-log s(c) - log s(-c)/2 - log s(-d)/2`, c and d the rewards beta * r.
    """
    chosen_P, rejected_P = (beta * r for r in pairs.log_ratios())
    losses_P = -F.logsigmoid(chosen_P) - (F.logsigmoid(-chosen_P) + F.logsigmoid(-rejected_P)) / 2
    return _mean(losses_P, pairs, denominator)


def bco(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """Binary classification of each answer alone: `-log s(beta r_w) - log s(-beta r_l)`.

    BCO, arXiv 2404.04656, without its running mean of rewards (as TRL's `bco_pair`).
    """
    chosen_P, rejected_P = (beta * r for r in pairs.log_ratios())
    return _mean(-F.logsigmoid(chosen_P) - F.logsigmoid(-rejected_P), pairs, denominator)


def sppo(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """Self-play preference optimisation with hard labels: `(r_w - 1/2beta)^2 + (r_l + 1/2beta)^2`.

    ArXiv 2405.00675, equation 4.7, the win probability taken as 1 and 0.
    """
    chosen_P, rejected_P = pairs.log_ratios()
    half = 0.5 / beta
    losses_P = (chosen_P - half).square() + (rejected_P + half).square()
    return _mean(losses_P, pairs, denominator)


def apo_zero(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """Raise the chosen and lower the rejected answer: `1 - s(beta r_w) + s(beta r_l)`.

    APO, arXiv 2408.06266, equation 7: for chosen answers better than the policy's own.
    """
    chosen_P, rejected_P = (beta * r for r in pairs.log_ratios())
    return _mean(torch.sigmoid(-chosen_P) + torch.sigmoid(rejected_P), pairs, denominator)


def apo_down(pairs: PairScores, denominator: float, *, beta: float = 0.1) -> LossOutput:
    """Lower both answers, the rejected one more: `s(beta r_w) + 1 - s(beta delta)`.

    APO, arXiv 2408.06266, equation 8: for chosen answers worse than the policy's own.
    """
    chosen_P, rejected_P = (beta * r for r in pairs.log_ratios())
    losses_P = torch.sigmoid(chosen_P) + torch.sigmoid(rejected_P - chosen_P)
    return _mean(losses_P, pairs, denominator)


def discopop(
    pairs: PairScores, denominator: float, *, beta: float = 0.1, tau: float = 0.05
) -> LossOutput:
    """A blend of logistic and exponential loss, found by search (arXiv 2406.08414, equation 5)."""
    chosen_P, rejected_P = pairs.log_ratios()
    logits_P = beta * (chosen_P - rejected_P)
    blend_P = torch.sigmoid(logits_P / tau)
    losses_P = -F.logsigmoid(logits_P) * (1 - blend_P) + torch.exp(-logits_P) * blend_P
    return _mean(losses_P, pairs, denominator)


def smoothed(logits_P: Tensor, flip_P: Tensor | float) -> Tensor:
    """`-(1 - flip) log sigmoid(logits) - flip log sigmoid(-logits)`."""
    return -(1 - flip_P) * F.logsigmoid(logits_P) - flip_P * F.logsigmoid(-logits_P)


def _mean_delta(pairs: PairScores) -> Tensor:
    chosen_P, rejected_P = pairs.log_ratios()
    return chosen_P / pairs.chosen_tokens_P - rejected_P / pairs.rejected_tokens_P


def _mean(losses_P: Tensor, pairs: PairScores, denominator: float) -> LossOutput:
    check_denominator(denominator, "number of pairs")
    chosen_P, rejected_P = (r.detach() for r in pairs.log_ratios())
    metrics = {
        "accuracy": (chosen_P > rejected_P).float(),
        "margin": chosen_P - rejected_P,
        "chosen_change": chosen_P,
        "rejected_change": rejected_P,
    }
    means = {name: values_P.sum() / denominator for name, values_P in metrics.items()}
    return LossOutput(losses_P.sum() / denominator, means)

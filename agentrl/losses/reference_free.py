"""Preference losses without a reference policy: CPO, SimPO, ORPO, ASFT, TPO.

lp is an answer's log-probability summed over its tokens, mlp its mean. Each loss is a mean over the
step's pairs (`denominator`). Metrics of all of them, as means over pairs: `accuracy` (chosen more
likely, by what the loss compares), `margin`, `chosen_logprob`, `rejected_logprob`.

The NLL term of ORPO, CPO and TPO is each answer's mean per token, averaged over pairs; with
`nll_tokens`, the number of such tokens in the step, the mean over tokens of the step, as in TRL.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from agentrl.errors import ConfigError
from agentrl.losses.base import LossOutput
from agentrl.losses.pairs import PairScores
from agentrl.losses.preference import smoothed
from agentrl.losses.sequences import check_denominator


def cpo(
    pairs: PairScores,
    denominator: float,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float = 0.0,
    nll_tokens: float | None = None,
) -> LossOutput:
    """Contrastive preference optimisation: DPO without its reference, plus NLL of the chosen.

    `-log sigmoid(beta * (lp_w - lp_l)) + alpha * NLL(y_w)` (arXiv 2401.08417, equation 3).
    """
    losses_P = smoothed(beta * (pairs.chosen_P - pairs.rejected_P), label_smoothing)
    out = _mean(losses_P, pairs.chosen_P, pairs.rejected_P, denominator)
    return _with_nll(out, alpha, pairs.chosen_P, pairs.chosen_tokens_P, denominator, nll_tokens)


def simpo(
    pairs: PairScores,
    denominator: float,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float = 0.0,
) -> LossOutput:
    """`-log sigmoid(beta * (mlp_w - mlp_l) - gamma)`: means per token and a target margin.

    ArXiv 2405.14734, equation 6. `gamma` is subtracted after beta, as in the paper, in TRL and in
    iTool (arXiv 2501.09766, which takes 2.5 and 0.5); the authors' own code takes the ratio
    gamma/beta as its setting.
    """
    margin_P = beta * (pairs.chosen_mean_P - pairs.rejected_mean_P) - gamma
    losses_P = smoothed(margin_P, label_smoothing)
    return _mean(losses_P, pairs.chosen_mean_P, pairs.rejected_mean_P, denominator)


def orpo(
    pairs: PairScores, denominator: float, *, beta: float = 0.1, nll_tokens: float | None = None
) -> LossOutput:
    """SFT on the chosen answer minus `beta * log sigmoid` of the log odds ratio.

    ArXiv 2403.07691, equations 6 and 7, odds(y) = P / (1 - P) with P = exp(mlp). The NLL is of the
    answer alone, as in the paper; TRL's also trains on the prompt.
    """
    chosen_P, rejected_P = pairs.chosen_mean_P, pairs.rejected_mean_P
    log_odds_P = (chosen_P - log1mexp(chosen_P)) - (rejected_P - log1mexp(rejected_P))
    out = _mean(-beta * F.logsigmoid(log_odds_P), chosen_P, rejected_P, denominator)
    return _with_nll(out, 1.0, pairs.chosen_P, pairs.chosen_tokens_P, denominator, nll_tokens)


def asft(pairs: PairScores, denominator: float, *, weight: float = 0.1) -> LossOutput:
    """Aligned SFT: `-mlp_w + weight * (-log P(y_w) - log(1 - P(y_l)))`, P = exp(mlp).

    ArXiv 2409.10571. Each answer is pushed on its own: other than in DPO and ORPO, the gradient on
    the chosen answer does not depend on the rejected one. P is of the mean log-probability; of the
    sum it would underflow and take the rejected term along. (Not the *anchored* SFT that other
    libraries call ASFT.)
    """
    chosen_P, rejected_P = pairs.chosen_mean_P, pairs.rejected_mean_P
    losses_P = -chosen_P + weight * (-chosen_P - log1mexp(rejected_P))
    return _mean(losses_P, chosen_P, rejected_P, denominator)


def tpo(
    pairs: PairScores,
    denominator: float,
    *,
    beta: float = 0.01,
    alpha: float = 1.0,
    nll_tokens: float | None = None,
) -> LossOutput:
    """Triple preference optimisation: CPO's contrast plus NLL of a third, gold answer.

    `-log sigmoid(beta * (lp_w - lp_l)) + alpha * NLL(y_gold)` (arXiv 2405.16681). The "reference"
    of the paper is this answer, not a policy. With alpha 0 no gold answer is needed (of a batch of
    pairs: `members=2`). Raises ConfigError if one is and there is none.
    """
    losses_P = -F.logsigmoid(beta * (pairs.chosen_P - pairs.rejected_P))
    out = _mean(losses_P, pairs.chosen_P, pairs.rejected_P, denominator)
    return _with_gold(out, pairs, alpha, denominator, nll_tokens)


def tpo_l(
    pairs: PairScores,
    denominator: float,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    alpha: float = 1.0,
    nll_tokens: float | None = None,
) -> LossOutput:
    """TPO by means per token, as SimPO is to DPO: `-log sigmoid(beta * (mlp_w - mlp_l) - gamma)`
    plus alpha times the NLL of the gold answer (arXiv 2405.16681, TPO-L)."""
    out = simpo(pairs, denominator, beta=beta, gamma=gamma)
    return _with_gold(out, pairs, alpha, denominator, nll_tokens)


def log1mexp(x: Tensor) -> Tensor:
    """`log(1 - exp(x))` for x <= 0, exact at both ends; x above -eps counts as -eps.

    The bound keeps the value and the gradient finite where a model is sure of an answer. The two
    branches are those of M. Maechler, "Accurately computing log(1 - exp(-|a|))" (2012).
    """
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    small = x > -0.6931471805599453
    near = torch.log(-torch.expm1(torch.where(small, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(small, -1.0, x)))
    return torch.where(small, near, far)


def _with_gold(
    out: LossOutput,
    pairs: PairScores,
    alpha: float,
    denominator: float,
    nll_tokens: float | None,
) -> LossOutput:
    if alpha == 0:
        return out
    if pairs.gold_P is None or pairs.gold_tokens_P is None:
        raise ConfigError(
            "tpo with alpha > 0 needs a gold answer with each pair: pass samples_of(pairs, gold) "
            "and members=3, or alpha=0"
        )
    return _with_nll(out, alpha, pairs.gold_P, pairs.gold_tokens_P, denominator, nll_tokens)


def _with_nll(
    out: LossOutput,
    alpha: float,
    logprob_P: Tensor,
    tokens_P: Tensor,
    denominator: float,
    nll_tokens: float | None,
) -> LossOutput:
    if nll_tokens is None:
        nll = -(logprob_P / tokens_P).sum() / denominator
    else:
        nll = -logprob_P.sum() / nll_tokens
    return LossOutput(out.loss + alpha * nll, {**out.metrics, "nll": nll.detach()})


def _mean(losses_P: Tensor, chosen_P: Tensor, rejected_P: Tensor, denominator: float) -> LossOutput:
    check_denominator(denominator, "number of pairs")
    chosen_P, rejected_P = chosen_P.detach(), rejected_P.detach()
    metrics = {
        "accuracy": (chosen_P > rejected_P).float(),
        "margin": chosen_P - rejected_P,
        "chosen_logprob": chosen_P,
        "rejected_logprob": rejected_P,
    }
    means = {name: values_P.sum() / denominator for name, values_P in metrics.items()}
    return LossOutput(losses_P.sum() / denominator, means)

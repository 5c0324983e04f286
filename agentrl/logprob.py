"""Log-probabilities of tokens under a causal language model, without a [tokens, vocabulary] tensor.

`linear_logprobs` goes from hidden states to log-probabilities (and entropies) a chunk of tokens at
a time, `linear_kl` to the divergence from another model; what the backward pass needs of a chunk
is computed again, or at once in the forward pass where the loss's slopes are known. Models differ
in what they do to logits (Cohere and Granite scale them, Gemma caps them): `read_head` knows these.
The idea of the chunks is that of Liger kernels and cut cross-entropy (arXiv 2411.09009). Axes in
names: N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agentrl.errors import ConfigError

CHUNK_ELEMENTS = 1 << 24
"""Elements of the largest [tokens, vocabulary] piece there is at a time (64 MiB in fp32). Smaller
pieces make the products slower, larger ones only cost memory."""


@dataclass(frozen=True, slots=True)
class Head:
    """How a model makes logits of a hidden state: `cap(scale * (hidden @ weight.T + bias))`.

    `cap(x)` is `softcap * tanh(x / softcap)`, or x where `softcap` is None.
    """

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None


class _Logits:
    """The logits of some tokens at a time, always in the same memory (float32)."""

    def __init__(self, head: Head, hidden_ND: Tensor, chunk: int) -> None:
        self.head, self.hidden_ND, self.chunk = head, hidden_ND, chunk
        self.weight_VD = head.weight_VD.detach().to(hidden_ND.dtype)
        shape = (min(chunk, len(hidden_ND)), len(head.weight_VD))
        self.low_NV = hidden_ND.new_empty(shape)
        same = hidden_ND.dtype == torch.float32
        self.full_NV = self.low_NV if same else hidden_ND.new_empty(shape, dtype=torch.float32)

    def parts(self) -> Iterator[slice]:
        """The tokens, a chunk at a time."""
        n = len(self.hidden_ND)
        return (slice(at, min(at + self.chunk, n)) for at in range(0, n, self.chunk))

    def of(self, part: slice) -> Tensor:
        """[n, V], to be used (or changed) before the next call."""
        n, head = part.stop - part.start, self.head
        torch.mm(self.hidden_ND[part], self.weight_VD.T, out=self.low_NV[:n])
        logits_NV = self.full_NV[:n]
        if self.full_NV is not self.low_NV:
            logits_NV.copy_(self.low_NV[:n])
        if head.bias_V is not None:
            logits_NV += head.bias_V
        if head.scale != 1.0:
            logits_NV *= head.scale
        if head.softcap is not None:
            logits_NV.div_(head.softcap).tanh_().mul_(head.softcap)
        return logits_NV

    def slope(self, logits_NV: Tensor) -> Tensor | None:
        """The derivative of the cap at these logits, None without a cap."""
        cap = self.head.softcap
        return None if cap is None else 1 - (logits_NV / cap).square_()


class _Gradients:
    """What flows back through the head, summed over chunks. `needs`: of hidden, weight, bias."""

    def __init__(self, logits: _Logits, needs: tuple[bool, ...]) -> None:
        self.logits = logits
        bias_V = logits.head.bias_V
        self.dhidden_ND = torch.empty_like(logits.hidden_ND) if needs[0] else None
        self.dweight_VD: Tensor | None = None
        self.need_weight = needs[1]
        self.dbias_V = None
        if bias_V is not None and needs[2]:
            self.dbias_V = torch.zeros_like(bias_V, dtype=torch.float32)

    def add(self, part: slice, dlogits_NV: Tensor, slope_NV: Tensor | None) -> None:
        """Add the part of these tokens. Changes `dlogits_NV`."""
        logits, hidden_ND = self.logits, self.logits.hidden_ND[part]
        if slope_NV is not None:
            dlogits_NV.mul_(slope_NV)
        if logits.head.scale != 1.0:
            dlogits_NV.mul_(logits.head.scale)
        if self.dbias_V is not None:
            self.dbias_V += dlogits_NV.sum(0)
        low_NV = dlogits_NV
        if hidden_ND.dtype != torch.float32:
            low_NV = logits.low_NV[: len(hidden_ND)].copy_(dlogits_NV)
        if self.dhidden_ND is not None:
            torch.mm(low_NV, logits.weight_VD, out=self.dhidden_ND[part])
        if self.need_weight and self.dweight_VD is None:
            self.dweight_VD = (low_NV.T @ hidden_ND).float()
        elif self.dweight_VD is not None and low_NV.dtype == torch.float32:
            self.dweight_VD.addmm_(low_NV.T, hidden_ND)
        elif self.dweight_VD is not None:
            self.dweight_VD += low_NV.T @ hidden_ND

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of hidden states, weight and bias, in the dtype of each."""
        head = self.logits.head
        dweight_VD, dbias_V = self.dweight_VD, self.dbias_V
        if dweight_VD is not None:
            dweight_VD = dweight_VD.to(head.weight_VD.dtype)
        if dbias_V is not None and head.bias_V is not None:
            dbias_V = dbias_V.to(head.bias_V.dtype)
        return self.dhidden_ND, dweight_VD, dbias_V


class _LinearLogprobs(torch.autograd.Function):
    """See `linear_logprobs`. A single chunk keeps its logits; more are computed again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        slopes_N: Tensor | None,
        shape: tuple[float, float | None],
        chunk: int,
        entropy: bool,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        logits = _Logits(Head(weight_VD, bias_V, *shape), hidden_ND, chunk)
        needs = ctx.needs_input_grad[:3]
        early = _Gradients(logits, needs) if slopes_N is not None and any(needs) else None
        keep = grad and early is None and len(hidden_ND) <= chunk
        logprobs_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        norms_N, entropy_N = torch.empty_like(logprobs_N), torch.zeros_like(logprobs_N)
        for part in logits.parts():
            logits_NV = logits.of(part)
            slope_NV = logits.slope(logits_NV) if early is not None else None
            chosen_N = logits_NV.gather(1, targets_N[part, None]).squeeze(1)
            top_N1 = logits_NV.amax(1, keepdim=True)
            apart = keep or entropy  # the logits themselves are needed again
            exps_NV = logits_NV.sub(top_N1) if apart else logits_NV.sub_(top_N1)
            total_N1 = exps_NV.exp_().sum(1, keepdim=True)
            norms_N[part] = (top_N1 + total_N1.log()).squeeze(1)
            logprobs_N[part] = chosen_N - norms_N[part]
            if entropy:
                mean_N = torch.linalg.vecdot(exps_NV, logits_NV) / total_N1.squeeze(1)
                entropy_N[part] = norms_N[part] - mean_N
            if early is not None and slopes_N is not None:
                slopes_N1 = slopes_N[part, None]
                exps_NV.mul_(-slopes_N1 / total_N1).scatter_add_(
                    1, targets_N[part, None], slopes_N1
                )
                early.add(part, exps_NV, slope_NV)
        done = early.results() if early is not None else (None, None, None)
        kept_NV = logits.full_NV if keep else None
        saved = (hidden_ND, weight_VD, bias_V, targets_N, norms_N, entropy_N, kept_NV, slopes_N)
        ctx.save_for_backward(*saved, *done)
        ctx.shape, ctx.chunk, ctx.entropy = shape, chunk, entropy
        return logprobs_N, entropy_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dlogprobs_N: Tensor, dentropy_N: Tensor) -> Any:
        saved = ctx.saved_tensors
        hidden_ND, weight_VD, bias_V, targets_N, norms_N, entropy_N, kept_NV, slopes_N = saved[:8]
        if slopes_N is not None and not dentropy_N.any():
            factor = _common_factor(dlogprobs_N, slopes_N)
            if factor is not None:
                done = (None if t is None else t.mul_(factor.to(t.dtype)) for t in saved[8:])
                return (*done, *[None] * 6)
        logits = _Logits(Head(weight_VD, bias_V, *ctx.shape), hidden_ND, ctx.chunk)
        sums = _Gradients(logits, ctx.needs_input_grad[:3])
        for part in logits.parts():
            # kept logits are changed in place: torch then refuses a second backward pass
            logits_NV = logits.of(part) if kept_NV is None else kept_NV
            slope_NV = logits.slope(logits_NV)
            dlogprobs_N1, dentropy_N1 = dlogprobs_N[part, None], dentropy_N[part, None]
            # d logprob / d logit_i = [i is target] - p_i
            # d entropy / d logit_i = -p_i (log p_i + entropy)
            factor_NV = -dlogprobs_N1
            if ctx.entropy:
                surprise_NV = logits_NV - (norms_N - entropy_N)[part, None]
                factor_NV = surprise_NV.mul_(-dentropy_N1).sub_(dlogprobs_N1)
            dlogits_NV = logits_NV.sub_(norms_N[part, None]).exp_().mul_(factor_NV)
            dlogits_NV.scatter_add_(1, targets_N[part, None], dlogprobs_N1)
            sums.add(part, dlogits_NV, slope_NV)
        return (*sums.results(), *[None] * 6)


def _common_factor(found_N: Tensor, expected_N: Tensor) -> Tensor | None:
    """The number by which `expected_N` makes `found_N`, or None if there is none."""
    factor = torch.dot(found_N, expected_N) / torch.dot(expected_N, expected_N)
    off = (found_N - factor * expected_N).abs().max() if len(found_N) else factor
    return factor if off <= 1e-5 * found_N.abs().max() else None


class _LinearKL(torch.autograd.Function):
    """See `linear_kl`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        ref_hidden_ND: Tensor,
        shape: tuple[float, float | None],
        ref_head: Head,
        chunk: int,
    ) -> Tensor:
        head = Head(weight_VD, bias_V, *shape)
        kl_N = hidden_ND.new_empty(len(hidden_ND), dtype=torch.float32)
        ours, theirs = _Logits(head, hidden_ND, chunk), _Logits(ref_head, ref_hidden_ND, chunk)
        for part in ours.parts():
            logp_NV, logq_NV = _log_softmax_(ours.of(part)), _log_softmax_(theirs.of(part))
            kl_N[part] = torch.linalg.vecdot(logp_NV.exp(), logq_NV.neg_().add_(logp_NV))
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, ref_hidden_ND, kl_N)
        ctx.shape, ctx.ref_head, ctx.chunk = shape, ref_head, chunk
        return kl_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dkl_N: Tensor) -> Any:
        hidden_ND, weight_VD, bias_V, ref_hidden_ND, kl_N = ctx.saved_tensors
        ours = _Logits(Head(weight_VD, bias_V, *ctx.shape), hidden_ND, ctx.chunk)
        theirs = _Logits(ctx.ref_head, ref_hidden_ND, ctx.chunk)
        sums = _Gradients(ours, ctx.needs_input_grad[:3])
        for part in ours.parts():
            logits_NV = ours.of(part)
            slope_NV = ours.slope(logits_NV)
            logp_NV, logq_NV = _log_softmax_(logits_NV), _log_softmax_(theirs.of(part))
            # d kl / d logit_i = p_i (log p_i - log q_i - kl)
            factor_NV = logq_NV.neg_().add_(logp_NV).sub_(kl_N[part, None]).mul_(dkl_N[part, None])
            sums.add(part, logp_NV.exp_().mul_(factor_NV), slope_NV)
        return (*sums.results(), *[None] * 4)


def _log_softmax_(logits_NV: Tensor) -> Tensor:
    """Log-softmax over the vocabulary, in place but for one piece of memory as large."""
    logits_NV.sub_(logits_NV.amax(1, keepdim=True))
    return logits_NV.sub_(logits_NV.exp().sum(1, keepdim=True).log_())


def linear_logprobs(
    hidden_ND: Tensor,
    targets_N: Tensor,
    head: Head,
    *,
    entropy: bool = False,
    slopes_N: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `targets_N` (and entropies, with `entropy=True`; else zeros), in nats.

    Both float32 [N] and differentiable once with respect to `hidden_ND`, the head's weight and its
    bias. At most `chunk` tokens' logits (default: CHUNK_ELEMENTS / V) are in memory at a time.
    Under autocast the products run in its dtype; log-sum-exp, softmax and the sums over chunks are
    float32 always. Equal to `log_softmax(logits)` up to rounding.

    `slopes_N`: the derivative of the loss with respect to each log-probability, up to one factor,
    where that is known beforehand (a loss that is linear in them: the tokens' weights). The
    gradients are then made in the forward pass, and the products of the head are not computed
    twice: a quarter less work. Slopes that turn out wrong cost time, not correctness: the backward
    pass compares, and computes again.
    """
    grad, dtype = torch.is_grad_enabled(), _dtype(hidden_ND, head)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _LinearLogprobs.apply(  # type: ignore[no-untyped-call, no-any-return]
            hidden_ND.to(dtype),
            head.weight_VD,
            head.bias_V,
            targets_N,
            slopes_N if grad else None,
            (head.scale, head.softcap),
            chunk or _chunk(head),
            entropy,
            grad,
        )


def linear_kl(
    hidden_ND: Tensor,
    head: Head,
    ref_hidden_ND: Tensor,
    ref_head: Head,
    *,
    chunk: int | None = None,
) -> Tensor:
    """KL(policy || reference) of the next token's distribution, exact, in nats: float32 [N].

    Over the whole vocabulary, from the last hidden states of both models at the same tokens, with
    the logits of `chunk` tokens of each in memory at a time. Differentiable once with respect to
    the policy (`hidden_ND` and `head`); the reference gets no gradient. For the estimators from
    sampled tokens (k1, k2, k3; Schulman 2020) the log-probabilities of `linear_logprobs` suffice.

    Raises ConfigError if the vocabularies differ.
    """
    ours, theirs = len(head.weight_VD), len(ref_head.weight_VD)
    if ours != theirs:
        raise ConfigError(
            f"the policy has a vocabulary of {ours}, the reference of {theirs}: a divergence needs "
            "the same one"
        )
    dtype = _dtype(hidden_ND, head)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        kl_N: Tensor = _LinearKL.apply(  # type: ignore[no-untyped-call]
            hidden_ND.to(dtype),
            head.weight_VD,
            head.bias_V,
            ref_hidden_ND.detach().to(dtype),
            (head.scale, head.softcap),
            ref_head,
            chunk or _chunk(head),
        )
    return kl_N


def _dtype(hidden_ND: Tensor, head: Head) -> torch.dtype:
    """What the products run in: autocast's dtype inside of it, else the weight's."""
    kind = hidden_ND.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return low or head.weight_VD.dtype


def _chunk(head: Head) -> int:
    return max(1, CHUNK_ELEMENTS // len(head.weight_VD))


def bare_model(model: nn.Module) -> Any:
    """The transformers model: what peft wraps, or the model itself."""
    bare: Any = model
    return bare.get_base_model() if hasattr(model, "peft_config") else bare


def read_head(model: nn.Module) -> Head:
    """The head of a causal language model, as its configuration and modules describe it.

    Raises ConfigError if the model has no output embedding, or one that is not a plain linear map
    (quantised, or itself adapted by LoRA).
    """
    bare = bare_model(model)
    linear: Any = bare.get_output_embeddings() if hasattr(bare, "get_output_embeddings") else None
    if hasattr(linear, "modules_to_save"):  # peft trains a copy of the whole head
        linear = linear.modules_to_save[linear.active_adapters[0]]
    if type(linear) is not nn.Linear:
        raise ConfigError(
            f"cannot read log-probabilities off {type(bare).__name__}: its output layer is "
            f"{type(linear).__name__}, not torch.nn.Linear. Use a causal language model with a "
            "plain head (with LoRA: leave lm_head out of target_modules)"
        )
    config = bare.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    if divisor := getattr(config, "logits_scaling", None):
        scale = 1.0 / divisor
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, linear.bias, float(scale or 1.0), softcap and float(softcap))

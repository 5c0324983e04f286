"""Drawing tokens and finding stop strings, for `agentrl.engines.hf`.

Axes: B rows (one a request), V vocabulary, C chunks of the vocabulary, E entries of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agentrl.types import SamplingParams

_NUCLEUS = 1024
"""Top-p first looks at so many tokens; if they are too few, it sorts the whole vocabulary."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sampled token, or `fault` if the logits were not finite. Log-probabilities in nats.

    `sampled_logprob` is of the distribution drawn from, None where that is the model's own.
    """

    token: int
    logprob: float
    sampled_logprob: float | None
    fault: bool = False


def is_plain(params: SamplingParams) -> bool:
    """True if the parameters leave the model's distribution as it is."""
    return params.temperature == 1.0 and params.top_p >= 1.0 and params.top_k <= 0


def draw(
    logits_BV: Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> list[Drawn]:
    """Draw one token a row by inverting the distribution function at `uniforms[b]` in [0, 1).

    Greedy where temperature is 0. The order is temperature, top-k, top-p, as in transformers.
    `logits_BV` may be of any float type; everything here is computed in fp32 or better.
    """
    logits_BV = logits_BV.float()
    top_B = logits_BV.amax(-1)
    exp_BV = (logits_BV - top_B[:, None]).exp_()
    log_sum_B = _chunk_sums(exp_BV)[1].sum(-1).log()
    tokens_B = torch.zeros(len(params), dtype=torch.long, device=logits_BV.device)
    sampled_B = torch.zeros(len(params), dtype=torch.float64, device=logits_BV.device)
    u_B = torch.tensor(uniforms, dtype=torch.float64, device=logits_BV.device)
    plain = [b for b, p in enumerate(params) if is_plain(p)]
    greedy = [b for b, p in enumerate(params) if p.temperature == 0]
    if len(plain) == len(params):
        tokens_B = _invert(exp_BV, u_B)
    elif plain:
        tokens_B[plain] = _invert(exp_BV[plain], u_B[plain])
    if greedy:
        tokens_B[greedy] = logits_BV[greedy].argmax(-1)
    for p, rows in _groups(params).items():
        scaled_BV = (logits_BV[rows] - top_B[rows, None]) / p[0]
        tokens_B[rows], sampled_B[rows] = _draw_changed(scaled_BV, *p[1:], u_B[rows])
    chosen_B = logits_BV.gather(1, tokens_B[:, None])[:, 0]
    logprobs_B = (chosen_B - top_B).double() - log_sum_B
    fault_B = ~log_sum_B.isfinite()
    lists = (tokens_B.tolist(), logprobs_B.tolist(), sampled_B.tolist(), fault_B.tolist())
    return [
        Drawn(token, logprob, None if is_plain(p) else sampled, fault)
        for token, logprob, sampled, fault, p in zip(*lists, params, strict=True)
    ]


def _groups(params: Sequence[SamplingParams]) -> dict[tuple[float, int, float], list[int]]:
    """Rows by (temperature, top-k, top-p), those left out that need no change or no drawing."""
    groups: dict[tuple[float, int, float], list[int]] = {}
    for b, p in enumerate(params):
        if p.temperature != 0 and not is_plain(p):
            groups.setdefault((p.temperature, max(p.top_k, 0), p.top_p), []).append(b)
    return groups


def logprobs_of(logits_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """Log-softmax in fp32 of each row at its token: `[N]`."""
    logits_NV = logits_NV.float()
    return logits_NV.gather(1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(-1)


def likeliest(logits_V: Tensor, k: int) -> list[tuple[int, float]]:
    """The `k` likeliest tokens and their log-probabilities (nats), the likeliest first."""
    found = logits_V.float().log_softmax(-1).topk(min(k, logits_V.shape[0]))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def _chunk_sums(mass_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The rows cut into chunks `[B, C, E]`, and the sum of each chunk in fp64 `[B, C]`."""
    rows, vocab = mass_BV.shape
    size = next((e for e in range(128, 513) if vocab % e == 0), 256)
    if vocab % size:
        mass_BV = torch.nn.functional.pad(mass_BV, (0, -vocab % size))
    mass_BCE = mass_BV.view(rows, -1, size)
    return mass_BCE, mass_BCE.sum(-1).double()


def _invert(mass_BV: Tensor, u_B: Tensor) -> Tensor:
    """The token at which the running sum of `mass_BV` passes `u_B` of its total.

    In two levels (chunks, then inside one), so that no running sum of the whole vocabulary is made.
    """
    mass_BCE, sum_BC = _chunk_sums(mass_BV)
    rows, _, size = mass_BCE.shape
    run_BC = sum_BC.cumsum(-1)
    goal_B1 = u_B[:, None] * run_BC[:, -1:]
    chunk_B1 = torch.searchsorted(run_BC, goal_B1, right=True).clamp_(max=run_BC.shape[1] - 1)
    before_B1 = torch.where(chunk_B1 > 0, run_BC.gather(1, (chunk_B1 - 1).clamp(min=0)), 0.0)
    inside_BE = mass_BCE[torch.arange(rows, device=mass_BV.device), chunk_B1[:, 0]]
    run_BE = inside_BE.double().cumsum(-1)
    at_B1 = torch.searchsorted(run_BE, goal_B1 - before_B1, right=True).clamp_(max=size - 1)
    # Rounding can point at an entry without mass; its chunk's likeliest is then the answer.
    empty_B1 = inside_BE.gather(1, at_B1) <= 0
    at_B1 = torch.where(empty_B1, inside_BE.argmax(-1, keepdim=True), at_B1)
    return (chunk_B1 * size + at_B1)[:, 0]


def _draw_changed(
    scaled_BV: Tensor, top_k: int, top_p: float, u_B: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw from rows of logits (divided by temperature, greatest 0) with top-k and top-p.

    Returns tokens and their log-probabilities (fp64) in the distribution drawn from, both `[B]`.
    """
    mass_BV = scaled_BV.exp()
    sum_B1 = _chunk_sums(mass_BV)[1].sum(-1, keepdim=True)
    if not top_k and top_p >= 1.0:
        tokens_B = _invert(mass_BV, u_B)
        chosen_B1 = scaled_BV.gather(1, tokens_B[:, None]).double()
        return tokens_B, (chosen_B1 - sum_B1.log())[:, 0]
    vocab = scaled_BV.shape[1]
    n = min(top_k or _NUCLEUS, vocab)
    kept_BN, ids_BN = mass_BV.topk(n)
    if top_k:
        sum_B1 = kept_BN.sum(-1, dtype=torch.float64, keepdim=True)
    elif n < vocab and bool((kept_BN.sum(-1, dtype=torch.float64) < top_p * sum_B1[:, 0]).any()):
        kept_BN, ids_BN = mass_BV.sort(descending=True)
    kept_BN = kept_BN.double()
    if top_p < 1.0:
        before_BN = kept_BN.cumsum(-1) - kept_BN
        drop_BN = before_BN >= top_p * sum_B1
        drop_BN[:, 0] = False
        kept_BN = kept_BN.masked_fill(drop_BN, 0.0)
    run_BN = kept_BN.cumsum(-1)
    at_B1 = torch.searchsorted(run_BN, u_B[:, None] * run_BN[:, -1:], right=True)
    at_B1 = torch.minimum(at_B1, (kept_BN > 0).sum(-1, keepdim=True) - 1)
    logprobs_B1 = (kept_BN.gather(1, at_B1) / run_BN[:, -1:]).log()
    return ids_BN.gather(1, at_B1)[:, 0], logprobs_B1[:, 0]


class StopFinder:
    """Finds stop strings in the text of a growing list of ids, a few ids decoded at a time.

    Text is what the tokenizer's `decode` shows, special tokens included; only what `push` added
    counts, not the prompt. Bytes of an unfinished character wait for the rest of it.
    """

    _WINDOW = 6

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stops: Sequence[str], prompt: Sequence[int]
    ) -> None:
        self._decode = decode
        self._stops = tuple(s for s in stops if s)
        self._ids = list(prompt[-self._WINDOW :])
        shown = decode(self._ids) if self._ids else ""
        if shown.endswith("\ufffd"):
            self._ids, shown = [], ""
        self._start = 0  # the window that is decoded: ids[start:]
        self._read = len(self._ids)  # ids whose text is all in the tail
        self._shown = shown  # text of the window that was seen already
        self._tail = ""
        self._keep = max(map(len, self._stops), default=1) - 1

    def push(self, token: int) -> str | None:
        """Add a sampled token; return the stop string that is now complete, if one is."""
        self._ids.append(token)
        text = self._decode(self._ids[self._start :])
        unfinished = len(self._ids) - self._read < 5 and text.endswith("\ufffd")
        stable = text.rstrip("\ufffd") if unfinished else text
        new = stable[len(self._shown) :]
        self._shown = max(stable, self._shown, key=len)
        if not unfinished:
            if len(self._ids) - self._start > 2 * self._WINDOW:
                self._restart()
            self._read = len(self._ids)
        if not new:
            return None
        self._tail += new
        found = [(self._tail.find(s) + len(s), s) for s in self._stops if s in self._tail]
        if found:
            return min(found, key=lambda f: f[0])[1]
        self._tail = self._tail[-self._keep :] if self._keep else ""
        return None

    def _restart(self) -> None:
        """Shorten the window, not cutting through a character."""
        n = len(self._ids)
        for start in range(n - self._WINDOW, n):
            self._start = start
            self._shown = self._decode(self._ids[self._start :])
            if not self._shown.startswith("\ufffd"):
                return
        self._start, self._shown = n, ""

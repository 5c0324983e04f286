"""The head of a language model: peak memory and time (`python benchmarks/logprob.py`).

Weighted log-likelihood of N tokens from their hidden states, forward and backward, in float32:
ours, plain torch with whole logits, and TRL's chunked function. Memory is the growth of this
process's resident set at its peak; time is CPU time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from agentrl.errors import ConfigError
from benchmarks import harness
from benchmarks.harness import CPU, Options, Row, alternate, rows, seconds

PACKAGES = ("agentrl", "trl", "transformers", "torch")
TORCH, TRL, OURS, ANY = "torch log_softmax", "TRL chunked", "agentrl", "agentrl, any loss"


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens, width and vocabulary of the head."""

    tokens: int
    width: int
    vocabulary: int

    def __str__(self) -> str:
        return f"{self.tokens} tokens, width {self.width}, vocabulary {self.vocabulary}"


V49K = Shape(2048, 576, 49152)  # SmolLM2-135M
V150K = Shape(2048, 576, 151936)  # the same with the vocabulary of Qwen


def sides(shape: Shape) -> dict[str, Callable[[], Any]]:
    """A forward and backward pass each; RuntimeError if one gives another loss or gradient."""
    import torch
    from trl.kernels import ChunkedLogProbFunction

    from agentrl.logprob import Head, linear_logprobs

    torch.manual_seed(0)
    hidden_ND = torch.randn(shape.tokens, shape.width, requires_grad=True)
    weight_VD = (torch.randn(shape.vocabulary, shape.width) / 24).requires_grad_()
    targets_N = torch.randint(shape.vocabulary, (shape.tokens,))
    weights_N = torch.rand(shape.tokens)

    def ours(slopes_N: Any) -> Any:
        return linear_logprobs(hidden_ND, targets_N, Head(weight_VD), slopes_N=slopes_N)[0]

    def whole() -> Any:
        return (hidden_ND @ weight_VD.T).log_softmax(-1).gather(1, targets_N[:, None])[:, 0]

    def trl() -> Any:
        apply = ChunkedLogProbFunction.apply
        return apply(hidden_ND, weight_VD, None, targets_N, 1.0, 8192, None, 1.0, ())[0]

    expected: list[Any] = []

    def done(name: str, logprobs: Callable[[], Any]) -> Callable[[], None]:
        def once() -> None:
            loss = -(logprobs() * weights_N).mean()
            loss.backward()
            norms = [p.grad.norm().item() for p in (hidden_ND, weight_VD)]
            hidden_ND.grad = weight_VD.grad = None
            figures = torch.tensor([loss.item(), *norms])
            expected.append(figures)
            if not torch.allclose(figures, expected[0], rtol=1e-4):
                raise RuntimeError(f"{name} gives {figures}, another {expected[0]}")

        return once

    return {
        OURS: done(OURS, lambda: ours(weights_N)),
        ANY: done(ANY, lambda: ours(None)),
        TORCH: done(TORCH, whole),
        TRL: done(TRL, trl),
    }


def peak_mb(work: Callable[[], Any]) -> float:
    """MiB by which the resident set grows at most while `work` runs. Linux only."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        work()
        return (_resident("VmHWM") - before) / 1024
    except OSError as error:
        raise ConfigError(f"peak memory cannot be read on this machine: {error}") from error


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def peak(case: str, shape: Shape, options: Options) -> list[Row]:
    """Peak memory; the goal is a quarter of plain torch's."""
    made = sides(shape)
    found = alternate(
        case,
        "MiB",
        {name: lambda once=once: peak_mb(once) for name, once in made.items()},
        1,
        warm_up=False,
    )
    ours, anyway, goal = found.pop(OURS), found.pop(ANY), min(found[TORCH]) / 4
    note = f"{shape}; float32, forward and backward, gradients included; goal: a quarter of torch"
    return [
        *rows(case, "MiB", ours, found, goal=goal, note=note),
        *rows(f"any_loss/{case}", "MiB", anyway, {TORCH: found[TORCH]}, goal=goal, note=(
            "the same for a loss whose slopes are not known beforehand (DPO, PPO)")),
    ]  # fmt: skip


def time_s(options: Options) -> list[Row]:
    """CPU seconds; the goal is at most 1.1 times plain torch's."""
    shape = replace(V49K, tokens=1024)
    made = sides(shape)
    found = alternate(
        "time_s_v49k",
        "s",
        {name: lambda once=once: seconds(once, CPU) for name, once in made.items()},
        options.rounds(3),
    )
    ours, anyway, goal = found.pop(OURS), found.pop(ANY), 1.1 * min(found[TORCH])
    return [
        *rows("time_s_v49k", "s CPU", ours, found, goal=goal, note=(
            f"{shape}; as training does it for losses that are linear in log-probabilities (SFT, "
            "on-policy gradients); goal: 1.1 times torch")),
        *rows("any_loss/time_s_v49k", "s CPU", anyway, {TORCH: found[TORCH], TRL: found[TRL]},
            goal=goal, note="the same for any loss: the head's logits are computed twice"),
    ]  # fmt: skip


CASES = {
    "peak_mb_v49k": lambda options: peak("peak_mb_v49k", V49K, options),
    "peak_mb_v150k": lambda options: peak("peak_mb_v150k", V150K, options),
    "time_s_v49k": time_s,
}


if __name__ == "__main__":
    sys.exit(harness.main("logprob", CASES, PACKAGES, needs=("torch", "trl")))

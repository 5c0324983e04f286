"""Batches with made-up log-probabilities for the tests of losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from agentrl.batch import Batch, collate
from agentrl.losses import PairScores
from agentrl.types import Sample


def sample(
    n: int,
    *,
    weights: Sequence[float] | None = None,
    advantages: Sequence[float] | float | None = None,
    old: Sequence[float] | None = None,
    ref: Sequence[float] | None = None,
    prompt: int = 1,
) -> Sample:
    """A sample of a prompt and `n` tokens of answer; lists are of the answer's tokens."""
    if isinstance(advantages, int | float):
        advantages = [float(advantages)] * n

    def padded(values):
        return None if values is None else [0.0] * prompt + [float(v) for v in values]

    return Sample(
        list(range(1, prompt + n + 1)),
        padded([1.0] * n if weights is None else weights),
        padded(advantages),
        padded(old),
        padded(ref),
    )


def placed(batch: Batch, samples: Sequence[Sample], values: Sequence[Sequence[float]]) -> Tensor:
    """`[B, T]` leaf tensor with the values of each sample's answer tokens where these stand."""
    logprobs_BT = torch.zeros(batch.input_ids_BT.shape, dtype=torch.float64)
    for segment, i in enumerate(batch.samples):
        row, columns = (batch.segment_ids_BT == segment).nonzero(as_tuple=True)
        n = len(values[i])
        logprobs_BT[row[-n:], columns[-n:]] = torch.tensor(values[i], dtype=torch.float64)
    masked = torch.where(batch.weights_BT > 0, logprobs_BT, 0.0)
    return masked.requires_grad_()


def padded_batch(samples: Sequence[Sample]) -> Batch:
    return collate(samples, [[i] for i in range(len(samples))])


def one_batch(samples: Sequence[Sample], values: Sequence[Sequence[float]]) -> tuple[Tensor, Batch]:
    batch = padded_batch(samples)
    return placed(batch, samples, values), batch


def scores(
    chosen: float,
    rejected: float,
    ref_chosen: float | None = None,
    ref_rejected: float | None = None,
    tokens: tuple[float, float] = (1.0, 1.0),
    **more: float,
) -> PairScores:
    """One pair."""

    def one(x):
        return None if x is None else torch.tensor([x], dtype=torch.float64)

    return PairScores(
        one(chosen).requires_grad_(),
        one(rejected).requires_grad_(),
        one(tokens[0]),
        one(tokens[1]),
        one(ref_chosen),
        one(ref_rejected),
        **{name: one(x) for name, x in more.items()},
    )


@st.composite
def some_values(draw, most: int = 5, even: bool = False):
    """Lists of log-probabilities, one a sample."""
    n = draw(st.integers(1, most)) * (2 if even else 1)
    nats = st.floats(-4.0, -0.0625)
    return [draw(st.lists(nats, min_size=1, max_size=6)) for _ in range(n)]

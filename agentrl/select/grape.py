"""GRAPE: of several right answers, train on those that the model itself finds likeliest.

arXiv 2502.04194: candidates come from several models, and each is scored by the *pre-trained* model
that will be trained (an instruction-tuned relative ranks differently). Only right candidates should
take part: a fluent wrong answer is likely, too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence
from typing import Literal

from agentrl.errors import DataError, unknown
from agentrl.interfaces import Policy
from agentrl.types import Sample

Norm = Literal["mean", "raw"]


async def scores(samples: Sequence[Sample], model: Policy, norm: Norm = "mean") -> list[float]:
    """The log-probability of each sample's trained tokens under `model`, in nats.

    Only tokens with a weight count: not the prompt, not tool output. `mean` divides by their
    number; `raw`, the sum, is what the paper writes, and favours short answers. Raises DataError
    for a sample without a trained token.
    """
    if norm not in ("mean", "raw"):
        raise unknown("norm", norm, ("mean", "raw"))
    found = await asyncio.gather(*(model.score(s.token_ids) for s in samples))
    made = []
    for i, (sample, logprobs) in enumerate(zip(samples, found, strict=True)):
        own = [x for x, w in zip(logprobs, sample.weights[1:], strict=True) if w]
        if not own:
            raise DataError(f"sample {i} has no trained token to score; leave it out")
        made.append(math.fsum(own) / (len(own) if norm == "mean" else 1))
    return made


def choose(groups: Sequence[Hashable], scores: Sequence[float], top: int = 1) -> list[int]:
    """The indices of the `top` best-scored candidates of each group (an instruction), in order.

    Of equal scores the lowest index goes first.
    """
    ranked: dict[Hashable, list[int]] = {}
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], i)):
        ranked.setdefault(groups[i], []).append(i)
    return sorted(i for group in ranked.values() for i in group[:top])

"""What a loss is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from agentrl.batch import Batch


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A micro-batch's part of an optimizer step: the parts of one step add up.

    `loss` is a scalar with a gradient. Each of `metrics` is a scalar without one, divided so that
    its parts, too, add up to the step's value. Each of `maxima` is a scalar whose value for the
    step is the largest of its parts.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)


class Loss(Protocol):
    """A pure function. Write one in a file of its own and name it in `agentrl.losses`."""

    def __call__(self, logprobs_BT: Tensor, batch: Batch, denominator: float) -> LossOutput:
        """The part of a micro-batch in a step's loss.

        `logprobs_BT` (nats, with gradient) are the model's log-probabilities of the batch's own
        tokens, 0 where `batch.weights_BT` is 0. `denominator` is what the loss is a mean over,
        counted over the whole optimizer step, so that how a step is split into micro-batches
        changes nothing: the sum of weights, the number of samples or that of pairs
        (`agentrl.losses.denominator` counts it for a loss of the list).
        """
        ...

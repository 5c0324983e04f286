"""CHES: which preference pairs would make the chosen answer less likely (arXiv 2410.08847).

Pairs whose two answers have similar hidden states displace the chosen one under DPO. Score them
with the model before training and keep the lowest (`agentrl.select.pairs.lowest`). Axes in names: T
tokens, L tokens with a weight, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from agentrl.errors import DataError
from agentrl.logprob import bare_model
from agentrl.types import Pair, Sample


def ches(chosen_LD: Tensor, rejected_LD: Tensor, *, normalised: bool = True) -> float:
    """`<S+, S-> - |S+|^2` of sums of hidden states; `normalised` takes means instead of sums
    (definition 2 and its length-normalised form, without which long pairs come first)."""
    chosen_D, rejected_D = chosen_LD.double().sum(0), rejected_LD.double().sum(0)
    if normalised:
        chosen_D, rejected_D = chosen_D / len(chosen_LD), rejected_D / len(rejected_LD)
    return float(chosen_D @ rejected_D - chosen_D @ chosen_D)


@torch.inference_mode()
def scores(model: Any, pairs: Sequence[Pair], *, normalised: bool = True) -> list[float]:
    """The CHES score of each pair under a transformers causal model; higher is more dangerous.

    The states are the last layer's that predict the tokens with a weight: from the last prompt
    token to the second-last one of the answer (the released scripts disagree about the end). Raises
    DataError for a side without a trained token.
    """
    model.eval()
    return [
        ches(_states(model, p.chosen), _states(model, p.rejected), normalised=normalised)
        for p in pairs
    ]


def _states(model: Any, sample: Sample) -> Tensor:
    places = [t - 1 for t, w in enumerate(sample.weights) if t and w]
    if not places:
        raise DataError("an answer of a pair has no token with a weight; leave the pair out")
    ids_BT = torch.tensor([list(sample.token_ids)], device=model.device)
    states_TD: Tensor = bare_model(model).base_model(input_ids=ids_BT)[0][0]
    return states_TD[places]

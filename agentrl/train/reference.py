"""The policy that training is held to: log-probabilities of the model as it was before."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from agentrl.batch import Batch, Layout, collate, plan
from agentrl.logprob import read_head
from agentrl.train.attention import tree_attention
from agentrl.train.linear import fast_linear
from agentrl.train.scorer import Scorer, probes
from agentrl.types import Sample

log = logging.getLogger(__name__)


class Reference:
    """`model` as it is when this is made, whatever training does to it afterwards.

    Under an adapter of peft that changes nothing yet (a new LoRA) it is the same model with the
    adapter switched off, at no cost. Everything else is a frozen copy, which needs the model's
    memory again: a model trained whole, an adapter that was trained before, or one whose
    initialisation moved part of the weights into itself (PiSSA, CorDA), for which switching off is
    another model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shared = hasattr(model, "peft_config") and _adapter_is_idle(model)
        if hasattr(model, "peft_config") and not self.shared:
            log.warning("the adapter is not new: its reference is a copy of the whole model")
        self._scorer = Scorer(model if self.shared else _frozen(model))

    @contextmanager
    def scorer(self) -> Iterator[Scorer]:
        """The reference's scorer, in evaluation mode and without gradients, inside the block."""
        model: Any = self._scorer.model
        training = model.training
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.shared:
                stack.enter_context(model.disable_adapter())
            model.eval()
            try:
                yield self._scorer
            finally:
                model.train(training)

    def score(self, samples: Sequence[Sample], budget: int, layout: Layout) -> list[Sample]:
        """The samples with `ref_logprobs`: this policy's, at all tokens with a weight (else 0).

        Once before training, instead of in every step. `budget` is the tokens a forward pass.
        """
        with (
            self.scorer() as scorer,
            tree_attention(scorer.model, layout),
            fast_linear(scorer.model),
        ):
            found = token_table(
                samples, budget, layout, lambda batch: scorer(batch).logprobs_BT, scorer.model
            )
        return [replace(s, ref_logprobs=row) for s, row in zip(samples, found, strict=True)]


def token_table(
    samples: Sequence[Sample],
    budget: int,
    layout: Layout,
    read: Callable[[Batch], Tensor],
    model: nn.Module,
) -> list[list[float]]:
    """What `read` finds [B, T] for every token of each sample, in batches on the model's device."""
    found: dict[int, list[float]] = {}
    device = read_head(model).weight_VD.device
    for rows in plan(samples, budget, layout):
        batch = collate(samples, rows, tree=layout == "tree").to(device)
        values_BT = read(batch).float()
        for segment, i in enumerate(batch.samples):
            found[i] = values_BT[batch.segment_ids_BT == segment].tolist()
    return [found[i] for i in range(len(samples))]


def _frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def _adapter_is_idle(model: Any) -> bool:
    """True if the model says the same with its adapter switched off."""
    head = read_head(model)
    batch = collate(samples := probes(len(head.weight_VD)), [[i] for i in range(len(samples))])
    training, scorer, batch = model.training, Scorer(model), batch.to(head.weight_VD.device)
    try:
        model.eval()
        on_BT = scorer(batch).logprobs_BT
        with model.disable_adapter():
            return torch.allclose(scorer(batch).logprobs_BT, on_BT, atol=1e-5)
    finally:
        model.train(training)

"""One optimizer step: micro-batches forward and backward, clip, step. The only place that does it.

`train` takes steps over a data set, an online recipe over what its policy has just sampled; both
give a `Trainer` samples and a `Part` (a loss of a micro-batch) and get back the step's metrics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from agentrl import losses
from agentrl.batch import Batch, Layout, Rows, collate
from agentrl.logprob import bare_model, read_head
from agentrl.train.attention import tree_attention
from agentrl.train.distributed import assemble, idle, join, norm_of, not_yet, share, skeleton, wrap
from agentrl.train.linear import fast_linear
from agentrl.train.reference import Reference, token_table
from agentrl.train.schedule import TrainConfig
from agentrl.train.scorer import Scorer, Scores
from agentrl.train.setup import choose_dtype, choose_layout, make_optimizer
from agentrl.train.sums import Row, Sums, merged
from agentrl.types import Sample

Score = Callable[..., Scores]
"""`Scorer.forward` in the trainer's precision."""

Part = Callable[[Score, Batch, float], losses.LossOutput]
"""A micro-batch's part of a step's loss: scores the batch, and divides by the denominator."""


def of_logprobs(loss: losses.Loss) -> Part:
    """The part of a loss that reads log-probabilities alone."""

    def part(score: Score, batch: Batch, denominator: float) -> losses.LossOutput:
        slopes_BT = known_slopes(loss, batch, denominator)
        return loss(score(batch, slopes_BT=slopes_BT).logprobs_BT, batch, denominator)

    return part


class Trainer:
    """A model with its optimizer, one step after the other.

    `model` has its adapter already (`agentrl.train.adapt`); `value_head`, for PPO, is trained with
    it. `settle` says how samples share a forward pass, before the first step; steps are taken
    inside `with trainer.training():`. Raises ConfigError for a model that cannot be trained.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, value_head: nn.Module | None = None
    ) -> None:
        self.model, self.config = model, config
        self.device = read_head(model).weight_VD.device
        self.dtype = choose_dtype(model, config, self.device)
        self.scorer = Scorer(model, value_head)
        self.layout: Layout = "padded"
        self.settled = False
        self.ranks = join()
        self._bones: nn.Module | None = None
        if not config.shard:  # else once the layout has been tried on the whole model
            self._wrap()

    def _wrap(self) -> None:
        if self.config.shard:
            self._bones = skeleton(self.model)
        self._wrapped = wrap(self.scorer, self.model, self.ranks, self.config.shard)
        self.optimizer = make_optimizer(self.scorer, self.config)

    def settle(self, samples: Sequence[Sample], steps: Sequence[Sequence[int]]) -> None:
        """Choose the layout by the first of `steps`, each the indices of its samples."""
        self.layout = choose_layout(self.model, self.config, samples, steps, self.device)
        if self.config.shard and not self.settled:
            self._wrap()
        self.settled = True

    def trained(self) -> nn.Module:
        """The model in one piece: itself, or where it is sharded a copy on the main process's CPU
        (without memory in the others; all processes must call this)."""
        if self._bones is None:
            return self.model
        return assemble(self._bones, self.model, self.ranks)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Dropout on, gradient checkpointing as asked; all as before when the block ends."""
        model, bare = self.model, bare_model(self.model)
        before = model.training
        model.train()
        if self.config.grad_checkpointing:
            bare.gradient_checkpointing_enable({"use_reentrant": False})
        try:
            with tree_attention(model, self.layout), fast_linear(model):
                yield
        finally:
            model.train(before)
            self.scorer.zero_grad(set_to_none=True)
            if self.config.grad_checkpointing:
                bare.gradient_checkpointing_disable()

    def score(self, batch: Batch, **options: Any) -> Scores:
        """`Scorer.forward`, in the trainer's precision."""
        with self.precision():
            scores: Scores = self._wrapped(batch, **options)
        return scores

    def precision(self) -> torch.autocast:
        """Inside the block models compute in bfloat16, where the trainer does."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == "bf16")

    def table(
        self, samples: Sequence[Sample], read: Callable[[Scores], Tensor]
    ) -> list[list[float]]:
        """What `read` takes from the scores, for every token of each sample, without gradients.

        Dropout is off. 0 at tokens without a weight.
        """
        model, budget = self.model, self.config.micro_tokens
        before = model.training
        model.eval()
        try:
            with torch.no_grad(), tree_attention(model, self.layout), fast_linear(model):
                return token_table(
                    samples, budget, self.layout, lambda batch: read(self.score(batch)), model
                )
        finally:
            model.train(before)

    def referenced(
        self, samples: Sequence[Sample], reference: Reference | None = None
    ) -> list[Sample]:
        """The samples with the log-probabilities of `reference`, in the trainer's precision;
        without one, with those of the model as it now is."""
        if reference is not None:
            with self.precision():
                return reference.score(samples, self.config.micro_tokens, self.layout)
        found = self.table(samples, lambda scores: scores.logprobs_BT)
        return [replace(s, ref_logprobs=row) for s, row in zip(samples, found, strict=True)]

    def step(
        self,
        samples: Sequence[Sample],
        part: Part,
        denominator: float,
        *,
        lr: float,
        number: int,
        groups: Sequence[Sequence[int]] | None = None,
        names: Sequence[int] | None = None,
    ) -> Row:
        """One optimizer step on all of `samples`; returns its metrics.

        `groups` are the samples that must share a micro-batch. `number` of the step and `names` of
        the samples (their indices, unless given) stand in errors. Raises FloatingPointError for a
        loss or gradient that is not finite, before it reaches the weights.
        """
        clock = time.perf_counter()
        micros = share(self.ranks, samples, self.config.micro_tokens, self.layout, groups)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        names = range(len(samples)) if names is None else names
        row = self._accumulate(samples, part, denominator, micros, number, names)
        row["grad_norm_raw"] = self._clip(number, names)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        row["seconds"] = time.perf_counter() - clock
        row["tokens_per_s"] = row["tokens"] / row["seconds"]
        return row

    def _accumulate(
        self,
        samples: Sequence[Sample],
        part: Part,
        denominator: float,
        micros: Sequence[Rows],
        number: int,
        names: Sequence[int],
    ) -> Row:
        """Forward and backward of this process's micro-batches; returns the step's sums.

        The denominator is counted over the whole step, so a token counts the same wherever it lands
        (a mean of micro-batch means would not: transformers issue 34191).
        """
        found = Sums()
        for n, micro in enumerate(micros):
            with not_yet(self._wrapped, last=n == len(micros) - 1):
                if not micro:
                    idle(self.score, samples, self.device)
                    continue
                batch = collate(samples, micro, tree=self.layout == "tree").to(self.device)
                out = part(self.score, batch, denominator)
                # gradients are averaged over processes, and the loss is their sum
                loss = out.loss * self.ranks.size if self.ranks.size > 1 else out.loss
                loss.backward()  # type: ignore[no-untyped-call]
            found.add(out, batch.computed, [names[i] for row in micro for i in row])
        row = merged(self.ranks.gather(found.done()), number)
        tokens = sum(len(s.token_ids) for s in samples)
        return row | {"samples": len(samples), "tokens": tokens, "weight": denominator}

    def _clip(self, number: int, names: Sequence[int]) -> float:
        """Scale gradients to a norm of at most `clip`; returns the norm that they had before."""
        parameters = [p for p in self.scorer.parameters() if p.grad is not None]
        clip = math.inf if self.config.clip is None else self.config.clip
        norm = norm_of(nn.utils.clip_grad_norm_(parameters, clip))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {number} has norm {norm} (samples {sorted(names)}). The "
                "weights were not changed. Lower lr, or train in fp32"
            )
        return norm


def known_slopes(loss: losses.Loss, batch: Batch, denominator: float) -> Tensor | None:
    """The derivative [B, T] of `loss` by the log-probabilities, where it does not depend on them.

    So for losses that are linear in them (weighted likelihood, on-policy gradients), which lets
    the head make its gradients in the forward pass. Found by asking at two places; a loss that is
    only linear between these is caught in the backward pass (`linear_logprobs`).
    """
    found = []
    for value in (-1.0, -4.0):
        at_BT = torch.full_like(batch.weights_BT, value).requires_grad_()
        out = loss(at_BT, batch, denominator).loss
        found.append(torch.autograd.grad(out, at_BT, allow_unused=True)[0])
    one_BT, other_BT = found
    return one_BT if one_BT is not None and torch.equal(one_BT, other_BT) else None

"""A transformers model seen as a function from a `Batch` to log-probabilities.

`Scorer` runs the decoder once and sends only tokens that have a weight through the head. Models
differ in what they do to their logits, and in whether samples packed into a row stay apart (layers
with a state leak): `head_fault` and `layout_fault` find out by running the model on a few tokens,
and `train` refuses what does not check. Axes in names: B rows, T columns, D hidden, N tokens that
go through the head, M all tokens that the model computes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from agentrl.batch import Batch, Layout, collate
from agentrl.logprob import Head, bare_model, linear_kl, linear_logprobs, read_head
from agentrl.train.adapter import routes_rows, set_tasks
from agentrl.train.attention import model_inputs, window
from agentrl.types import Sample


class Scores(NamedTuple):
    """What a model says of a batch's tokens, in nats: 0 where the batch's weight is 0.

    (A tuple, in which DDP and FSDP2 find the tensors.)
    """

    logprobs_BT: Tensor
    entropy_BT: Tensor | None = None
    kl_BT: Tensor | None = None
    """KL(model || reference) of the distribution that predicts each token, exact"""
    values_BT: Tensor | None = None
    """the value head's output before each token, in units of reward"""


class Scorer(nn.Module):
    """A transformers causal language model (or a peft model on one) from `Batch` to `Scores`.

    This is the module that DDP or FSDP2 wraps: its forward pass is the only way in which
    training reads the model, head weight included. `value_head` goes from hidden states [N, D] to
    values [N, 1] (PPO).

    Raises ConfigError at once if the model has no head that log-probabilities can be read from.
    """

    def __init__(self, model: nn.Module, value_head: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.value_head = model, value_head
        read_head(model)

    def hidden(self, batch: Batch) -> Tensor:
        """The decoder's last hidden states [B, T, D]; of a batch with a trie [1, C, D]."""
        set_tasks(self.model, batch)
        out = bare_model(self.model).base_model(**model_inputs(self.model, batch))
        hidden_BTD: Tensor = out[0]
        return hidden_BTD

    def forward(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        slopes_BT: Tensor | None = None,
        reference: tuple[Tensor, Head] | None = None,
        input_ids_BT: Tensor | None = None,
    ) -> Scores:
        """Log-probabilities [B, T] of the batch's own tokens where its weight is not 0.

        `slopes_BT`: the loss's derivative by each of them where it is known beforehand, which
        saves work (see `linear_logprobs`). `reference`: the reference's `hidden` of the same
        batch with its head, to get the divergence from it. `input_ids_BT`: what the model reads
        instead of the batch's tokens (`agentrl.losses.masked`), not with a trie.
        """
        read = batch if input_ids_BT is None else replace(batch, input_ids_BT=input_ids_BT)
        scored, head = _scored(batch), read_head(self.model)
        hidden_ND = scored.rows(self.hidden(read))
        logprobs_N, entropy_N = linear_logprobs(
            hidden_ND,
            scored.targets_N,
            head,
            entropy=entropy,
            slopes_N=None if slopes_BT is None else scored.sums(slopes_BT),
        )
        kl_BT = None
        if reference is not None:
            ref_hidden_BTD, ref_head = reference
            kl_N = linear_kl(hidden_ND, head, scored.rows(ref_hidden_BTD), ref_head)
            kl_BT = scored.spread(kl_N)
        entropy_BT = scored.spread(entropy_N) if entropy else None
        values_BT = None
        if self.value_head is not None:
            values_BT = scored.spread(self.value_head(hidden_ND).float().squeeze(1))
        return Scores(scored.spread(logprobs_N), entropy_BT, kl_BT, values_BT)


@dataclass(frozen=True, slots=True)
class _Scored:
    """The tokens of a batch that go through the head: those with a weight, shared ones once."""

    before_N: Tensor
    """where the hidden state is that predicts each, in the model's rows laid end to end"""
    targets_N: Tensor
    where_BT: Tensor
    """bool: which of the loss's tokens have a weight"""
    of_W: Tensor
    """for each of these its place among the N"""

    def rows(self, hidden_BTD: Tensor) -> Tensor:
        """[N, D]: the hidden states that predict the scored tokens."""
        return hidden_BTD.flatten(0, 1).index_select(0, self.before_N)

    def sums(self, values_BT: Tensor) -> Tensor:
        """[N]: values of the loss's tokens, added up where these are one token of the model."""
        zeros_N = values_BT.new_zeros(len(self.targets_N))
        return zeros_N.index_add(0, self.of_W, values_BT[self.where_BT])

    def spread(self, values_N: Tensor) -> Tensor:
        """Values of the scored tokens at all of their places in [B, T], 0 elsewhere."""
        zeros_BT = values_N.new_zeros(self.where_BT.shape)
        return zeros_BT.masked_scatter(self.where_BT, values_N[self.of_W])


def _scored(batch: Batch) -> _Scored:
    where_BT = batch.weights_BT != 0
    if batch.trie is None or batch.column_BT is None:
        at_N = where_BT.flatten().nonzero().squeeze(1)
        of_N = torch.arange(len(at_N), device=at_N.device)
        return _Scored(at_N - 1, batch.input_ids_BT.flatten()[at_N], where_BT, of_N)
    at_N, of_W = torch.unique(batch.column_BT[where_BT], return_inverse=True)
    return _Scored(batch.trie.parent_C[at_N], batch.trie.token_ids_C[at_N], where_BT, of_W)


def head_fault(model: nn.Module) -> str | None:
    """Why our log-probabilities are not the model's own, or None if they are. Tries 6 tokens."""
    with _quiet(model) as (device, vocab_size, tolerance):
        batch = collate([_probe(vocab_size, 6, 1)], [[0]]).to(device)
        ours_T = Scorer(model)(batch).logprobs_BT[0, 1:]
        logits_TV = model(**batch.model_inputs()).logits[0, :-1].float()
        targets_T = batch.input_ids_BT[0, 1:, None]
        theirs_T = logits_TV.log_softmax(-1).gather(1, targets_T).squeeze(1)
        off = (ours_T - theirs_T).abs().max().item()
    if off <= tolerance * max(1.0, theirs_T.abs().max().item()):
        return None
    return (
        f"log-probabilities from its hidden states differ from its own by {off:.2g} nats: it does "
        "something to its logits that agentrl does not know"
    )


def layout_fault(model: nn.Module, layout: Layout, longest: int) -> str | None:
    """Why samples cannot be laid out so for this model, or None if they can (tried on a few).

    `longest` is the length of the longest sample. Every token of a packed row, or of a trie, must
    come out as in a row of its own, and so must not change with what stands before it. State-space
    and convolution layers carry state over; some models ignore `position_ids`, or attention masks.
    """
    if routes_rows(model):
        return "its adapter routes whole rows by their task"
    sees = window(model)
    if layout == "tree" and sees is not None and longest > sees:
        return f"some of its layers see {sees} tokens back, the longest sample has {longest}"
    with _quiet(model) as (device, vocab_size, tolerance):
        scorer = Scorer(model)
        samples = probes(vocab_size)
        try:
            alone = [scorer.hidden(collate([s], [[0]]).to(device))[0] for s in samples]
            found = _hidden_of_samples(scorer, samples, layout, device)
        except (TypeError, ValueError, RuntimeError) as error:
            return f"its forward pass refuses such rows ({error})"
    for one_TD, other_TD in zip(alone, found, strict=True):
        if (one_TD - other_TD).abs().max().item() > tolerance * one_TD.abs().max().item():
            return "a sample's hidden states change with the other samples in the row"
    return None


def _hidden_of_samples(
    scorer: Scorer, samples: list[Sample], layout: Layout, device: torch.device
) -> list[Tensor]:
    """Each sample's hidden states [T, D], computed in one micro-batch."""
    everyone = list(range(len(samples)))
    rows = [[i] for i in everyone] if layout == "padded" else [everyone]
    batch = collate(samples, rows, tree=layout == "tree").to(device)
    hidden = scorer.hidden(batch)
    if batch.column_BT is not None:
        hidden = hidden[0, batch.column_BT]
    return [hidden[batch.segment_ids_BT == segment] for segment in everyone]


def probes(vocab_size: int) -> list[Sample]:
    """Samples of which some share a beginning, one is another's, and one stands alone."""
    first, second, third, other = (list(_probe(vocab_size, 7, i).token_ids) for i in range(4))
    paths = [first + second, first + third, [*first, *second, *other], first, other + first]
    return [Sample(path, [1.0] * len(path)) for path in paths]


def _probe(vocab_size: int, n: int, seed: int) -> Sample:
    ids = torch.randint(vocab_size, (n,), generator=torch.Generator().manual_seed(seed))
    return Sample(ids.tolist(), [1.0] * n)


@contextmanager
def _quiet(model: nn.Module) -> Iterator[tuple[torch.device, int, float]]:
    """Evaluation mode without gradients; yields the device, vocabulary and a tolerance."""
    weight = read_head(model).weight_VD
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield weight.device, len(weight), 1e-4 if weight.dtype == torch.float32 else 5e-2
    finally:
        model.train(training)

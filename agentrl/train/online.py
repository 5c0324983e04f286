"""What online RL adds to training: from fresh attempts to a loss, for every method the same way.

A method is a credit scheme, a loss, and where the KL to the start stands; `METHODS` lists them.
`credited_rows` makes training rows of the attempts, `policy_part` what a step minimises on them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor, nn

from agentrl import credit, losses
from agentrl.batch import Batch, trainable_weight
from agentrl.errors import ConfigError
from agentrl.logprob import read_head
from agentrl.losses.values import value_loss
from agentrl.record import Tree
from agentrl.train.reference import Reference
from agentrl.train.scorer import Scores
from agentrl.train.step import Part, Score, Trainer
from agentrl.types import Attempt, Sample, SamplingParams

Group = Sequence[tuple[Tree, Attempt]]
"""Attempts at one task."""

CAP = 2.0
"""The largest weight of a token where sampling was at another temperature (truncated importance
sampling: biased towards the sampler where it binds)."""


@dataclass(frozen=True, slots=True)
class Method:
    """A policy gradient: how attempts are credited, the loss by name, where the KL stands.

    `values`: the method trains a value head, and needs no group. `read` makes the episode of an
    attempt: what a turn is, where its rewards stand, what is not trained on.
    """

    scheme: credit.Scheme
    loss: str
    kl_in: Literal["loss", "reward"]
    values: bool = False
    read: Callable[[Tree, Attempt], credit.Episode] = credit.episode_of


METHODS: dict[str, Method] = {
    "grpo": Method(credit.group_relative, "grpo", "loss"),
    "dr_grpo": Method(functools.partial(credit.group_relative, std=False), "dr_grpo", "loss"),
    "dapo": Method(credit.group_relative, "dapo", "loss"),
    "gspo": Method(credit.group_relative, "gspo", "loss"),
    "cispo": Method(credit.group_relative, "cispo", "loss"),
    "rloo": Method(credit.leave_one_out, "rloo", "reward"),
    "reinforce": Method(credit.leave_one_out, "reinforce", "reward"),
    "ppo": Method(credit.gae_tokens, "ppo", "reward", values=True),
}


def check_sampling(params: SamplingParams) -> None:
    """Refuse sampling from which no unbiased policy gradient can be had, as ConfigError.

    With top-p or top-k the tokens that were cut away are never seen: their part of the gradient is
    missing, and no weight on the others brings it back. Another temperature is corrected.
    """
    if params.top_p < 1 or params.top_k > 0:
        raise ConfigError(
            f"top_p={params.top_p}, top_k={params.top_k}: tokens that are never sampled have no "
            "part in the gradient, and importance weights cannot correct that. Sample with top_p=1 "
            "and top_k=0; a temperature other than 1 is corrected"
        )
    if params.temperature <= 0:
        raise ConfigError(
            "temperature=0 samples one and the same answer, from which nothing can be learnt; use 1"
        )


def value_head(model: nn.Module, *, bias: bool = True) -> nn.Linear:
    """A value head for `model`, on its device: all values are 0 at first."""
    weight_VD = read_head(model).weight_VD
    head = nn.Linear(weight_VD.shape[1], 1, bias=bias, device=weight_VD.device, dtype=torch.float32)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


@dataclass(slots=True)
class Rows:
    """The training rows of a step. `dropped` counts attempts by reason, `refill` are the groups
    without a signal; `values` and `returns` have one list a row, for a value head. `kl_turns` is
    the divergence from the reference by turn (nats, means over attempts without a masked turn of
    sums over tokens), where the KL is a reward."""

    samples: list[Sample]
    dropped: dict[str, int]
    refill: list[int]
    values: list[list[float]]
    returns: list[list[float]]
    kl_turns: list[float] = field(default_factory=list)


def credited_rows(
    groups: Sequence[Group],
    method: Method,
    trainer: Trainer,
    reference: Reference | None = None,
    *,
    kl: float | Sequence[float] = 0.0,
    truncated: credit.Truncated = "keep",
) -> Rows:
    """Rewards to advantages to training rows.

    Attempts that failed in our hands are in no baseline and no row. `reference` gives what `kl`
    holds the policy to: as a reward (k1; there `kl` may be a coefficient for each turn), or as
    `ref_logprobs` for the loss. PPO's advantages are whitened over the step; the value head's
    targets are the advantages before that plus the values. An answer that a limit cut off is over,
    as scored: nothing is bootstrapped from its end.
    """
    episodes = [[method.read(tree, a) for tree, a in group] for group in groups]
    gaps: list[list[float]] = []
    if method.values or (reference is not None and kl and method.kl_in == "reward"):
        episodes, gaps = _scored(groups, episodes, method, trainer, reference, kl)
    found = credit.assign(
        episodes, method.scheme, truncated=truncated, smallest=1 if method.values else 2
    )
    kept = [
        (g, i, row)
        for g, rows in enumerate(found.advantages)
        for i, row in enumerate(rows)
        if row is not None
    ]
    advantages = [row for _, _, row in kept]
    if method.values and len(kept) > 1:
        advantages = credit.whitened(advantages, [episodes[g][i] for g, i, _ in kept])
    made = Rows([], dict(found.dropped), found.refill, [], [], _means(gaps))
    for (g, i, raw), own in zip(kept, advantages, strict=True):
        (tree, attempt), episode = groups[g][i], episodes[g][i]
        masked = [turn in episode.masked for turn in episode.turns] if episode.masked else []
        made.samples += _corrected(tree, attempt, own, masked)
        if method.values:
            values = episode.values
            returns = [a + v for a, v in zip(raw, values, strict=True)]
            for lists, whole in ((made.values, list(values)), (made.returns, returns)):
                as_rows = credit.credited(tree, attempt, whole, masked=masked)
                lists += [list(r.advantages or ()) for r in as_rows]
    if made.samples and reference is not None and kl and method.kl_in == "loss":
        made.samples = trainer.referenced(made.samples, reference)
    return made


def _scored(
    groups: Sequence[Group],
    episodes: Sequence[Sequence[credit.Episode]],
    method: Method,
    trainer: Trainer,
    reference: Reference | None,
    kl: float | Sequence[float],
) -> tuple[list[list[credit.Episode]], list[list[float]]]:
    """The episodes with values and KL rewards, where the method has these; and for every attempt
    that is trained on whole the nats between it and the reference by turn."""
    rows: list[Sample] = []
    counts: list[list[int]] = []
    for group, own in zip(groups, episodes, strict=True):
        counts.append([])
        for (tree, attempt), episode in zip(group, own, strict=True):
            usable = episode.valid and bool(episode.sampled)
            zeros = [0.0] * len(episode.turns)
            made = credit.credited(tree, attempt, zeros) if usable else []
            counts[-1].append(len(made))
            rows += made
    gaps: list[list[float]] = []
    if not rows:
        return [list(own) for own in episodes], gaps
    values = trainer.table(rows, _values) if method.values else None
    if reference is not None and kl:
        rows = trainer.referenced(rows, reference)
    at, scored = 0, []
    for own, sizes in zip(episodes, counts, strict=True):
        scored.append(list(own))
        for i, size in enumerate(sizes):
            part, episode = rows[at : at + size], own[i]
            if size and values is not None:
                episode = replace(episode, values=_spread(episode, part, values[at : at + size]))
            if size and reference is not None and kl:
                new, old = (
                    _spread(episode, part, [list(getattr(s, name)) for s in part])
                    for name in ("logprobs", "ref_logprobs")
                )
                episode = credit.kl_rewards(episode, new, old, kl)
                if not episode.masked:
                    gaps.append([0.0] * episode.n_turns)
                    for t in episode.sampled:
                        gaps[-1][episode.turns[t]] += new[t] - old[t]
            scored[-1][i] = episode
            at += size
    return scored, gaps


def _means(lists: Sequence[Sequence[float]]) -> list[float]:
    """The means of the first entries, of the second ones, and so on, of those that have them."""
    columns = [[x for x in column if x is not None] for column in zip_longest(*lists)]
    return [math.fsum(column) / len(column) for column in columns]


def _values(scores: Scores) -> Tensor:
    assert scores.values_BT is not None
    return scores.values_BT


def _spread(
    episode: credit.Episode, rows: Sequence[Sample], lists: Sequence[Sequence[float]]
) -> list[float]:
    """Numbers of an attempt's rows as one list over the episode: sampled tokens are in order."""
    own = [
        x
        for row, xs in zip(rows, lists, strict=True)
        for x, weight in zip(xs, row.weights, strict=True)
        if weight
    ]
    whole = [0.0] * len(episode.turns)
    for t, x in zip(episode.sampled, own, strict=True):
        whole[t] = x
    return whole


def _corrected(
    tree: Tree, attempt: Attempt, advantages: Sequence[float], masked: Sequence[bool]
) -> list[Sample]:
    """An attempt's rows, advantages times the importance weight of each token where it was sampled
    at another temperature than 1: the policy's probability over that of the distribution drawn
    from."""
    rows = credit.credited(tree, attempt, advantages, masked=masked)
    drawn = credit.credited(tree, attempt, advantages, logprobs="sampled", masked=masked)
    made = []
    for row, other in zip(rows, drawn, strict=True):
        if row.logprobs != other.logprobs:
            lists = (row.advantages or (), row.logprobs or (), other.logprobs or ())
            weighted = [
                a * math.exp(min(p - q, math.log(CAP))) for a, p, q in zip(*lists, strict=True)
            ]
            row = replace(row, advantages=weighted)
        made.append(row)
    return made


def policy_part(
    method: Method,
    rows: Rows,
    *,
    kl: float = 0.0,
    entropy: float = 0.0,
    value_coef: float = 1.0,
    max_tokens: int = 0,
) -> tuple[Part, float]:
    """The loss of a step on these rows, and what it divides by.

    Metrics besides the loss's own (all ratios raw): `entropy`, and `logprob_diff`,
    `logprob_diff_max`: how far trainer and sampler are apart, in nats a token. The sampler has the
    weights that the first step after collecting starts from, so there it is an error of either.
    """
    tokens = math.fsum(map(trainable_weight, rows.samples))
    options = {"max_tokens": max_tokens} if method.loss == "dr_grpo" else {}
    loss: losses.AnyLoss = losses.make(method.loss, **options)
    in_loss = kl if method.kl_in == "loss" else 0.0

    def part(score: Score, batch: Batch, denominator: float) -> losses.LossOutput:
        scores = score(batch, entropy=True)
        assert scores.entropy_BT is not None
        entropy_BT = scores.entropy_BT if entropy else scores.entropy_BT.detach()
        extras = losses.Extras(kl_coef=in_loss, entropy_coef=entropy, entropy_BT=entropy_BT)
        out = loss(scores.logprobs_BT, batch, denominator, extras=extras)
        metrics, maxima, total = dict(out.metrics), dict(out.maxima), out.loss
        assert batch.logprobs_BT is not None
        off_BT = (scores.logprobs_BT.detach() - batch.logprobs_BT).abs()
        off_BT = torch.where(batch.weights_BT > 0, off_BT, 0.0)
        metrics["logprob_diff"] = (batch.weights_BT * off_BT).sum() / tokens
        maxima["logprob_diff_max"] = off_BT.max()
        if method.values:
            assert scores.values_BT is not None
            old_BT, returns_BT = _laid_out(rows.values, batch), _laid_out(rows.returns, batch)
            fit = value_loss(scores.values_BT, old_BT, returns_BT, batch, denominator)
            metrics |= {"value_loss": fit.loss.detach(), **fit.metrics}
            total = total + value_coef * fit.loss
        return losses.LossOutput(total, metrics, maxima)

    return part, losses.denominator(method.loss, rows.samples)


def _laid_out(lists: Sequence[Sequence[float]], batch: Batch) -> Tensor:
    """[B, T]: numbers given for every token of each of the step's samples."""
    laid_BT = torch.zeros_like(batch.weights_BT)
    for segment, i in enumerate(batch.samples):
        laid_BT[batch.segment_ids_BT == segment] = laid_BT.new_tensor(lists[i])
    return laid_BT

"""What is said of a preference pair without a model: what its paths share, how sure its label is.

Torch-free; the losses that read it are in `agentrl.losses.pairs`.
"""

from __future__ import annotations

from dataclasses import replace

from agentrl.errors import DataError
from agentrl.types import Pair, Sample

FLIP = "flip"
"""The key of `Pair.meta` that holds the probability that the pair's label is wrong."""


def shared_prefix(pair: Pair) -> int:
    """How many tokens the two answers' paths begin with in common."""
    n = 0
    for a, b in zip(pair.chosen.token_ids, pair.rejected.token_ids, strict=False):
        if a != b:
            break
        n += 1
    return n


def suffix_only(pair: Pair) -> Pair:
    """The pair with weights from the first token on which its answers differ, none before.

    Siblings of a search tree share a prefix, whose log-probabilities cancel in every loss that
    reads the difference of sums (DPO and its relatives): the same loss and gradient, and no
    log-probability to compute for the prefix. Losses of means (SimPO, ORPO, IPO) do change: they
    then speak of the step alone (MCTS-DPO, arXiv 2405.00451, trains siblings so). Raises DataError
    if a side has no weight left.
    """
    n = shared_prefix(pair)

    def cut(sample: Sample) -> Sample:
        weights = [0.0] * n + list(sample.weights[n:])
        if not any(w > 0 for w in weights):
            raise DataError("the answers of a pair differ in no token with a weight; leave it out")
        return replace(sample, weights=weights)

    return replace(pair, chosen=cut(pair.chosen), rejected=cut(pair.rejected))


def length_desensitised(pair: Pair, alpha: float) -> Pair:
    """The pair with weights times `alpha` from where the longer answer goes on alone.

    LD-DPO, arXiv 2409.06411: `alpha` 0 reads as many tokens of both, 1 is DPO. Lengths
    count tokens with a weight.
    """
    lengths = [sum(w > 0 for w in s.weights) for s in (pair.chosen, pair.rejected)]

    def damped(sample: Sample) -> Sample:
        weights, seen = [], 0
        for w in sample.weights:
            seen += w > 0
            weights.append(w * alpha if seen > min(lengths) else w)
        return replace(sample, weights=weights)

    return replace(pair, chosen=damped(pair.chosen), rejected=damped(pair.rejected))


def visit_flip(chosen_visits: int, rejected_visits: int) -> float:
    """Label smoothing from search visits: `min(1 / (N_w / N_l + 1), 1 / 2)`, as MCTS-DPO's code.

    0.5 for two answers that the search never visited: it has no opinion.
    """
    total = chosen_visits + rejected_visits
    return 0.5 if total == 0 else min(rejected_visits / total, 0.5)

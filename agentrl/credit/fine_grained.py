"""Fine-grained rewards: several reward models, each with a segmentation of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentrl.credit.base import Advantages, Episode, Site
from agentrl.credit.gae import gae_tokens


def segment_sites(ends: Sequence[int], scores: Sequence[float], source: str) -> list[Site]:
    """A reward at the last token of each segment: `ends[j]` is where segment j ends."""
    return [Site(end, score, source) for end, score in zip(ends, scores, strict=True)]


def standardised(score: float, mean: float, std: float) -> float:
    """`(score - mean) / std`, with a reward model's own mean and deviation over a data set."""
    return (score - mean) / std


def fine_grained(
    group: Sequence[Episode],
    *,
    weights: Mapping[str, float],
    gamma: float = 1.0,
    lam: float = 0.95,
) -> Advantages:
    """GAE over tokens of the sum of all sources' rewards, each source times its weight.

    Wu et al., arXiv 2306.01693: r_t = sum_k w_k R_k at the last token of each segment,
    KL apart (`kl_rewards`). A source without a weight counts as it is.

    Bias when the policy chooses when to stop: more segments make more reward, so where most are
    rewarded it learns to write more and shorter ones, and where most are penalised to stop early.
    Divide by the number of segments, or watch it.
    """
    weighted = [episode.weighted(weights) for episode in group]
    return gae_tokens(weighted, gamma=gamma, lam=lam)

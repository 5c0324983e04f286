"""The KL penalty as a reward: the place in which k1 has the right gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agentrl.credit.base import Episode, Site

SOURCE = "kl"


def kl_rewards(
    episode: Episode,
    logprobs: Sequence[float],
    ref_logprobs: Sequence[float],
    coef: float | Sequence[float],
) -> Episode:
    """The episode with `-coef * (log pi - log ref)` added at every sampled token, source `kl`.

    Lists have one entry a token (nats). A list of coefficients has one a turn: SCoRe's stage I
    holds its first turn with a strong one. Why k1, and why here: `agentrl.losses.kl`.
    """
    sites = []
    for t in episode.sampled:
        own = coef if isinstance(coef, int | float) else coef[episode.turns[t]]
        if own:
            sites.append(Site(t, -own * (logprobs[t] - ref_logprobs[t]), SOURCE))
    return replace(episode, rewards=[*episode.rewards, *sites])

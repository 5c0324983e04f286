"""LeDex: an explanation and the code after it, each with a reward of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from agentrl.credit.base import Advantages, Episode
from agentrl.credit.kl import SOURCE as KL
from agentrl.errors import unknown


def separate_sites(
    group: Sequence[Episode],
    *,
    mode: Literal["separate", "summed"] = "separate",
    gamma: float = 0.99,
) -> Advantages:
    """Discounted rewards less the value of each token, not carried across a reward site.

    ArXiv 2405.18649, with lambda 1. `separate`: a token is credited with rewards up to
    the next site (the end of its explanation, or of the code), as the paper's text says; `summed`
    with all that follow, as its plain backward sum does. Rewards of source `kl` belong to their own
    tokens and cut nothing. (The paper's printed formula adds the KL term to ordinary tokens; it is
    a penalty.) Reads `Episode.values`. Raises ConfigError for an unknown mode.

    Bias: `separate` is blind to an explanation that sounds right and leads to wrong code: nothing
    of the code's reward reaches it. Neither mode depends on when the policy stops, but gamma < 1
    counts tokens, so a longer explanation is credited less for the code.
    """
    if mode not in ("separate", "summed"):
        raise unknown("mode of separate_sites", mode, ("separate", "summed"))
    made = []
    for episode in group:
        rewards = episode.token_rewards()
        cuts = {episode.place(site) for site in episode.without(KL).rewards}
        row, later = [0.0] * len(rewards), 0.0
        for t in reversed(episode.sampled):
            if mode == "separate" and t in cuts:
                later = 0.0
            later = rewards[t] + gamma * later
            row[t] = later - (episode.values[t] if episode.values else 0.0)
        made.append(row)
    return made


def refinement_reward(code_bleu: float, passed: float) -> float:
    """LeDex's reward of refined code: `5 * (S_cb + S_ut) - 5`, from -5 to 5.

    `code_bleu` is the mean similarity to right refinements, `passed` the share of tests passed.
    """
    return 5 * (code_bleu + passed) - 5


def explanation_reward(similarity: float) -> float:
    """LeDex's reward of an explanation: `(50 * S - 35) / 3`; 0.4, 0.7, 1 give -5, 0, 5."""
    return (50 * similarity - 35) / 3

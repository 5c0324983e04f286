"""Generalised advantage estimation, with tokens or with turns as the steps."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.credit.base import Advantages, Episode, over_turns


def gae(
    rewards: Sequence[float],
    values: Sequence[float],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: float = 0.0,
) -> list[float]:
    """`A_t = delta_t + gamma * lam * A_(t+1)`, `delta_t = r_t + gamma * V_(t+1) - V_t`.

    Schulman et al., arXiv 1506.02438, equation 16. `values[t]` is the value before step t,
    `bootstrap` the one after the last: 0 where the episode ended by itself.
    """
    found, later, after = [0.0] * len(rewards), 0.0, bootstrap
    for t in range(len(rewards) - 1, -1, -1):
        delta = rewards[t] + gamma * after - values[t]
        found[t] = later = delta + gamma * lam * later
        after = values[t]
    return found


def gae_tokens(group: Sequence[Episode], *, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """GAE over the sampled tokens: tool output between them is part of a step, not a step.

    Reads `Episode.values`; a value head's target is the advantage plus the value.

    Bias: that of the values, the more the smaller `lam`. When the policy chooses when to stop: none
    of its own, since an attempt that ended has no value after it; one that was cut off must
    bootstrap, or it is told that nothing could have followed. gamma < 1 counts tokens, so it
    discounts long-winded turns, not late ones.
    """
    made = []
    for episode in group:
        at, rewards = episode.sampled, episode.token_rewards()
        values = episode.values or [0.0] * len(rewards)
        steps = gae(
            [rewards[t] for t in at],
            [values[t] for t in at],
            gamma=gamma,
            lam=lam,
            bootstrap=episode.bootstrap,
        )
        row = [0.0] * len(rewards)
        for t, advantage in zip(at, steps, strict=True):
            row[t] = advantage
        made.append(row)
    return made


def gae_turns(group: Sequence[Episode], *, gamma: float = 1.0, lam: float = 0.95) -> Advantages:
    """GAE over turns, one advantage for all tokens of a turn.

    The value of a turn is `Episode.values` at its first token: of what the policy saw before it.

    Bias: that of the values. gamma < 1 discounts by turns and so teaches to stop early; lam < 1
    shortens credit by turns whatever their lengths, where over tokens it would vanish within one.
    An attempt that was cut off must bootstrap, as over tokens.
    """
    made = []
    for episode in group:
        starts = [episode.turns.index(k) for k in range(episode.n_turns)]
        values = [episode.values[t] if episode.values else 0.0 for t in starts]
        steps = gae(
            episode.turn_rewards(), values, gamma=gamma, lam=lam, bootstrap=episode.bootstrap
        )
        made.append(over_turns(episode, steps))
    return made

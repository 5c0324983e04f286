"""GiGPO: turns that began in the same state are a group of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from agentrl.credit.base import Advantages, Episode, mean_and_std, over_turns
from agentrl.credit.group_relative import group_relative
from agentrl.credit.returns_to_go import discounted
from agentrl.errors import DataError


def anchor_groups(
    group: Sequence[Episode],
    *,
    gamma: float = 0.95,
    omega: float = 1.0,
    std: bool = True,
    eps: float = 1e-4,
) -> Advantages:
    """The group-relative advantage of the attempt plus `omega` times that of each turn.

    GiGPO, arXiv 2505.10978: all turns of the group that began in an equal state
    (`Episode.states`) are compared by their discounted returns, `(G - mean) / (std + eps)`; a state
    seen once gives 0. `std=False` divides neither part. Raises DataError if an episode lacks
    states.

    Bias when the policy chooses when to stop: the turns that meet in a state are those that the
    policy led there, and an attempt that walks in circles enters its states' means many times, so
    the comparison leans towards attempts like it; the mean has the turn's own return in it, which
    shrinks small groups (a pair by half). gamma < 1 is what tells a short way from a long one, and
    teaches to stop early. As groups grow the first two vanish; the division by the deviation does
    not (see `group_relative`).
    """
    members: dict[Hashable, list[tuple[int, int]]] = defaultdict(list)
    returns = []
    for i, episode in enumerate(group):
        if len(episode.states) != episode.n_turns:
            raise DataError(
                f"attempt {i} has {len(episode.states)} states for {episode.n_turns} turns: "
                "anchor_groups needs one for each"
            )
        returns.append(discounted(episode.turn_rewards(), gamma))
        for k, state in enumerate(episode.states):
            members[state].append((i, k))
    steps = [[0.0] * episode.n_turns for episode in group]
    for places in members.values():
        mean, deviation = mean_and_std([returns[i][k] for i, k in places])
        scale = 1 / (deviation + eps) if std else 1.0
        for i, k in places:
            steps[i][k] = (returns[i][k] - mean) * scale
    whole = group_relative(group, std=std, eps=eps)
    return [
        [a + omega * s for a, s in zip(row, over_turns(e, own), strict=True)]
        for row, e, own in zip(whole, group, steps, strict=True)
    ]

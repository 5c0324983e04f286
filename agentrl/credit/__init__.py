"""Credit assignment: from sparse per-turn rewards to an advantage for every sampled token.

`SCHEMES` has all by name, one file each; every docstring says what the scheme is biased by when the
policy chooses when to stop. No torch here.

    groups = [[episode_of(tree, a) for tree in trees for a in tree.attempts] for trees in by_task]
    credits = assign(groups, leave_one_out, truncated="mask")
"""

from __future__ import annotations

from collections.abc import Callable

from agentrl.credit.anchor import anchor_groups
from agentrl.credit.base import (
    Advantages,
    Credits,
    Episode,
    Scheme,
    Site,
    Truncated,
    assign,
    whitened,
)
from agentrl.credit.fine_grained import fine_grained, segment_sites, standardised
from agentrl.credit.gae import gae, gae_tokens, gae_turns
from agentrl.credit.group_relative import group_relative
from agentrl.credit.kl import kl_rewards
from agentrl.credit.leave_one_out import leave_one_out
from agentrl.credit.returns_to_go import discounted, returns_to_go
from agentrl.credit.score import corrections, score_shaping, shaped
from agentrl.credit.separate_sites import separate_sites
from agentrl.credit.trees import credited, episode_of, turn_numbers

SCHEMES: dict[str, Callable[..., Advantages]] = {
    "group_relative": group_relative,
    "leave_one_out": leave_one_out,
    "returns_to_go": returns_to_go,
    "gae_tokens": gae_tokens,
    "gae_turns": gae_turns,
    "score_shaping": score_shaping,
    "fine_grained": fine_grained,
    "separate_sites": separate_sites,
    "anchor_groups": anchor_groups,
}

__all__ = [
    "SCHEMES",
    "Advantages",
    "Credits",
    "Episode",
    "Scheme",
    "Site",
    "Truncated",
    "anchor_groups",
    "assign",
    "corrections",
    "credited",
    "discounted",
    "episode_of",
    "fine_grained",
    "gae",
    "gae_tokens",
    "gae_turns",
    "group_relative",
    "kl_rewards",
    "leave_one_out",
    "returns_to_go",
    "score_shaping",
    "segment_sites",
    "separate_sites",
    "shaped",
    "standardised",
    "turn_numbers",
    "whitened",
]

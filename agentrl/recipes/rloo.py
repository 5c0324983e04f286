"""RLOO: REINFORCE with the mean of the other attempts as baseline, the KL in the reward.

arXiv 2402.14740. The loop is that of `agentrl.recipes.grpo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentrl.recipes import grpo

run = grpo.run
PRESETS = {name: grpo.PRESETS[name] for name in ("small", "smoke")}


@dataclass(frozen=True)
class Config(grpo.Config):
    """The settings of `agentrl.recipes.grpo`, with other defaults."""

    method: Literal["rloo"] = "rloo"
    kl: float = 0.05

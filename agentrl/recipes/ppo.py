"""PPO as in ReFT: a value head, generalised advantages, a KL to the start in the reward.

arXiv 2401.08967. The loop is that of `agentrl.recipes.grpo`.
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

    method: Literal["ppo"] = "ppo"
    kl: float = 0.05
    epochs: int = 2

"""TL-Training against plain fine-tuning, on conversations in which part of the calls are wrong.

A teacher that knows some tools badly makes the same mistakes at them again and again, reads the
tool's error, and mends the call. Plain: every turn is imitated, mistakes included. Then the three
parts of the method, one after the other: failed calls left out (MAE), key tokens weighted (PKT),
PPO with the graded reward (IRM).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.claims import Claim, Effect
from agentrl.claims.base import fresh, policy
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.recipes import tl_training

TOKENIZER = CharTokenizer(("<|tool_call_start|>", "<|tool_call_end|>"))

ARMS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"mae": False, "pkt": False, "rl_steps": 0},
    "mae": {"pkt": False, "rl_steps": 0},
    "all": {},
}
"""Each is the recipe with these settings, from the same random model. The last one is measured
between fine-tuning and PPO as well, as `mae_pkt`."""


def config(seed: int, **changes: Any) -> tl_training.Config:
    """The recipe's settings for a tiny model."""
    values: dict[str, Any] = {
        "model": "tiny",
        "env_options": {
            "source": "toy",
            "kinds": ["multiple"],
            "notation": "python",
            "tools_in": "nowhere",
        },
        "n": 300,
        "eval_n": 150,
        "seed": seed,
        "max_tokens": 24,
        "lr": 5e-3,
        "epochs": 10,
        "batch_size": 32,
        "rl_steps": 20,
        "rl_prompts": 32,
        "rl_group": 4,
        "rl_lr": 1e-3,
        "rl_epochs": 3,
        "kl": 0.01,
        "train_dtype": "fp32",
        "save_every": 0,
        "concurrency": 256,
    }
    return tl_training.Config(**(values | changes))


def run(seed: int, folder: Path, **changes: Any) -> dict[str, dict[str, float]]:
    """Each arm's share of held-out calls that are right; `reward` is the graded one of sampled
    training calls, in the first and the last five steps of PPO."""
    found: dict[str, dict[str, float]] = {}
    for arm, own in ARMS.items():
        chosen = config(seed, **{**changes, **own})
        summary = asyncio.run(
            tl_training.learn(
                chosen,
                policy(fresh(TOKENIZER, seed, max_positions=256), TOKENIZER),
                RunFolder(folder / arm, settings(chosen), resume=False),
                progress=False,
            )
        )
        found[arm] = _shown(summary["tuned"])
        if arm == "all":
            rewards = summary["training"]["ppo"]
            found["mae_pkt"] = _shown(summary["fitted"]) | {"reward": rewards["reward_first"]}
            found["all"]["reward"] = rewards["reward_last"]
    return found


def _shown(measured: Mapping[str, Any]) -> dict[str, float]:
    """The share of tasks with the right calls, and the shares of all calls that no tool takes, that
    are of another tool, and that have a wrong value alone."""
    classes: Mapping[str, int] = measured["classes"]
    total = sum(classes.values())
    shares = {name: classes.get(name, 0) / total for name in ("unparsable", "wrong_tool", "value")}
    return {"accuracy": measured["accuracy"], **shares}


CLAIM = Claim(
    name="tl_training",
    paper="arXiv 2412.15495",
    says="Where part of the calls in the data are wrong, leaving those out, weighing key tokens "
    "and a graded reward beat plain fine-tuning.",
    task="Choosing one of eight tools with names that begin alike, and its arguments, by a "
    "transformer of two layers (113,600 parameters) from scratch; 300 conversations of a teacher "
    "that calls five of the tools wrongly in 60 % of its first tries (a wrong name, an argument by "
    "another name, or one left out), reads the error and mends the call; ten epochs, 20 steps of "
    "PPO; greedy calls on 150 other questions.",
    effects=(
        Effect("the whole method beats plain fine-tuning", "all.accuracy", "sft.accuracy"),
        Effect("leaving out failed calls (MAE) alone does", "mae.accuracy", "sft.accuracy"),
        Effect("weighing key tokens (PKT) adds to it", "mae_pkt.accuracy", "mae.accuracy"),
        Effect("PPO on the graded reward (IRM) adds to both", "all.accuracy", "mae_pkt.accuracy"),
        Effect("PPO raises the graded reward of sampled calls", "all.reward", "mae_pkt.reward"),
    ),
    run=run,
)

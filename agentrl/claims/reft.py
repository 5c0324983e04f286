"""ReFT on chains of sums: demonstrations that mostly skip the steps, and PPO that finds them."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envs
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import fresh, imitate, policy, rows
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.recipes import reft
from agentrl.recipes._phases import Phases
from agentrl.rollouts import single_turn

TOKENIZER = CharTokenizer()


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run. `skip` is the share of demonstrations that say the answer alone."""

    base_rows: int = 3072
    base_steps: int = 600
    skip: float = 0.8
    n: int = 256
    eval_n: int = 400
    warmup_epochs: int = 3
    sft_epochs: int = 20
    steps: int = 40


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a base model; its warm-up and PPO; and the same demonstrations for longer."""
    size = size or Size()
    base = fresh(TOKENIZER, seed)
    for skip, steps in ((0.0, size.base_steps), (size.skip, size.base_steps // 3)):
        seen = _env("train", seed + 1, size.base_rows, skip)
        shown = [
            (("user", task.prompt[0].content), ("assistant", seen.demonstrations(task)[0]))
            for task in seen.tasks()
        ]
        imitate(base, rows(TOKENIZER, shown), steps=steps, seed=seed)
    config = reft.Config(
        n=size.n,
        eval_n=size.eval_n,
        seed=seed,
        warmup_lr=1e-3,
        warmup_epochs=size.warmup_epochs,
        batch_size=32,
        steps=size.steps,
        prompts=16,
        group=8,
        max_tokens=12,
        max_calls=0,
        lr=1e-3,
        train_dtype="fp32",
        concurrency=256,
        save_every=0,
    )
    found = asyncio.run(_reft(config, copy.deepcopy(base), folder / "reft", size))
    return found | {"sft": asyncio.run(_sft(config, copy.deepcopy(base), folder / "sft", size))}


def _env(split: str, seed: int, n: int, skip: float = 0.0) -> Any:
    return envs.make("chains", split=split, seed=seed, kinds=["4+-"], n=n, skip=skip)


async def _reft(
    config: reft.Config, model: Any, folder: Path, size: Size
) -> dict[str, dict[str, float]]:
    """The recipe; what it measured before the warm-up, after it and at the end."""
    summary = await reft.learn(
        config,
        policy(model, TOKENIZER),
        _env("train", config.seed, size.n, size.skip),
        _env("test", config.seed, size.eval_n),
        RunFolder(folder, settings(config), resume=False),
        progress=False,
    )
    arms = {"base": "base", "warmup": "baseline", "reft": "tuned"}
    return {arm: _shown(summary[name]) for arm, name in arms.items()}


async def _sft(config: reft.Config, model: Any, folder: Path, size: Size) -> dict[str, float]:
    """The demonstrations of the warm-up, for more optimizer steps than warm-up and PPO have."""
    train_env = _env("train", config.seed, size.n, size.skip)
    test_env = _env("test", config.seed, size.eval_n)
    phases = Phases(config, RunFolder(folder, settings(config), resume=False), False, None)
    learner = policy(model, TOKENIZER)
    chosen = await reft.demonstrations(phases, train_env, learner, train_env.tasks(), 0)
    learner, _ = await phases.fine_tune(
        "sft", learner, chosen.rows(), lr=config.warmup_lr, epochs=size.sft_epochs
    )
    measured = await phases.measure("after", test_env, single_turn(), learner, test_env.tasks())
    await learner.close()
    return _shown(measured)


def _shown(measured: dict[str, Any]) -> dict[str, float]:
    return {"accuracy": measured["accuracy"], "tokens": measured["mean_tokens"]}


CLAIM = Claim(
    name="reft",
    paper="arXiv 2401.08967",
    says="PPO after a short warm-up on demonstrations is better than fine-tuning on the same "
    "demonstrations, for the policy learns from more ways to solve a problem than the one shown.",
    task="Four sums or differences of digits (envs/chains.py) by a transformer of 0.1 million "
    "parameters. Of 256 demonstrations four in five say the answer alone, the others every step. "
    "ReFT: 3 epochs, then 40 steps of PPO (80 updates); SFT: 20 epochs (160 updates).",
    effects=(
        Effect(
            "ReFT is better than SFT on the same demonstrations", "reft.accuracy", "sft.accuracy"
        ),
        Effect("ReFT is better than its own warm-up", "reft.accuracy", "warmup.accuracy"),
        Effect("ReFT writes down more steps than it was shown", "reft.tokens", "sft.tokens"),
    ),
    run=run,
)

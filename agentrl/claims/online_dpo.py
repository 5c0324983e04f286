"""Online DPO on sums: pairs of the policy as it is, and as many of the policy as it was."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envs
from agentrl.claims import Metrics
from agentrl.claims.base import fresh, imitate, policy, rows
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.recipes import online_dpo

TOKENIZER = CharTokenizer()


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run: `iterations` of `prompts` problems; offline all of them at once."""

    base_rows: int = 3072
    base_steps: int = 400
    iterations: int = 4
    prompts: int = 96
    samples: int = 8
    epochs: int = 4
    lr: float = 2e-4
    reward_n: int = 256
    reward_epochs: int = 4
    eval_n: int = 400


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a base model, and each arm from it."""
    size = size or Size()
    base = fresh(TOKENIZER, seed)
    seen = _env("train", seed + 1_000_000, size.base_rows)
    shown = [
        (("user", task.prompt[0].content), ("assistant", seen.demonstrations(task)[0]))
        for task in seen.tasks()
    ]
    imitate(base, rows(TOKENIZER, shown), steps=size.base_steps, seed=seed)
    total = size.iterations * size.prompts
    arms: dict[str, dict[str, Any]] = {
        "offline": {"iterations": 1, "prompts": total},
        "online": {"iterations": size.iterations, "prompts": size.prompts},
        "online_rm": {
            "iterations": size.iterations,
            "prompts": size.prompts,
            "reward": online_dpo.TRAINED,
        },
    }
    found: dict[str, dict[str, float]] = {}
    for name, changes in arms.items():
        summary = _arm(copy.deepcopy(base), seed, folder / name, size, changes)
        found.setdefault("base", _shown(summary["baseline"], []))
        found[name] = _shown(summary["tuned"], summary["iterations"])
    return found


def _env(split: str, seed: int, n: int) -> Any:
    return envs.make("chains", split=split, seed=seed, kinds=["4+-"], n=n)


def _arm(
    model: Any, seed: int, folder: Path, size: Size, changes: dict[str, Any]
) -> dict[str, Any]:
    """The recipe from `model`; its summary."""
    total = size.iterations * size.prompts
    given: dict[str, Any] = {
        "n": max(total, size.reward_n),
        "samples": size.samples,
        "eval_n": size.eval_n,
        "seed": seed,
        "max_tokens": 14,
        "max_calls": 0,
        "lr": size.lr,
        "epochs": size.epochs,
        "batch_size": 32,
        "reward_n": size.reward_n,
        "reward_lr": 1e-3,
        "reward_epochs": size.reward_epochs,
        "train_dtype": "fp32",
        "concurrency": 256,
    }
    config = online_dpo.Config(**{**given, **changes})
    learning = online_dpo.learn(
        config,
        policy(model, TOKENIZER),
        _env("train", seed, config.n),
        _env("test", seed, size.eval_n),
        RunFolder(folder, settings(config), resume=False),
        progress=False,
    )
    return asyncio.run(learning)


def _shown(measured: dict[str, Any], iterations: list[dict[str, Any]]) -> dict[str, float]:
    pairs = sum(row["pairs"]["pairs"] for row in iterations)
    return {"accuracy": measured["accuracy"], "pairs": float(pairs)}

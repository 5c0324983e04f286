"""iTool against fine-tuning for as many rows, on tasks that need several calls at once.

The measure: greedy accuracy on other tasks after the last round, against fine-tuning from the same
base on as many rows. Both sides' settings were chosen on seeds from 100 on.

A tokenizer has one token for each tool's name, parameter and separator, so that two fragments
differ in what they decide and not in how it is spelt.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import envs
from agentrl.claims import Claim, Effect
from agentrl.claims.base import fresh, imitate, policy, rows
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.interfaces import Env
from agentrl.recipes import itool
from agentrl.recipes._phases import Phases
from agentrl.rollouts import tool_loop
from envs.functions.toy import TOOLS

NAMES = sorted(
    {f"{name}(" for name in TOOLS} | {f"{p}=" for tool in TOOLS.values() for p in tool.parameters}
)
TOKENIZER = CharTokenizer(("<|tool_call_start|>[", ")]<|tool_call_end|>", "), ", ", ", *NAMES))


def config(seed: int, **changes: Any) -> itool.Config:
    """The recipe's settings for a tiny model."""
    values: dict[str, Any] = {
        "model": "tiny",
        "n": 240,
        "eval_n": 300,
        "seed": seed,
        "warmup_lr": 3e-4,
        "rounds": 2,
        "share": 0.3,
        "iterations": 12,
        "group": 1,
        "depth": 20,
        "temperature": 1.0,
        "max_tokens": 48,
        "lr": 1e-4,
        "epochs": 1,
        "batch_size": 16,
        "train_dtype": "fp32",
        "concurrency": 256,
    }
    return itool.Config(**(values | changes))


def run(
    seed: int, folder: Path, *, base_steps: int = 180, **changes: Any
) -> dict[str, dict[str, float]]:
    """One seed: a base model that has imitated the tasks for a while, the recipe from there, and
    fine-tuning from there on the same right turns, shuffled."""
    chosen = config(seed, **changes)
    train_env, test_env = _env("train", chosen), _env("test", chosen)
    shown = [
        (("user", task.prompt[0].content), ("assistant", task.data["reference"]))
        for task in train_env.tasks()
    ]
    base, data = fresh(TOKENIZER, seed), rows(TOKENIZER, shown)
    imitate(base, data, steps=base_steps, batch=16, seed=seed)
    summary = asyncio.run(
        itool.learn(
            chosen,
            policy(copy.deepcopy(base), TOKENIZER),
            train_env,
            test_env,
            RunFolder(folder / "itool", settings(chosen), resume=False),
            progress=False,
        )
    )
    spent = _spent(summary["training"], chosen)
    a_row = fmean(sum(row.weights) for row in data)
    warmed = chosen.warmup_epochs * sum(s["samples"] for s in summary["training"]["warmup"])
    budgets = {"sft_warmup": 0.0, "sft": spent["rows"], "sft_tokens": spent["tokens"] / a_row}
    found: dict[str, dict[str, float]] = {
        "base": {"accuracy": summary["baseline"]["accuracy"]},
        "warmup": {"accuracy": summary["fitted"]["accuracy"]},
        "itool": {"accuracy": summary["tuned"]["accuracy"], **spent},
    }
    for arm, extra in budgets.items():
        trained = warmed + round(extra)
        accuracy = _sft(chosen, base, train_env, test_env, folder / arm, trained)
        found[arm] = {"accuracy": asyncio.run(accuracy), "rows": extra, "tokens": extra * a_row}
    return found


def _spent(training: Mapping[str, Any], chosen: itool.Config) -> dict[str, float]:
    """The pairs of all rounds, the rows that were trained on in them (a pair is two), and the
    tokens with loss in these."""
    found = [r["selection"] for r in training["rounds"] if r["selection"]["pairs"]]
    tokens = sum(s["pairs"] * (s["chosen_tokens"] + s["rejected_tokens"]) for s in found)
    pairs = sum(s["pairs"] for s in found)
    return {"pairs": pairs, "rows": 2 * chosen.epochs * pairs, "tokens": chosen.epochs * tokens}


def _env(split: str, chosen: itool.Config) -> Env:
    n = chosen.n if split == "train" else chosen.eval_n
    options: Mapping[str, Any] = {"source": "toy", "kinds": ["parallel"], "notation": "python"}
    return envs.make("functions", split=split, seed=chosen.seed, n=n, tools_in="nowhere", **options)


async def _sft(
    chosen: itool.Config, base: Any, train_env: Env, test_env: Env, folder: Path, trained: int
) -> float:
    """The accuracy after `trained` rows of plain fine-tuning with the warm-up's settings."""
    phases = Phases(chosen, RunFolder(folder, settings(chosen), resume=False), False, None)
    learner = policy(copy.deepcopy(base), TOKENIZER)
    shown = await itool.demonstrations(phases, train_env, learner, train_env.tasks())
    steps = -(-trained // chosen.batch_size)
    learner, _ = await phases.fine_tune(
        "sft", learner, shown.rows(), lr=chosen.warmup_lr, max_steps=steps
    )
    loop = tool_loop(tools="native", max_turns=1)
    found = await phases.measure("after", test_env, loop, learner, test_env.tasks())
    await learner.close()
    return float(found["accuracy"])


CLAIM = Claim(
    name="itool",
    paper="arXiv 2501.09766",
    says="Fine-tuning from easy to hard, then rounds of preferences between fragments of calls, "
    "searched where the model is weakest, make more of the tasks with several calls right than "
    "plain fine-tuning does.",
    task="Two or three calls of eight toy tools at once, by a transformer of two layers from "
    "scratch that has imitated 240 tasks for 180 steps. `warmup`: three levels from easy to hard, "
    "each beside those before it (480 rows). `itool`: then two rounds of SimPO, an epoch each on "
    "pairs from the 30 % of the tasks with the highest perplexity (12 iterations a tree; calls are "
    "compared with the right ones). The SFT arms, from the same base, train on the right turns of "
    "all tasks, shuffled, with the warm-up's settings: for the warm-up's rows (`sft_warmup`), and "
    "then as many rows as the rounds have trained on (`sft`; a pair is two rows), or as many "
    "tokens with loss (`sft_tokens`). What the search samples is not counted. Greedy, on 300 other "
    "tasks.",
    effects=(
        Effect("iTool is better than SFT of as many rows", "itool.accuracy", "sft.accuracy"),
        Effect(
            "iTool is better than SFT of as many tokens with loss",
            "itool.accuracy",
            "sft_tokens.accuracy",
        ),
        Effect(
            "its warm-up is better than SFT of as many rows",
            "warmup.accuracy",
            "sft_warmup.accuracy",
        ),
        Effect("iTool is better than its own warm-up", "itool.accuracy", "warmup.accuracy"),
        Effect("iTool is better than the base model", "itool.accuracy", "base.accuracy"),
    ),
    run=run,
)

"""TL-Training: tool use learnt from data with mistakes in them, then from graded rewards.

arXiv 2412.15495. Read it from top to bottom:

    measure      calls on held-out tasks
    collect      conversations of a teacher with the environment's tools, or read them from a file
    MAE, PKT     leave out turns whose call failed; weigh the tokens that choose the tool; fine-tune
    measure
    IRM          PPO on single calls, each graded by how wrong it is
    measure
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import envs
from agentrl import evaluate, exchange, store
from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.errors import ConfigError
from agentrl.interfaces import Env, Sandbox, TrainedPolicy
from agentrl.recipes._online import (
    Journal,
    in_groups,
    mean,
    measured,
    say,
    seconds,
    tasks_of,
    timings,
    update,
)
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude
from agentrl.rollouts import tool_loop
from agentrl.rollouts.demonstrate import demonstrate, replayed
from agentrl.select import tl_training as select
from agentrl.train import Reference, Row, TrainConfig, Trainer
from agentrl.train.online import METHODS, credited_rows, value_head
from agentrl.train.setup import seed_all
from agentrl.tree import Tree, derive_seed
from agentrl.types import SamplingParams, ToolCall
from envs.functions import rewards
from envs.functions.demonstrations import reference


@dataclass(frozen=True)
class Config:
    """What can be set. `n` and `eval_n` count tasks. The data are `data` (a folder of trees, or
    JSON lines of `messages` and `tools`), or a teacher's, of whose calls a share is `wrong`. A step
    of PPO attempts `rl_prompts` tasks `rl_group` times each; `kl` holds the policy to the
    fine-tuned one; lengths are tokens."""

    model: str = "smollm2"
    env_options: dict[str, Any] = field(
        default_factory=lambda: {"tools_in": "system", "notation": "python"}
    )
    n: int = 256
    eval_n: int = 100
    seed: int = 0
    data: str = ""
    wrong: float = 0.3
    mae: bool = True
    pkt: bool = True
    patterns: bool = False
    max_tokens: int = 128
    lr: float = 1e-4
    epochs: int = 2
    batch_size: int = 8
    rl_steps: int = 20
    rl_prompts: int = 16
    rl_group: int = 2
    rl_lr: float = 1e-5
    rl_epochs: int = 2
    kl: float = 0.05
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    save_every: int = 10
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {"n": 4, "eval_n": 4, "max_tokens": 48, "epochs": 1, "rl_steps": 1, "rl_prompts": 2},
    "paper": {
        "model": "codellama/CodeLlama-7b-Instruct-hf",
        "n": 1217,
        "max_tokens": 512,
        "lr": 1e-6,
        "epochs": 1,
        "batch_size": 4,
        "rl_prompts": 8,
        "rl_group": 1,
        "rl_steps": 456,  # three epochs
        "rl_lr": 2e-7,
        "rl_epochs": 1,
        "kl": 0.4,
    },
}


async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on where it was.
    """
    if (finished := folder.summary()) is not None:
        return finished
    check(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    return await learn(config, policy, folder, progress=progress, box=box)


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    for name in ("n", "rl_prompts", "rl_group", "rl_epochs", "max_tokens"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(config, name)!r}")
    if min(config.rl_steps, config.kl, config.save_every, config.eval_n) < 0:
        raise ConfigError("rl_steps, kl, save_every and eval_n are not negative")
    if config.rl_prompts > config.n:
        raise ConfigError(f"rl_prompts={config.rl_prompts} a step of n={config.n}: n is too small")
    if config.lora and config.rl_steps:
        raise ConfigError(
            "lora: PPO holds the policy to the fine-tuned one, which under an adapter is not the "
            "model without it; set lora=0, or rl_steps=0 for fine-tuning alone"
        )
    reference(wrong=config.wrong)
    for option in ("split", "mode", "reward"):
        if option in config.env_options:
            raise ConfigError(f"env_options: {option!r} is the recipe's own; leave it out")


async def learn(
    config: Config,
    policy: TrainedPolicy,
    folder: RunFolder,
    *,
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy`; measured before, after fine-tuning, and after PPO. See `run`."""
    check(config)
    started, chat = time.perf_counter(), Chat(policy.tokenizer)
    phases = Phases(config, folder, progress, box)
    test = _env(config, "test")
    before = await _measure(phases, config, "before", policy, test)
    trees = await _conversations(phases, config, policy, chat)
    chosen = select.select(
        evaluate.final(trees), chat, mae=config.mae, pkt=config.pkt, patterns=config.patterns
    )
    policy, tuned = await phases.fine_tune("sft", policy, chosen.rows)
    fitted = await _measure(phases, config, "after_sft", policy, test)
    steps: list[Row] = []
    after = fitted
    if config.rl_steps:
        steps = await _reinforce(config, policy, folder, progress)
        after = await _measure(phases, config, "after", policy, test)
    summary = {
        "recipe": "tl_training",
        "model": config.model,
        "env": "functions",
        "baseline": before,
        "fitted": fitted,
        "tuned": after,
        "selection": {
            "conversations": len(trees),
            "kept": len(chosen.rows),
            "dropped": dict(chosen.dropped),
        },
        "training": {"sft": tuned, "ppo": _rewards(steps)},
        "timings": folder.timings | timings(steps),
    }
    return await conclude(config, folder, policy, summary, started)


def _env(config: Config, split: str, **options: Any) -> Env:
    return envs.make(
        "functions", split=split, **({"seed": config.seed} | config.env_options | options)
    )


async def _conversations(phases: Phases, config: Config, policy: Any, chat: Chat) -> Sequence[Tree]:
    """What is learnt from: the teacher's conversations, or those of a file."""
    if config.data:
        return conversations(Path(config.data), chat)
    notation = config.env_options.get("notation", "json")
    teacher = demonstrate(reference(notation, wrong=config.wrong, seed=config.seed))
    env = _env(config, "train", mode="conversation")
    return await phases.collect("teacher", env, teacher, policy, n=config.n)


def conversations(path: Path, chat: Chat) -> list[Tree]:
    """Trees of a folder, or a tree for each line of `messages` (and `tools`), as TRL has them."""
    if path.is_dir():
        return list(store.load(path))
    return [
        replayed(
            chat,
            [exchange.message_of(m) for m in row["messages"]],
            exchange.tools_of(row.get("tools")),
            task=f"{path.name}-{number:05d}",
            statuses=row.get("statuses"),
        )
        for number, row in enumerate(exchange.load(path))
    ]


async def _measure(
    phases: Phases, config: Config, phase: str, policy: Any, env: Env
) -> dict[str, Any]:
    """Greedy results on held-out tasks, one call turn each, with what was wrong with the calls."""
    if not config.eval_n:
        return {}
    loop = tool_loop(tools="native", max_turns=1)
    trees = await phases.collect(phase, env, loop, policy, n=config.eval_n)
    graded = evaluate.final(trees)
    return evaluate.summarize(graded) | {"classes": _classes(graded)}


def _classes(graded: Sequence[evaluate.Graded]) -> dict[str, int]:
    """How many calls are of which class of TL-Training's table (`envs.functions.rewards`)."""
    found: Counter[str] = Counter()
    for tree, attempt in graded:
        if attempt.error is None:
            data = tree.task.data
            said = json.loads(attempt.answer) if attempt.metrics["calls"] else []
            calls = [ToolCall(name, given) for call in said for name, given in call.items()]
            found.update(rewards.classify_all(calls, data["steps"][0], data["functions"]))
    return dict(found)


async def _reinforce(config: Config, policy: Any, folder: RunFolder, progress: bool) -> list[Row]:
    """PPO with the graded reward on single turns, each with the right history before it."""
    seed_all(config.seed)
    env = _env(config, "train", reward="classes")
    tasks, method = env.tasks(config.n), METHODS["ppo"]
    reference_ = Reference(policy.model) if config.kl else None
    setup = TrainConfig(
        lr=config.rl_lr, seed=config.seed, schedule="constant", dtype=config.train_dtype
    )
    trainer = Trainer(policy.model, setup, value_head(policy.model))
    params = SamplingParams(max_tokens=config.max_tokens)
    with Journal(config, folder.path, policy, trainer, steps=config.rl_steps) as journal:
        for step in journal.left():
            clocks = [time.perf_counter()]
            trees = await collect(
                env,
                tool_loop(tools="native", max_turns=1),
                policy,
                tasks=tasks_of(step, tasks, config.rl_prompts, config.seed),
                samples=config.rl_group,
                params=params,
                seed=derive_seed(config.seed, step),
                concurrency=config.concurrency,
                deadline_s=config.deadline_s,
                out=folder.trees(f"step_{step + 1:05d}"),
                progress=False,
            )
            groups = in_groups(trees)
            clocks.append(time.perf_counter())
            made = credited_rows(groups, method, trainer, reference_, kl=config.kl)
            clocks.append(time.perf_counter())
            row: Row = {"step": step + 1, **measured(groups, made), "lr": config.rl_lr}
            if made.samples:
                row |= update(
                    trainer,
                    method,
                    made,
                    lr=config.rl_lr,
                    number=step + 1,
                    epochs=config.rl_epochs,
                )
                policy.refresh()
            clocks.append(time.perf_counter())
            row |= seconds(clocks)
            say(f"step {step + 1}/{config.rl_steps}  reward {row['reward']:.3f}", progress)
            journal.done(row)
        return journal.rows


def _rewards(steps: Sequence[Row]) -> dict[str, float]:
    return {
        "steps": len(steps),
        "reward_first": round(mean([r["reward"] for r in steps[:5]]), 4),
        "reward_last": round(mean([r["reward"] for r in steps[-5:]]), 4),
    }

"""GRPO and its relatives: a policy learns from the rewards of its own attempts, step by step.

arXiv 2402.03300 (GRPO); `method` names the others (`agentrl.train.online.METHODS`). Read `learn`
from top to bottom; each step is

    collect     several attempts at each of a few tasks, with tools, by the policy as it is
    credit      rewards to an advantage for every sampled token; our own failures are left out
    train       one optimizer step (or several) of the policy-gradient loss
    refresh     the policy samples from the new weights
"""

from __future__ import annotations

import functools
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl import evaluate
from agentrl.collect import collect
from agentrl.config import RunFolder
from agentrl.credit import Truncated
from agentrl.engines import load_policy
from agentrl.errors import ConfigError
from agentrl.interfaces import Env, Rollout, Sandbox, TrainedPolicy
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
from agentrl.recipes._phases import adapted
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import tool_loop
from agentrl.train import Reference, Row, TrainConfig, Trainer, mismatch
from agentrl.train.mismatch import Correction
from agentrl.train.online import METHODS, Rows, check_sampling, credited_rows, value_head
from agentrl.train.setup import seed_all
from agentrl.tree import Tree, derive_seed
from agentrl.types import SamplingParams, Task


@dataclass(frozen=True)
class Config:
    """What can be set. A step attempts `prompts` of the `n` tasks `group` times each; `epochs` are
    optimizer steps on the same attempts; `kl` holds the policy to its start; `mismatch` weighs what
    a sampler that is not the trainer drew (`agentrl.train.mismatch`); lengths are tokens."""

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    method: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce", "ppo"] = "grpo"
    steps: int = 100
    n: int = 512
    prompts: int = 8
    group: int = 8
    eval_n: int = 104
    seed: int = 0
    max_tokens: int = 128
    max_calls: int = 6
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    truncated: Truncated = "keep"
    lr: float = 1e-5
    epochs: int = 1
    kl: float = 0.0
    entropy: float = 0.0
    value_coef: float = 1.0
    mismatch: Correction = "none"
    mismatch_cap: float = 2.0
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    save_every: int = 10
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {"steps": 2, "n": 8, "prompts": 2, "group": 4, "eval_n": 4, "max_tokens": 48},
    "paper": {"kl": 0.04, "prompts": 16, "group": 64, "max_tokens": 1024, "lr": 1e-6},
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on after its newest
    checkpoint, with attempts that are on disk taken from there.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    return await learn(config, policy, train_env, test_env, folder, progress=progress, box=box)


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    check_sampling(_params(config))
    mismatch.check(config.mismatch, config.mismatch_cap)
    positive = ("steps", "n", "prompts", "epochs", "max_tokens", "value_coef")
    for name in positive:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} must be positive, not {getattr(config, name)!r}")
    if min(config.kl, config.entropy, config.save_every) < 0:
        raise ConfigError("kl, entropy and save_every are not negative")
    if config.group < 2 and not METHODS[config.method].values:
        raise ConfigError(
            f"group={config.group}: {config.method} compares attempts at one task and needs 2 or "
            "more. Only ppo, with its value head, learns from one"
        )
    if config.prompts > config.n:
        raise ConfigError(f"prompts={config.prompts} a step of n={config.n} tasks: n is too small")


async def learn(
    config: Config,
    policy: TrainedPolicy,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    progress: bool = True,
    box: Sandbox | None = None,
    tasks: Sequence[Task] | None = None,
    facts: Mapping[str, Any] | None = None,
    rollout: Rollout | None = None,
) -> dict[str, Any]:
    """Train `policy` on `train_env`; measured before and after on `test_env`. See `run`.

    It attempts tasks by `rollout`: by default it answers with python blocks, up to `max_calls`.

    `tasks` are what is trained on, by default the first `n` of `train_env`; `facts` are put into
    the summary: what a recipe has done before.
    """
    check(config)
    started, method, setup = time.perf_counter(), METHODS[config.method], _training(config)
    seed_all(config.seed)
    tasks = train_env.tasks(config.n) if tasks is None else tasks
    policy = await adapted(policy, setup.lora)
    reference = Reference(policy.model) if config.kl else None
    trainer = Trainer(policy.model, setup, value_head(policy.model) if method.values else None)
    attempt = _attempting(config, box, rollout)
    before = await _measure(config, folder, "before", policy, test_env, attempt)
    with Journal(config, folder.path, policy, trainer, steps=config.steps) as journal:
        for step in journal.left():
            clocks = [time.perf_counter()]
            trees = await attempt(
                train_env,
                policy=policy,
                tasks=tasks_of(step, tasks, config.prompts, config.seed),
                samples=config.group,
                params=_params(config),
                seed=derive_seed(config.seed, step),
                out=folder.trees(f"step_{step + 1:05d}"),
                label=f"step {step + 1}",
            )
            groups = in_groups(trees)
            clocks.append(time.perf_counter())
            made = credited_rows(
                groups, method, trainer, reference, kl=config.kl, truncated=config.truncated
            )
            clocks.append(time.perf_counter())
            row: Row = {"step": step + 1, **measured(groups, made), "lr": config.lr}
            if made.samples:
                made.samples, off = mismatch.corrected(
                    made.samples, trainer, config.mismatch, config.mismatch_cap
                )
                row |= _train(trainer, made, config, step + 1) | off
                policy.refresh()
            clocks.append(time.perf_counter())
            row |= seconds(clocks)
            _show(row, config, progress)
            journal.done(row)
    after = await _measure(config, folder, "after", policy, test_env, attempt)
    summary = _summary(config, journal.rows, before, after) | dict(facts or {})
    return await conclude(config, folder, policy, summary, started)


def _attempting(
    config: Config, box: Sandbox | None, rollout: Rollout | None
) -> Callable[..., Awaitable[list[Tree]]]:
    """`collect` with what is the same for all attempts of a run."""
    blocks = tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)
    return functools.partial(
        collect,
        rollout=rollout or blocks,
        box=box,
        concurrency=config.concurrency,
        deadline_s=config.deadline_s,
        progress=False,
    )


def _train(trainer: Trainer, made: Rows, config: Config, number: int) -> Row:
    return update(
        trainer,
        METHODS[config.method],
        made,
        lr=config.lr,
        number=number,
        epochs=config.epochs,
        kl=config.kl,
        entropy=config.entropy,
        value_coef=config.value_coef,
        max_tokens=config.max_tokens,
    )


async def _measure(
    config: Config,
    folder: RunFolder,
    phase: str,
    policy: TrainedPolicy,
    env: Env,
    attempt: Callable[..., Awaitable[list[Tree]]],
) -> dict[str, Any]:
    """Greedy results on held-out tasks."""
    if not config.eval_n:
        return {}
    trees = await attempt(
        env,
        policy=policy,
        n=config.eval_n,
        params=SamplingParams(max_tokens=config.max_tokens, temperature=0.0),
        seed=config.seed,
        out=folder.trees(phase),
        label=phase,
    )
    return evaluate.summarize(evaluate.final(trees))


def _training(config: Config) -> TrainConfig:
    return TrainConfig(
        lr=config.lr,
        seed=config.seed,
        schedule="constant",
        dtype=config.train_dtype,
        lora={"r": config.lora, "alpha": 2 * config.lora} if config.lora else None,
    )


def _params(config: Config) -> SamplingParams:
    return SamplingParams(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
    )


def _summary(
    config: Config, rows: Sequence[Row], before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    return {
        "recipe": config.method,
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "tuned": after,
        "training": {
            "samples": int(sum(r.get("samples", 0) for r in rows)),
            "steps": len(rows),
            "reward_first": round(mean([r["reward"] for r in rows[:5]]), 4),
            "reward_last": round(mean([r["reward"] for r in rows[-5:]]), 4),
        },
        "timings": timings(rows),
    }


def _show(row: Row, config: Config, progress: bool) -> None:
    say(
        f"step {int(row['step'])}/{config.steps}  reward {row['reward']:.3f}  "
        f"dropped {int(row['groups_dropped'])}/{int(row['groups'])}  "
        f"tools {row['tool_call_rate']:.0%}  cut {row['truncation_rate']:.0%}  "
        f"{row['seconds']:.1f} s",
        progress,
    )

"""ReFT: fine-tune on demonstrations for a few epochs, then PPO on the same problems.

arXiv 2401.08967. Read it from top to bottom:

    demonstrate   the environment's own solutions, played in the sandbox; those that are not right
                  are left out
    warm-up       SFT on them
    PPO           with a value head, a KL to the warmed-up model in the reward, and `partial`
                  reward for a number that is wrong (`agentrl.recipes.grpo` has the loop)
    measure       held-out problems: the base model, after the warm-up, after PPO
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from agentrl import evaluate
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.interfaces import Demonstrated, Env, Policy, Sandbox
from agentrl.recipes import grpo, ppo
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import once, splits
from agentrl.rollouts import replay, tool_loop
from agentrl.rollouts.replay import demonstrated
from agentrl.select import dedupe
from agentrl.select.rows import Selection, played
from agentrl.types import Task
from envs.partial import PartialCredit


@dataclass(frozen=True)
class Config:
    """What can be set. `warmup_*` and `batch_size` are of the SFT, `lr`, `epochs`, `kl` and
    `value_coef` of PPO, whose step attempts `prompts` of the `n` problems `group` times each."""

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    n: int = 256
    eval_n: int = 104
    seed: int = 0
    warmup_lr: float = 1e-4
    warmup_epochs: int = 2
    batch_size: int = 8
    partial: float = 0.1
    steps: int = 50
    prompts: int = 8
    group: int = 4
    max_tokens: int = 128
    max_calls: int = 6
    temperature: float = 1.0
    lr: float = 1e-5
    epochs: int = 2
    kl: float = 0.05
    value_coef: float = 1.0
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    save_every: int = 10
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {"n": 8, "eval_n": 4, "warmup_epochs": 1, "steps": 2, "prompts": 2, "group": 2}
    | {"max_tokens": 48},
    "paper": {
        "env": "gsm8k",
        "n": 7473,
        "eval_n": 1319,
        "warmup_lr": 1e-5,
        "batch_size": 48,
        "steps": 70000,
        "prompts": 32,
        "group": 1,
        "max_tokens": 700,
        "max_calls": 0,
        "lr": 3e-7,
        "value_coef": 5.0,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on where it stopped.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    return await learn(config, policy, train_env, test_env, folder, progress=progress, box=box)


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    grpo.check(_ppo(config))
    training(config, lr=config.warmup_lr, epochs=config.warmup_epochs)


async def learn(
    config: Config,
    policy: Any,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy` on `train_env`, measured on `test_env`. See `run`.

    Raises ConfigError if the environment has no demonstrations.
    """
    check(config)
    env = PartialCredit(train_env, config.partial)
    phases, held_out = Phases(config, folder, progress, box), test_env.tasks(config.eval_n)
    tasks, contaminated = dedupe.clean(env.tasks(config.n), held_out)
    rollout = tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)
    base = await phases.measure("base", test_env, rollout, policy, held_out)

    shown = await demonstrations(phases, env, policy, tasks, config.max_calls)
    policy, warmed = await phases.fine_tune(
        "warmup", policy, shown.rows(), lr=config.warmup_lr, epochs=config.warmup_epochs
    )
    facts = {
        "recipe": "reft",
        "base": base,
        "warmup": warmed,
        "selection": {
            "problems": len(tasks),
            "contaminated": contaminated,
            "demonstrations": len(shown.kept),
            "dropped": dict(shown.dropped),
        },
    }
    return await grpo.learn(
        _ppo(config),
        policy,
        env,
        test_env,
        folder,
        progress=progress,
        box=box,
        tasks=tasks,
        facts=facts,
    )


async def demonstrations(
    phases: Phases, env: Demonstrated, policy: Policy, tasks: Sequence[Task], max_calls: int
) -> Selection:
    """The environment's solutions that are right when they are played (one a problem)."""
    rollout = replay(env.demonstrations, max_calls=max_calls)
    trees = await phases.collect(
        "demonstrations", env, rollout, policy, tasks=demonstrated(env, tasks)
    )
    return played(evaluate.final(trees))


def _ppo(config: Config) -> ppo.Config:
    """PPO's settings. An adapter is there after the warm-up: PPO trains that one."""
    shared = {f.name for f in fields(ppo.Config)} & {f.name for f in fields(config)}
    options = {name: getattr(config, name) for name in shared}
    return ppo.Config(**{**options, "lora": 0})

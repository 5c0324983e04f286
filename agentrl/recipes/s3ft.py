"""S3FT: fine-tune on the model's own right answers, its paraphrases of the others, or on gold.

Selective self-to-supervised fine-tuning, arXiv 2502.08130. Read it from top to bottom:

    own           the model answers each problem
    paraphrase    where it was wrong, it writes the environment's solution again in its own words
    gold          where that is wrong, too, the solution itself, played in the sandbox
    fine-tune     on one answer a problem
    measure       held-out problems, before and after
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl import evaluate
from agentrl.chat import Chat
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.errors import ConfigError
from agentrl.interfaces import Demonstrated, Env, Sandbox
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import replay, tool_loop
from agentrl.rollouts.replay import demonstrated
from agentrl.select import dedupe, s3ft
from agentrl.types import Sample, Task


@dataclass(frozen=True)
class Config:
    """What can be set. Own answers and paraphrases are greedy unless there is a temperature."""

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    n: int = 78
    eval_n: int = 104
    seed: int = 0
    temperature: float = 0.0
    max_tokens: int = 128
    max_calls: int = 6
    lr: float = 1e-4
    epochs: int = 2
    batch_size: int = 8
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    device: str = "auto"
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {"n": 8, "eval_n": 4, "epochs": 1, "max_tokens": 48},
    "paper": {
        "model": "mistralai/Mistral-7B-Instruct-v0.2",
        "env": "gsm8k",
        "n": 7473,
        "eval_n": 1319,
        "max_tokens": 1024,
        "max_calls": 0,
        "lora": 16,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on where it stopped.
    """
    training(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype=config.dtype, device=config.device)
    return await learn(config, policy, train_env, test_env, folder, progress=progress, box=box)


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
    if not isinstance(train_env, Demonstrated):
        raise ConfigError(f"environment {train_env.name!r} has no demonstrations to fall back on")
    started, phases = time.perf_counter(), Phases(config, folder, progress, box)
    rollout = tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)
    held_out = test_env.tasks(config.eval_n)
    tasks, contaminated = dedupe.clean(train_env.tasks(config.n), held_out)
    tasks = demonstrated(train_env, tasks)
    before = await phases.measure("before", test_env, rollout, policy, held_out)
    rows, counts = await targets(phases, config, policy, train_env, tasks)
    policy, trained = await phases.fine_tune("s3ft", policy, rows)
    after = await phases.measure("after", test_env, rollout, policy, held_out)
    summary = {
        "recipe": "s3ft",
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "tuned": after,
        "selection": {
            "problems": len(tasks),
            "contaminated": contaminated,
            "from": dict(counts),
            "own_share": round(counts["own"] / max(len(rows), 1), 4),
        },
        "training": {"s3ft": trained},
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


async def targets(
    phases: Phases, config: Config, policy: Any, env: Demonstrated, tasks: Sequence[Task]
) -> tuple[list[Sample], dict[str, int]]:
    """A row for each task, and how many came from where: one call of the model, or two."""
    rollout = tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)
    how = {"temperature": config.temperature}
    own = evaluate.final(await phases.collect("own", env, rollout, policy, tasks=tasks, **how))
    solved = s3ft.accepted(own)
    again = [s3ft.paraphrase_task(t, env.demonstrations(t)[0]) for t in tasks if t.id not in solved]
    paraphrases = evaluate.final(
        await phases.collect("paraphrase", env, rollout, policy, tasks=again, **how)
    )
    played = replay(env.demonstrations, max_calls=config.max_calls)
    gold = evaluate.final(await phases.collect("gold", env, played, policy, tasks=tasks))
    return s3ft.targets({t.id: t for t in tasks}, own, paraphrases, gold, Chat(policy.tokenizer))

"""DART: sample each problem until it has its quota of right answers, then fine-tune on all of them.

arXiv 2407.13690. Read it from top to bottom:

    probe        `probe` answers to each problem: how hard it is for the policy that samples
    quotas       as many right answers for each (uniform), or more for harder ones (prop2diff)
    collect      the same collection goes on until a problem's quota or the cap on trials is met
    fine-tune    the base model on the first right answers, all different
    measure      held-out problems, before and after, by kind
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl import evaluate
from agentrl.chat import Chat
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.errors import ConfigError
from agentrl.evaluate import Graded
from agentrl.interfaces import Env, Policy, Rollout, Sandbox
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import tool_loop
from agentrl.select import dart, dedupe
from agentrl.types import Sample, Task


@dataclass(frozen=True)
class Config:
    """What can be set. `k` is the quota of each problem (uniform) or of the hardest (prop2diff);
    no problem is tried more than `cap` times. `sampler` is the model that answers, by default the
    one that is trained."""

    model: str = "smollm2"
    sampler: str = ""
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    quota: dart.Quota = "prop2diff"
    k: int = 4
    probe: int = 8
    cap: int = 64
    n: int = 78
    eval_n: int = 104
    seed: int = 0
    temperature: float = 1.0
    top_p: float = 0.95
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
    "smoke": {"n": 8, "eval_n": 4, "k": 2, "probe": 2, "cap": 4, "epochs": 1, "max_tokens": 64},
    "paper": {
        "model": "mistralai/Mistral-7B-v0.1",
        "sampler": "deepseek-ai/deepseek-math-7b-rl",
        "env": "gsm8k",
        "n": 7473,
        "eval_n": 1319,
        "k": 192,
        "probe": 192,
        "cap": 2048,
        "temperature": 1.6,
        "max_tokens": 2048,
        "max_calls": 0,
        "lr": 1e-5,
        "epochs": 3,
        "batch_size": 64,
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
    policy = load_policy(config.model, dtype=config.dtype, device=config.device)
    sampler: Policy = policy
    if config.sampler:
        sampler = load_policy(config.sampler, dtype=config.dtype, device=config.device)
    return await learn(
        config, policy, sampler, train_env, test_env, folder, progress=progress, box=box
    )


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    for name in ("k", "probe", "cap", "n", "max_tokens"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(config, name)}")
    if config.probe > config.cap:
        raise ConfigError(f"probe={config.probe} trials of at most cap={config.cap}: cap is small")
    if config.temperature <= 0:
        raise ConfigError("temperature=0 gives the same answer every time; DART samples at 1.6")


async def learn(
    config: Config,
    policy: Any,
    sampler: Policy,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy` on right answers of `sampler`. See `run`.

    Raises ConfigError if the two read tokens in different ways.
    """
    check(config)
    _same_tokens(policy, sampler)
    started, phases = time.perf_counter(), Phases(config, folder, progress, box)
    rollout = tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)
    chat, held_out = Chat(policy.tokenizer), test_env.tasks(config.eval_n)
    tasks, contaminated = dedupe.clean(train_env.tasks(config.n), held_out)
    before = await phases.measure("before", test_env, rollout, policy, held_out)

    difficulties, graded, quota = await allocate(
        phases, config, sampler, train_env, rollout, tasks, chat
    )
    chosen = dart.select(graded, quota, chat)
    rows = chosen.rows()
    if sampler is not policy:
        await sampler.close()
    policy, trained = await phases.fine_tune("dart", policy, rows)

    after = await phases.measure("after", test_env, rollout, policy, held_out)
    summary = {
        "recipe": "dart",
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "tuned": after,
        "selection": {
            "problems": len(tasks),
            "contaminated": contaminated,
            "trials": len(graded),
            "kept": len(rows),
            "dropped": dict(chosen.dropped),
            "quota": sum(quota.values()),
            "quota_unmet": _unmet(rows, quota),
            "never_solved": sum(d == 1.0 for d in difficulties.values()),
            "by_kind": _by_kind(graded, rows),
        },
        "training": {"dart": trained},
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


def _same_tokens(policy: Any, sampler: Policy) -> None:
    ours, theirs = (getattr(p.tokenizer, "fingerprint", None) for p in (policy, sampler))
    if ours != theirs:
        raise ConfigError(
            f"the sampler {sampler.name!r} has another tokenizer than {policy.name!r}: its token "
            "ids mean something else. Export its right answers as messages (agentrl export), "
            "import them for the other model and train with agentrl train sft"
        )


async def allocate(
    phases: Phases,
    config: Config,
    sampler: Policy,
    env: Env,
    rollout: Rollout,
    tasks: Sequence[Task],
    chat: Chat,
) -> tuple[dict[str, float], list[Graded], dict[str, int]]:
    """How hard each task is, the answers until each quota or the cap was met, and the quotas."""
    how: dict[str, Any] = {
        "tasks": tasks,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "out": phases.folder.trees("answers"),  # one collection, which goes on
    }
    probed = await phases.collect("probe", env, rollout, sampler, samples=config.probe, **how)
    difficulties = dart.difficulty(evaluate.final(probed))
    quota = dart.quotas(difficulties, config.quota, config.k)
    how["tasks"] = [task for task in tasks if task.id in quota]
    trees = await phases.collect(
        "answers", env, rollout, sampler, samples=config.cap, enough=dart.until(quota, chat), **how
    )
    return difficulties, evaluate.final(trees), quota


def _unmet(rows: Sequence[Sample], quota: Mapping[str, int]) -> int:
    """How many tasks have fewer rows than they were to have."""
    found: dict[str, int] = defaultdict(int)
    for row in rows:
        found[row.meta["task"]] += 1
    return sum(found[task] < k for task, k in quota.items())


def _by_kind(graded: Sequence[Graded], rows: Sequence[Sample]) -> dict[str, dict[str, int]]:
    """Trials and rows of each kind of problem: where the effort went."""
    found: dict[str, dict[str, int]] = {}
    for tree, _ in graded:
        found.setdefault(tree.task.kind, {"trials": 0, "kept": 0})["trials"] += 1
    for row in rows:
        found[row.meta["kind"]]["kept"] += 1
    return found

"""iTool: fine-tune from easy to hard, then mend what the model is weakest at by searched pairs.

arXiv 2501.09766. Read `learn` from top to bottom:

    demonstrate   the right turn of each task, played in the environment; wrong ones are left out
    warm-up       SFT on them, level by level of difficulty, each beside those before it
    each round    the tasks whose right turn surprises the model most
                  a search over fragments of calls in each, graded against the right turn
                  pairs of fragments that start in the same place; a preference loss on them
    measure       held-out tasks: before, after the warm-up, after each round
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from agentrl import evaluate, losses, rollouts
from agentrl.chat import Chat
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.errors import ConfigError, DataError
from agentrl.interfaces import Env, Policy, Rollout, Sandbox
from agentrl.recipes._phases import Phases, adapted, training
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import tool_loop
from agentrl.rollouts.demonstrate import demonstrate
from agentrl.search.evaluators import reference_of
from agentrl.select import grape, itool, pairs
from agentrl.select.rows import Selection, played
from agentrl.train.setup import seed_all
from agentrl.tree import derive_seed
from agentrl.types import Pair, Task


@dataclass(frozen=True)
class Config:
    """What can be set. `warmup_*` are of the SFT (epochs: of each of the `levels`, `cumulative`
    with those below it), `lr`, `epochs` and `batch_size` of the preferences. A round searches the
    `share` of tasks of highest perplexity, at most `max_perplexity` (0: any), with the options of
    the rollout `itool`, and trains on `max_pairs` at most. `gamma` is SimPO's alone."""

    model: str = "smollm2"
    env: str = "functions"
    env_options: dict[str, Any] = field(
        default_factory=lambda: {"tools_in": "system", "notation": "python"}
    )
    n: int = 256
    eval_n: int = 100
    seed: int = 0
    levels: int = 3
    cumulative: bool = True
    warmup_lr: float = 1e-4
    warmup_epochs: int = 1
    rounds: int = 3
    share: float = 0.3
    max_perplexity: float = 0.0
    judge: Literal["grades", "calls"] = "calls"
    iterations: int = 5
    width: int = 3
    group: int = 2
    depth: int = 3
    temperature: float = 1.5
    max_tokens: int = 128
    max_pairs: int = 4000
    loss: Literal["simpo", "dpo"] = "simpo"
    beta: float = 2.5
    gamma: float = 0.5
    lr: float = 5e-6
    epochs: int = 2
    batch_size: int = 8
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {"n": 6, "eval_n": 4, "rounds": 1, "iterations": 3, "width": 2, "max_tokens": 48},
    "paper": {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "n": 11300,
        "eval_n": 1000,
        "cumulative": False,
        "judge": "grades",
        "max_tokens": 512,
        "lr": 1e-6,
        "lora": 8,
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
    training(config)
    training(config, lr=config.warmup_lr, epochs=config.warmup_epochs)
    for name in ("n", "levels", "max_tokens", "max_pairs"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(config, name)}")
    if min(config.rounds, config.eval_n, config.max_perplexity) < 0:
        raise ConfigError("rounds, eval_n and max_perplexity are not negative")
    if config.temperature <= 0:
        raise ConfigError(
            "temperature=0 draws the same fragment every time: there is nothing to compare; use 1.5"
        )
    itool.deficient([], [], share=config.share)
    rollout_of(config)


def rollout_of(config: Config) -> Rollout:
    """The search that the settings name. Raises ConfigError for numbers that cannot be."""
    names = ("judge", "iterations", "width", "group", "depth")
    return rollouts.make("itool", **{name: getattr(config, name) for name in names})


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

    Raises ConfigError if a task has no right turn (`data["reference"]` or `data["answer"]`),
    DataError if none of them is right when it is played.
    """
    check(config)
    started, phases = time.perf_counter(), Phases(config, folder, progress, box)
    seed_all(config.seed)
    policy = await adapted(policy, training(config).lora)
    held_out, loop = test_env.tasks(config.eval_n), tool_loop(tools="native", max_turns=1)
    before = await phases.measure("before", test_env, loop, policy, held_out)

    shown = await demonstrations(phases, train_env, policy, train_env.tasks(config.n))
    policy, warmed = await warm_up(phases, config, policy, shown)
    fitted = await phases.measure("after_warmup", test_env, loop, policy, held_out)
    found: list[dict[str, Any]] = []
    for number in range(1, config.rounds + 1):
        made, facts = await preferences(phases, config, policy, train_env, shown, number)
        policy, trained = await phases.fine_tune(
            f"round_{number}", policy, made, preference(config), **_PREFERENCES
        )
        after = await phases.measure(f"after_{number}", test_env, loop, policy, held_out)
        found.append({**facts, "training": trained, "measured": after})
    summary = {
        "recipe": "itool",
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "fitted": fitted,
        "tuned": found[-1]["measured"] if found else fitted,
        "selection": {"demonstrations": len(shown.kept), "dropped": dict(shown.dropped)},
        "training": {"warmup": warmed, "rounds": found},
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


_PREFERENCES: dict[str, Any] = {"schedule": "cosine", "warmup_ratio": 0.1, "lora": None}
"""How a round is trained, beside the recipe's settings. The adapter is there already."""


async def demonstrations(
    phases: Phases, env: Env, policy: Policy, tasks: Sequence[Task]
) -> Selection:
    """The right turns of the tasks, as far as the environment finds them right."""
    turns = {task.id: reference_of(task) for task in tasks}
    rollout = demonstrate(lambda task, statuses: turns[task.id], max_turns=1)
    trees = await phases.collect("demonstrations", env, rollout, policy, tasks=tasks)
    shown = played(evaluate.final(trees))
    if not shown.kept:
        raise DataError(
            f"environment {env.name!r}: no task's data['reference'] is right when it is played; it "
            "is a whole turn as the policy should write it"
        )
    return shown


async def warm_up(
    phases: Phases, config: Config, policy: Any, shown: Selection
) -> tuple[Any, list[dict[str, Any]]]:
    """SFT on one level after the other, `cumulative` with the levels before it, which would be
    forgotten in part; the policy and the facts of each stage."""
    chat, rows = Chat(policy.tokenizer), shown.rows()
    hard = [_difficulty(tree.task, chat) for tree, _ in shown.kept]
    facts, seen = [], list[int]()
    for number, level in enumerate(itool.levels(hard, config.levels), start=1):
        seen = seen + level if config.cumulative else level
        policy, trained = await phases.fine_tune(
            f"level_{number}",
            policy,
            [rows[i] for i in seen],
            lr=config.warmup_lr,
            epochs=config.warmup_epochs,
            lora=None,
        )
        facts.append({"difficulty": [hard[level[0]], hard[level[-1]]], **trained})
    return policy, facts


def _difficulty(task: Task, chat: Chat) -> int:
    schema = json.dumps(task.data.get("functions", ""))
    calls = itool.calls_in(reference_of(task))
    return itool.difficulty(len(chat.encode(schema)), calls)


async def preferences(
    phases: Phases, config: Config, policy: Policy, env: Env, shown: Selection, number: int
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of a round, and how they were found."""
    surprise = [math.exp(-x) for x in await grape.scores(shown.rows(), policy)]
    tasks = [tree.task for tree, _ in shown.kept]
    called = [itool.calls_in(reference_of(task)) > 0 for task in tasks]
    chosen = itool.deficient(
        surprise, called, share=config.share, most=config.max_perplexity or math.inf
    )
    trees = await phases.collect(
        f"round_{number}",
        env,
        rollout_of(config),
        policy,
        tasks=[tasks[i] for i in chosen],
        temperature=config.temperature,
        seed=derive_seed(config.seed, number),
    )
    made = pairs.select(
        trees, Chat(policy.tokenizer), levels="all", filters=itool.FILTERS, seed=config.seed
    )
    made = replace(made, pairs=made.pairs[: config.max_pairs])
    return made.pairs, {
        "tasks": len(chosen),
        "with_calls": sum(called[i] for i in chosen),
        "perplexity": round(sum(surprise) / len(surprise), 4),
        "perplexity_chosen": round(sum(surprise[i] for i in chosen) / max(len(chosen), 1), 4),
        "selection": made.statistics(),
    }


def preference(config: Config) -> losses.Loss:
    """The loss of a round. DPO's reference is the policy as the round began."""
    options = {"gamma": config.gamma} if config.loss == "simpo" else {}
    return losses.make(config.loss, beta=config.beta, **options)

"""START: a model teaches itself to use Python, from hints it does not need afterwards.

arXiv 2503.04625. Read it from top to bottom:

    measure      held-out accuracy without a hint, and after each round of hints
    collect      training problems, greedily without a hint and with one
    Hint-RFT     keep what was wrong without the hint and right with it; fine-tune: START-0
    RFT          sample START-0 without hints, keep what is right; fine-tune the base again: START
    measure      the same held-out problems, and kinds of problem never trained on
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import envs
from agentrl import evaluate
from agentrl.chat import Chat
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.engines.memory import give_memory_back
from agentrl.errors import ConfigError
from agentrl.interfaces import Env, Policy, Rollout, Sandbox
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude, once
from agentrl.rollouts import hint_infer, tool_loop
from agentrl.rollouts.hints import Position
from agentrl.select import dedupe, hint_rft
from agentrl.tree import Tree


@dataclass(frozen=True)
class Config:
    """What can be set. `n` and `eval_n` count problems; lengths are tokens."""

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    n: int = 78
    eval_n: int = 104
    unseen_n: int = 24
    seed: int = 0
    position: Position = "start"
    hint_samples: int = 2
    eval_rounds: int = 1
    max_tokens: int = 128
    max_calls: int = 6
    train_on_hints: bool = True
    rft_samples: int = 2
    rft_temperature: float = 0.6
    rft_top_p: float = 0.95
    rft_cap: int = 1
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
    "smoke": {"n": 16, "eval_n": 8, "unseen_n": 4, "rft_samples": 1, "epochs": 1},
    "paper": {
        "model": "Qwen/QwQ-32B-Preview",
        "env": "gsm8k",
        "n": 7473,
        "eval_n": 1319,
        "unseen_n": 0,
        "position": "end",
        "max_tokens": 16384,
        "rft_samples": 16,
        "rft_cap": 4,
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

    Where nothing is left to train on, that is said, and the model before it goes on. A run that
    is finished is not done again.
    """
    started = time.perf_counter()
    phases = Phases(config, folder, progress, box)
    training(config)  # bad numbers are said now, not after an hour
    if config.rft_temperature < 0 or not 0 < config.rft_top_p <= 1:
        raise ConfigError("rft_temperature is at least 0, rft_top_p above 0 and at most 1")
    train_env, test_env = _env(config, "train"), _env(config, "test")
    unseen = _unseen(config)
    problems, contaminated = dedupe.clean(train_env.tasks(config.n), test_env.tasks(config.eval_n))

    policy = load_policy(config.model, dtype=config.dtype, device=config.device)
    chat = Chat(policy.tokenizer)
    before = await _measure(phases, config, "before", policy, test_env, unseen)

    greedy, hinted = await _together(
        phases.collect("train_greedy", train_env, _plain(config), policy, tasks=problems),
        phases.collect(
            "train_hinted",
            train_env,
            _hinted(config, 1),
            policy,
            tasks=problems,
            samples=config.hint_samples,
            beside=True,
        ),
    )
    greedy_right = {
        t.task.id: evaluate.right(a) for t, a in evaluate.final(greedy) if a.error is None
    }
    seed_set = hint_rft.select(evaluate.final(hinted), chat, greedy_right=greedy_right)
    rows = seed_set.samples(chat, train_on_hints=config.train_on_hints)
    policy, trained_0 = await phases.fine_tune("start0", policy, rows)

    sampled = await phases.collect(
        "rft",
        train_env,
        _plain(config),
        policy,
        tasks=problems,
        samples=config.rft_samples,
        temperature=config.rft_temperature,
        top_p=config.rft_top_p,
    )
    chosen = hint_rft.select(evaluate.final(sampled), chat, cap=config.rft_cap)
    rows = chosen.samples(chat, train_on_hints=config.train_on_hints)
    if rows:  # from the base model again
        await policy.close()
        del policy
        give_memory_back()
        policy = load_policy(config.model, dtype=config.dtype, device=config.device)
    policy, trained = await phases.fine_tune("start", policy, rows)

    after = await _measure(phases, config, "after", policy, test_env, unseen)
    summary = {
        "recipe": "start",
        "model": config.model,
        "env": config.env,
        **_headline(before, after),
        "selection": {
            "problems": len(problems),
            "contaminated": contaminated,
            "greedy_right": sum(greedy_right.values()),
            **_selected(hinted, seed_set, chosen),
        },
        "training": {"start0": trained_0, "start": trained},
        "timings": folder.timings,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    return await conclude(config, folder, policy, summary, started)


def _selected(
    hinted: Sequence[Tree], seed_set: hint_rft.Selection, chosen: hint_rft.Selection
) -> dict[str, Any]:
    """What Hint-RFT and the RFT round kept, and why not the rest; `hinted_right` in problems."""
    return {
        "hinted_right": len({t.task.id for t, a in evaluate.final(hinted) if evaluate.right(a)}),
        "kept": len(seed_set.kept),
        "dropped": dict(seed_set.dropped),
        "rft_kept": len(chosen.kept),
        "rft_dropped": dict(chosen.dropped),
    }


def _headline(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Round 0 is without a hint; the last round is with every hint."""
    summary: dict[str, Any] = {
        "baseline": before["test"][0],
        "hinted": before["test"][-1],
        "tuned": after["test"][0],
        "scaling": [
            {"rounds": r, "baseline": b, "tuned": t}
            for r, (b, t) in enumerate(zip(before["test"], after["test"], strict=True))
        ],
    }
    if "unseen" in before:
        summary["unseen"] = {
            "baseline": before["unseen"][0],
            "hinted": before["unseen"][-1],
            "tuned": after["unseen"][0],
        }
    return summary


async def _together(*collections: Coroutine[Any, Any, list[Tree]]) -> list[list[Tree]]:
    """Run collections at once; if one fails the others are cancelled, and its error is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(c) for c in collections]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _env(config: Config, split: str) -> Env:
    return envs.make(config.env, split=split, seed=config.seed, **config.env_options)


def _unseen(config: Config) -> Env | None:
    """Kinds of problem that are never trained on, where the environment holds some out."""
    if config.unseen_n == 0:
        return None
    try:
        return _env(config, "unseen")
    except ConfigError:  # no such split
        return None


def _plain(config: Config) -> Rollout:
    """Without a hint; code that the policy writes by itself runs."""
    return tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)


def _hinted(config: Config, rounds: int, position: Position | None = None) -> Rollout:
    """Hint-infer; every round at `end` may sample as much again as the answer before it."""
    return hint_infer(
        position=position or config.position,
        rounds=rounds,
        max_calls=config.max_calls,
        max_tokens=config.max_tokens,
    )


async def _measure(
    phases: Phases, config: Config, phase: str, policy: Policy, test: Env, unseen: Env | None
) -> dict[str, list[dict[str, Any]]]:
    """Held-out results by split; one summary for each number of hint rounds."""
    rounds = config.eval_rounds
    rollout = _hinted(config, rounds, "end")
    splits = {"test": (test, config.eval_n)}
    if unseen is not None:
        splits["unseen"] = (unseen, config.unseen_n)
    collected = await _together(
        *(
            phases.collect(f"{phase}_{name}", env, rollout, policy, n=n, beside=name != "test")
            for name, (env, n) in splits.items()
        )
    )
    return {
        name: [evaluate.summarize(evaluate.of_round(trees, r)) for r in range(rounds + 1)]
        for name, trees in zip(splits, collected, strict=True)
    }

"""RISE: a model learns to improve its own answers, by fine-tuning on its attempts and better ones.

arXiv 2407.18219. Read `learn` from top to bottom:

    measure     several answers in a row without being told what is right, against as many at once
    collect     attempts until one is right; the last turn is the best of N samples, or a teacher's
    rows        one a turn, loss on that turn alone, weighted by exp((reward - prompt's mean) / tau)
    fine-tune   reward-weighted regression; then collect anew, from the model as it is now
    measure     again, after each iteration
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl import evaluate
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Env, Policy, Rollout, Sandbox
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import make
from agentrl.select import dedupe
from agentrl.select import rise as rows_of
from agentrl.tree import Tree, derive_seed

OF_ROLLOUT = ("feedback", "repeat", "example", "max_calls")


@dataclass(frozen=True)
class Config:
    """What can be set. `n` and `eval_n` count problems; lengths are tokens of one answer.

    `turns` are taken in training, `eval_turns` in the evaluation, whose window is what training
    shows. The last turn of training is the `teacher`'s (a policy's name), without one the best of
    `candidates`. `rollout_options` are `feedback`, `repeat`, `example` and `max_calls` of
    `agentrl.rollouts.rise`. `temperature` is that of collecting and evaluating, as in the paper.
    """

    model: str = "smollm2"
    teacher: str | None = None
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    rollout_options: dict[str, Any] = field(default_factory=dict)
    n: int = 64
    eval_n: int = 64
    seed: int = 0
    iterations: int = 2
    turns: int = 2
    eval_turns: int = 5
    candidates: int = 16
    keep: rows_of.Keep = "all"
    baseline: rows_of.Baseline = "prompt"
    tau: float = 0.4
    agg: rows_of.Aggregation = "row_mean"
    temperature: float = 1.0
    max_tokens: int = 96
    lr: float = 2e-5
    epochs: int = 2
    batch_size: int = 16
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {
        "n": 6,
        "eval_n": 4,
        "iterations": 1,
        "eval_turns": 2,
        "candidates": 2,
        "max_tokens": 64,
        "epochs": 1,
    },
    "paper": {
        "model": "mistralai/Mistral-7B-Instruct-v0.2",
        "env": "gsm8k",
        "rollout_options": {
            "example": [
                "Solve the problem step by step, and present the final answer as \\boxed{answer}.\n"
                "A farmer has 14 hens and 9 goats. He sells 6 hens and buys 3 goats. How many "
                "animals has he now?",
                "Step 1: After the sale there are 14 - 6 = 8 hens. Step 2: After the purchase "
                "there are 9 + 3 = 12 goats. Step 3: Together 8 + 12 = \\boxed{20} animals.",
            ]
        },
        "n": 7473,
        "eval_n": 1319,
        "max_tokens": 1000,
        "lr": 1e-5,
        "batch_size": 64,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on with the trees and
    the checkpoints that are on disk.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32")
    teacher = None if config.teacher is None else load_policy(config.teacher)
    try:
        return await learn(
            config, policy, train_env, test_env, folder, teacher=teacher, progress=progress, box=box
        )
    finally:
        if teacher is not None:
            await teacher.close()


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    for name in ("n", "eval_n", "iterations"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(config, name)}")
    if config.eval_turns < 2:
        raise ConfigError("eval_turns is at least 2: RISE is measured by what later turns add")
    if config.temperature <= 0:
        raise ConfigError("temperature is above 0: greedy attempts repeat themselves")
    if not config.tau > 0:
        raise ConfigError(f"tau is above 0, not {config.tau}")
    for name in config.rollout_options:
        if name not in OF_ROLLOUT:
            raise unknown("option in rollout_options", name, OF_ROLLOUT)
    _collecting(config, None)


async def learn(
    config: Config,
    policy: Any,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    teacher: Policy | None = None,
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy` on `train_env`, measured on `test_env`. See `run`."""
    check(config)
    started, phases = time.perf_counter(), Phases(config, folder, progress, box)
    problems, contaminated = dedupe.clean(train_env.tasks(config.n), test_env.tasks(config.eval_n))
    measured = [await _measure(phases, config, "before", policy, test_env)]
    iterations = []
    for k in range(1, config.iterations + 1):
        trees = await phases.collect(
            f"collect_{k}",
            train_env,
            _collecting(config, teacher),
            policy,
            tasks=problems,
            temperature=config.temperature,
            seed=derive_seed(config.seed, "iteration", k),  # anew: the states are this policy's
        )
        found = rows_of.select(trees, keep=config.keep, max_length=policy.max_context)
        samples = found.samples(tau=config.tau, baseline=config.baseline, agg=config.agg)
        adapted = {"lora": None} if hasattr(policy.model, "peft_config") else {}
        policy, facts = await phases.fine_tune(
            f"rise_{k}",
            policy,
            samples,
            "sft_rows",
            schedule="cosine",
            warmup_ratio=0.04,
            **adapted,
        )
        iterations.append({"iteration": k, **_collected(trees, found), "training": facts})
        measured.append(await _measure(phases, config, f"after_{k}", policy, test_env))
    summary = {
        "recipe": "rise",
        "model": config.model,
        "teacher": config.teacher,
        "env": config.env,
        **_headline(measured[0], measured[-1], config.eval_turns),
        "metrics": [_numbers(m) for m in measured],
        "problems": len(problems),
        "contaminated": contaminated,
        "iterations": iterations,
        "training": iterations[-1]["training"],
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


def _collecting(config: Config, teacher: Policy | None) -> Rollout:
    return make(
        "rise_collect",
        turns=config.turns,
        candidates=config.candidates,
        teacher=teacher,
        max_tokens=config.max_tokens,
        **config.rollout_options,
    )


async def _measure(
    phases: Phases, config: Config, phase: str, policy: Policy, env: Env
) -> dict[str, Any]:
    """`evaluate.turn_metrics` of `eval_turns` answers in a row, with what the same number of first
    answers come to by vote (`m5@t1`) put beside them.

    No oracle speaks. What one would reach (`p1@t5`) is read from the same answers: it stops at the
    first right one, and until then nothing differs.
    """
    turns, n, how = config.eval_turns, config.eval_n, {"temperature": config.temperature}
    options = {"max_tokens": config.max_tokens, **config.rollout_options}
    in_row = make("rise", turns=turns, window=config.turns, **options)
    at_once = make("rise", turns=1, **options)
    sequence = await phases.collect(f"{phase}_sequence", env, in_row, policy, n=n, **how)
    first = await phases.collect(
        f"{phase}_at_once", env, at_once, policy, n=n, samples=turns, **how
    )
    found, voted = evaluate.turn_metrics(sequence), evaluate.turn_metrics(first)
    name = f"m{turns}@t1"
    return {**found, "metrics": {**found["metrics"], name: voted["metrics"][name]}}


def _collected(trees: Sequence[Tree], found: rows_of.Selection) -> dict[str, Any]:
    """What an iteration's attempts came to: shares of problems."""
    scored = [t.attempts[-1] for t in trees if t.attempts[-1].reward is not None]
    first = sum(len(a.metrics["turns"]) == 1 and evaluate.right(a) for a in scored)
    last = sum("candidate" in a.metrics and evaluate.right(a) for a in scored)
    return {
        "attempts": len(trees),
        "right_at_once": first,
        "right_improved": last,
        "rows": len(found.rows),
        "dropped": dict(found.dropped),
    }


def _numbers(measured: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement without its intervals; `truncated` is of each turn."""
    counts = {name: measured[name] for name in ("problems", "failed", "unscored")}
    truncated = [row["truncated"] for row in measured["turns"]]
    return {**evaluate.values(measured), **counts, "truncated": truncated}


def _headline(before: Mapping[str, Any], after: Mapping[str, Any], turns: int) -> dict[str, Any]:
    """The vote after the last turn, and the accuracy of each turn, before and after."""

    def of(measured: Mapping[str, Any], name: str, turn: int) -> dict[str, Any]:
        row = measured["metrics"][name]
        return {
            "accuracy": row["value"],
            "ci95": row["ci95"],
            "n": row["n"],
            "truncated": measured["turns"][turn - 1]["truncated"],
            "failed": measured["failed"],
        }

    both = {"baseline": before, "tuned": after}
    return {
        **{name: of(m, f"m1@t{turns}", turns) for name, m in both.items()},
        **{f"{name}_first": of(m, "m1@t1", 1) for name, m in both.items()},
        "by_turn": [
            {"turn": t, **{name: of(m, f"acc@t{t}", t) for name, m in both.items()}}
            for t in range(1, turns + 1)
        ],
    }

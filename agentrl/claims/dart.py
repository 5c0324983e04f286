"""DART on chains of sums: as many rows, spread evenly, by difficulty, or as sampling gives them."""

from __future__ import annotations

import asyncio
import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import envs
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import fresh, imitate, policy, rows
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.evaluate import final
from agentrl.recipes import dart
from agentrl.recipes._phases import Phases
from agentrl.rollouts import single_turn
from agentrl.select import dart as quotas

TOKENIZER = CharTokenizer()
KINDS = ("3+-", "6+-", "9+-")
TESTED = (KINDS[0], *KINDS[2:] * 4)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run. `sampled` and `mixture` are the kinds that the model that samples and the
    one that is trained have seen; `k` is the uniform quota."""

    sampler_rows: int = 3072
    sampler_steps: int = 400
    sampled: tuple[str, ...] = (*KINDS[:1] * 6, *KINDS[1:2] * 2, KINDS[2])
    base_rows: int = 1536
    base_steps: int = 300
    mixture: tuple[str, ...] = (*KINDS[:1] * 7, KINDS[1])
    n: int = 120
    eval_n: int = 450
    k: int = 2
    probe: int = 16
    cap: int = 96
    epochs: int = 4


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a model that samples, one that is trained, and each way to spend the rows."""
    size = size or Size()
    sampler = _imitating(seed, size.sampler_rows, size.sampled, size.sampler_steps)
    base = _imitating(seed + 1000, size.base_rows, size.mixture, size.base_steps)
    config = dart.Config(
        n=size.n,
        eval_n=size.eval_n,
        seed=seed,
        quota="uniform",
        k=size.k,
        probe=size.probe,
        cap=size.cap,
        temperature=0.5,
        top_p=1.0,
        max_tokens=24,
        max_calls=0,
        lr=1e-3,
        epochs=size.epochs,
        batch_size=16,
        train_dtype="fp32",
        concurrency=256,
    )
    difficulties = asyncio.run(_probe(config, sampler, folder / "probe"))
    even = size.n * size.k
    solved = sum(1 - d for d in difficulties.values())  # of one trial at each problem
    trials = math.ceil(even / max(solved, 1.0))
    ways: dict[str, dict[str, Any]] = {
        "uniform": {"probe": 1},
        "prop2diff": {"quota": "prop2diff", "k": quotas.matched(difficulties, even)},
        "plain": {"k": even, "probe": trials, "cap": trials},
    }
    found: dict[str, dict[str, float]] = {}
    for name, changes in ways.items():
        arm = replace(config, **changes)
        before, after = asyncio.run(_arm(arm, copy.deepcopy(base), sampler, folder / name))
        found.setdefault("base", before)
        found[name] = after
    return found


def _imitating(seed: int, n: int, kinds: tuple[str, ...], steps: int) -> Any:
    """A model from scratch that has seen `n` demonstrations of these kinds."""
    seen, model = _env("train", seed + 1, n, kinds), fresh(TOKENIZER, seed)
    shown = [
        (("user", task.prompt[0].content), ("assistant", seen.demonstrations(task)[0]))
        for task in seen.tasks()
    ]
    return imitate(model, rows(TOKENIZER, shown), steps=steps, seed=seed)


def _env(split: str, seed: int, n: int, kinds: tuple[str, ...] = KINDS) -> Any:
    return envs.make("chains", split=split, seed=seed, kinds=kinds, n=n, width=20)


async def _arm(
    config: dart.Config, model: Any, sampler: Any, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """The recipe; what it measured at first, and what it made and measured at the end."""
    summary = await dart.learn(
        config,
        policy(model, TOKENIZER),
        policy(sampler, TOKENIZER, name="sampler"),
        _env("train", config.seed, config.n),
        _env("test", config.seed, config.eval_n, TESTED),
        RunFolder(folder, settings(config), resume=False),
        progress=False,
    )
    made = summary["selection"]
    hard = made["by_kind"][KINDS[-1]]["kept"]
    counts = {"rows": made["kept"], "hard_rows": hard, "trials": made["trials"]}
    after = _shown(summary["tuned"]) | {name: float(x) for name, x in counts.items()}
    return _shown(summary["baseline"]), after


async def _probe(config: dart.Config, sampler: Any, folder: Path) -> dict[str, float]:
    """How hard each training problem is for the model that samples."""
    phases = Phases(config, RunFolder(folder, settings(config), resume=False), False, None)
    asked = policy(sampler, TOKENIZER, name="sampler")
    trees = await phases.collect(
        "probe",
        _env("train", config.seed, config.n),
        single_turn(),
        asked,
        samples=config.probe,
        temperature=config.temperature,
    )
    await asked.close()
    return quotas.difficulty(final(trees))


def _shown(measured: dict[str, Any]) -> dict[str, float]:
    """Accuracy on the hardest and the easiest kind."""
    kinds = {"hard": KINDS[-1], "easy": KINDS[0]}
    return {name: measured["by_kind"][kind]["accuracy"] for name, kind in kinds.items()}


CLAIM = Claim(
    name="dart",
    paper="arXiv 2407.13690",
    says="Of as many rows, more for the harder problems teach more about hard problems than as "
    "many for each, and these more than plain rejection sampling, which has most for the easiest.",
    task="Three, six and nine sums or differences of digits (envs/chains.py). A transformer of 0.1 "
    "million parameters that has seen mostly short ones answers 120 problems; about 240 different "
    "right answers in each arm train another one, which has seen none of nine.",
    effects=(
        Effect(
            "hard first is better on hard problems than uniform", "prop2diff.hard", "uniform.hard"
        ),
        Effect(
            "uniform is better on hard problems than plain sampling", "uniform.hard", "plain.hard"
        ),
        Effect(
            "hard first is better on hard problems than the base", "prop2diff.hard", "base.hard"
        ),
        Effect(
            "hard first does not hurt easy problems", "prop2diff.easy", "uniform.easy", margin=0.03
        ),
    ),
    run=run,
)

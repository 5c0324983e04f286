"""RISE on sorting: a one-layer model that refines its own attempts, by passes of bubble sort."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envs
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import Conversation, fresh, imitate, policy, rows
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.recipes import rise
from envs.sorting import Sorting, passes

TOKENIZER = CharTokenizer()
AGAIN = "?"
"""What is said after an answer; the problem follows it."""

SHOWN = ("m1@t1", "m1@t5", "gain@t5", "m5@t1", "p1@t5", "acc@t2", "acc@t5", "c2i", "change_rate")

ARMS: dict[str, dict[str, Any]] = {
    "rise": {},
    "uncentred": {"baseline": "none"},
    "no_best_of_n": {"candidates": 1},
}
"""Each is the recipe with these settings, from the same base model."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    length: int = 6
    base_rows: int = 4096
    base_steps: int = 1500
    n: int = 512
    eval_n: int = 256
    candidates: int = 16
    iterations: int = 2
    lr: float = 1e-3


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a base model, and each arm's iterations of RISE on it."""
    size = size or Size()
    base = fresh(TOKENIZER, seed, layers=1, max_positions=128)
    shown = rows(TOKENIZER, demonstrations(seed, size.base_rows, size.length))
    imitate(base, shown, steps=size.base_steps, seed=seed)
    found: dict[str, dict[str, float]] = {}
    for name, changes in ARMS.items():
        before, after = _arm(copy.deepcopy(base), seed, folder / name, size, changes)
        found.setdefault("base", before)
        found[name] = after
    return found


def demonstrations(seed: int, n: int, length: int) -> list[Conversation]:
    """Two attempts at each of `n` problems, each 0 to 3 passes further than what it starts from: of
    a model that has seen answers being refined, and aims at nothing."""
    made: list[Conversation] = []
    rng = random.Random(f"rise {seed}")
    for task in Sorting(seed=seed, length=length, prompt="{}", n=n).tasks():
        digits = str(task.data["digits"])
        first = passes(digits, rng.randint(0, 3))
        second = passes(first, rng.randint(0, 3))
        talk = [("user", digits), ("assistant", first)]
        made.append([*talk, ("user", AGAIN + digits), ("assistant", second)])
    return made


def _arm(
    model: Any, seed: int, folder: Path, size: Size, changes: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """The recipe from `model`; what is shown of the measurements before and after it."""
    given = {
        "rollout_options": {"feedback": AGAIN},
        "n": size.n,
        "eval_n": size.eval_n,
        "seed": seed,
        "iterations": size.iterations,
        "candidates": size.candidates,
        "max_tokens": size.length + 2,
        "lr": size.lr,
        "batch_size": 32,
        "train_dtype": "fp32",
        "concurrency": 256,
    }
    config = rise.Config(**{**given, **changes})
    train_env, test_env = (
        envs.make("sorting", split=split, seed=seed, length=size.length, prompt="{}")
        for split in ("train", "test")
    )
    learning = rise.learn(
        config,
        policy(model, TOKENIZER),
        train_env,
        test_env,
        RunFolder(folder, settings(config), resume=False),
        progress=False,
    )
    metrics = asyncio.run(learning)["metrics"]
    before, after = ({name: m[name] for name in SHOWN} for m in (metrics[0], metrics[-1]))
    return before, after


CLAIM = Claim(
    name="rise",
    paper="arXiv 2407.18219",
    says="Iterated fine-tuning on a model's own attempts, with the last one improved, teaches it "
    "to improve its answers turn by turn.",
    task="Six digits to sort by a transformer of one layer (60,096 parameters) that has imitated "
    "attempts of 0 to 3 passes of bubble sort; self-distillation with the best of 16, two "
    "iterations of 512 problems; five turns without an oracle at temperature 1.",
    effects=(
        Effect("the vote over 5 turns gains more on turn 1", "rise.gain@t5", "base.gain@t5"),
        Effect("the vote over 5 turns is right more often", "rise.m1@t5", "base.m1@t5"),
        Effect("turn 1 is not hurt", "rise.m1@t1", "base.m1@t1", margin=0.02),
        Effect("5 turns in a row beat 5 first answers at once", "rise.m1@t5", "rise.m5@t1"),
        Effect(
            "with the best of 16 the vote gains more than with one sample",
            "rise.gain@t5",
            "no_best_of_n.gain@t5",
        ),
        Effect(
            "with the best of 16 the vote is right more often than with one sample",
            "rise.m1@t5",
            "no_best_of_n.m1@t5",
        ),
        Effect(
            "with weights centred on the prompt (the paper) the vote gains more than without (the "
            "released code)",
            "rise.gain@t5",
            "uncentred.gain@t5",
        ),
        Effect(
            "with weights centred on the prompt the vote is right more often",
            "rise.m1@t5",
            "uncentred.m1@t5",
        ),
    ),
    run=run,
)

"""MCTS-DPO on chains of sums: pairs of steps or of whole answers, on-policy or off-policy."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import envs
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import Conversation, fresh, imitate, policy, rows
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.recipes import mcts_dpo

TOKENIZER = CharTokenizer()


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run. The start has seen differences that are one too high with probability
    `wrong`; `equal` is the number of pairs an iteration in the comparison of pairs."""

    kind: str = "6+-"
    wrong: float = 0.5
    base_rows: int = 1536
    base_steps: int = 450
    n: int = 512
    eval_n: int = 200
    iterations: int = 8
    prompts: int = 32
    equal: int = 10
    max_tokens: int = 24
    lr: float = 1e-4


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: the start, and each arm's iterations from it."""
    size = size or Size()
    start = fresh(TOKENIZER, seed)
    shown = rows(TOKENIZER, demonstrations(seed, size))
    imitate(start, shown, steps=size.base_steps, seed=seed)
    arms: dict[str, dict[str, Any]] = {
        "mcts_dpo": {},
        "off_policy": {"on_policy": False},
        "steps": {"max_pairs": size.equal},
        "answers": {"max_pairs": size.equal, "origin": "leaves"},
    }
    found: dict[str, dict[str, float]] = {}
    for name, changes in arms.items():
        before, after = _arm(copy.deepcopy(start), seed, folder / name, size, changes)
        found.setdefault("start", before)
        found[name] = after
    return found


def demonstrations(seed: int, size: Size) -> list[Conversation]:
    """Chains worked out step by step, in which differences are often one too high, and what comes
    after them goes on from there."""
    rng = Random(f"mcts_dpo {seed}")
    made: list[Conversation] = []
    for task in _env("train", seed + 1, size.base_rows, size).tasks():
        chain = str(task.data["chain"])
        value, said = int(chain[0]), []
        for sign, digit in zip(chain[1::2], map(int, chain[2::2]), strict=True):
            value += digit if sign == "+" else -digit
            value = (value + (sign == "-" and rng.random() < size.wrong)) % 10
            said.append(str(value))
        made.append((("user", task.prompt[0].content), ("assistant", ":" + ",".join(said))))
    return made


def _env(split: str, seed: int, n: int, size: Size) -> Any:
    options = {"kinds": [size.kind], "n": n, "width": 20, "strict": True}
    return envs.make("chains", split=split, seed=seed, **options)


def _arm(
    model: Any, seed: int, folder: Path, size: Size, changes: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """The recipe from `model`; what it measured before, and after with the pairs it trained on."""
    given: dict[str, Any] = {
        "search": {"step_tokens": 2, "judge": "none", "b1": 3, "b2": 2, "depth": 16}
        | {"iterations": 4, "first": 4},
        "iterations": size.iterations,
        "n": size.n,
        "prompts": size.prompts,
        "eval_n": size.eval_n,
        "seed": seed,
        "max_tokens": size.max_tokens,
        "lr": size.lr,
        "batch_size": 32,
        "train_dtype": "fp32",
        "save_every": 0,
        "concurrency": 256,
    }
    config = mcts_dpo.Config(**{**given, **changes})
    learning = mcts_dpo.learn(
        config,
        policy(model, TOKENIZER),
        _env("train", seed, size.n, size),
        _env("test", seed, size.eval_n, size),
        RunFolder(folder, settings(config), resume=False),
        progress=False,
    )
    summary = asyncio.run(learning)
    pairs = {"pairs": float(summary["selection"]["pairs"])}
    return _accuracy(summary["baseline"]), _accuracy(summary["tuned"]) | pairs


def _accuracy(measured: Mapping[str, Any]) -> dict[str, float]:
    return {"accuracy": measured["accuracy"]}


CLAIM = Claim(
    name="mcts_dpo",
    paper="arXiv 2405.00451",
    says="Preferences between steps, found by tree search with the policy as it is, make it better "
    "than its start, than preferences between whole answers, and than trees of the start alone.",
    task="Six sums or differences of digits (envs/chains.py), right if every result is, by a "
    "transformer of 0.1 million parameters that has imitated 1,536 chains whose differences are "
    "one too high half of the time. Eight iterations of 32 searched problems; the search is told "
    "whether a finished path is right, and no judge speaks. Greedy answers to 200 other problems. "
    "`steps` and `answers` train on 10 pairs an iteration, the others on all that there are.",
    effects=(
        Effect("better than its start", "mcts_dpo.accuracy", "start.accuracy"),
        Effect(
            "pairs of steps are better than as many of whole answers",
            "steps.accuracy",
            "answers.accuracy",
        ),
        Effect(
            "searching with the policy as it is beats searching with the start",
            "mcts_dpo.accuracy",
            "off_policy.accuracy",
        ),
    ),
    run=run,
)

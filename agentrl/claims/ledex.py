"""LeDex on sorting: a one-layer model learns to mend what it sorted wrongly."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import envs
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import Conversation, fresh, imitate, policy, rows
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.interfaces import Env
from agentrl.recipes import self_debug
from envs.sorting import passes

TOKENIZER = CharTokenizer()
ASKS = ("R{feedback}", "E{feedback}")
MARK = ">"
ARMS = {"prompting": "baseline", "sft": "sft", "rl": "tuned"}
"""What the recipe calls them."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    length: int = 7
    base_rows: int = 4096
    base_steps: int = 1500
    n: int = 1000
    eval_n: int = 300
    samples: int = 1
    refinements: int = 2
    epochs: int = 3
    lr: float = 1e-3
    rl_steps: int = 50
    prompts: int = 96
    rl_lr: float = 3e-4


def demonstrations(seed: int, size: Size) -> list[Conversation]:
    """What the base model imitates: 0 to 3 passes of bubble sort, for the task and then for either
    instruction; before the second the digits in any order, as its explanation. It knows the forms,
    and aims at nothing."""
    rng = random.Random(f"base {seed}")
    made: list[Conversation] = []
    for task in env_of("train", seed, size).tasks(size.base_rows):
        asked = str(task.data["digits"])
        program = passes(asked, rng.randint(0, 3))
        again = passes(program, rng.randint(0, 3))
        ask, reply = rng.choice((("R", again), ("E", f"{program}{MARK}{again}")))
        feedback = "".join(next(((a, b) for a, b in pairwise(program) if a > b), ("o", "k")))
        talk = [("user", asked), ("assistant", program), ("user", ask + feedback)]
        made.append([*talk, ("assistant", reply)])
    return made


def teacher(seed: int) -> ScriptedPolicy:
    """Explains by three passes of bubble sort over the wrong program (over the task, where that has
    other digits). Half of its refinements are only one pass further: the tests find out."""
    rng = random.Random(f"teacher {seed}")

    def script(text: str) -> str:
        asked = re.findall(r"user\n(\d+)", text)[0]
        program = re.findall(r"assistant\n([^<]*)", text)[0]
        start = program if sorted(program) == sorted(asked) else asked
        if text.endswith(MARK):
            return "".join(sorted(asked)) if rng.random() < 0.5 else passes(start, 1)
        return f"{passes(start, 3)}{MARK}"

    return ScriptedPolicy(script, name="teacher")


def places(texts: Sequence[str]) -> list[list[float]]:
    """An embedding of explanations: which digit stands in which place. Their cosine is the share of
    places in which they agree."""
    longest = max(map(len, texts))
    return [
        [float(text[i : i + 1] == digit) for i in range(longest) for digit in "0123456789"]
        for text in texts
    ]


def env_of(split: str, seed: int, size: Size) -> Env:
    return envs.make(
        "sorting",
        split=split,
        seed=seed,
        length=size.length,
        prompt="{}",
        brief=True,
        n=size.base_rows,
    )


def config_of(seed: int, size: Size) -> self_debug.Config:
    """The recipe's settings."""
    return self_debug.Config(
        env="sorting",
        n=size.n,
        eval_n=size.eval_n,
        seed=seed,
        samples=size.samples,
        refinements=size.refinements,
        mark=MARK,
        likeness="tokens",
        max_tokens=2 * size.length + 4,
        lr=size.lr,
        epochs=size.epochs,
        batch_size=32,
        train_dtype="fp32",
        rl_steps=size.rl_steps,
        prompts=size.prompts,
        rl_lr=size.rl_lr,
        save_every=0,
        concurrency=256,
    )


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a base model, and the recipe on it with both instructions."""
    size = size or Size()
    base = fresh(TOKENIZER, seed, layers=1, max_positions=128)
    imitate(base, rows(TOKENIZER, demonstrations(seed, size)), steps=size.base_steps, seed=seed)
    config = config_of(seed, size)
    learning = self_debug.learn(
        config,
        policy(base, TOKENIZER),
        env_of("train", seed, size),
        env_of("test", seed, size),
        RunFolder(folder, settings(config), resume=False),
        teacher=teacher(seed),
        embed=places,
        asks=ASKS,
        progress=False,
    )
    summary = asyncio.run(learning)
    return {arm: shown(summary[name]) for arm, name in ARMS.items()}


def shown(measured: dict[str, Any]) -> dict[str, float]:
    """First programs that are right; the base model's wrong ones that each instruction mends; and
    right programs after it mended the model's own."""
    found = {"first": measured["first"]["accuracy"]}
    for kind in ("refine", "explain"):
        found[kind] = measured[kind]["repaired"]["accuracy"]
        found[f"after_{kind}"] = measured[kind]["accuracy"]
    return found


CLAIM = Claim(
    name="ledex",
    paper="arXiv 2405.18649",
    says="Fine-tuning on verified explanations and refinements teaches a model to mend its "
    "programs, reinforcement with a reward for each of the two improves on that, and to explain "
    "first helps.",
    task="Seven digits to sort by a transformer of one layer (60,096 parameters) that has imitated "
    "0 to 3 passes of bubble sort and knows the form of both instructions; the feedback is the "
    "first pair in wrong order. A scripted teacher explains by three passes over the wrong "
    "program, and half of its refinements are one pass further, which tests refuse. `refine` and "
    "`explain` are the shares of the base model's wrong first programs on 300 held-out problems "
    "that one greedy refinement mends, without and with an explanation; `first` is the accuracy of "
    "first programs, `after_refine` and `after_explain` that after the model's own were refined.",
    effects=(
        Effect("SFT mends more than prompting", "sft.refine", "prompting.refine"),
        Effect("RL mends more than SFT", "rl.refine", "sft.refine"),
        Effect(
            "with explanations, SFT mends more than prompting", "sft.explain", "prompting.explain"
        ),
        Effect("with explanations, RL mends more than SFT", "rl.explain", "sft.explain"),
        Effect("explaining first helps after SFT", "sft.explain", "sft.refine"),
        Effect("explaining first helps after RL", "rl.explain", "rl.refine"),
        Effect(
            "after a refinement more is right than before SFT",
            "sft.after_explain",
            "prompting.after_explain",
        ),
        Effect("RL does not hurt first programs", "rl.first", "sft.first", margin=0.02),
    ),
    run=run,
)

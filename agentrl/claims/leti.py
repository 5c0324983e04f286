"""LeTI on postfix programs: words about what a program did, against the verdict alone."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import envs
from agentrl import evaluate
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import fresh, imitate, policy, rows
from agentrl.collect import collect
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.recipes import leti
from agentrl.rollouts import single_turn
from agentrl.types import Sample, SamplingParams
from sandboxes.feedback import LETI_TOKENS

TOKENIZER = CharTokenizer(LETI_TOKENS)
ENV: dict[str, Any] = {"terms": 2}
MAX_TOKENS = 10

ARMS: dict[str, dict[str, Any]] = {"text": {}, "binary": {"coarse_only": True}}
"""Each is the recipe with these settings, from the same base model."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    corpus: int = 200
    base_steps: int = 500
    n: int = 256
    samples: int = 4
    iterations: int = 6
    epochs: int = 1
    lr: float = 1e-3
    eval_n: int = 256


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a base model, LeTI with and without the text, and the base trained on."""
    size = size or Size()
    corpus = pretraining(seed, size.corpus)
    base = fresh(TOKENIZER, seed, max_positions=128)
    imitate(base, corpus, steps=size.base_steps, seed=seed)
    curves = {
        name: _arm(copy.deepcopy(base), seed, folder / name, size, changes, corpus)
        for name, changes in ARMS.items()
    }
    before, *binary = curves["binary"]
    aim = max(row["accuracy"] for row in binary)
    steps = int(binary[-1]["steps"])
    more = imitate(copy.deepcopy(base), corpus, steps=steps, lr=size.lr, seed=seed + 1)
    return {
        "base": {"accuracy": before["accuracy"]},
        "corpus": {"accuracy": asyncio.run(_accuracy(more, seed, size))},
        **{name: shown(curve[1:], aim) for name, curve in curves.items()},
    }


def shown(curve: Sequence[Mapping[str, Any]], aim: float) -> dict[str, float]:
    """The last measurement, the mean of all, and the gradient steps to the accuracy `aim` (one
    iteration more than there were, if it was not reached)."""
    steps = [row["steps"] for row in curve if row["accuracy"] >= aim]
    most = curve[-1]["steps"] + curve[0]["steps"]
    return {
        "accuracy": curve[-1]["accuracy"],
        "mean": sum(row["accuracy"] for row in curve) / len(curve),
        "steps": float(min(steps, default=most)),
    }


def pretraining(seed: int, n: int) -> list[Sample]:
    """What the base model has read, as text: few tasks with their programs, so that it knows the
    language and solves some other tasks, but no more of them however long it is trained."""
    tasks = envs.make("postfix", seed=10_000 + seed, n=n, **ENV).tasks()
    said = [[("user", t.prompt[0].content), ("assistant", t.data["solution"])] for t in tasks]
    made = rows(TOKENIZER, said)
    return [replace(row, weights=[0.0] + [1.0] * (len(row.token_ids) - 1)) for row in made]


def _arm(
    model: Any,
    seed: int,
    folder: Path,
    size: Size,
    changes: Mapping[str, Any],
    corpus: Sequence[Sample],
) -> list[dict[str, Any]]:
    """The recipe from `model`; its measurements, the first before any training."""
    given = {
        "env": "postfix",
        "env_options": ENV,
        "iterations": size.iterations,
        "n": size.n,
        "samples": size.samples,
        "max_tokens": MAX_TOKENS,
        "lr": size.lr,
        "epochs": size.epochs,
        "batch_size": 32,
        "eval_n": size.eval_n,
        "eval_samples": 1,
        "seed": seed,
        "train_dtype": "fp32",
        "concurrency": 256,
    }
    config = leti.Config(**{**given, **changes})
    train_env, test_env = (
        envs.make("postfix", split=split, seed=seed, **ENV) for split in ("train", "test")
    )
    learning = leti.learn(
        config,
        policy(model, TOKENIZER),
        train_env,
        test_env,
        RunFolder(folder, settings(config), resume=False),
        others=corpus,
        progress=False,
    )
    curve: list[dict[str, Any]] = asyncio.run(learning)["curve"]
    return curve


async def _accuracy(model: Any, seed: int, size: Size) -> float:
    """Of a model that LeTI has not trained, measured as the recipe measures."""
    sampler = policy(model, TOKENIZER)
    trees = await collect(
        envs.make("postfix", split="test", seed=seed, **ENV),
        single_turn(),
        sampler,
        n=size.eval_n,
        params=SamplingParams(MAX_TOKENS, leti.EVAL_TEMPERATURE),
        seed=seed,
        concurrency=256,
        progress=False,
    )
    await sampler.close()
    return float(evaluate.summarize(evaluate.final(trees))["accuracy"])


CLAIM = Claim(
    name="leti",
    paper="arXiv 2305.10314",
    says="A model that is fine-tuned on its own programs with what the tests said of them gets "
    "better without gold programs, and words get it there in fewer gradient steps than verdicts.",
    task="Postfix programs of two terms from three examples, by a transformer of two layers "
    "(113,472 parameters) that has read 200 tasks with their programs and solves four in ten of "
    "the others. Words: what the wrong program gave for the examples. LeTI's rows and the 200 "
    "tasks take turns, step by step. Held-out functions, temperature 0.1; `steps` to the best "
    "accuracy of `binary`; `corpus` is the base model trained on the 200 tasks for as many steps.",
    effects=(
        Effect("with words, better than the base model", "text.accuracy", "base.accuracy"),
        Effect(
            "with verdicts alone, better than the base model", "binary.accuracy", "base.accuracy"
        ),
        Effect("with words, better than more of the corpus", "text.accuracy", "corpus.accuracy"),
        Effect("words beat verdicts at the end", "text.accuracy", "binary.accuracy"),
        Effect("words beat verdicts over the whole run", "text.mean", "binary.mean"),
        Effect(
            "words reach the best score of verdicts in fewer gradient steps",
            "text.steps",
            "binary.steps",
            sign=-1,
        ),
    ),
    run=run,
)

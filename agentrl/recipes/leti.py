"""LeTI: a model learns to program from what the tests say of its own programs, in words.

arXiv 2305.10314. Read `learn` from top to bottom; each iteration is

    collect     many programs for each task; behind the verdict <|good|> from the second one on
    rows        verdict, feedback of the environment, prompt, program; loss on every token
    train       some epochs of them, each step followed by one on pre-training text
    measure     held-out tasks, behind <|good|>

There is no reward model, no value and no reference: right and wrong programs are imitated alike,
and the verdict that a row begins with tells which is which. The paper's optional KL term (off in
its runs) is left out.
"""

from __future__ import annotations

import math
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Literal

from rich.console import Console

from agentrl import evaluate, losses
from agentrl.batch import trainable_weight
from agentrl.chat import Chat
from agentrl.checkpoint import Checkpoints, MetricsLog, frozen_digest
from agentrl.config import FREE, RunFolder, settings
from agentrl.engines import load_policy
from agentrl.engines.vocabulary import with_tokens
from agentrl.errors import ConfigError, DataError
from agentrl.interfaces import Env, Sandbox, Tokenizer, TrainedPolicy
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import leti as leti_rollout
from agentrl.select import leti as leti_rows
from agentrl.train import Row, TrainConfig, Trainer
from agentrl.train.schedule import due, plan_steps
from agentrl.train.setup import seed_all
from agentrl.train.step import of_logprobs
from agentrl.tree import derive_seed
from agentrl.types import Sample
from sandboxes.feedback import LETI_TOKENS

EVAL_TEMPERATURE = 0.1
"""At which held-out programs are sampled (the paper's)."""
STDLIB = "stdlib"


@dataclass(frozen=True)
class Config:
    """What can be set. An iteration samples `samples` programs for each of `n` tasks and trains
    `epochs` on their rows. `regulariser` is `stdlib` (this Python's own), a folder of Python files,
    a JSONL file with the field `text`, or empty for none; lengths are tokens."""

    model: str = "smollm2"
    env: str = "code"
    env_options: dict[str, Any] = field(default_factory=dict)
    iterations: int = 3
    n: int = 16
    samples: int = 8
    temperature: float = 1.0
    max_tokens: int = 96
    coarse_only: bool = False
    max_feedback: int = 128
    regulariser: str = STDLIB
    regulariser_rows: int = 256
    lr: float = 1e-5
    epochs: int = 2
    batch_size: int = 16
    weight_decay: float = 0.01
    eval_n: int = 16
    eval_samples: int = 2
    eval_every: int = 1
    seed: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0

    @property
    def lora(self) -> int:
        """No adapter: the added tokens' embeddings have to be learnt."""
        return 0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {
        "iterations": 2,
        "n": 2,
        "samples": 2,
        "epochs": 1,
        "batch_size": 2,
        "max_tokens": 48,
        "max_feedback": 64,
        "eval_n": 2,
        "eval_samples": 1,
        "regulariser_rows": 4,
    },
    "paper": {
        "env_options": {"source": "mbpp", "feedback": "all"},
        "iterations": 50,
        "n": 374,
        "samples": 128,
        "max_tokens": 512,
        "max_feedback": 512,
        "epochs": 3,
        "regulariser_rows": 50_000,
        "eval_n": 500,
        "eval_samples": 16,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on after its newest
    iteration, with attempts that are on disk taken from there.
    """
    check(config)
    train_env, test_env = splits(config)
    seed_all(config.seed)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    policy = await with_tokens(policy, LETI_TOKENS, seed=config.seed)
    length = config.max_tokens + config.max_feedback
    texts = documents(config.regulariser, config.seed)
    others = list(islice(regulariser(texts, policy.tokenizer, length), config.regulariser_rows))
    return await learn(
        config, policy, train_env, test_env, folder, others=others, progress=progress, box=box
    )


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    _training(config)
    positive = ("iterations", "n", "samples", "max_tokens", "eval_every", "temperature")
    for name in positive:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} must be positive, not {getattr(config, name)!r}")
    if min(config.eval_n, config.max_feedback, config.regulariser_rows) < 0:
        raise ConfigError("eval_n, max_feedback and regulariser_rows are not negative")


async def learn(
    config: Config,
    policy: TrainedPolicy,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    others: Sequence[Sample] = (),
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy`, which has LeTI's tokens, on `train_env`; measured on `test_env`.

    `others` are the regulariser's rows; without them each step is one on LeTI's. See `run`.
    """
    check(config)
    started = time.perf_counter()
    seed_all(config.seed)
    phases = Phases(config, folder, False, box)
    trainer = Trainer(policy.model, _training(config))
    metrics = MetricsLog(folder.path / "metrics.jsonl")
    fingerprint = {k: v for k, v in settings(config).items() if k not in FREE}
    fingerprint["frozen"] = frozen_digest(policy.model)
    curve = [await _measure(phases, config, policy, test_env, 0, 0)]
    with Checkpoints(folder.path / "checkpoints/policy/checkpoints", keep=2) as store:
        done = max(store.steps(), default=0)
        log = metrics.truncate(done)
        step = 0
        if done:
            position = store.load(done, trainer.scorer, trainer.optimizer, fingerprint)
            trainer.layout, trainer.settled = position["layout"], True
            step, curve = position["step"], position["curve"]
            policy.refresh(version=position["version"])
        for iteration in range(done, config.iterations):
            made = await _rows(phases, config, policy, train_env, iteration)
            row: Row = {"step": iteration + 1, "rows": len(made.samples)}
            row |= {"good": made.good / len(made.samples), "dropped": made.dropped.total()}
            row |= _train(trainer, made.samples, others, config, iteration, step)
            row["steps"] = step = step + int(row["updates"])
            policy.refresh()
            if due(iteration + 1, config.iterations, config.eval_every):
                found = await _measure(phases, config, policy, test_env, iteration + 1, step)
                curve.append(found)
            log.append(row)
            metrics.append(row)
            metrics.flush()
            if progress:
                _show(row, config, curve[-1])
            position = {
                "layout": trainer.layout,
                "step": step,
                "curve": curve,
                "version": policy.version,
            }
            store.save(iteration + 1, trainer.scorer, trainer.optimizer, fingerprint, position)
    summary = _summary(config, curve, log) | {"timings": folder.timings}
    return await conclude(config, folder, policy, summary, started)


async def _rows(
    phases: Phases, config: Config, policy: Any, env: Env, iteration: int
) -> leti_rows.LetiRows:
    """The rows of an iteration's programs; those on disk already are taken from there."""
    trees = await phases.collect(
        f"iteration_{iteration + 1:03d}",
        env,
        leti_rollout(good=iteration > 0),
        policy,
        n=config.n,
        samples=config.samples,
        temperature=config.temperature,
        seed=derive_seed(config.seed, iteration),
    )
    made = leti_rows.rows(
        evaluate.final(trees),
        Chat(policy.tokenizer),
        coarse_only=config.coarse_only,
        max_feedback=config.max_feedback,
    )
    if not made.samples:
        raise DataError(f"no program was scored, so there is no row: {dict(made.dropped)}")
    return made


def _train(
    trainer: Trainer,
    samples: Sequence[Sample],
    others: Sequence[Sample],
    config: Config,
    iteration: int,
    step: int,
) -> Row:
    """`epochs` over the rows; after each of their steps one on as many rows of `others`.

    A step's loss is a mean over all its tokens. `updates` counts the steps on LeTI's rows.
    """
    setup = replace(_training(config), seed=derive_seed(config.seed, "order", iteration) % 2**32)
    plan = plan_steps([len(s.token_ids) for s in samples], setup)
    if not trainer.settled:  # one layout for the whole run
        trainer.settle(samples, [chosen for _, chosen in plan])
    rng = Random(derive_seed(config.seed, "regulariser", iteration))
    part, rows, regularised = of_logprobs(losses.make("sft")), [], []
    with trainer.training():
        for number, (_, chosen) in enumerate(plan, step + 1):
            picked = [samples[i] for i in chosen]
            weight = math.fsum(map(trainable_weight, picked))
            rows.append(trainer.step(picked, part, weight, lr=config.lr, number=number))
            if others:
                picked = rng.sample(list(others), min(len(others), config.batch_size))
                weight = math.fsum(map(trainable_weight, picked))
                regularised.append(trainer.step(picked, part, weight, lr=config.lr, number=number))
    row: Row = {"updates": len(rows), "loss": _mean([r["loss"] for r in rows])}
    row["tokens"] = sum(r["tokens"] for r in rows)
    if regularised:
        row["loss_regulariser"] = _mean([r["loss"] for r in regularised])
    return row


async def _measure(
    phases: Phases, config: Config, policy: Any, env: Env, iteration: int, steps: int
) -> dict[str, Any]:
    """Held-out results; behind the good verdict once the model has been trained on it."""
    about: dict[str, Any] = {"iteration": iteration, "steps": steps}
    if not config.eval_n:
        return about
    trees = await phases.collect(
        f"after_{iteration:03d}" if iteration else "before",
        env,
        leti_rollout(good=iteration > 0),
        policy,
        n=config.eval_n,
        samples=config.eval_samples,
        temperature=EVAL_TEMPERATURE,
    )
    return evaluate.summarize(evaluate.final(trees)) | about


def _show(row: Row, config: Config, measured: dict[str, Any]) -> None:
    """A line about an iteration."""
    Console(stderr=True).print(
        f"iteration {int(row['step'])}/{config.iterations}  rows {int(row['rows'])}  "
        f"good {row['good']:.1%}  loss {row['loss']:.3f}  held out {measured.get('accuracy')}",
        highlight=False,
    )


def _summary(config: Config, curve: Sequence[dict[str, Any]], log: Sequence[Row]) -> dict[str, Any]:
    return {
        "recipe": "leti",
        "model": config.model,
        "env": config.env,
        "baseline": curve[0],
        "tuned": curve[-1],
        "curve": list(curve),
        "training": {
            "steps": int(log[-1]["steps"]),
            "rows": int(sum(row["rows"] for row in log)),
            "good_first": round(log[0]["good"], 4),
            "good_last": round(log[-1]["good"], 4),
        },
    }


def documents(source: str, seed: int) -> Iterator[str]:
    """The regulariser's texts in an order drawn from the seed. Raises DataError for none."""
    if not source:
        return
    if source == STDLIB or Path(source).is_dir():
        folder = Path(sysconfig.get_path("stdlib") if source == STDLIB else source)
        skipped = {"site-packages", "test", "tests", "idlelib"}
        files = [p for p in folder.rglob("*.py") if not skipped & set(p.relative_to(folder).parts)]
        files.sort()
        Random(seed).shuffle(files)
        if not files:
            raise DataError(f"regulariser: there is no Python file under {folder}")
        yield from (path.read_text("utf-8", "replace") for path in files)
        return
    import json

    path = Path(source)
    if not path.is_file():
        raise DataError(f"regulariser={source!r}: give stdlib, a folder of Python files, or JSONL")
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            yield str(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not an object with 'text'") from error


def regulariser(texts: Iterator[str], tokenizer: Tokenizer, length: int) -> Iterator[Sample]:
    """Rows of `length` tokens of the texts."""
    end = min(tokenizer.eos_ids)
    ids = (tokenizer.encode(text, special=False) for text in texts)
    return leti_rows.packed(ids, length, end)


def _training(config: Config) -> TrainConfig:
    return training(config, schedule="constant", warmup_ratio=0.0, weight_decay=config.weight_decay)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0

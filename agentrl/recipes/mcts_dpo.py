"""MCTS-DPO: search with the policy, prefer better steps to worse ones, and search with the result.

arXiv 2405.00451. Read `learn` from top to bottom; each iteration is

    search      with the policy as it is: a tree of steps for each of `prompts` tasks
    pairs       the best and the worst step along the chosen path, with a soft label
    train       DPO against the policy as it was at the start, by one optimizer that lasts
    refresh     the next trees are the new policy's
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

from agentrl import evaluate, losses
from agentrl.chat import Chat
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Env, Sandbox
from agentrl.recipes._online import Journal, mean, say, tasks_of
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._preference import hold, steps
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import make, single_turn
from agentrl.select import dedupe, pairs
from agentrl.train import Row, Trainer, objective
from agentrl.train.schedule import learning_rate
from agentrl.tree import Tree, derive_seed
from agentrl.types import Task


@dataclass(frozen=True)
class Config:
    """What can be set. An iteration searches `prompts` of the `n` tasks; `search` are options of
    the rollout `mcts` (`agentrl.rollouts.search.mcts`), whose trees are graded as they grow.

    `origin` makes pairs of steps (`siblings`) or of whole answers (`leaves`); `negative`,
    `right_only`, `soft` (of steps alone), `gap` and `cap` are those of `agentrl.select.pairs`;
    `max_pairs` are drawn where an iteration has more (0: all are taken). Without `on_policy` the
    policy of the start searches all trees before anything is trained.
    """

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    iterations: int = 10
    n: int = 512
    prompts: int = 16
    on_policy: bool = True
    origin: Literal["siblings", "leaves"] = "siblings"
    negative: pairs.Negative = "min_q"
    right_only: bool = True
    soft: bool = True
    gap: float = 0.0
    cap: int = 8
    max_pairs: int = 0
    beta: float = 0.1
    temperature: float = 1.0
    max_tokens: int = 128
    eval_n: int = 104
    seed: int = 0
    lr: float = 1e-6
    epochs: int = 1
    batch_size: int = 64
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    save_every: int = 1
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {
        "search": {"iterations": 1, "first": 2, "step_tokens": 12},
        "iterations": 2,
        "n": 4,
        "prompts": 2,
        "right_only": False,
        "eval_n": 2,
        "max_tokens": 24,
    },
    "paper": {
        "model": "mistralai/Mistral-7B-v0.1",
        "env": "gsm8k",
        "search": {"iterations": 64, "first": 4, "depth": 3, "reference": True},
        "iterations": 116,
        "n": 7473,
        "prompts": 64,
        "max_tokens": 512,
        "eval_n": 1319,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on after its newest
    checkpoint, with trees that are on disk taken from there.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    return await learn(config, policy, train_env, test_env, folder, progress=progress, box=box)


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    for name in ("iterations", "n", "prompts", "cap", "max_tokens"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(config, name)}")
    if config.prompts > config.n:
        raise ConfigError(f"prompts={config.prompts} of n={config.n} tasks: n is too small")
    if min(config.max_pairs, config.save_every, config.gap) < 0:
        raise ConfigError("max_pairs, save_every and gap are not negative")
    if not config.temperature > 0:
        raise ConfigError("temperature=0 draws the same step every time: nothing to prefer; use 1")
    if not config.beta > 0:
        raise ConfigError(f"beta is above 0, not {config.beta}")
    for name, known in (("origin", ("siblings", "leaves")), ("negative", pairs.NEGATIVES)):
        if getattr(config, name) not in known:
            raise unknown(name, getattr(config, name), known)
    make("mcts", **config.search)


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
    """Train `policy` on `train_env`; measured before and after on `test_env`. See `run`."""
    check(config)
    started, phases = time.perf_counter(), Phases(config, folder, progress, box)
    chat, held_out = Chat(policy.tokenizer), test_env.tasks(config.eval_n)
    tasks, contaminated = dedupe.clean(train_env.tasks(config.n), held_out)
    policy, reference = await hold(config, policy)
    setup = training(config, schedule="cosine", warmup_ratio=0.03)
    trainer, goal = Trainer(policy.model, setup), objective(losses.make("dpo", beta=config.beta))
    before = await phases.measure("before", test_env, single_turn(), policy, held_out)
    search = functools.partial(_search, phases, config, train_env, policy, tasks)
    ahead = 0 if config.on_policy else config.iterations
    early = {i: await search(i) for i in range(ahead)}
    with Journal(config, folder.path, policy, trainer, steps=config.iterations) as journal:
        for i in journal.left():
            trees = early[i] if i in early else await search(i)
            made = _pairs(config, trees, chat, i)
            lr = learning_rate(i, config.iterations, setup)
            row: Row = {"step": i + 1, "lr": lr, **_measured(trees, made)}
            if made.pairs:
                row |= steps(trainer, made.pairs, goal, reference, lr=lr, number=i + 1)
                policy.refresh()
            _show(row, config, progress)
            journal.done(row)
    after = await phases.measure("after", test_env, single_turn(), policy, held_out)
    rows = journal.rows
    summary = {
        "recipe": "mcts_dpo",
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "tuned": after,
        "selection": {
            "problems": len(tasks),
            "contaminated": contaminated,
            "pairs": int(sum(row["pairs"] for row in rows)),
            "searches": int(sum(row["searches"] for row in rows)),
            "searched_tokens": int(sum(row["searched_tokens"] for row in rows)),
        },
        "training": {
            "iterations": len(rows),
            "updates": int(sum(row.get("updates", 0) for row in rows)),
            "found_first": round(mean([row["found"] for row in rows[:3]]), 4),
            "found_last": round(mean([row["found"] for row in rows[-3:]]), 4),
        },
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


async def _search(
    phases: Phases, config: Config, env: Env, policy: Any, tasks: Sequence[Task], iteration: int
) -> list[Tree]:
    """The trees of an iteration; those on disk already are taken from there."""
    return await phases.collect(
        f"iteration_{iteration + 1:04d}",
        env,
        make("mcts", **config.search),
        policy,
        tasks=tasks_of(iteration, tasks, config.prompts, config.seed),
        temperature=config.temperature,
        seed=derive_seed(config.seed, iteration),
    )


def _pairs(config: Config, trees: Sequence[Tree], chat: Chat, iteration: int) -> pairs.Pairs:
    """The pairs of an iteration, in a number that does not depend on the trees where it is set."""
    seed = derive_seed(config.seed, iteration)
    made = pairs.select(
        trees,
        chat,
        origin=config.origin,
        negative=config.negative,
        right_only=config.right_only,
        soft=config.soft and config.origin == "siblings",
        filters=pairs.Filters(gap=config.gap, cap=config.cap),
        seed=seed,
    )
    if 0 < config.max_pairs < len(made.pairs):
        drawn = sorted(Random(seed).sample(range(len(made.pairs)), config.max_pairs))
        made.dropped["not drawn"] += len(made.pairs) - len(drawn)
        made.pairs = [made.pairs[i] for i in drawn]
    return made


def _measured(trees: Sequence[Tree], made: pairs.Pairs) -> Row:
    """What an iteration's searches came to: `chosen_right` and `found` are the shares of searches
    whose answer, and of which any graded path, was right."""
    valid = [t for t in trees if t.attempts and t.attempts[-1].error is None]
    last = [t.attempts[-1] for t in valid]
    return {
        "searches": len(trees),
        "failure_rate": 1 - len(valid) / max(len(trees), 1),
        "chosen_right": mean([float(evaluate.right(a)) for a in last]),
        "found": mean([float(any(map(evaluate.right, t.attempts))) for t in valid]),
        "searched_tokens": sum(float(a.metrics["sampled_tokens"]) for a in last),
        "pairs": len(made.pairs),
        "gap": mean([p.meta["gap"] for p in made.pairs]),
    }


def _show(row: Row, config: Config, progress: bool) -> None:
    learnt = f"  accuracy {row['accuracy']:.2f}  margin {row['margin']:.3f}" if row["pairs"] else ""
    say(
        f"iteration {int(row['step'])}/{config.iterations}  found {row['found']:.0%}  "
        f"chosen right {row['chosen_right']:.0%}  pairs {int(row['pairs'])}{learnt}",
        progress,
    )

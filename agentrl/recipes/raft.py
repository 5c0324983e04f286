"""RAFT: sample several answers, fine-tune on the best of them, and again with the better model.

arXiv 2304.06767; with one answer a prompt, a global ranking and `beta` it is SuperHF (2310.16763,
preset `superhf`). Read `learn` from top to bottom; each iteration is

    collect     `samples` answers to each of `prompts` tasks, by the policy as it is
    select      the best of each prompt (local) or of all (global); nothing of earlier iterations
    train       `epochs` passes over these, by one optimizer whose state lasts from start to end
    refresh     the policy samples from the new weights
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl import evaluate, losses
from agentrl.batch import Batch, trainable_weight
from agentrl.chat import Chat
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.errors import ConfigError
from agentrl.evaluate import Graded
from agentrl.interfaces import Env, Rollout, Sandbox
from agentrl.logprob import read_head
from agentrl.recipes._online import Journal, mean, tasks_of
from agentrl.recipes._phases import Phases, adapted, stop_if_cancelled, training
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import tool_loop
from agentrl.select import dedupe, raft, superhf
from agentrl.select.rows import Selection, path_sample
from agentrl.train import Reference, Row, Trainer
from agentrl.train.attention import tree_attention
from agentrl.train.schedule import plan_steps
from agentrl.train.setup import seed_all
from agentrl.train.step import Part, Score, of_logprobs
from agentrl.tree import Tree, derive_seed
from agentrl.types import Attempt, Sample, Task


@dataclass(frozen=True)
class Config:
    """What can be set. An iteration answers `prompts` of the `n` tasks `samples` times each.

    `keep` (0: one a prompt) and `least` (the lowest reward to train on, None for none) say what is
    kept. `shaping` takes so many times log p - log p_0 off the reward, `beta` adds KL(p || p_0) to
    the loss; p_0 is the model at the start.
    """

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    iterations: int = 5
    n: int = 512
    prompts: int = 64
    samples: int = 8
    ranking: Literal["local", "global"] = "local"
    keep: int = 0
    least: float | None = 1.0
    shaping: float = 0.0
    beta: float = 0.0
    temperature: float = 1.0
    max_tokens: int = 128
    max_calls: int = 6
    eval_n: int = 104
    seed: int = 0
    lr: float = 2e-5
    epochs: int = 1
    batch_size: int = 16
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    save_every: int = 1
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {"iterations": 2, "n": 8, "prompts": 4, "samples": 4, "eval_n": 4, "max_tokens": 48},
    "superhf": {
        "iterations": 40,
        "prompts": 16,
        "samples": 1,
        "ranking": "global",
        "keep": 1,
        "least": None,
        "beta": 0.35,
        "lr": 5e-6,
        "batch_size": 1,
    },
    "paper": {
        "n": 16384,
        "prompts": 2048,
        "samples": 32,
        "least": None,
        "temperature": 0.85,
        "max_tokens": 512,
        "batch_size": 128,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on after its last
    whole iteration, with answers that are on disk taken from there.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    return await learn(config, policy, train_env, test_env, folder, progress=progress, box=box)


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    for name in ("iterations", "n", "prompts", "samples", "max_tokens"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(config, name)}")
    if min(config.keep, config.shaping, config.beta) < 0:
        raise ConfigError("keep, shaping and beta are not negative")
    if config.prompts > config.n:
        raise ConfigError(f"prompts={config.prompts} of n={config.n} tasks: n is too small")
    if config.samples > 1 and config.temperature <= 0:
        raise ConfigError(
            "temperature=0 gives the same answer every time: there is no best of them; use 1"
        )


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
    rollout = tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)
    setup = training(config, schedule="constant", warmup_ratio=0.0)
    seed_all(config.seed)
    chat, held_out = Chat(policy.tokenizer), test_env.tasks(config.eval_n)
    tasks, contaminated = dedupe.clean(train_env.tasks(config.n), held_out)
    policy = await adapted(policy, setup.lora)
    reference = Reference(policy.model) if config.beta or config.shaping else None
    trainer = Trainer(policy.model, setup)
    before = await phases.measure("before", test_env, rollout, policy, held_out)
    with Journal(config, folder.path, policy, trainer, steps=config.iterations) as journal:
        for i in journal.left():
            graded = await _answers(phases, config, policy, train_env, rollout, tasks, i)
            chosen = _best(config, graded, reference, trainer, i)
            row: Row = {"step": i + 1, "lr": config.lr, **_measured(graded, chosen, chat)}
            if chosen.kept:
                row |= _train(trainer, chosen.rows(), config, reference, i)
                policy.refresh()
            journal.done(row)
    after = await phases.measure("after", test_env, rollout, policy, held_out)
    summary = {
        "recipe": "raft",
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "tuned": after,
        "selection": {
            "problems": len(tasks),
            "contaminated": contaminated,
            "kept": int(sum(row["kept"] for row in journal.rows)),
            "prompts_without_a_row": int(sum(row["prompts_lost"] for row in journal.rows)),
        },
        "training": {
            "iterations": len(journal.rows),
            "reward_first": round(journal.rows[0]["reward"], 4),
            "reward_last": round(journal.rows[-1]["reward"], 4),
        },
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


async def _answers(
    phases: Phases,
    config: Config,
    policy: Any,
    env: Env,
    rollout: Rollout,
    tasks: Sequence[Task],
    iteration: int,
) -> list[Graded]:
    """The answers of an iteration; those on disk already are taken from there."""
    trees = await phases.collect(
        f"iteration_{iteration + 1:03d}",
        env,
        rollout,
        policy,
        tasks=tasks_of(iteration, tasks, config.prompts, config.seed),
        samples=config.samples,
        temperature=config.temperature,
        seed=derive_seed(config.seed, iteration),
    )
    return evaluate.final(trees)


def _best(
    config: Config,
    graded: Sequence[Graded],
    reference: Reference | None,
    trainer: Trainer,
    iteration: int,
) -> Selection:
    found = _shaped(config, graded, reference, trainer) if reference and config.shaping else {}
    return raft.select(
        graded,
        ranking=config.ranking,
        keep=config.keep or None,
        score=lambda g: found.get(id(g[1]), raft.reward(g)),
        least=config.least,
        seed=derive_seed(config.seed, iteration),
    )


def _shaped(
    config: Config, graded: Sequence[Graded], reference: Reference, trainer: Trainer
) -> dict[int, float]:
    """Rewards less `shaping` times the log-ratio to the start, by the attempt's identity."""
    rows = [path_sample(tree, attempt, {"policy"}) for tree, attempt in graded]
    usable = [i for i, row in enumerate(rows) if trainable_weight(row)]
    scored = trainer.referenced([rows[i] for i in usable], reference)
    found = {id(attempt): raft.reward((tree, attempt)) for tree, attempt in graded}
    for i, row in zip(usable, scored, strict=True):
        tree, attempt = graded[i]
        own = sum(sum(n.logprobs or ()) for n in tree.path(attempt.leaf))
        start = sum(row.ref_logprobs or ())
        found[id(attempt)] = raft.shaped(raft.reward(graded[i]), own, start, config.shaping)
    return found


def _train(
    trainer: Trainer,
    rows: Sequence[Sample],
    config: Config,
    reference: Reference | None,
    iteration: int,
) -> Row:
    """`epochs` passes over the rows; the metrics are the means over the steps."""
    plan = training(config, seed=derive_seed(config.seed, iteration))
    steps = [chosen for _, chosen in plan_steps([len(r.token_ids) for r in rows], plan)]
    if not trainer.settled:  # one layout for the whole run
        trainer.settle(rows, steps)
    part = kl_part(reference, config.beta, trainer) if reference and config.beta else _SFT
    found: list[Row] = []
    with trainer.training():
        for chosen in steps:
            picked = [rows[i] for i in chosen]
            weight = sum(map(trainable_weight, picked))
            found.append(trainer.step(picked, part, weight, lr=config.lr, number=iteration + 1))
            stop_if_cancelled(found[-1])
    means = {name: sum(r[name] for r in found) / len(found) for name in found[0]}
    return means | {"updates": len(found), "samples": len(rows)}


_SFT = of_logprobs(losses.get("sft"))


def kl_part(reference: Reference, beta: float, trainer: Trainer) -> Part:
    """SuperHF's loss: `sft` plus `beta` times the tokens' mean of KL(policy || start), exact."""

    def part(score: Score, batch: Batch, denominator: float) -> losses.LossOutput:
        scorer, layout = reference.scorer(), trainer.layout
        with trainer.precision(), scorer as start, tree_attention(start.model, layout):
            before = (start.hidden(batch), read_head(start.model))
        scores = score(batch, reference=before)
        assert scores.kl_BT is not None
        imitation = losses.sft(scores.logprobs_BT, batch, denominator)
        kl = (batch.weights_BT * scores.kl_BT).sum() / denominator
        metrics = {**imitation.metrics, "kl": kl.detach()}
        return losses.LossOutput(imitation.loss + beta * kl, metrics)

    return part


def _measured(graded: Sequence[Graded], chosen: Selection, chat: Chat) -> Row:
    """What an iteration's answers say. `similarity` that rises is collapse, `kept_length` that
    runs away from `length` a reward that likes length."""
    valid = [(t, a) for t, a in graded if a.error is None and a.reward is not None]
    lengths = [float(a.metrics.get("sampled_tokens", 0)) for _, a in valid]
    kept = [float(a.metrics.get("sampled_tokens", 0)) for _, a in chosen.kept]
    texts = {t.task.id: _said(t, a, chat) for t, a in valid}  # one a prompt
    return {
        "reward": mean([raft.reward(g) for g in valid]),
        "reward_kept": mean([raft.reward(g) for g in chosen.kept]),
        "attempts": len(graded),
        "kept": len(chosen.kept),
        "prompts_lost": chosen.dropped["prompts without a row"],
        "failure_rate": (len(graded) - len(valid)) / max(len(graded), 1),
        "truncation_rate": mean([float(a.truncated) for _, a in valid]),
        "length": mean(lengths),
        "kept_length": mean(kept),
        "similarity": superhf.similarity(list(texts.values())),
    }


def _said(tree: Tree, attempt: Attempt, chat: Chat) -> str:
    """What the policy wrote."""
    runs = (n.token_ids for n in tree.path(attempt.leaf) if n.source == "policy")
    return "".join(chat.decode(chat.without_end(ids)) for ids in runs)

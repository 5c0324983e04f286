"""Online DPO: several answers to fresh prompts, a reward model's best against its worst, and again.

RLHF Workflow, arXiv 2405.07863. Read `learn` from top to bottom; each iteration is

    collect     `samples` answers to each of `prompts` tasks, by the policy as it is
    score       by a reward model, by a judge of pairs, or by the environment's reward
    pairs       at most one a prompt; equal scores make none
    train       DPO, always against the policy of the very start
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl import evaluate, losses, rewards
from agentrl.chat import Chat
from agentrl.config import RunFolder, write_atomic
from agentrl.engines import load_policy
from agentrl.errors import ConfigError, unknown
from agentrl.evaluate import Graded
from agentrl.evaluate.turns import SCORE
from agentrl.interfaces import Env, Rollout, Sandbox
from agentrl.recipes._online import mean, tasks_of
from agentrl.recipes._phases import Phases, stop_if_cancelled, training
from agentrl.recipes._preference import hold
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rewards.classifier import SequenceClassifier
from agentrl.rollouts import tool_loop
from agentrl.select import dedupe, pairs, rows
from agentrl.select.rewards import answers, scores
from agentrl.train import Objective, Reference, objective
from agentrl.train.export import merged
from agentrl.train.reward import export_reward, train_reward
from agentrl.tree import Tree, derive_seed
from agentrl.types import Pair, Task

ENVIRONMENT, TRAINED = "env", "train"
"""Values of `reward`: the environment's verdict; a reward model that is trained on it first."""

CHOICES: dict[str, pairs.Negative] = {
    "max_min": "min_q",
    "max_random": "random",
    "max_max": "next",
    "random": "any",
}
"""RLHF Workflow's selections, as `agentrl.select.pairs.choose` calls them."""


@dataclass(frozen=True)
class Config:
    """What can be set. An iteration answers `prompts` of the `n` tasks, `samples` times each, as
    many at each of `temperatures`.

    `reward` is `env`, the name of a reward model (`agentrl.rewards.load_reward`), or `train`: then
    the policy first answers `reward_n` tasks, and a model of the same kind learns which answers are
    right (`reward_lr`, `reward_epochs`). `length_penalty` is taken off a score for every character.
    """

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    reward: str = ENVIRONMENT
    reward_n: int = 256
    reward_lr: float = 1e-5
    reward_epochs: int = 1
    iterations: int = 3
    n: int = 512
    prompts: int = 128
    samples: int = 8
    temperatures: tuple[float, ...] = (1.0,)
    choice: Literal["max_min", "max_random", "max_max", "random"] = "max_min"
    length_penalty: float = 0.0
    gap: float = 0.0
    loss: str = "dpo"
    loss_options: dict[str, Any] = field(default_factory=dict)
    max_tokens: int = 128
    max_calls: int = 6
    eval_n: int = 104
    seed: int = 0
    lr: float = 5e-7
    epochs: int = 2
    batch_size: int = 16
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {
        "iterations": 2,
        "n": 8,
        "reward_n": 8,
        "prompts": 4,
        "samples": 4,
        "eval_n": 4,
        "max_tokens": 48,
        "lr": 1e-5,
    },
    "paper": {
        "model": "RLHFlow/LLaMA3-SFT",
        "reward": "sfairXC/FsfairX-LLaMA3-RM-v0.1",
        "n": 60000,
        "prompts": 20000,
        "max_tokens": 2048,
        "batch_size": 128,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on with the answers,
    pairs and checkpoints that are on disk.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    judge = None
    if config.reward not in (ENVIRONMENT, TRAINED):
        judge = rewards.load_reward(config.reward, device=config.device)
    try:
        return await learn(
            config, policy, train_env, test_env, folder, judge=judge, progress=progress, box=box
        )
    finally:
        if isinstance(judge, rewards.PairwiseJudge):
            await judge.policy.close()


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    training(config, lr=config.reward_lr, epochs=config.reward_epochs)
    for name in ("iterations", "n", "prompts", "max_tokens", "reward_n"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is at least 1, not {getattr(config, name)}")
    if config.prompts > config.n:
        raise ConfigError(f"prompts={config.prompts} of n={config.n} tasks: n is too small")
    if config.reward == TRAINED and config.reward_n > config.n:
        raise ConfigError(f"reward_n={config.reward_n} of n={config.n} tasks: n is too small")
    parts = len(config.temperatures)
    if not parts or config.samples < 2 or config.samples % parts:
        raise ConfigError(
            f"samples={config.samples} is 2 or more, and as many at each of {parts} temperatures"
        )
    if min(config.temperatures) <= 0:
        raise ConfigError("temperature 0 gives the same answer every time: nothing to prefer")
    if not config.reward or min(config.gap, config.length_penalty) < 0:
        raise ConfigError("reward is env, train or a reward model; gap, length_penalty at least 0")
    if config.choice not in CHOICES:
        raise unknown("choice", config.choice, CHOICES)
    _goal(config)


def _goal(config: Config) -> Objective:
    if config.loss not in losses.LOSSES or losses.group_size(config.loss) != 2:
        of_two = [name for name in losses.LOSSES if losses.group_size(name) == 2]
        raise unknown("loss of pairs", config.loss, of_two)
    return objective(config.loss, **config.loss_options)


async def learn(
    config: Config,
    policy: Any,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    judge: Any = None,
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy` on `train_env`; measured before and after each iteration on `test_env`.

    `judge` is the reward model, where the settings name one. See `run`.
    """
    check(config)
    if (judge is None) != (config.reward in (ENVIRONMENT, TRAINED)):
        raise ConfigError(f"reward={config.reward!r} and the judge given do not fit: give both")
    started, phases = time.perf_counter(), Phases(config, folder, progress, box)
    rollout = tool_loop(max_calls=config.max_calls, max_tokens=config.max_tokens)
    held_out = test_env.tasks(config.eval_n)
    tasks, contaminated = dedupe.clean(train_env.tasks(config.n), held_out)
    policy, reference = await hold(config, policy)
    before = await phases.measure("before", test_env, rollout, policy, held_out)

    async def answered(some: Sequence[Task], number: int) -> list[Tree]:
        return await _answers(phases, config, train_env, rollout, policy, some, number)

    trained = None
    if config.reward == TRAINED:
        judge, trained = _judge(phases, config, policy, await answered(tasks[: config.reward_n], 0))
    found: list[dict[str, Any]] = []
    for number in range(1, config.iterations + 1):
        trees = await answered(tasks_of(number - 1, tasks, config.prompts, config.seed), number)
        made, facts = await _pairs(phases, config, trees, Chat(policy.tokenizer), judge, number)
        policy, how = await _train(phases, config, policy, made, reference, number)
        after = await phases.measure(f"after_{number}", test_env, rollout, policy, held_out)
        found.append({"iteration": number, **facts, "training": how, "measured": after})
    summary = {
        "recipe": "online_dpo",
        "model": config.model,
        "env": config.env,
        "reward": config.reward,
        "baseline": before,
        "tuned": found[-1]["measured"],
        "problems": len(tasks),
        "contaminated": contaminated,
        "reward_model": trained,
        "iterations": found,
        "training": found[-1]["training"],
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


def _judge(
    phases: Phases, config: Config, policy: Any, trees: Sequence[Tree]
) -> tuple[SequenceClassifier, dict[str, Any]]:
    """A reward model that has learnt which of the start's answers are right, and facts.

    Raises DataError if no problem has right and wrong answers.
    """
    data, dropped = answers(evaluate.final(trees))
    setup = training(config, lr=config.reward_lr, epochs=config.reward_epochs, schedule="cosine")
    model = copy.deepcopy(policy.model) if setup.lora is None else merged(policy.model)
    with phases.folder.phase("train_reward"):
        result = train_reward(
            model,
            data,
            setup,
            out_dir=phases.folder.path / "checkpoints" / "reward",
            resume=True,
            progress=phases.progress,
            callbacks=[stop_if_cancelled],
        )
    export_reward(
        result.model, phases.folder.path / "reward", getattr(policy.tokenizer, "hf", None)
    )
    last = result.metrics[-1]
    facts = {"answers": len(data), "dropped": dict(dropped), "steps": result.steps}
    facts |= {name: round(last[name], 4) for name in ("loss", "accuracy", "margin")}
    return SequenceClassifier(result.model), facts


async def _answers(
    phases: Phases,
    config: Config,
    env: Env,
    rollout: Rollout,
    policy: Any,
    tasks: Sequence[Task],
    number: int,
) -> list[Tree]:
    """`samples` answers to each task, in equal parts at each temperature."""
    trees: list[Tree] = []
    for part, temperature in enumerate(config.temperatures):
        trees += await phases.collect(
            f"answers_{number}_{part}" if part else f"answers_{number}",
            env,
            rollout,
            policy,
            tasks=tasks,
            samples=config.samples // len(config.temperatures),
            temperature=temperature,
            seed=derive_seed(config.seed, number, part),
        )
    return trees


async def _pairs(
    phases: Phases, config: Config, trees: Sequence[Tree], chat: Chat, judge: Any, number: int
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs of an iteration and facts about its answers, from the disk where they are there:
    scores that are computed again may differ in their last digits."""
    path = phases.folder.path / "pairs" / f"iteration_{number}.jsonl"
    about = path.with_suffix(".json")
    if about.exists():
        return rows.read_pairs(path), json.loads(about.read_text("utf-8"))
    graded = evaluate.final(trees)
    if judge is not None:
        with phases.folder.phase(f"score_{number}"):
            found = await scores(graded, judge, chat)
        for (_, attempt), score in zip(graded, found, strict=True):
            attempt.metrics |= {} if score is None else {SCORE: score}
    made = pairs.select(
        trees,
        chat,
        origin="attempts",
        negative=CHOICES[config.choice],
        length_penalty=config.length_penalty,
        by=SCORE if judge is not None else "",
        filters=pairs.Filters(gap=config.gap),
        seed=derive_seed(config.seed, number),
    )
    facts = {"answers": _measured(graded), "pairs": made.statistics()}
    rows.write(path, made.pairs)
    write_atomic(about, json.dumps(facts, indent=2) + "\n")
    return made.pairs, facts


def _measured(graded: Sequence[Graded]) -> dict[str, Any]:
    """What an iteration's answers say. `agreement` is the share of right and wrong answers to one
    prompt that the reward model puts in this order; `length` that grows is a reward that likes it.
    """
    valid = [(tree.task.id, a) for tree, a in graded if a.error is None]
    found: dict[str, Any] = {
        "attempts": len(graded),
        "failed": len(graded) - len(valid),
        "reward": round(mean([float(a.reward) for _, a in valid if a.reward is not None]), 4),
        "length": round(mean([float(a.metrics.get("sampled_tokens", 0)) for _, a in valid]), 1),
        "truncated": sum(a.truncated for _, a in valid),
    }
    scored = [(task, a) for task, a in valid if SCORE in a.metrics]
    if not scored:
        return found
    by_task: dict[str, tuple[list[float], list[float]]] = {}  # wrong answers, and right ones
    for task, attempt in scored:
        by_task.setdefault(task, ([], []))[evaluate.right(attempt)].append(attempt.metrics[SCORE])
    gaps = [good - bad for wrong, right in by_task.values() for good in right for bad in wrong]
    won = [float(gap > 0) + 0.5 * float(gap == 0) for gap in gaps]
    return found | {
        "score": round(mean([a.metrics[SCORE] for _, a in scored]), 4),
        "agreement": round(mean(won), 4) if won else None,
    }


async def _train(
    phases: Phases,
    config: Config,
    policy: Any,
    made: Sequence[Pair],
    reference: Reference,
    number: int,
) -> tuple[Any, dict[str, Any]]:
    """An iteration's training: an optimizer and a cosine of its own, the reference of the start."""
    return await phases.fine_tune(
        f"iteration_{number}",
        policy,
        made,
        _goal(config),
        reference=reference,
        schedule="cosine",
        warmup_ratio=0.1,
        lora=None,
    )

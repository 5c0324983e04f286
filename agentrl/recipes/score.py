"""SCoRe: a model learns to correct itself, by RL on its own answers and its corrections of them.

arXiv 2409.12917 (ICLR 2025). Read `learn` and `_steps` from top to bottom:

    stage I     only the second answer is rewarded, while a strong KL holds the first one to the
                base model: the policy learns to change its answers, instead of giving the best
                answer twice
    stage II    both answers are rewarded, the second with a bonus alpha for being better than the
                first; a weak KL on both
    keep        after each stage, the checkpoint with the highest training reward

The reference is the base model in both stages. Each turn is credited with its own reward (gamma 0),
against the mean of the other attempts' same turn. With more than two turns (appendix A.1) stage I
is done for each turn from the second on, the turns before it held to the model of its beginning.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl import credit, evaluate
from agentrl.collect import collect
from agentrl.config import RunFolder
from agentrl.engines import load_policy
from agentrl.engines.hf import HFPolicy
from agentrl.errors import ConfigError
from agentrl.interfaces import Env, Rollout, Sandbox, TrainedPolicy
from agentrl.recipes._online import (
    Journal,
    by_turn,
    in_groups,
    measured,
    say,
    seconds,
    tasks_of,
    timings,
    update,
)
from agentrl.recipes._phases import adapted
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts import self_correct
from agentrl.rollouts.self_correct import INSTRUCTIONS
from agentrl.train import Reference, Row, TrainConfig, Trainer
from agentrl.train.online import Method, credited_rows
from agentrl.train.setup import seed_all
from agentrl.tree import Tree, derive_seed
from agentrl.types import SamplingParams


@dataclass(frozen=True)
class Config:
    """What can be set. A step attempts `prompts` of the `n` tasks `group` times each, at
    temperature 1; an attempt has `turns` answers. `instruction` is a name of
    `agentrl.rollouts.self_correct.INSTRUCTIONS`, or a text. `beta1` and `beta2` are the weak and
    the strong KL coefficient, `offline_ratio` the share of stage II's attempts whose first answer
    is the base model's. Lengths are tokens of one answer."""

    model: str = "smollm2"
    env: str = "arithmetic"
    env_options: dict[str, Any] = field(default_factory=dict)
    turns: int = 2
    instruction: str = "maths"
    stage1_steps: int = 50
    stage2_steps: int = 100
    alpha: float = 10.0
    beta1: float = 0.01
    beta2: float = 0.1
    offline_ratio: float = 0.0
    n: int = 512
    prompts: int = 8
    group: int = 8
    eval_n: int = 104
    seed: int = 0
    max_tokens: int = 128
    max_calls: int = 0
    lr: float = 1e-5
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    device: str = "auto"
    save_every: int = 10
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {
        "stage1_steps": 1,
        "stage2_steps": 1,
        "n": 8,
        "prompts": 2,
        "group": 4,
        "eval_n": 4,
        "max_tokens": 48,
    },
    "paper": {
        "env": "gsm8k",
        "instruction": "paper",
        "n": 7473,
        "stage1_steps": 1000,
        "stage2_steps": 2000,
        "prompts": 128,
        "group": 4,
        "eval_n": 1319,
        "max_tokens": 1024,
        "lr": 5e-6,
        "save_every": 50,
    },
}


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run: `steps` steps, from step `first` on, with attempts of `turns` answers and
    a KL coefficient for each of them."""

    name: str
    stage: Literal[1, 2]
    turns: int
    first: int
    steps: int
    kl: tuple[float, ...]

    @property
    def rewarded(self) -> str:
        """The metric by which its best checkpoint is chosen: the rewards it learns from, without
        the bonus (with it, a first answer that got worse would count as progress)."""
        return "last_reward" if self.stage == 1 else "sum_reward"


def phases(config: Config) -> list[Phase]:
    """Stage I, for more than two turns one of each turn from the second on; then stage II."""
    found: list[Phase] = []
    first = 0
    for turns in range(2, config.turns + 1):
        name = "stage1" if config.turns == 2 else f"stage1_turn{turns}"
        kl = (config.beta2,) * (turns - 1) + (config.beta1,)
        found.append(Phase(name, 1, turns, first, config.stage1_steps, kl))
        first += config.stage1_steps
    kl = (config.beta1,) * config.turns
    found.append(Phase("stage2", 2, config.turns, first, config.stage2_steps, kl))
    return [phase for phase in found if phase.steps]


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on after its newest
    checkpoint, with attempts that are on disk taken from there.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    return await learn(config, policy, train_env, test_env, folder, progress=progress, box=box)


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    for name in ("n", "prompts", "max_tokens"):
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name} must be positive, not {getattr(config, name)!r}")
    for name in ("stage1_steps", "stage2_steps", "alpha", "beta1", "beta2", "save_every"):
        if getattr(config, name) < 0:
            raise ConfigError(f"{name} is not negative")
    if config.turns < 2:
        raise ConfigError(f"turns={config.turns}: there is nothing to correct in one answer")
    if not phases(config):
        raise ConfigError("stage1_steps and stage2_steps are both 0: nothing would be trained")
    if config.group < 2:
        raise ConfigError("group=1: attempts are compared with the others at their task; 2 or more")
    if not 0 <= config.offline_ratio < 1:
        raise ConfigError(
            f"offline_ratio is a share, at least 0 and below 1, not {config.offline_ratio}"
        )
    if config.prompts > config.n:
        raise ConfigError(f"prompts={config.prompts} a step of n={config.n} tasks: n is too small")


async def learn(
    config: Config,
    policy: TrainedPolicy,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy` on `train_env`; measured before and after on `test_env`. See `run`."""
    check(config)
    started, setup = time.perf_counter(), _training(config)
    seed_all(config.seed)
    base = None
    if config.offline_ratio:
        name = f"{policy.name}-base"
        base = HFPolicy(copy.deepcopy(policy.model).eval(), policy.tokenizer, name=name)
    policy = await adapted(policy, setup.lora)
    reference = Reference(policy.model)
    attempting = functools.partial(
        collect,
        policy=policy,
        box=box,
        concurrency=config.concurrency,
        deadline_s=config.deadline_s,
        progress=False,
    )
    before = await _measure(config, folder, "before", test_env, attempting)
    rows: list[Row] = []
    kept: dict[str, int] = {}
    for phase in phases(config):
        # appendix A.1: a later turn's stage I holds the turns before it to the model it begins with
        held_to = reference if phase.stage == 2 or phase.turns == 2 else Reference(policy.model)
        rollout = _rollout(config, phase.turns, base if phase.stage == 2 else None)
        attempt = functools.partial(attempting, train_env, rollout)
        with Journal(
            config,
            folder.path,
            policy,
            Trainer(policy.model, setup),
            steps=phase.steps,
            first=phase.first,
            name=phase.name,
            best=phase.rewarded,
        ) as journal:
            await _steps(config, phase, journal, held_to, train_env, folder, attempt, progress)
            journal.settle()
        rows, kept[phase.name] = journal.rows, journal.kept
    after = await _measure(config, folder, "after", test_env, attempting)
    if base is not None:
        await base.close()
    summary = _summary(config, rows, before, after, kept)
    return await conclude(config, folder, policy, summary, started)


async def _steps(
    config: Config,
    phase: Phase,
    journal: Journal,
    reference: Reference,
    env: Env,
    folder: RunFolder,
    attempt: Callable[..., Awaitable[list[Tree]]],
    progress: bool,
) -> None:
    """The steps of a phase: attempts by the policy as it is, their credit, one update."""
    tasks, trainer, method = env.tasks(config.n), journal.trainer, method_of(config, phase)
    for step in journal.left():
        clocks = [time.perf_counter()]
        trees = await attempt(
            tasks=tasks_of(step, tasks, config.prompts, config.seed),
            samples=config.group,
            params=SamplingParams(max_tokens=config.max_tokens),
            seed=derive_seed(config.seed, step),
            out=folder.trees(f"step_{step + 1:05d}"),
            label=f"step {step + 1}",
        )
        groups = in_groups(trees)
        clocks.append(time.perf_counter())
        made = credited_rows(groups, method, trainer, reference, kl=phase.kl)
        clocks.append(time.perf_counter())
        row: Row = {"step": step + 1, "stage": phase.stage, "lr": config.lr}
        row |= measured(groups, made) | by_turn(groups)
        row |= {f"kl@t{t + 1}": nats for t, nats in enumerate(made.kl_turns)}
        if made.samples:
            row |= update(trainer, method, made, lr=config.lr, number=step + 1)
            journal.policy.refresh()
        clocks.append(time.perf_counter())
        row |= seconds(clocks)
        _show(row, config, progress)
        journal.done(row)


def method_of(config: Config, phase: Phase) -> Method:
    """REINFORCE with a leave-one-out baseline for each turn, the KL in its reward (k1): RLOO by
    turn, whose gradient of the KL is the reverse one's (specification 6.5)."""
    return Method(
        functools.partial(credit.score_shaping, alpha=config.alpha, stage=phase.stage),
        "reinforce",
        "reward",
        read=functools.partial(credit.corrections, answers=phase.turns),
    )


def _rollout(config: Config, turns: int, first: HFPolicy | None = None) -> Rollout:
    named = config.instruction in INSTRUCTIONS
    return self_correct(
        turns=turns,
        kind=config.instruction if named else "maths",  # type: ignore[arg-type]
        instruction=None if named else config.instruction,
        max_calls=config.max_calls,
        max_tokens=config.max_tokens,
        first=first,
        first_ratio=config.offline_ratio,
    )


async def _measure(
    config: Config,
    folder: RunFolder,
    phase: str,
    env: Env,
    attempt: Callable[..., Awaitable[list[Tree]]],
) -> dict[str, Any]:
    """Greedy results on held-out tasks, turn by turn."""
    if not config.eval_n:
        return {}
    trees = await attempt(
        env,
        _rollout(config, config.turns),
        n=config.eval_n,
        params=SamplingParams(max_tokens=config.max_tokens, temperature=0.0),
        seed=config.seed,
        out=folder.trees(phase),
        label=phase,
    )
    return {**evaluate.summarize(evaluate.final(trees)), **evaluate.turn_metrics(trees)}


def _training(config: Config) -> TrainConfig:
    return TrainConfig(
        lr=config.lr,
        seed=config.seed,
        schedule="constant",
        dtype=config.train_dtype,
        lora={"r": config.lora, "alpha": 2 * config.lora} if config.lora else None,
    )


def _summary(
    config: Config,
    rows: Sequence[Row],
    before: dict[str, Any],
    after: dict[str, Any],
    kept: dict[str, int],
) -> dict[str, Any]:
    return {
        "recipe": "score",
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "tuned": after,
        "training": {
            "samples": int(sum(r.get("samples", 0) for r in rows)),
            "steps": len(rows),
            "kept": kept,
        },
        "timings": timings(rows),
    }


def _show(row: Row, config: Config, progress: bool) -> None:
    steps = sum(phase.steps for phase in phases(config))
    accuracies = "  ".join(
        f"t{t} {row[f'acc@t{t}']:.3f}" for t in range(1, config.turns + 1) if f"acc@t{t}" in row
    )
    say(
        f"step {int(row['step'])}/{steps}  stage {int(row['stage'])}  {accuracies}  "
        f"changed {row['change_rate']:.0%}  right to wrong {row['c2i']:.0%}  "
        f"cut {row['truncation_rate']:.0%}  {row['seconds']:.1f} s",
        progress,
    )

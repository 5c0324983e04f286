"""LeDex: a model learns to explain and refine its wrong programs, from verified data, then by RL.

arXiv 2405.18649. Read `learn` from top to bottom:

    measure     held-out programs, and those of them that one refinement mends
    collect     several programs for each training task; the wrong ones are what is to be mended
    teach       a teacher (or the model itself) explains and refines each wrong one, several times
    SFT         right programs, verified refinements, verified explanations with refinements
    RL          PPO on the wrong programs, a reward for the explanation and one for the program
    measure     after SFT, and after RL
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.config import RunFolder
from agentrl.credit import separate_sites
from agentrl.engines import load_policy
from agentrl.errors import ConfigError
from agentrl.evaluate import Graded
from agentrl.interfaces import Env, Rollout, Sandbox
from agentrl.recipes._exam import Exam
from agentrl.recipes._online import (
    Journal,
    in_groups,
    mean,
    measured,
    say,
    seconds,
    tasks_of,
    update,
)
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude, once, splits
from agentrl.rollouts.self_debug import EXPLAIN, MARK, REFINE, self_debug
from agentrl.select import dedupe, ledex
from agentrl.select.codebleu import code_bleu
from agentrl.select.similarity import Embed, TfIdf
from agentrl.train import Reference, Row, Trainer
from agentrl.train.online import Method, credited_rows, value_head
from agentrl.tree import Tree, derive_seed
from agentrl.types import SamplingParams, Task

ALPHA = 0.1
"""What the squared error of the value head weighs (the paper does not say)."""

TEMPERATURES = {"programs": 1.0, "refinements": 0.8, "rl": 1.0}


@dataclass(frozen=True)
class Config:
    """What can be set. `samples` programs of each of `n` tasks, `refinements` of each wrong one by
    `teacher` (the model itself, if empty); `explain` says which instruction is trained and
    measured. `lr`, `epochs`, `batch_size` are of SFT; a step of RL refines `prompts` programs (by
    each instruction), with `rl_programs` it also writes as many first ones, and `kl` holds it to
    the fine-tuned model. Lengths are tokens."""

    model: str = "smollm2"
    teacher: str = ""
    env: str = "code"
    env_options: dict[str, Any] = field(default_factory=dict)
    n: int = 64
    eval_n: int = 32
    seed: int = 0
    samples: int = 4
    refinements: int = 4
    explain: Literal["both", "always", "never"] = "both"
    mark: str = MARK
    likeness: Literal["codebleu", "tokens"] = "codebleu"
    max_tokens: int = 256
    lr: float = 2e-5
    epochs: int = 2
    batch_size: int = 16
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    rl_steps: int = 50
    prompts: int = 16
    rl_lr: float = 2e-6
    rl_programs: bool = False
    kl: float = 0.05
    credit: Literal["separate", "summed"] = "separate"
    save_every: int = 10
    device: str = "auto"
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {
        "n": 4,
        "eval_n": 4,
        "samples": 2,
        "refinements": 2,
        "max_tokens": 160,
        "epochs": 1,
        "rl_steps": 1,
        "prompts": 2,
    },
    "paper": {
        "model": "codellama/CodeLlama-7b-Instruct-hf",
        "env_options": {"source": "mbpp"},
        "n": 374,
        "eval_n": 500,
        "samples": 20,
        "refinements": 10,
        "max_tokens": 1024,
        "batch_size": 128,
        "prompts": 64,
        "rl_steps": 500,
        "rl_programs": True,
    },
}


@once
async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; one that was interrupted goes on where it stopped.
    """
    check(config)
    train_env, test_env = splits(config)
    policy = load_policy(config.model, dtype="float32", device=config.device)
    teacher = load_policy(config.teacher) if config.teacher else None
    return await learn(
        config, policy, train_env, test_env, folder, teacher=teacher, progress=progress, box=box
    )


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    for name in ("n", "samples", "refinements", "prompts", "max_tokens"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be positive, not {getattr(config, name)!r}")
    if min(config.kl, config.rl_steps, config.eval_n, config.save_every) < 0:
        raise ConfigError("kl, rl_steps, eval_n and save_every are not negative")


async def learn(
    config: Config,
    policy: Any,
    train_env: Env,
    test_env: Env,
    folder: RunFolder,
    *,
    teacher: Any = None,
    embed: Embed | None = None,
    asks: tuple[str, str] = (REFINE, EXPLAIN),
    progress: bool = True,
    box: Sandbox | None = None,
) -> dict[str, Any]:
    """Train `policy` on `train_env`; measured on `test_env`. See `run`.

    `teacher` is any policy, with a tokenizer of its own, and is closed when it has taught; without
    one the model teaches itself. `embed` compares explanations (default `TfIdf`; the paper's is
    RoBERTa). `asks` are the two instructions: refine, and explain then refine.
    """
    check(config)
    started, phases = time.perf_counter(), Phases(config, folder, progress, box)
    chat, debug = Chat(policy.tokenizer), _rollouts(config, asks)
    exam = Exam(phases, test_env, debug, config.eval_n)
    before = await exam.sit("before", policy)

    tasks, contaminated = dedupe.clean(train_env.tasks(config.n), test_env.tasks(config.eval_n))
    programs = ledex.split(
        await phases.collect(
            "programs",
            train_env,
            self_debug(rounds=0),
            policy,
            tasks=tasks,
            samples=config.samples,
            temperature=TEMPERATURES["programs"],
        )
    )
    teach = self_debug(given=True, explain=True, mark=config.mark, ask=asks[1])
    answers = await phases.collect(
        "refinements",
        train_env,
        teach,
        teacher or policy,
        tasks=ledex.repair_tasks(programs.wrong),
        samples=config.refinements,
        temperature=TEMPERATURES["refinements"],
    )
    repairs, refused = ledex.pool(answers, config.mark)
    if teacher is not None:
        await teacher.close()
    kinds = ledex.sft_rows(programs.right, repairs.values(), chat, asks=asks)
    rows = [row for kind in ("plain", *debug) for row in kinds[kind]]
    policy, trained = await phases.fine_tune("sft", policy, rows, schedule="cosine")
    tuned = await exam.sit("sft", policy)

    embed = embed or TfIdf(ledex.explanations(repairs.values()))
    work, compared = _work(config, programs, repairs, debug)
    steps = await _reinforce(config, phases, policy, train_env, work, compared, embed)
    after = await exam.sit("after", policy) if steps else tuned
    summary = {
        "recipe": "self_debug",
        "model": config.model,
        "env": config.env,
        "baseline": before,
        "sft": tuned,
        "tuned": after,
        "selection": {
            "contaminated": contaminated,
            **_selected(programs, repairs),
            "refused": dict(refused),
            "rows": {kind: len(kinds[kind]) for kind in ("plain", *debug)},
        },
        "training": {"sft": trained, "rl": _trained(steps)},
        "timings": folder.timings,
    }
    return await conclude(config, folder, policy, summary, started)


def _selected(programs: ledex.Programs, repairs: Mapping[str, ledex.Repair]) -> dict[str, Any]:
    """First programs by their grade, and how many of the wrong ones were repaired."""
    return {
        "right": len(programs.right),
        "wrong": len(programs.wrong),
        "dropped": dict(programs.dropped),
        "repaired": sum(bool(r.right) for r in repairs.values()),
    }


Work = Mapping[str, tuple[Rollout, Sequence[Task]]]
"""By name: a rollout, and the tasks that it is trained on."""


def _work(
    config: Config,
    programs: ledex.Programs,
    repairs: Mapping[str, ledex.Repair],
    debug: Mapping[str, Rollout],
) -> tuple[Work, dict[str, ledex.Repair]]:
    """What RL attempts, and what each task's answers are compared with: nothing without a single
    verified refinement."""
    tasks, compared = ledex.rl_tasks(repairs)
    work = {kind: (rollout, tasks) for kind, rollout in debug.items()}
    if config.rl_programs:
        first, known = ledex.program_tasks(programs.right, repairs.values())
        work["programs"], compared = (self_debug(rounds=0), first), compared | known
    return (work if tasks else {}), compared


async def _reinforce(
    config: Config,
    phases: Phases,
    policy: Any,
    env: Env,
    work: Work,
    compared: Mapping[str, ledex.Repair],
    embed: Embed,
) -> list[Row]:
    """PPO on programs that have a right one to be compared with; a row a step."""
    if not work or not config.rl_steps:
        say("no wrong program has a verified refinement: no RL", phases.progress and not work)
        return []
    method = Method(functools.partial(separate_sites, mode=config.credit), "ppo", "reward", True)
    setup = training(config, lr=config.rl_lr, schedule="constant", lora=None)
    reference = Reference(policy.model) if config.kl else None
    trainer = Trainer(policy.model, setup, value_head(policy.model))
    score = functools.partial(
        ledex.rewarded,
        compared=compared,
        embed=embed,
        alike=functools.partial(code_bleu, python=config.likeness == "codebleu"),
        mark=config.mark,
    )
    path, steps = phases.folder.path, config.rl_steps
    with Journal(config, path, policy, trainer, steps=steps) as journal:
        for step in journal.left():
            clocks = [time.perf_counter()]
            trees = await _attempt(config, phases, policy, env, step, work)
            groups = in_groups(trees)
            clocks.append(time.perf_counter())
            scored = [score(group) for group in groups]
            made = credited_rows(scored, method, trainer, reference, kl=config.kl)
            clocks.append(time.perf_counter())
            row: Row = {"step": step + 1, **measured(groups, made), **_sites(scored)}
            if made.samples:
                row |= update(
                    trainer, method, made, lr=config.rl_lr, number=step + 1, value_coef=ALPHA
                )
                policy.refresh()
            clocks.append(time.perf_counter())
            row |= seconds(clocks)
            shown = (f"{name} {row[name]:.2f}" for name in ("reward", "explanation", "refinement"))
            say(f"step {step + 1}/{steps}  {'  '.join(shown)}", phases.progress)
            journal.done(row)
    return journal.rows


async def _attempt(
    config: Config, phases: Phases, policy: Any, env: Env, step: int, work: Work
) -> list[Tree]:
    """The answers of a step, by each rollout."""
    trees: list[Tree] = []
    for kind, (rollout, tasks) in work.items():
        trees += await collect(
            env,
            rollout,
            policy,
            tasks=tasks_of(step, tasks, min(config.prompts, len(tasks)), config.seed),
            params=SamplingParams(max_tokens=config.max_tokens, temperature=TEMPERATURES["rl"]),
            seed=derive_seed(config.seed, step, kind),
            box=phases.box,
            concurrency=config.concurrency,
            deadline_s=config.deadline_s,
            out=phases.folder.trees(f"step_{step + 1:05d}_{kind}"),
            progress=False,
        )
    return trees


def _rollouts(config: Config, asks: tuple[str, str]) -> dict[str, Rollout]:
    """How a given program is refined, by the name of the instruction."""
    made = {}
    if config.explain != "always":
        made["refine"] = self_debug(given=True, ask=asks[0])
    if config.explain != "never":
        made["explain"] = self_debug(given=True, ask=asks[1], explain=True, mark=config.mark)
    return made


def _sites(scored: Sequence[Sequence[Graded]]) -> Row:
    """The mean reward of each kind."""
    rewards = [reward for group in scored for _, attempt in group for reward in attempt.rewards]
    return {
        source: mean([r.value for r in rewards if r.source == source])
        for source in ("explanation", "refinement")
    }


def _trained(steps: Sequence[Row]) -> dict[str, Any]:
    """The beginning and the end of RL, each the mean of five steps."""
    names = ("reward", "explanation", "refinement")
    return {"steps": len(steps)} | {
        f"{name}_{end}": round(mean([row[name] for row in rows]), 4)
        for name in names
        for end, rows in (("first", steps[:5]), ("last", steps[-5:]))
    }

"""AgentRefine: a policy learns from games with mistakes in them to repair its own.

arXiv 2501.01702. Read `run` from top to bottom:

    measure    success and progress on the environment's test split, and on those it holds out
    games      a teacher plays, or makes up whole environments; every action is judged
    select     games that reach the goal after mistakes; wrong turns stay as context, without loss
    tune       plain SFT on the rest
    measure    the same splits again

`keep="clean"` is what it is compared with, plain trajectory tuning: games without a mistake;
`unmasked` are games with mistakes, with loss on these, too; `all` every game that reaches the goal.
`keep="feedback"` is FAFT: all games, good and bad, behind their feedback.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import envs
from agentrl import evaluate
from agentrl.chat import Chat
from agentrl.config import RunFolder
from agentrl.engines import ScriptedPolicy, load_policy
from agentrl.errors import ConfigError
from agentrl.evaluate import Graded
from agentrl.interfaces import Env, Policy, Rollout, Sandbox
from agentrl.recipes._phases import Phases, training
from agentrl.recipes._whole import conclude
from agentrl.rollouts import refine as game
from agentrl.rollouts import synthesize
from agentrl.rollouts.condition import conditioned
from agentrl.select import faft, refine
from agentrl.types import Sample


@dataclass(frozen=True)
class Config:
    """What can be set. `n` games are played for training, `eval_n` a split for measuring;
    `max_tokens` limits a turn, `script_tokens` an answer that makes up an environment or a game;
    `cap` (0: none) the games that are kept. An empty `teacher` is the policy itself."""

    model: str = "smollm2"
    teacher: str = "scripted:envs.rooms.player:erring"
    env: str = "rooms"
    env_options: dict[str, Any] = field(default_factory=dict)
    held_out: tuple[str, ...] = ("mislaid", "unseen")
    n: int = 96
    eval_n: int = 16
    seed: int = 0
    games: Literal["played", "synthesized"] = "played"
    keep: Literal["refined", "unmasked", "clean", "all", "feedback"] = "refined"
    min_errors: int = 1
    cap: int = 0
    temperature: float = 0.7
    max_tokens: int = 64
    script_tokens: int = 4096
    lr: float = 1e-4
    epochs: int = 2
    batch_size: int = 8
    lora: int = 0
    train_dtype: Literal["fp32", "bf16", "auto"] = "auto"
    dtype: Literal["float32", "bfloat16", "auto"] = "auto"
    device: str = "auto"
    keep_checkpoints: bool = False
    concurrency: int = 64
    deadline_s: float = 900.0


PRESETS: dict[str, dict[str, Any]] = {
    "small": {},
    "smoke": {
        "n": 8,
        "eval_n": 2,
        "held_out": ("mislaid",),
        "env_options": {"budget": 6},
        "epochs": 1,
    },
    "paper": {
        "model": "meta-llama/Meta-Llama-3-8B",
        "games": "synthesized",
        "teacher": "openai:gpt-4o",
        "n": 64000,
        "min_errors": 2,
        "lr": 5e-6,
        "epochs": 3,
        "batch_size": 64,
        "max_tokens": 512,
    },
}

Splits = Callable[[str], Env]
"""The environment of a split."""


async def run(
    config: Config, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
) -> dict[str, Any]:
    """The whole recipe. Returns the summary that it also writes to the run's folder.

    A run that is finished is not done again; in one that was interrupted, games that are on disk
    are taken from there.
    """
    if (finished := folder.summary()) is not None:
        return finished
    started = time.perf_counter()
    check(config)
    phases = Phases(config, folder, progress, box)

    def split(name: str) -> Env:
        return envs.make(config.env, split=name, seed=config.seed, **config.env_options)

    for name in config.held_out:
        split(name)  # a name that is none is said now
    policy = load_policy(config.model, dtype=config.dtype, device=config.device)
    teacher = load_teacher(config, policy)
    before = await measure(phases, config, "before", policy, split)
    policy, facts = await learn(phases, config, policy, teacher, split("train"))
    after = await measure(phases, config, "after", policy, split)
    summary = {
        "recipe": "refine",
        "model": config.model,
        "env": config.env,
        "baseline": before["test"],
        "tuned": after["test"],
        **{s: {"baseline": before[s], "tuned": after[s]} for s in config.held_out},
        **facts,
        "timings": folder.timings,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    return await conclude(config, folder, policy, summary, started)


def check(config: Config) -> None:
    """Raise ConfigError for settings that cannot be, before anything is sampled."""
    training(config)
    for name in ("n", "eval_n", "max_tokens", "min_errors"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} must be at least 1, not {getattr(config, name)}")
    if config.cap < 0 or config.temperature < 0:
        raise ConfigError("cap and temperature are not negative")
    if config.games == "synthesized" and config.keep not in ("refined", "unmasked"):
        raise ConfigError(f"keep={config.keep!r}: synthesized games all have mistakes and repairs")


def load_teacher(config: Config, policy: Policy) -> Policy | None:
    """Who plays the games, None for the policy itself."""
    if not config.teacher:
        return None
    teacher: Policy = load_policy(config.teacher)
    if isinstance(teacher, ScriptedPolicy):
        teacher.tokenizer = policy.tokenizer  # so that a limit means the same to both
    return teacher


async def learn(
    phases: Phases, config: Config, policy: Any, teacher: Policy | None, env: Env
) -> tuple[Any, dict[str, Any]]:
    """Games on `env`, or made-up ones, and the policy tuned on what is chosen of them. Returns it,
    with facts."""
    if config.games == "synthesized":
        making = envs.make("scenarios", seed=config.seed, min_errors=config.min_errors)
        rollout = synthesize(game_temperature=config.temperature, max_tokens=config.script_tokens)
        trees = await phases.collect("games", making, rollout, teacher or policy, n=config.n)
    else:
        rollout = game(max_tokens=config.max_tokens, teacher=teacher)
        trees = await phases.collect(
            "games", env, rollout, policy, n=config.n, temperature=config.temperature
        )
    graded = evaluate.final(trees)
    rows, dropped = choose(config, graded, Chat(policy.tokenizer))
    fitting = [row for row in rows if len(row.token_ids) <= policy.max_context]
    dropped["longer than the context"] = len(rows) - len(fitting)
    policy, trained = await phases.fine_tune("tuned", policy, fitting)
    selection = {"kept": len(fitting), "dropped": dict(+dropped)}
    return policy, {"games": results(graded), "selection": selection, "training": trained}


def choose(
    config: Config, graded: Sequence[Graded], chat: Chat
) -> tuple[list[Sample], Counter[str]]:
    """The rows to train on, and why the other games are left out."""
    cap = config.cap or None
    mask = config.keep != "unmasked"
    if config.games == "synthesized":
        found, dropped = refine.scenarios(graded)
        return [refine.scenario_sample(one, chat, mask=mask) for one in found[:cap]], dropped
    if config.keep == "feedback":
        rows = faft.rows(graded, chat, cap=cap)
        return rows, Counter({"no partner": len(graded) - len(rows)})
    keep = "refined" if config.keep == "unmasked" else config.keep
    chosen = refine.select(graded, keep, min_errors=config.min_errors, cap=cap)
    return chosen.samples(mask=mask), chosen.dropped


async def measure(
    phases: Phases, config: Config, phase: str, policy: Policy, split: Splits
) -> dict[str, dict[str, Any]]:
    """Results of greedy games on the test split and those held out."""
    rollout: Rollout = game(max_tokens=config.max_tokens)
    if config.keep == "feedback" and phase == "after":
        rollout = conditioned(rollout)
    found = {}
    for name in ("test", *config.held_out):
        trees = await phases.collect(
            f"{phase}_{name}", split(name), rollout, policy, n=config.eval_n
        )
        found[name] = results(evaluate.final(trees))
    return found


def results(graded: Sequence[Graded]) -> dict[str, Any]:
    """Success with its interval, and means over the games: `progress` (the share of sub-goals
    reached) and `errors` (wrong turns)."""
    valid = [a for _, a in graded if a.error is None]
    means = {
        name: round(sum(a.metrics[name] or 0.0 for a in valid) / max(len(valid), 1), 4)
        for name in ("progress", "errors", "played")
    }
    return evaluate.summarize(graded) | means

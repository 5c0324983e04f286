"""AgentRefine against plain trajectory tuning, on houses in which nothing lies where it should.

A player makes games in houses where most things lie where they usually do. Plain: games without a
mistake, so that the model learns where to look, and never sees that it was wrong. Refined: as many
games with mistakes and their repairs, the mistakes without loss. Unmasked: the same games, with
loss on the mistakes, too. The held-out houses have nothing in its usual place: whoever cannot go on
after a mistake is lost there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import envs
from agentrl.claims import Claim, Effect
from agentrl.claims.base import fresh, policy
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.recipes import refine
from agentrl.recipes._phases import Phases
from envs.rooms.player import MISTAKES, player

ARMS: Mapping[str, str] = {"plain": "clean", "refined": "refined", "unmasked": "unmasked"}
"""Which games each arm keeps."""
BUDGET = 10
"""Actions in a game that is measured; with no mistake, two to seven are needed."""


def config(seed: int, **changes: Any) -> refine.Config:
    """The recipe's settings for a tiny model."""
    values: dict[str, Any] = {
        "model": "tiny",
        "env_options": {"style": "compact"},
        "held_out": ("mislaid", "moved", "reworded"),
        "n": 870,
        "cap": 600,
        "eval_n": 200,
        "seed": seed,
        "max_tokens": 8,
        "lr": 5e-3,
        "epochs": 12,
        "batch_size": 32,
        "train_dtype": "fp32",
        "concurrency": 256,
    }
    return refine.Config(**(values | changes))


def run(seed: int, folder: Path, **changes: Any) -> dict[str, dict[str, float]]:
    """Each arm's results on test and held-out splits."""
    return {arm: asyncio.run(_arm(arm, seed, folder / arm, changes)) for arm in ARMS}


async def _arm(arm: str, seed: int, path: Path, changes: Mapping[str, Any]) -> dict[str, float]:
    chosen = config(seed, keep=ARMS[arm], **changes)
    tokenizer = CharTokenizer()
    phases = Phases(chosen, RunFolder(path, settings(chosen), resume=True), False, None)
    student = policy(fresh(tokenizer, seed, hidden=64, layers=2), tokenizer)
    play = player(0.0 if arm == "plain" else MISTAKES, seed)
    teacher = ScriptedPolicy(play, tokenizer=tokenizer)
    student, facts = await refine.learn(phases, chosen, student, teacher, _rooms(seed, 16)("train"))
    found = await refine.measure(phases, chosen, "after", student, _rooms(seed, BUDGET))
    await student.close()
    metrics = {"games": float(facts["selection"]["kept"])}
    for split, result in found.items():
        metrics |= {
            f"{split}.success": result["accuracy"],
            f"{split}.progress": result["progress"],
            f"{split}.errors": result["errors"],
        }
    return metrics


def _rooms(seed: int, budget: int) -> refine.Splits:
    return lambda split: envs.make("rooms", split=split, style="compact", seed=seed, budget=budget)


CLAIM = Claim(
    name="agentrefine",
    paper="arXiv 2501.01702",
    says="Tuned on trajectories with mistakes and repairs (mistakes without loss), an agent does "
    "better on environments it was not tuned on than one tuned on trajectories without mistakes.",
    task="Rooms, compact: find a thing and bring it where it belongs. Models of 0.1 million "
    "parameters from scratch, 600 games each; held out: nothing lies where it usually does.",
    effects=(
        Effect(
            "held out: more games won than by plain tuning",
            "refined.mislaid.success",
            "plain.mislaid.success",
        ),
        Effect(
            "held out: more progress than by plain tuning",
            "refined.mislaid.progress",
            "plain.mislaid.progress",
        ),
        Effect("held in: not hurt", "refined.test.success", "plain.test.success", margin=0.02),
        Effect(
            "held out: more games won than without the mask",
            "refined.mislaid.success",
            "unmasked.mislaid.success",
        ),
        Effect(
            "held out: fewer wrong turns than without the mask",
            "refined.mislaid.errors",
            "unmasked.mislaid.errors",
            sign=-1,
        ),
        Effect(
            "moved furniture: more games won than by plain tuning",
            "refined.moved.success",
            "plain.moved.success",
        ),
        Effect(
            "other words: more games won than by plain tuning",
            "refined.reworded.success",
            "plain.reworded.success",
        ),
    ),
    run=run,
)

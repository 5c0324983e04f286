"""From scratch on a CPU in seconds: the reward of a tiny model rises, by every kind of method."""

from __future__ import annotations

import asyncio
import json

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from rl_toys import LETTERS, NextLetter, policy  # noqa: E402

from agentrl.config import RunFolder, settings  # noqa: E402
from agentrl.recipes import grpo, ppo, rloo  # noqa: E402

CHANCE = 1 / len(LETTERS)


def learnt(recipe, seed: int, folder, **changes):
    """The metrics of a run, one row a step, and its summary."""
    options = {"n": 4, "prompts": 4, "group": 16, "eval_n": 4, "max_tokens": 4, "lr": 1e-3}
    config = recipe.Config(seed=seed, save_every=0, train_dtype="fp32", **(options | changes))
    run = RunFolder(folder, settings(config), resume=False)
    env = NextLetter()
    tiny = policy(seed)
    assert 200_000 < tiny.model.num_parameters() < 3_000_000
    summary = asyncio.run(grpo.learn(config, tiny, env, env, run, progress=False))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, summary


def rewards(rows, part: slice) -> float:
    found = [row["reward"] for row in rows[part]]
    return sum(found) / len(found)


def test_grpo_learns_whatever_the_seed(tmp_path):
    for seed in (0, 1, 2):
        rows, summary = learnt(grpo, seed, tmp_path / str(seed), steps=50)
        assert rewards(rows, slice(0, 3)) < CHANCE + 0.15
        assert rewards(rows, slice(-5, None)) > 0.7
        assert summary["tuned"]["accuracy"] >= 0.75
        assert max(row.get("logprob_diff_max", 0) for row in rows) < 1e-4
        assert rows[0]["entropy"] > rows[-1].get("entropy", 0)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (rloo, {"kl": 0.01}),
        (ppo, {"kl": 0.01}),
        (grpo, {"method": "dapo", "epochs": 2}),
        (grpo, {"method": "dr_grpo", "kl": 0.01, "temperature": 1.2}),
    ],
    ids=["rloo", "ppo", "dapo", "dr_grpo"],
)
def test_its_relatives_learn(recipe, changes, tmp_path):
    rows, _ = learnt(recipe, 0, tmp_path / "run", steps=30, **changes)
    assert rewards(rows, slice(-5, None)) > rewards(rows, slice(0, 3)) + 0.35

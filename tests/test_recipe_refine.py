"""The recipe refine end to end on a tiny model, and its claim's parts."""

from __future__ import annotations

import asyncio
import json

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import agentrefine
from agentrl.claims.base import fresh, policy
from agentrl.config import RunFolder, build, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import AgentRLWarning, ConfigError
from agentrl.recipes import refine
from agentrl.select.rows import path_sample
from tests.envs.test_scenarios import SCRIPT, game

TOKENIZER = CharTokenizer()
TINY = {
    "model": "tiny",
    "env_options": {"style": "compact", "budget": 8},
    "held_out": ["mislaid"],
    "n": 24,
    "eval_n": 4,
    "max_tokens": 6,
    "lr": 5e-3,
    "epochs": 2,
    "batch_size": 8,
    "train_dtype": "fp32",
}


def run(monkeypatch, path, *, positions=256, **changes):
    real = refine.load_policy

    def load(name, **options):
        tiny = name == "tiny"
        if not tiny:
            return real(name, **options)
        model = fresh(TOKENIZER, 0, hidden=16, max_positions=positions)
        return policy(model, TOKENIZER)

    monkeypatch.setattr(refine, "load_policy", load)
    config = build(refine.Config, TINY | changes)
    folder = RunFolder(path, settings(config), resume=True)
    return asyncio.run(refine.run(config, folder, progress=False))


@pytest.mark.parametrize("keep", ["refined", "clean", "feedback"])
def test_a_run_leaves_a_summary_trees_and_a_model(monkeypatch, tmp_path, keep):
    summary = run(monkeypatch, tmp_path, keep=keep)
    for phase in (summary["baseline"], summary["tuned"], summary["mislaid"]["tuned"]):
        assert phase["n"] == 4
        assert 0 <= phase["progress"] <= 1
        assert phase["errors"] > 0
    assert summary["games"]["accuracy"] > 0.5, "the teacher plays well"
    kept = summary["selection"]["kept"]
    assert kept == summary["training"]["samples"] > 0
    if keep == "refined":
        assert kept + sum(summary["selection"]["dropped"].values()) == 24
    assert (tmp_path / "model" / "config.json").exists()
    again = run(monkeypatch, tmp_path, keep=keep)
    assert again == json.loads((tmp_path / "summary.json").read_text())


def test_what_the_teacher_says_is_in_the_students_tokens(monkeypatch, tmp_path):
    run(monkeypatch, tmp_path)
    from agentrl.store import load

    trees = list(load(tmp_path / "trees" / "games"))
    assert len(trees) == 24
    for tree in trees:
        sources = {n.source for n in tree.nodes}
        assert sources == {"template", "hint", "environment"}
        sample = path_sample(tree, tree.attempts[-1])
        said = [i for i, w in zip(sample.token_ids, sample.weights, strict=True) if w]
        assert TOKENIZER.decode(said).startswith("!")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"n": 0}, "n must be"), ({"cap": -1}, "cap"), ({"held_out": ["nowhere"]}, "nowhere")],
)
def test_settings_that_cannot_be_are_said_first(monkeypatch, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run(monkeypatch, tmp_path, **changes)


def test_the_claim_runs_on_the_recipe(tmp_path):
    small = {"n": 12, "cap": 6, "eval_n": 2, "epochs": 1, "held_out": ("mislaid",)}
    metrics = agentrefine.run(100, tmp_path, **small)
    assert set(metrics) == set(agentrefine.ARMS)
    assert {"test.success", "mislaid.success", "mislaid.errors"} <= set(metrics["plain"])
    named = {e.left for e in agentrefine.CLAIM.effects} | {
        e.right for e in agentrefine.CLAIM.effects
    }
    arms = {name.partition(".")[0] for name in named}
    assert arms <= set(agentrefine.ARMS)


def test_synthesized_games_are_learnt_from(monkeypatch, tmp_path):
    script, turns = json.dumps(SCRIPT), json.dumps(game(True, False, False, True))
    teacher = ScriptedPolicy(lambda text: turns if "Now play" in text else script)
    monkeypatch.setattr(refine, "load_teacher", lambda config, policy: teacher)
    settings = {"games": "synthesized", "n": 3, "max_tokens": 4, "script_tokens": 4000}
    summary = run(monkeypatch, tmp_path / "long", positions=512, **settings, min_errors=2)
    assert summary["selection"] == {"kept": 1, "dropped": {"duplicate": 2}}
    assert summary["training"]["samples"] == 1
    with pytest.warns(AgentRLWarning, match="no trajectory is left"):
        summary = run(monkeypatch, tmp_path / "short", **settings, min_errors=2)
    dropped = {"duplicate": 2, "longer than the context": 1}
    assert summary["selection"] == {"kept": 0, "dropped": dropped}
    with pytest.raises(ConfigError, match="mistakes and repairs"):
        run(monkeypatch, tmp_path / "other", **settings, keep="clean")

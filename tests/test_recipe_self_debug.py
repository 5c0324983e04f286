"""LeDex's recipe from scratch on a CPU in seconds, from the claim's own parts."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl import recipes  # noqa: E402
from agentrl.checkpoint import MetricsLog  # noqa: E402
from agentrl.claims import ledex as claim  # noqa: E402
from agentrl.claims.base import fresh, imitate, policy, rows  # noqa: E402
from agentrl.cli import main  # noqa: E402
from agentrl.config import RunFolder, build, settings  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.recipes import self_debug  # noqa: E402
from agentrl.select.rows import read  # noqa: E402
from agentrl.select.similarity import mean_cosine  # noqa: E402
from agentrl.store import load, load_all  # noqa: E402

SIZE = claim.Size(
    length=4,
    base_rows=256,
    base_steps=120,
    n=12,
    eval_n=8,
    samples=2,
    refinements=2,
    epochs=2,
    rl_steps=3,
    prompts=8,
)


@pytest.fixture(scope="module")
def base():
    model = fresh(claim.TOKENIZER, 0, layers=1, max_positions=96)
    talks = claim.demonstrations(0, SIZE)
    return imitate(model, rows(claim.TOKENIZER, talks), steps=SIZE.base_steps)


def learn(base, folder, *, resume=False, **changes):
    config = replace(claim.config_of(0, SIZE), save_every=1, keep_checkpoints=True, **changes)
    learning = self_debug.learn(
        config,
        policy(copy.deepcopy(base), claim.TOKENIZER),
        claim.env_of("train", 0, SIZE),
        claim.env_of("test", 0, SIZE),
        RunFolder(folder, settings(config), resume=resume),
        teacher=claim.teacher(0),
        embed=claim.places,
        asks=claim.ASKS,
        progress=False,
    )
    return asyncio.run(learning)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "ledex"
    return learn(base, folder), folder


def test_it_measures_before_between_and_after(run):
    summary, _ = run
    for stage in ("baseline", "sft", "tuned"):
        assert summary[stage]["first"]["n"] == 8
        for kind in ("refine", "explain"):
            own = summary[stage][kind]
            assert own["n"] == 8
            wrong = own["refined"]["n"]
            assert wrong <= 8 - round(8 * summary[stage]["first"]["accuracy"])


def test_the_rows_are_what_was_verified(run):
    summary, _ = run
    kept = summary["selection"]
    assert kept["repaired"] > 0
    assert kept["rows"]["plain"] == kept["right"]
    assert kept["rows"]["refine"] >= kept["repaired"]
    assert summary["training"]["sft"]["samples"] == sum(kept["rows"].values())


def test_a_step_of_rl_answers_both_instructions_and_rewards_both_parts(run):
    summary, folder = run
    trees = load_all(folder / "trees")
    assert {f"step_0000{i}_{kind}" for i in (1, 2, 3) for kind in ("refine", "explain")} < set(
        trees
    )
    log = MetricsLog(folder / "metrics.jsonl").read()
    assert [row["step"] for row in log] == [1, 2, 3]
    assert all(row["refinement"] != 0 for row in log)
    assert any(row["explanation"] != 0 for row in log)
    assert all(row["value_loss"] >= 0 for row in log)
    assert log[0]["logprob_diff_max"] < 1e-3, "trainer and sampler agree"
    assert summary["training"]["rl"]["steps"] == 3


def test_an_interrupted_run_ends_like_one_that_was_not(run, base, tmp_path, monkeypatch):
    summary, _ = run
    steps = []

    def dying(*arguments, **options):
        steps.append(options["number"])
        if len(steps) == 2:
            raise KeyboardInterrupt
        return update(*arguments, **options)

    update = self_debug.update
    monkeypatch.setattr(self_debug, "update", dying)
    with pytest.raises(KeyboardInterrupt):
        learn(base, tmp_path / "run")
    again = learn(base, tmp_path / "run", resume=True)
    assert steps == [1, 2, 2, 3]
    for name in ("baseline", "sft", "tuned", "selection"):
        assert again[name] == summary[name]


def test_the_teachers_trees_become_rows_on_the_command_line(run, tmp_path, capsys):
    summary, folder = run
    source, target = str(folder / "trees" / "refinements"), tmp_path / "rows.jsonl"
    assert main(["select", "ledex", source, str(target), "mark='>'", "--policy", "scripted"]) == 0
    rows = summary["selection"]["rows"]
    assert len(read(target)) == rows["refine"] + rows["explain"]
    assert "dropped" in capsys.readouterr().out
    assert main(["select", "ledex", source, str(target), "explain=false", "mark='>'"]) == 0
    assert len(read(target)) == rows["refine"], "a student with another tokenizer"


def test_without_explanations_only_refinements_are_trained_and_measured(base, tmp_path):
    summary = learn(base, tmp_path / "run", explain="never", rl_steps=0)
    assert summary["selection"]["rows"].keys() == {"plain", "refine"}
    assert summary["tuned"] == summary["sft"]
    assert summary["tuned"].keys() == {"first", "refine"}
    assert not list((tmp_path / "run" / "trees").glob("step_*"))


def test_first_programs_can_be_trained_by_rl_too(base, tmp_path):
    learn(base, tmp_path / "run", rl_programs=True, rl_steps=1)
    trees = load_all(tmp_path / "run" / "trees")
    assert len(trees["step_00001_programs"]) == len(trees["step_00001_refine"]) == 8
    assert all(len(t.attempts[-1].metrics["turns"]) == 1 for t in trees["step_00001_programs"])


def test_it_is_a_recipe_with_presets():
    recipe = recipes.get("self_debug")
    assert recipe.summary.startswith("LeDex")
    for preset in recipe.presets.values():
        self_debug.check(build(recipe.config, preset))
    paper = build(recipe.config, recipe.presets["paper"])
    assert (paper.samples, paper.refinements, paper.epochs, paper.batch_size) == (20, 10, 2, 128)
    assert (paper.lr, paper.rl_lr, paper.prompts, paper.rl_programs) == (2e-5, 2e-6, 64, True)


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="samples"):
        self_debug.check(self_debug.Config(samples=0))
    with pytest.raises(ConfigError, match="kl"):
        self_debug.check(self_debug.Config(kl=-1.0))


def test_the_claim_names_what_it_measures(run):
    summary, _ = run
    metrics = {arm: claim.shown(summary[name]) for arm, name in claim.ARMS.items()}
    for effect in claim.CLAIM.effects:
        assert isinstance(effect.difference(metrics), float)


def test_the_teacher_is_often_wrong_and_always_explains(run):
    _, folder = run
    trees = list(load(folder / "trees" / "refinements"))
    said = [tree.attempts[-1].metrics["turns"][-1]["text"] for tree in trees]
    grades = [tree.attempts[-1].reward for tree in trees]
    assert 0 < sum(grades) < len(grades)
    assert all(text.count(claim.MARK) == 1 for text in said)


def test_explanations_are_alike_by_the_places_in_which_they_agree():
    assert mean_cosine("123", ["123", "124", "999"], claim.places) == pytest.approx((1 + 2 / 3) / 3)

"""The MCTS-DPO recipe from scratch on a CPU in seconds: searches, pairs, one reference, resume."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import random

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

import envs  # noqa: E402
from agentrl.chat import Chat  # noqa: E402
from agentrl.claims.base import fresh, imitate, policy, rows  # noqa: E402
from agentrl.config import RunFolder, settings  # noqa: E402
from agentrl.engines.characters import CharTokenizer  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.recipes import mcts_dpo  # noqa: E402
from agentrl.store import load  # noqa: E402
from agentrl.tree import Tree  # noqa: E402
from agentrl.types import Attempt  # noqa: E402

TOKENIZER = CharTokenizer()


@functools.cache
def guessing():
    """A model that writes the form of an answer to a chain of two, and guesses at its digits."""
    rng = random.Random(0)
    talks = []
    for task in envs.make("chains", kinds=["2+-"], n=60).tasks() * 2:
        said = f":{rng.randint(0, 9)},{rng.randint(0, 9)}"
        talks.append([("user", task.prompt[0].content), ("assistant", said)])
    model = fresh(TOKENIZER, 0, hidden=32, layers=1, max_positions=32)
    return imitate(model, rows(TOKENIZER, talks), steps=60)


OPTIONS = {
    "search": {"step_tokens": 2, "judge": "none", "b1": 4, "b2": 4, "iterations": 4},
    "iterations": 2,
    "n": 12,
    "prompts": 6,
    "eval_n": 4,
    "max_tokens": 8,
    "lr": 1e-3,
    "batch_size": 8,
    "train_dtype": "fp32",
}


def learnt(folder, *, resume=False, **changes):
    config = mcts_dpo.Config(**(OPTIONS | changes))
    run = RunFolder(folder, settings(config), resume=resume)
    train_env, test_env = (envs.make("chains", split=s, kinds=["2+-"]) for s in ("train", "test"))
    student = policy(copy.deepcopy(guessing()), TOKENIZER)
    return asyncio.run(mcts_dpo.learn(config, student, train_env, test_env, run, progress=False))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def versions(folder, iteration):
    trees = load(folder / "trees" / f"iteration_{iteration:04d}")
    return {n.policy_version for t in trees for n in t.nodes if n.source == "policy"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mcts") / "run"
    return folder, learnt(folder)


def test_each_iteration_searches_with_the_policy_as_it_is(run):
    folder, summary = run
    first, second = metrics(folder)
    assert first["pairs"] > 0
    assert first["searches"] == second["searches"] == 6
    assert versions(folder, 1) != versions(folder, 2)
    assert summary["selection"]["pairs"] == first["pairs"] + second["pairs"]
    assert summary["baseline"]["n"] == summary["tuned"]["n"] == 4
    assert (folder / "model" / "config.json").exists()


def test_an_interrupted_run_ends_as_if_it_had_not_been(run, tmp_path, monkeypatch):
    search = mcts_dpo._search

    async def interrupted(*args):
        if args[-1] == 1:
            raise KeyboardInterrupt
        return await search(*args)

    monkeypatch.setattr(mcts_dpo, "_search", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learnt(tmp_path / "run")
    monkeypatch.undo()
    folder, whole = run
    summary = learnt(tmp_path / "run", resume=True)
    assert summary["resumed"]
    times = ("seconds", "tokens_per_s")
    for ours, theirs in zip(metrics(tmp_path / "run"), metrics(folder), strict=True):
        assert {k: v for k, v in ours.items() if k not in times} == {
            k: v for k, v in theirs.items() if k not in times
        }, "the reference, too, is the model before the run"
    assert summary["tuned"] == whole["tuned"]


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_off_policy_every_tree_is_the_starts(tmp_path):
    learnt(tmp_path / "run", on_policy=False)
    assert versions(tmp_path / "run", 1) == versions(tmp_path / "run", 2)


def test_pairs_of_whole_answers_at_an_equal_count(tmp_path):
    for origin in ("siblings", "leaves"):
        folder = tmp_path / origin
        learnt(folder, origin=origin, max_pairs=2, right_only=False, iterations=1)
        assert metrics(folder)[0]["pairs"] == 2


def test_a_search_that_failed_is_counted_and_makes_no_pair(run):
    folder, _ = run
    trees = list(load(folder / "trees" / "iteration_0001"))
    failed = Tree(trees[0].task)
    root = failed.add(None, "user", "template", [1])
    failed.attempts.append(Attempt(root.id, "engine_error", error="the engine is down"))
    config, chat = mcts_dpo.Config(right_only=False), Chat(TOKENIZER)
    alone = mcts_dpo._pairs(config, trees, chat, 0)
    made = mcts_dpo._pairs(config, [failed, *trees], chat, 0)
    assert len(made.pairs) == len(alone.pairs) > 0
    row = mcts_dpo._measured([failed, *trees], made)
    assert row["failure_rate"] == pytest.approx(1 / 7)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"beta": 0.0}, "beta"),
        ({"prompts": 600}, "n is too small"),
        ({"cap": 0}, "cap is at least 1"),
        ({"max_pairs": -1}, "not negative"),
        ({"origin": "attempts"}, "origin"),
        ({"search": {"unit": "word"}}, "unit"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, cause):
    with pytest.raises(ConfigError, match=cause):
        mcts_dpo.check(mcts_dpo.Config(**changes))


def test_the_presets_are_settings_of_the_recipe():
    for preset in mcts_dpo.PRESETS.values():
        mcts_dpo.check(mcts_dpo.Config(**preset))

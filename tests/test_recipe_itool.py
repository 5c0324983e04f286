"""The iTool recipe end to end, on a tiny model: what it makes, that it resumes, what it refuses."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

import envs
from agentrl import config as settings
from agentrl.claims.base import fresh
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.hf import HFPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.recipes import itool
from agentrl.store import load_all

MARKS = ("<|tool_call_start|>", "<|tool_call_end|>")
SMALL = itool.Config(
    model="tiny",
    n=9,
    eval_n=3,
    levels=2,
    warmup_lr=3e-3,
    warmup_epochs=2,
    rounds=2,
    iterations=6,
    depth=4,
    max_tokens=48,
    temperature=1.0,
    lr=1e-3,
    train_dtype="fp32",
)


def env(split, **options):
    given = {"source": "toy", "notation": "python", "tools_in": "nowhere", "seed": 0}
    return envs.make("functions", split=split, kinds=["parallel", "multiple"], **given | options)


def folder(path, config, resume):
    return settings.RunFolder(path, settings.settings(config), resume=resume)


def learn(path, config=SMALL, resume=False, train_env=None):
    tokenizer = CharTokenizer(MARKS)
    policy = HFPolicy(fresh(tokenizer, 0, hidden=32, layers=1), tokenizer, name="tiny")
    return asyncio.run(
        itool.learn(
            config,
            policy,
            train_env or env("train"),
            env("test"),
            folder(path, config, resume),
            progress=False,
        )
    )


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A garbage collection around each training takes longer than all else here."""
    monkeypatch.setattr("agentrl.recipes._phases.give_memory_back", lambda: None)


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_a_run_that_is_stopped_in_a_round_goes_on_there(tmp_path, monkeypatch):
    whole = learn(tmp_path / "whole")
    assert whole["selection"] == {"demonstrations": 9, "dropped": {}}
    first, second = whole["training"]["warmup"]
    assert first["difficulty"][1] <= second["difficulty"][0], "from easy to hard"
    assert (first["samples"], second["samples"]) == (4, 9), "the second level beside the first"
    rounds = whole["training"]["rounds"]
    assert [r["tasks"] for r in rounds] == [2, 2]
    assert all(r["with_calls"] == 2 for r in rounds)
    assert all(r["perplexity_chosen"] > r["perplexity"] > 1 for r in rounds)
    assert whole["tuned"] == rounds[-1]["measured"]
    assert sum(r["selection"]["pairs"] for r in rounds) > 0
    searched = load_all(tmp_path / "whole" / "trees")["round_1"]
    assert all(t.meta["search"]["strategy"] == "itool" for t in searched)
    assert all(a.metrics["saw_reference"] for t in searched for a in t.attempts)

    real, made = itool.preferences, []

    async def stopped(*args):
        made.append(args)
        if len(made) == 2:
            raise KeyboardInterrupt
        return await real(*args)

    monkeypatch.setattr(itool, "preferences", stopped)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "run")
    monkeypatch.setattr(itool, "preferences", real)
    again = learn(tmp_path / "run", resume=True)
    assert again["resumed"]
    for name in ("baseline", "fitted", "tuned", "selection"):
        assert again[name] == whole[name], name
    assert [r["selection"] for r in again["training"]["rounds"]] == [r["selection"] for r in rounds]


class Heard:
    """Phases that note what would be trained on."""

    def __init__(self):
        self.trained = []

    async def fine_tune(self, name, policy, rows, **changes):
        self.trained.append((name, "".join(rows)))
        return policy, {"samples": len(rows)}


@pytest.mark.parametrize(
    ("cumulative", "stages"), [(True, ["a", "ab", "abc"]), (False, ["a", "b", "c"])]
)
def test_a_level_is_trained_beside_those_before_it_or_alone(cumulative, stages):
    task = env("train").tasks(1)[0]
    calls = {"c": "f(), f(), f()", "a": "f()", "b": "f(), f()"}
    turns = [f"{MARKS[0]}[{made}]{MARKS[1]}" for made in calls.values()]
    kept = [(SimpleNamespace(task=replace(task, data={"reference": t})), None) for t in turns]
    shown = SimpleNamespace(kept=kept, rows=lambda: list(calls))
    phases, policy = Heard(), SimpleNamespace(tokenizer=CharTokenizer(MARKS))
    config = replace(SMALL, levels=3, cumulative=cumulative)
    asyncio.run(itool.warm_up(phases, config, policy, shown))
    assert phases.trained == [(f"level_{i}", rows) for i, rows in enumerate(stages, start=1)]


class Unplayable:
    """Tasks whose right turn is not right."""

    name, tools = "unplayable", ()

    def __init__(self, data):
        self.env, self.data = env("train"), data

    def tasks(self, n=None):
        return [replace(t, data=t.data | self.data) for t in self.env.tasks(n)]

    def open(self, task, box):
        return self.env.open(task, box)


def test_right_turns_that_are_not_right_are_refused(tmp_path):
    config = replace(SMALL, n=3, eval_n=0)
    with pytest.raises(DataError, match="is right when it is played"):
        learn(tmp_path / "a", config, train_env=Unplayable({"reference": "nothing"}))
    with pytest.raises(ConfigError, match="no reference answer"):
        learn(tmp_path / "b", config, train_env=env("train", mode="conversation"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, "the same fragment every time"),
        ({"levels": 0}, "levels is at least 1"),
        ({"rounds": -1}, "not negative"),
        ({"share": 0.0}, "share is above 0"),
        ({"width": 0}, "width is 1 or more"),
        ({"warmup_epochs": 0}, "epochs must be positive"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        itool.check(replace(SMALL, **changes))


def test_the_loss_is_the_one_that_the_settings_name():
    simpo, dpo = itool.preference(SMALL), itool.preference(replace(SMALL, loss="dpo"))
    assert (simpo.keywords, dpo.keywords) == ({"beta": 2.5, "gamma": 0.5}, {"beta": 2.5})


@pytest.mark.parametrize("preset", itool.PRESETS)
def test_presets_can_be(preset):
    config = settings.build(itool.Config, itool.PRESETS[preset])
    itool.check(config)
    assert json.dumps(settings.settings(config))

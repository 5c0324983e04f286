"""The TL-Training recipe end to end, with a tiny model and tools for it."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl import config as settings
from agentrl.chat import Chat
from agentrl.claims.base import fresh
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.hf import HFPolicy
from agentrl.errors import ConfigError
from agentrl.recipes import tl_training
from agentrl.store import load_all

MARKS = ("<|tool_call_start|>", "<|tool_call_end|>")
SMALL = tl_training.Config(
    model="tiny",
    env_options={"source": "toy", "tools_in": "template", "notation": "python"},
    n=12,
    eval_n=5,
    max_tokens=16,
    rl_steps=2,
    rl_prompts=4,
    lr=1e-3,
    train_dtype="fp32",
)


def folder(path, config=SMALL, resume=False):
    kept = {"recipe": "tl_training", **settings.settings(config)}
    return settings.RunFolder(path, kept, resume=resume)


def learn(path, config=SMALL, resume=False):
    tokenizer = CharTokenizer(MARKS)
    policy = HFPolicy(fresh(tokenizer, 0, max_positions=512), tokenizer, name="tiny")
    return asyncio.run(
        tl_training.learn(config, policy, folder(path, config, resume), progress=False)
    )


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_a_run_and_its_resumption(tmp_path):
    summary = learn(tmp_path / "run")
    assert {"baseline", "fitted", "tuned"} <= summary.keys()
    assert summary["baseline"]["n"] == 5
    assert sum(summary["baseline"]["classes"].values()) >= 5
    chosen = summary["selection"]
    assert chosen["conversations"] == 12
    assert chosen["dropped"] == {"its call failed": 8}
    assert summary["training"]["sft"]["samples"] == chosen["kept"]
    assert summary["training"]["ppo"]["steps"] == 2
    assert summary["training"]["ppo"]["reward_last"] < 0
    trees = load_all(tmp_path / "run" / "trees")
    assert {"before", "teacher", "after_sft", "after", "step_00001", "step_00002"} <= trees.keys()
    rows = [json.loads(s) for s in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["logprob_diff_max"] < 1e-3
    (tmp_path / "run" / "summary.json").unlink()
    again = learn(tmp_path / "run", resume=True)
    for name in ("baseline", "fitted", "tuned", "selection"):
        assert again[name] == summary[name], name


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_a_run_that_stops_during_ppo_goes_on_there(tmp_path, monkeypatch):
    config = dataclasses.replace(SMALL, save_every=1, eval_n=0, keep_checkpoints=True)
    whole = learn(tmp_path / "whole", config)
    said = []

    def stop(text, progress):
        said.append(text)
        if len(said) == 2:
            raise InterruptedError

    monkeypatch.setattr(tl_training, "say", stop)
    with pytest.raises(InterruptedError):
        learn(tmp_path / "run", config)
    again = learn(tmp_path / "run", config, resume=True)
    assert [text[:9] for text in said] == ["step 1/2 ", "step 2/2 ", "step 2/2 "]
    assert again["training"]["ppo"] == whole["training"]["ppo"]
    first, second = (
        [json.loads(s)["kl_old"] for s in (tmp_path / name / "metrics.jsonl").open()]
        for name in ("whole", "run")
    )
    assert second == pytest.approx(first, abs=1e-4)


def test_conversations_from_a_file(tmp_path):
    call = {"function": {"name": "get", "arguments": '{"a": 1}'}}
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "one"},
        ],
        "tools": [{"function": {"name": "get", "parameters": {"type": "object"}}}],
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tree,) = tl_training.conversations(tmp_path / "a.jsonl", Chat(CharTokenizer()))
    text = CharTokenizer().decode(tree.ids(tree.attempts[0].leaf))
    assert text == (
        '<|tool|>get<|end|><|user|>q<|end|><|assistant|><tool_call>\n{"name": "get", "arguments": '
        '{"a": 1}}\n</tool_call><|end|><|tool|>1<|end|><|assistant|>one<|end|>'
    )
    assert [f["name"] for f in tree.task.data["functions"]] == ["get"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 4, "rl_prompts": 8}, "n is too small"),
        ({"wrong": 0.9}, "0 to 0.5"),
        ({"lora": 4}, "rl_steps=0"),
        ({"kl": -1.0}, "not negative"),
        ({"env_options": {"mode": "call"}}, "recipe's own"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        tl_training.check(tl_training.Config(**changes))


def test_the_presets_can_be():
    for preset in tl_training.PRESETS.values():
        tl_training.check(settings.build(tl_training.Config, preset))

"""Online DPO on a tiny model: it learns, by any judge, holds to its start, and resumes."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from rl_toys import NextLetter, pretrained  # noqa: E402
from rl_toys import copied as policy  # noqa: E402

from agentrl.config import RunFolder, settings  # noqa: E402
from agentrl.engines.models import load_classifier  # noqa: E402
from agentrl.engines.scripted import ScriptedPolicy  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.recipes import online_dpo  # noqa: E402
from agentrl.select import rows  # noqa: E402

CONFIG = online_dpo.Config(
    iterations=2,
    n=4,
    prompts=4,
    samples=8,
    eval_n=0,
    reward_n=4,
    max_tokens=4,
    lr=5e-4,
    epochs=10,
    batch_size=4,
    reward_lr=2e-3,
    reward_epochs=30,
    train_dtype="fp32",
    concurrency=32,
)


def learn(config, path, one, resume=False, judge=None):
    folder = RunFolder(path, settings(config), resume=resume)
    env = NextLetter()
    return asyncio.run(online_dpo.learn(config, one, env, env, folder, judge=judge, progress=False))


class Alphabet:
    """Finds later letters better, whatever was asked."""

    async def prefers(self, context, a, b):
        return 0.9 if a > b else 0.1


def test_it_learns_holds_to_its_start_and_goes_on_when_it_was_interrupted(tmp_path, monkeypatch):
    held, real = [], online_dpo._train

    async def seen(phases, config, one, made, reference, number):
        result = await real(phases, config, one, made, reference, number)
        with reference.scorer() as scorer:
            held.append({n: p.clone() for n, p in scorer.model.state_dict().items()})
        return result

    monkeypatch.setattr(online_dpo, "_train", seen)
    one = policy()
    summary = learn(CONFIG, tmp_path / "whole", one)
    rewards = [row["answers"]["reward"] for row in summary["iterations"]]
    assert rewards[1] > rewards[0] + 0.1
    assert summary["iterations"][0]["pairs"]["pairs"] <= 4  # one a prompt at most
    start = pretrained().state_dict()
    assert len(held) == 2
    for state in held:
        assert all(torch.equal(state[name], start[name]) for name in start)
    assert not all(torch.equal(one.model.state_dict()[name], start[name]) for name in start)

    async def interrupted(phases, config, one, made, reference, number):
        if number == 2:
            raise KeyboardInterrupt
        return await real(phases, config, one, made, reference, number)

    monkeypatch.setattr(online_dpo, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(CONFIG, tmp_path / "cut", policy())
    monkeypatch.setattr(online_dpo, "_train", real)
    again = learn(CONFIG, tmp_path / "cut", policy(), resume=True)
    assert again["resumed"]
    for first, other in zip(summary["iterations"], again["iterations"], strict=True):
        assert first["answers"] == other["answers"]
        assert first["training"]["loss"] == other["training"]["loss"]


def test_answers_are_preferred_as_the_judge_says(tmp_path):
    config = replace(CONFIG, iterations=1, reward="mine", epochs=1, temperatures=(0.8, 1.2))
    summary = learn(config, tmp_path, policy(), judge=Alphabet())
    made = rows.read_pairs(tmp_path / "pairs" / "iteration_1.jsonl")
    assert made
    assert all(p.meta["texts"][0] > p.meta["texts"][1] for p in made)
    found = summary["iterations"][0]["answers"]
    assert found["attempts"] == 32
    assert 0 <= found["agreement"] < 1


def test_a_reward_model_is_trained_first(tmp_path):
    config = replace(CONFIG, reward="train", iterations=1)
    summary = learn(config, tmp_path, policy())
    assert summary["reward_model"]["accuracy"] > 0.9
    assert summary["iterations"][0]["answers"]["agreement"] > 0.9
    assert load_classifier(str(tmp_path / "reward"), device="cpu").config.num_labels == 1
    assert json.loads((tmp_path / "summary.json").read_text())["reward"] == "train"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompts": 8}, "too small"),
        ({"samples": 1}, "2 or more"),
        ({"temperatures": (1.0, 0.8, 0.6)}, "as many at each of 3"),
        ({"temperatures": (0.0,)}, "temperature 0"),
        ({"choice": "best"}, "choice 'best'"),
        ({"loss": "grpo"}, "loss of pairs"),
        ({"loss_options": {"betta": 1}}, "betta"),
        ({"reward": "some"}, "do not fit"),
        ({"reward": "train", "reward_n": 8}, "reward_n=8 of n=4"),
        ({"length_penalty": -1.0}, "at least 0"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        learn(replace(CONFIG, **wrong), tmp_path, ScriptedPolicy([]))

"""Reward models: trained on pairs and lists, and what is saved is what was trained."""

from __future__ import annotations

import math
import random

import pytest
import torch
import transformers

from agentrl.engines.models import load_classifier
from agentrl.errors import ConfigError, DataError
from agentrl.losses.reward_model import reward_model_loss
from agentrl.rewards.classifier import SequenceClassifier
from agentrl.train import TrainConfig
from agentrl.train.reward import Ranking, export_reward, train_reward
from agentrl.types import Pair, Sample
from tests.train.train_toys import tiny

GOOD = 7
HOW = {"lr": 5e-3, "batch_size": 8, "warmup_ratio": 0.0, "epochs": 4}


def answer(draw, good, **meta):
    """A prompt and an answer that ends with the token that counts, or with another."""
    words = [draw.randrange(8, 60) for _ in range(draw.randint(1, 5))]
    ids = [1, 2, 3, *words, GOOD if good else draw.randrange(8, 60)]
    return Sample(ids, [0.0] * 3 + [1.0] * (len(ids) - 3), meta=meta)


def pairs(n, seed=0, margin=0.0):
    draw = random.Random(seed)
    return [Pair(answer(draw, True), answer(draw, False), margin=margin) for _ in range(n)]


def lists(prompts, seed=0):
    draw = random.Random(seed)
    return [
        answer(draw, k < 1 + p % 5, task=f"t{p}", right=k < 1 + p % 5)
        for p in range(prompts)
        for k in range(6)
    ]


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
def test_a_step_is_the_loss_by_the_book(layout):
    data, config = pairs(3, margin=0.5), TrainConfig(lr=0.05, max_steps=2, layout=layout)
    result = train_reward(tiny(), data, config, progress=False)
    first, second = result.metrics
    assert first["loss"] == pytest.approx(math.log1p(math.exp(0.5)))  # all scores are 0
    assert second["score"] != 0
    half = train_reward(tiny(), data, TrainConfig(lr=0.05, max_steps=1), progress=False)
    model = SequenceClassifier(half.model)
    losses, gaps = [], []
    for pair in data:
        scores = torch.tensor(model.scores([pair.chosen.token_ids, pair.rejected.token_ids]))
        losses.append(float(reward_model_loss(scores, torch.tensor([True, False]), 0.5)))
        gaps.append(float(scores[0] - scores[1]))
    assert half.metrics[0]["loss"] == pytest.approx(first["loss"])
    assert second["loss"] == pytest.approx(sum(losses) / 3, rel=1e-3)
    assert second["margin"] == pytest.approx(sum(gaps) / 3, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(("data", "lora"), [(pairs(32), None), (lists(10), {"r": 4})])
def test_it_learns_which_answers_are_good_and_is_saved(data, lora, tmp_path):
    config = TrainConfig(**HOW | {"lr": 2e-2 if lora else 5e-3}, lora=lora)
    result = train_reward(tiny(), data, config, tmp_path / "run", progress=False)
    assert result.metrics[0]["loss"] == pytest.approx(math.log(2))
    export_reward(result.model, tmp_path / "model", card={"Method": "reward"})
    saved = load_classifier(str(tmp_path / "model"), device="cpu")
    assert isinstance(saved, transformers.LlamaForSequenceClassification)
    assert saved.config.num_labels == 1
    card = (tmp_path / "model" / "README.md").read_text()
    assert "AutoModelForSequenceClassification" in card
    assert "text-classification" in card
    draw = random.Random(99)
    good, bad = ([answer(draw, g).token_ids for _ in range(16)] for g in (True, False))
    model = SequenceClassifier(saved)
    assert min(model.scores(good)) > max(model.scores(bad))
    assert model.scores(good) == pytest.approx(SequenceClassifier(result.model).scores(good))


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path):
    class Stop(Exception):
        pass

    def stop(row):
        if row["step"] == 3:
            raise Stop

    config = TrainConfig(**HOW | {"epochs": 1, "batch_size": 4}, save_every=2)
    whole = train_reward(tiny(), pairs(16), config, progress=False)
    with pytest.raises(Stop):
        train_reward(tiny(), pairs(16), config, tmp_path, progress=False, callbacks=[stop])
    resumed = train_reward(tiny(), pairs(16), config, tmp_path, resume=True, progress=False)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_what_says_nothing_is_left_out_or_refused():
    goal = Ranking()
    draw = random.Random(0)
    flat = [answer(draw, True, task="flat", right=True) for _ in range(3)]
    units = goal.units([*flat, *lists(2)])
    assert [len(unit) for unit in units] == [6, 6]
    for sample in (s for unit in units for s in unit):  # read before one more token
        assert (sample.token_ids[-1], sample.weights[-1], sum(sample.weights)) == (0, 1, 1)
    with pytest.raises(DataError, match="right and a wrong answer"):
        goal.units(flat)
    with pytest.raises(DataError, match=r"sample 0 lacks meta\['task'\]"):
        goal.units([answer(draw, True)])
    with pytest.raises(ConfigError, match="shard"):
        train_reward(tiny(), pairs(2), TrainConfig(shard=True))


def test_a_head_that_no_score_depends_on_is_left_alone():
    model = tiny(tie_word_embeddings=False)
    before = model.lm_head.weight.clone()
    train_reward(
        model, pairs(4), TrainConfig(lr=0.1, max_steps=1, weight_decay=0.1), progress=False
    )
    assert torch.equal(model.lm_head.weight, before)

"""Rows for reward models, the commands that train them, and what they choose in evaluation."""

from __future__ import annotations

import asyncio
import json
import math
import random

import pytest
import torch

from agentrl import evaluate, rewards
from agentrl.chat import Chat
from agentrl.cli import main
from agentrl.engines.models import load_model, load_tokenizer, tiny_model
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import DataError
from agentrl.evaluate.turns import SCORE
from agentrl.rewards import PairwiseJudge, load_reward
from agentrl.rewards.preference import contest
from agentrl.select import rows
from agentrl.select.rewards import answers, contests, scores
from agentrl.types import Pair, Sample
from tests.evaluate.test_eval_command import EVAL, policy
from tests.fakes import attempt_at
from tests.train.ranks_tokenizer import hf_bytes

CHAT = Chat(ScriptedPolicy([]).tokenizer)


def test_answers_to_problems_that_are_sometimes_solved():
    graded = [
        *(attempt_at("a", i, float(i < 2), text=f"a{i}") for i in range(3)),
        attempt_at("a", 3, 0.0, text="a2"),
        attempt_at("a", 4, 1.0, error="sandbox died"),
        *(attempt_at("b", i, 1.0, text=f"b{i}") for i in range(2)),
    ]
    kept, dropped = answers(graded)
    assert [(row.meta["task"], row.meta["right"]) for row in kept] == [
        ("a", True),
        ("a", True),
        ("a", False),
    ]
    assert dict(dropped) == {
        "a duplicate": 1,
        "failed in our hands": 1,
        "all right or all wrong": 2,
    }


def said(text, weight_from=2):
    ids = [*CHAT.encode("q:"), *CHAT.encode(text), min(CHAT.tokenizer.eos_ids)]
    return Sample(ids, [float(t >= weight_from) for t in range(len(ids))])


def test_a_contest_is_what_the_judge_reads():
    made = contests([Pair(said("yes"), said("no"))], CHAT)
    for row, (a, b, winner) in zip(made, (("yes", "no", "A"), ("no", "yes", "B")), strict=True):
        assert list(row.token_ids[:-1]) == contest(CHAT, "q:", a, b)
        assert CHAT.decode(row.token_ids[-1:]) == winner
        assert [t for t, w in enumerate(row.weights) if w] == [len(row.token_ids) - 1]
    other = said("no")
    other.token_ids[0] += 1
    with pytest.raises(DataError, match="pair 0 are not to one prompt"):
        contests([Pair(said("yes"), other)], CHAT)


def test_failed_attempts_have_no_score():
    class Length:
        async def reward(self, ids):
            return float(len(ids))

    graded = [attempt_at("a", 0, 1.0), attempt_at("a", 1, None, error="x"), attempt_at("b", 0, 0.0)]
    found = asyncio.run(scores(graded, Length(), CHAT))
    assert found[1] is None
    assert found[0] == found[2] > 0


def test_what_a_reward_model_would_choose():
    trees = []
    for number, (reward, answer, score) in enumerate(
        [(1.0, "7", -2.0), (0.0, "8", 3.0), (1.0, "7", 0.0), (0.0, "9", 1.0)]
    ):
        tree, attempt = attempt_at("a", number, reward, answer=answer)
        attempt.metrics[SCORE] = score
        trees.append(tree)
    found = evaluate.values(evaluate.turn_metrics(trees, resamples=20))
    assert found["rm@4"] == 0  # 8, the best score
    assert found["rm@2"] == pytest.approx(1 / 6, abs=1e-4)  # the two 7s alone
    assert found["rm@1"] == found["average@4"] == 0.5
    assert found["majority@4"] == 1
    assert found["weighted@4"] == 0  # 8 weighs 0.95, both 7s 0.62
    trees[0].attempts[0].metrics.pop(SCORE)
    assert not any(
        n.startswith(("rm@", "weighted@")) for n in evaluate.turn_metrics(trees)["metrics"]
    )


def test_the_eval_command_takes_a_reward_model(monkeypatch, capsys):
    class Longest:
        async def reward(self, ids):
            return float(len(ids))

    monkeypatch.setattr(rewards, "load_reward", lambda name: Longest())
    argv = [*EVAL, *policy("good"), "--samples", "2", "--temperature", "1", "--reward", "some"]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["rm@2"]["value"] == 1
    assert main(argv) == 0
    assert "weighted" in capsys.readouterr().out


@pytest.fixture
def speaker(tmp_path):
    """A tiny language model's folder, with a tokenizer of transformers."""
    tokenizer = hf_bytes()
    tiny_model(len(tokenizer), hidden=32, init_std=0.2).save_pretrained(tmp_path / "speaker")
    tokenizer.save_pretrained(tmp_path / "speaker")
    return tmp_path / "speaker"


def polite(tokenizer, n):
    """Pairs of which the chosen answer ends politely."""
    draw = random.Random(0)

    def side(end):
        ids = tokenizer.encode("q:") + tokenizer.encode(f"{draw.randrange(100)}{end}")
        return Sample([*ids, tokenizer.eos_token_id], [0.0, 0.0] + [1.0] * (len(ids) - 1))

    return [Pair(side("!"), side("?")) for _ in range(n)]


def test_the_train_command_makes_reward_models(speaker, tmp_path, capsys):
    tokenizer = load_tokenizer(str(speaker))
    rows.write(tmp_path / "pairs.jsonl", polite(tokenizer, 16))
    data = ["--data", str(tmp_path / "pairs.jsonl"), "--model", str(speaker)]
    how = ["lr=1e-2", "batch_size=8", "epochs=4", "warmup_ratio=0"]
    assert main(["train", "reward", *data, *how, "--out", str(tmp_path / "rm")]) == 0
    assert "16 rows" in capsys.readouterr().out
    model = load_reward(str(tmp_path / "rm" / "model"), device="cpu")
    pairs = polite(tokenizer, 4)
    good, bad = (
        model.scores([s.token_ids for s in side])
        for side in zip(*((p.chosen, p.rejected) for p in pairs), strict=True)
    )
    assert min(good) > max(bad)
    with torch.inference_mode():  # transformers, filling up as the folder's tokenizer does
        longest = max(len(p.chosen.token_ids) for p in pairs)
        fill = load_tokenizer(str(tmp_path / "rm" / "model")).pad_token_id
        filled = [[*p.chosen.token_ids] for p in pairs]
        filled = [ids + [fill] * (longest - len(ids)) for ids in filled]
        theirs = model.model(input_ids=torch.tensor(filled)).logits[:, 0].tolist()
    assert good == pytest.approx(theirs, abs=1e-4)
    assert (
        main(["train", "dpo", *data[:2], "--model", str(tmp_path / "rm/model"), "--out", "x"]) == 2
    )
    assert "has no language head" in capsys.readouterr().err
    assert main(["train", "reward", *data, "loss.beta=1", "--out", str(tmp_path / "no")]) == 2


def test_the_train_command_makes_judges_of_pairs(speaker, tmp_path):
    tokenizer = load_tokenizer(str(speaker))
    rows.write(tmp_path / "pairs.jsonl", polite(tokenizer, 2))
    data = ["--data", str(tmp_path / "pairs.jsonl"), "--model", str(speaker)]
    assert main(["train", "preference", *data, "max_steps=1", "--out", str(tmp_path / "pm")]) == 0
    assert load_model(str(tmp_path / "pm" / "model"), device="cpu").config.vocab_size == 258
    judge = load_reward(f"pairwise:{tmp_path / 'pm' / 'model'}")
    assert isinstance(judge, PairwiseJudge)
    p = asyncio.run(judge.prefers("q:", "1!", "1?"))
    assert 0 < p < 1
    assert p + asyncio.run(judge.prefers("q:", "1?", "1!")) == pytest.approx(1)
    assert math.isfinite(p)

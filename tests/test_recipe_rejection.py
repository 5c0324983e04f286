"""Recipes of rejection tuning on a tiny model: they learn, they resume, they do what they say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from rl_toys import NextLetter  # noqa: E402
from rl_toys import copied as policy  # noqa: E402

from agentrl.batch import collate  # noqa: E402
from agentrl.chat import Chat  # noqa: E402
from agentrl.config import RunFolder, settings  # noqa: E402
from agentrl.engines.models import tiny_model  # noqa: E402
from agentrl.engines.scripted import ScriptedPolicy  # noqa: E402
from agentrl.errors import ConfigError, DataError  # noqa: E402
from agentrl.recipes import dart, raft, reft, s3ft  # noqa: E402
from agentrl.recipes._phases import Phases  # noqa: E402
from agentrl.rollouts import tool_loop  # noqa: E402
from agentrl.select import dart as quotas  # noqa: E402
from agentrl.store import load  # noqa: E402
from agentrl.train import Reference, TrainConfig, Trainer  # noqa: E402
from agentrl.types import Sample  # noqa: E402
from tests.fakes import FakeEnv, task  # noqa: E402


class Shown(NextLetter):
    """Letters, with the right answer as a demonstration; `x` as a wrong one for some."""

    def __init__(self, wrong=()):
        self.wrong = set(wrong)

    def demonstrations(self, task):
        return ["x" if task.id in self.wrong else task.data["answer"]]


def folder_of(config, path, resume=False):
    return RunFolder(path, settings(config), resume=resume)


def learn(recipe, config, path, *policies, env=None, resume=False):
    folder = folder_of(config, path, resume)
    envs = (env or NextLetter(), NextLetter())
    return asyncio.run(recipe.learn(config, *policies, *envs, folder, progress=False))


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


RAFT = raft.Config(
    iterations=6,
    n=4,
    prompts=4,
    samples=8,
    eval_n=0,
    max_tokens=4,
    lr=2e-3,
    batch_size=4,
    epochs=4,
    train_dtype="fp32",
)


def test_raft_learns_and_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path, monkeypatch):
    learn(raft, RAFT, tmp_path / "whole", policy())
    rows = metrics(tmp_path / "whole")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[0]["reward"] < 0.6
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.3
    assert all(row["reward_kept"] == 1.0 for row in rows)

    real, calls = raft._train, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(raft, "_train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn(raft, RAFT, tmp_path / "cut", policy())
    monkeypatch.setattr(raft, "_train", real)
    summary = learn(raft, RAFT, tmp_path / "cut", policy(), resume=True)
    assert summary["resumed"]
    again = metrics(tmp_path / "cut")
    assert [(r["reward"], r["loss"]) for r in again] == [(r["reward"], r["loss"]) for r in rows], (
        "weights, optimizer and sampling go on from where they were"
    )


def test_the_optimizer_lasts_over_iterations(tmp_path, monkeypatch):
    made = []

    class Counted(Trainer):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(raft, "Trainer", Counted)
    learn(raft, replace(RAFT, iterations=3, least=None, epochs=1), tmp_path, policy())
    (trainer,) = made
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {3}


def test_raft_global_counts_the_prompts_it_loses(tmp_path):
    config = replace(RAFT, iterations=1, ranking="global", keep=1)
    summary = learn(raft, config, tmp_path, policy())
    assert summary["selection"]["kept"] == 1
    assert summary["selection"]["prompts_without_a_row"] == 3


def test_problems_of_the_test_are_not_trained_on(tmp_path):
    config = replace(RAFT, iterations=1, eval_n=2)
    summary = learn(raft, config, tmp_path / "some", policy())
    assert summary["selection"] == {**summary["selection"], "problems": 2, "contaminated": 2}
    with pytest.raises(DataError, match="in the test, too"):
        learn(raft, replace(config, eval_n=4), tmp_path / "all", policy())


def test_shaping_and_kl_hold_the_policy_to_its_start(tmp_path):
    config = replace(RAFT, iterations=3, shaping=0.05)
    learn(raft, replace(config, beta=0.0), tmp_path / "free", policy())
    learn(raft, replace(config, beta=5.0), tmp_path / "held", policy())
    free, held = metrics(tmp_path / "free"), metrics(tmp_path / "held")
    assert "kl" not in free[-1]
    assert held[-1]["reward"] < free[-1]["reward"]
    assert 0 <= held[0]["kl"] < 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompts": 8},
        {"samples": 0},
        {"beta": -1.0},
        {"temperature": 0.0},
        {"lr": float("nan")},
    ],
)
def test_raft_refuses_settings_that_cannot_be(wrong, tmp_path):
    with pytest.raises(ConfigError):
        learn(raft, replace(RAFT, **wrong), tmp_path, ScriptedPolicy([]))


# SuperHF's loss


def kl_setup():
    model = tiny_model(11, hidden=16, layers=1, heads=2, kv_heads=2, init_std=0.5, seed=1)
    samples = [Sample([1, 2, 3, 4], [0, 0, 1, 1]), Sample([5, 6, 7], [0, 1, 1])]
    trainer, reference = Trainer(model, TrainConfig(lr=0.05)), Reference(model)
    return model, samples, trainer, reference


def loss_of(part, trainer, samples):
    batch = collate(samples, [[0], [1]])
    return part(trainer.score, batch, sum(map(sum, (s.weights for s in samples))))


def test_at_the_start_the_loss_is_cross_entropy_and_without_beta_it_is_sft():
    _, samples, trainer, reference = kl_setup()
    with_kl = loss_of(raft.kl_part(reference, 0.35, trainer), trainer, samples)
    plain = loss_of(raft._SFT, trainer, samples)
    assert with_kl.loss.item() == pytest.approx(plain.loss.item(), abs=1e-6)
    assert with_kl.metrics["kl"].item() == pytest.approx(0.0, abs=1e-6)


def test_the_kl_is_of_the_policy_from_its_start_and_exact():
    model, samples, trainer, reference = kl_setup()
    start = torch.nn.functional.log_softmax
    batch = collate(samples, [[0], [1]])
    old = start(model(**batch.model_inputs()).logits, -1).detach()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    new = start(model(**batch.model_inputs()).logits, -1).detach()
    part = raft.kl_part(reference, 0.35, trainer)
    out = loss_of(part, trainer, samples)
    kl_BT = (new.exp() * (new - old)).sum(-1)[:, :-1]
    expected = (batch.weights_BT[:, 1:] * kl_BT).sum() / 4
    assert out.metrics["kl"].item() == pytest.approx(expected.item(), rel=1e-4)
    swapped = (batch.weights_BT[:, 1:] * (old.exp() * (old - new)).sum(-1)[:, :-1]).sum() / 4
    assert abs(swapped - expected) > 1e-3 * abs(expected), "the other direction is another number"
    plain = loss_of(raft._SFT, trainer, samples)
    assert out.loss.item() == pytest.approx(plain.loss.item() + 0.35 * expected.item(), rel=1e-4)


# DART

DART = dart.Config(
    n=4, eval_n=0, k=6, probe=4, cap=12, max_tokens=4, top_p=1.0, lr=2e-3, train_dtype="fp32"
)


def test_dart_trains_on_different_right_answers(tmp_path):
    one = policy()
    summary = learn(dart, replace(DART, quota="uniform"), tmp_path, one, one)
    selection = summary["selection"]
    trees = load(tmp_path / "trees" / "answers")
    assert selection["trials"] <= len(trees) <= 4 * 12
    assert selection["kept"] + sum(selection["dropped"].values()) == selection["trials"]
    # there is one right text a letter: duplicates count once, so each task goes on to the cap
    assert selection["kept"] == 4
    assert selection["quota_unmet"] > 0
    assert selection["dropped"]["duplicate"] > 0


def test_dart_goes_on_with_the_probe_and_stops_at_each_quota(tmp_path):
    """A scripted solver: easy tasks are always right, hard ones one time in four."""
    counts: dict[str, int] = {}

    def script(text: str) -> str:
        question = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        n = counts[question] = counts.get(question, 0) + 1
        right = question.startswith("easy") or n % 4 == 0
        return f"try {n}: {42 if right else 41}"

    tasks = [task(f"{k}{i}", f"{k} {i}", kind=k) for k in ("easy", "hard") for i in (1, 2)]
    sampler, env = ScriptedPolicy(script), FakeEnv(tasks)
    config = replace(DART, probe=8, k=4, cap=64, concurrency=1, max_tokens=40)
    phases = Phases(config, folder_of(config, tmp_path), False, None)
    rollout, chat = tool_loop(max_calls=0), Chat(sampler.tokenizer)

    def allocate(by):
        return asyncio.run(dart.allocate(phases, config, by, env, rollout, tasks, chat))

    difficulties, graded, quota = allocate(sampler)
    assert difficulties == {"easy1": 0.0, "easy2": 0.0, "hard1": 0.75, "hard2": 0.75}
    assert quota == {"easy1": 1, "easy2": 1, "hard1": 4, "hard2": 4}
    chosen = quotas.select(graded, quota, chat)
    assert len(chosen.kept) == 10
    assert counts == {"easy 1": 8, "easy 2": 8, "hard 1": 16, "hard 2": 16}
    never = ScriptedPolicy(lambda text: pytest.fail("everything is on disk"))
    assert allocate(never)[2] == quota


def test_dart_refuses_a_sampler_with_other_tokens(tmp_path):
    class Other(ScriptedPolicy):
        def __init__(self):
            super().__init__([])
            self.tokenizer = type("T", (), {"fingerprint": "other"})()

    with pytest.raises(ConfigError, match="another tokenizer"):
        learn(dart, DART, tmp_path, policy(), Other())


# ReFT

REFT = reft.Config(
    n=4,
    eval_n=0,
    warmup_lr=2e-3,
    warmup_epochs=8,
    batch_size=4,
    steps=4,
    prompts=4,
    group=4,
    max_tokens=4,
    lr=1e-3,
    kl=0.01,
    train_dtype="fp32",
)


def test_reft_warms_up_on_right_demonstrations_then_improves_by_ppo(tmp_path):
    summary = learn(reft, REFT, tmp_path, policy(), env=Shown(wrong="a"))
    assert summary["recipe"] == "reft"
    assert summary["selection"]["demonstrations"] == 3
    assert summary["selection"]["dropped"] == {"wrong when played": 1}
    assert summary["warmup"]["samples"] == 3
    rows = metrics(tmp_path)
    assert len(rows) == 4
    assert rows[0]["reward"] > 0.55, "it starts from the warmed-up model"
    assert "value_loss" in rows[0]


def test_reft_needs_demonstrations(tmp_path):
    with pytest.raises(ConfigError, match="no demonstrations"):
        learn(reft, REFT, tmp_path, policy())


def test_reft_goes_on_after_the_warm_up(tmp_path, monkeypatch):
    env = Shown()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(reft.grpo, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(reft, REFT, tmp_path, policy(), env=env)
    assert not (tmp_path / "summary.json").exists()
    summary = learn(reft, REFT, tmp_path, policy(), env=env, resume=True)
    assert summary["resumed"]
    assert summary["warmup"]["steps"] == 8


# S3FT


def test_s3ft_asks_once_where_the_model_is_right_and_twice_where_it_is_not(tmp_path):
    answers = {"own": ["42"], "para": ["41", "that is 42"], "gold": ["41", "40"]}

    def script(text: str) -> str:
        name = next(n for n in answers if f"{n}?" in text)
        return answers[name].pop(0)

    class Solved(FakeEnv):
        def demonstrations(self, task):
            return ["6*7 is 42"]

    tasks = [task(name, f"{name}?") for name in answers]
    model, env, config = ScriptedPolicy(script), Solved(tasks), s3ft.Config()
    phases = Phases(config, folder_of(config, tmp_path), False, None)
    rows, counts = asyncio.run(s3ft.targets(phases, config, model, env, tasks))
    assert counts == {"own": 1, "paraphrase": 1, "gold": 1}
    assert model.calls == 1 + 2 + 2
    assert [r.meta["origin"] for r in rows] == ["own", "paraphrase", "gold"]


def test_s3ft_trains(tmp_path):
    config = s3ft.Config(n=4, eval_n=0, max_tokens=4, lr=2e-3, train_dtype="fp32")
    summary = learn(s3ft, config, tmp_path, policy(), env=Shown())
    assert sum(summary["selection"]["from"].values()) == 4
    assert summary["training"]["s3ft"]["steps"] > 0


def test_reft_trains_the_adapter_of_its_warm_up(tmp_path):
    config = replace(REFT, lora=2, steps=1, kl=0.05)
    one = policy()
    before = {name: p.clone() for name, p in one.model.named_parameters()}
    summary = learn(reft, config, tmp_path, one, env=Shown())
    assert summary["warmup"]["steps"] == 8
    assert metrics(tmp_path)[0]["updates"] == 2
    kept = {n.replace("base_layer.", ""): p for n, p in one.model.named_parameters()}
    assert all(torch.equal(p, kept[name]) for name, p in before.items())
    assert any("lora_B" in name and p.any() for name, p in kept.items())
    assert (tmp_path / "model" / "config.json").exists(), "merged into the export"

"""Online RL: what becomes of attempts, what is refused, what is measured, and how a run goes on."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from train_toys import tiny

sys.path.insert(0, str(Path(__file__).parent.parent))
from rl_toys import LETTERS, NextLetter, policy

from agentrl.cli import main
from agentrl.config import RunFolder, settings
from agentrl.errors import ConfigError
from agentrl.recipes import grpo, ppo
from agentrl.train import Reference, TrainConfig, Trainer
from agentrl.train.online import (
    METHODS,
    check_sampling,
    credited_rows,
    policy_part,
    value_head,
)
from agentrl.tree import Tree
from agentrl.types import Attempt, SamplingParams, Task

PROMPT = [1, 5, 9, 2]


def attempt(model, ids, reward, error=None, sampled=None):
    """An attempt at the one task, its log-probabilities those of the model."""
    whole = torch.tensor([PROMPT + ids])
    with torch.no_grad():
        nats_TV = model(input_ids=whole).logits[0, :-1].log_softmax(-1)
    own = nats_TV.gather(1, whole[0, 1:, None])[len(PROMPT) - 1 :, 0].tolist()
    tree = Tree(Task("t", (), "toy"))
    tree.add(None, "user", "template", PROMPT)
    info = {} if sampled is None else {"sampled_logprobs": [x + sampled for x in own]}
    tree.add(0, "assistant", "policy", ids, logprobs=own, info=info)
    reason = "sandbox_error" if error else "final_answer"
    tree.attempts.append(Attempt(1, reason, reward, error))
    return tree, tree.attempts[0]


def trainer(model, method="grpo", **config):
    head = value_head(model) if METHODS[method].values else None
    return Trainer(model, TrainConfig(lr=1e-3, **config), head)


@pytest.mark.parametrize("layout", ["padded", "tree"])
def test_the_gradient_of_a_grpo_step_is_that_by_the_book(layout):
    model, book = tiny(), tiny()
    group = [
        attempt(model, [7, 8, 3], 1.0),
        attempt(model, [7, 4], 0.0),
        attempt(model, [6], None, "died"),
    ]
    ours = trainer(model, clip=None)
    ours.layout = layout
    made = credited_rows([group], METHODS["grpo"], ours)
    assert made.dropped == {"failed or not scored": 1}
    part, denominator = policy_part(METHODS["grpo"], made)
    advantage = 0.5 / (math.sqrt(0.5) + 1e-4)  # of two rewards, 1 and 0; the failure is in neither
    total = torch.zeros(())
    for (tree, _), sign in zip(group[:2], (1, -1), strict=True):
        ids = torch.tensor([[i for n in tree.nodes for i in n.token_ids]])
        nats_T = book(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        total = total - sign * advantage * nats_T[len(PROMPT) - 1 :].mean() / 2
    total.backward()
    kept = []
    step = torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.AdamW,
            "step",
            lambda self: (kept.extend(p.grad.clone() for p in model.parameters()), step(self))[1],
        )
        with ours.training():
            row = ours.step(made.samples, part, denominator, lr=1e-3, number=1)
    for mine, theirs in zip(kept, (p.grad for p in book.parameters()), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert row["ratio"] == pytest.approx(1, abs=1e-5)
    assert row["logprob_diff_max"] < 1e-4
    assert row["entropy"] > 0
    assert row["clip_high"] == row["clip_low"] == 0


def test_a_sampler_that_is_off_is_measured():
    model = tiny()
    group = [attempt(model, [7, 8, 3], 1.0), attempt(model, [7, 4], 0.0)]
    for tree, _ in group:
        node = tree.nodes[1]
        node.logprobs = tuple(x - 0.5 for x in node.logprobs)
    ours = trainer(model)
    made = credited_rows([group], METHODS["grpo"], ours)
    part, denominator = policy_part(METHODS["grpo"], made)
    with ours.training():
        row = ours.step(made.samples, part, denominator, lr=0.0, number=1)
    assert row["logprob_diff"] == pytest.approx(0.5, abs=1e-4)
    assert row["ratio"] == pytest.approx(math.exp(0.5), abs=1e-3), "raw, not clipped"
    assert row["clip_high"] == pytest.approx(0.5), "the good attempt's tokens, all of them"


def test_another_temperature_is_corrected_token_by_token():
    model = tiny()
    ours, method = trainer(model), METHODS["rloo"]
    for off, weight in ((0.3, math.exp(-0.3)), (-0.3, math.exp(0.3)), (-5.0, 2.0)):
        group = [attempt(model, [7, 8], 1.0, sampled=off), attempt(model, [4], 0.0, sampled=off)]
        first = credited_rows([group], method, ours).samples[0]
        assert first.advantages[len(PROMPT) :] == pytest.approx([weight, weight])
    plain = [attempt(model, [7, 8], 1.0), attempt(model, [4], 0.0)]
    first = credited_rows([plain], method, ours).samples[0]
    assert first.advantages[len(PROMPT) :] == [1.0, 1.0]


@pytest.mark.parametrize("bad", [{"top_p": 0.95}, {"top_k": 50}, {"temperature": 0.0}])
def test_sampling_that_biases_the_gradient_is_refused(bad, tmp_path, capsys):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        check_sampling(SamplingParams(**bad))
    words = [f"{k}={v}" for k, v in bad.items()]
    assert main(["run", "grpo", *words, "--out", str(tmp_path / "r"), "--sandbox", "embedded"]) == 2
    assert next(iter(bad)) in capsys.readouterr().err


def test_ppo_returns_are_advantages_plus_values_and_the_head_learns_them():
    model = tiny()
    ours, method = trainer(model, "ppo"), METHODS["ppo"]
    group = [attempt(model, [7, 8, 3], 1.0), attempt(model, [4, 6], 0.0)]
    made = credited_rows([group], method, ours)
    lengths = [len(PROMPT) + 3, len(PROMPT) + 2]
    assert [len(v) for v in made.values] == [len(v) for v in made.returns] == lengths
    assert made.values[0] == [0.0] * lengths[0], "a new head says 0"
    decay = [0.95**2, 0.95, 1.0]  # gamma 1, lambda 0.95, no values yet
    assert made.returns[0][len(PROMPT) :] == pytest.approx(decay)
    sampled = [a for s in made.samples for a, w in zip(s.advantages, s.weights, strict=True) if w]
    assert sum(sampled) == pytest.approx(0, abs=1e-6), "whitened"
    errors = []
    for number in range(30):
        made = replace(made, values=made.values)
        part, denominator = policy_part(method, made)
        with ours.training():
            row = ours.step(made.samples, part, denominator, lr=5e-3, number=number)
        made.values[:] = ours.table(made.samples, lambda scores: scores.values_BT)
        errors.append(row["value_error"])
    assert errors[-1] < 0.3 * errors[0]


def test_the_kl_to_the_start_stands_in_the_reward_or_in_the_loss():
    model = tiny()
    reference = Reference(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    group = [attempt(model, [7, 8, 3], 1.0), attempt(model, [7, 4], 0.0)]
    ours = trainer(model)
    made = credited_rows([group], METHODS["grpo"], ours, reference, kl=0.1)
    refs = made.samples[0].ref_logprobs
    assert any(refs)
    part, denominator = policy_part(METHODS["grpo"], made, kl=0.1)
    with ours.training():
        assert ours.step(made.samples, part, denominator, lr=0, number=1)["kl_ref"] > 0
    sums = []
    for row in made.samples:
        both = zip(row.logprobs, row.ref_logprobs, row.weights, strict=True)
        sums.append(sum(w * (p - q) for p, q, w in both))
    kept = credited_rows([group], METHODS["rloo"], ours, reference, kl=0.1).samples
    expected = 1 - 0.1 * (sums[0] - sums[1])
    assert kept[0].advantages[-1] == pytest.approx(expected, abs=1e-5)
    assert kept[0].ref_logprobs is None


class Dying(NextLetter):
    """Ends the run at its nth episode."""

    def __init__(self, at):
        self.left = at

    def open(self, task, box):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("killed")
        return super().open(task, box)


def whole_run(recipe, folder, env, resume=False, **changes):
    """The policy after a short run, and its metrics without the clock's."""
    config = recipe.Config(
        steps=7,
        n=4,
        prompts=2,
        group=4,
        eval_n=0,
        max_tokens=4,
        lr=2e-3,
        kl=0.01,
        save_every=2,
        train_dtype="fp32",
        concurrency=1,  # then the sampler's batches, and so its roundings, are the same
        **changes,
    )
    own = policy()
    run_folder = RunFolder(folder, settings(config), resume=resume)
    asyncio.run(grpo.learn(config, own, env, env, run_folder, progress=False))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_s")
    return own, [{k: v for k, v in r.items() if not k.startswith(timed)} for r in rows]


@pytest.mark.parametrize("recipe", [grpo, ppo])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(recipe, tmp_path):
    """Killed before steps 3, 4 and 7; checkpoints after 2, 4 and 6, so that step 3 is trained again
    on the attempts that are on disk."""
    whole, rows = whole_run(recipe, tmp_path / "whole", NextLetter())
    assert any(row.get("updates") for row in rows)
    for before in (3, 4, 7):
        folder = tmp_path / str(before)
        with pytest.raises(RuntimeError, match="killed"):
            whole_run(recipe, folder, Dying(8 * (before - 1) + 1))
        again, resumed = whole_run(recipe, folder, NextLetter(), resume=True, deadline_s=60.0)
        assert rows == resumed
        for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert whole.version == again.version


def test_a_run_killed_in_the_middle_of_a_step_keeps_its_attempts(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        whole_run(grpo, tmp_path, Dying(30))
    path = next((tmp_path / "trees/step_00004").glob("*.jsonl"))
    kept = path.read_text()
    assert len(kept.splitlines()) >= 5
    _, rows = whole_run(grpo, tmp_path, NextLetter(), resume=True)
    assert path.read_text().startswith(kept)
    assert [row["attempts"] for row in rows] == [8] * 7
    assert not list(tmp_path.glob("checkpoints/*/checkpoints")), "what nothing reads again"


def test_an_adapter_is_trained_alone_and_held_to_the_model_without_it(tmp_path):
    own = policy()
    before = {n: p.detach().clone() for n, p in own.model.named_parameters()}
    config = grpo.Config(
        steps=3, n=4, prompts=4, group=8, eval_n=0, max_tokens=4, lora=4, lr=1e-2, kl=0.01
    )
    folder = RunFolder(tmp_path / "r", settings(config), resume=False)
    asyncio.run(grpo.learn(config, own, NextLetter(), NextLetter(), folder, progress=False))
    rows = [json.loads(line) for line in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    kl = [row["kl_ref"] for row in rows if "kl_ref" in row]
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[-1] > 1e-5
    adapted = dict(own.model.named_parameters())
    for name, p in adapted.items():
        if "lora_" not in name:
            assert torch.equal(p, before[name.replace("base_layer.", "")])


def test_failures_and_flat_groups_are_counted_and_train_nothing(tmp_path):
    from agentrl.errors import SandboxError

    class Broken(NextLetter):
        """The first letter's sandbox is broken; the last letter's answers are all wrong."""

        def tasks(self, n=None):
            *rest, last = super().tasks()
            return [*rest, replace(last, data={"answer": "never"})][:n]

        def open(self, task, box):
            if task.id == LETTERS[0]:
                raise SandboxError("gone")
            return super().open(task, box)

    config = grpo.Config(
        steps=1, n=4, prompts=4, group=4, eval_n=0, max_tokens=4, save_every=0, train_dtype="fp32"
    )
    folder = RunFolder(tmp_path / "r", settings(config), resume=False)
    summary = asyncio.run(grpo.learn(config, policy(), Broken(), Broken(), folder, progress=False))
    row = json.loads((tmp_path / "r/metrics.jsonl").read_text())
    assert row["failure_rate"] == 0.25
    assert row["groups_dropped"] >= 2
    assert row["zero_variance_rate"] >= 0.25
    assert row["samples"] == summary["training"]["samples"] <= 8
    assert {"truncation_rate", "tool_call_rate", "length", "seconds_collect"} <= row.keys()


def test_the_command_runs_the_tool_loop_on_arithmetic(tmp_path, monkeypatch):
    own = policy()
    monkeypatch.setattr(grpo, "load_policy", lambda *args, **more: own)
    words = ["steps=2", "n=4", "prompts=2", "group=2", "eval_n=2", "max_tokens=4"]
    out = tmp_path / "run"
    assert main(["run", "rloo", *words, "--out", str(out), "--json"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["recipe"] == "rloo"
    assert summary["tuned"]["n"] == 2
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert (out / "report.html").exists()
    assert (out / "model" / "config.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"group": 1}, "compares attempts"),
        ({"prompts": 9, "n": 8}, "n is too small"),
        ({"kl": -1}, "kl"),
    ],
)
def test_senseless_settings_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        grpo.check(grpo.Config(**changes))
    grpo.check(ppo.Config(group=1))

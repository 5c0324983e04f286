"""Preference training in the one trainer: pairs, reference, metrics, resume, the command."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from train_toys import VOCAB, some_samples, tiny

from agentrl import losses
from agentrl.cli import main
from agentrl.errors import ConfigError, DataError
from agentrl.pairing import FLIP
from agentrl.select import rows
from agentrl.train import Reference, TrainConfig, objective, train
from agentrl.types import Pair, Sample

QUICK = TrainConfig(lr=1e-3, max_steps=2, batch_size=3, warmup_ratio=0, schedule="constant")


def answer(prompt, ids, **more) -> Sample:
    return Sample([*prompt, *ids], [0.0] * len(prompt) + [1.0] * len(ids), **more)


def some_pairs(n: int, seed: int = 0, gold: bool = False) -> list[Pair]:
    """Chosen answers are made of low tokens, rejected ones of high tokens."""
    draw = random.Random(seed)
    made = []
    for _ in range(n):
        prompt = [1, *draw.sample(range(5, VOCAB), 3), 2]
        good, bad = ([draw.randrange(low, low + 5) for _ in range(2)] + [0] for low in (5, 33))
        extra = answer(prompt, [*good, 3]) if gold else None
        made.append(Pair(answer(prompt, good), answer(prompt, bad), gold=extra))
    return made


def run(pairs, loss="dpo", config=QUICK, model=None, **options):
    return train(model or tiny(), pairs, loss, config, progress=False, **options)


def logprob(model, sample: Sample) -> torch.Tensor:
    ids = torch.tensor([list(sample.token_ids)])
    nats = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return (nats * torch.tensor(list(sample.weights[1:]))).sum()


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
@pytest.mark.parametrize("micro", [16, 4096])
def test_the_first_step_is_dpo_by_the_book(layout, micro) -> None:
    """The reference is the model before its first step, so the loss is log 2; and AdamW is given
    the gradient of -log sigmoid(beta delta), whatever the micro-batches."""
    pairs, book = some_pairs(3), tiny()
    total = sum(logprob(book, p.chosen) - logprob(book, p.rejected) for p in pairs)
    (-0.25 * 0.5 * total / 3).backward()  # beta 0.25, sigmoid(0) = 1/2
    model, kept = tiny(), []
    step = torch.optim.AdamW.step
    config = replace(QUICK, max_steps=1, layout=layout, micro_tokens=micro, clip=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.optim.AdamW,
            "step",
            lambda self: (kept.extend(p.grad.clone() for p in model.parameters()), step(self))[1],
        )
        row = run(pairs, losses.make("dpo", beta=0.25), config, model).metrics[0]
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["margin"] == pytest.approx(0, abs=1e-5)
    assert (row["weight"], row["samples"]) == (3, 6)
    for ours, theirs in zip(kept, (p.grad for p in book.parameters()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_a_second_training_is_held_to_the_first_ones_start() -> None:
    """RLHF Workflow and MCTS-DPO: the reference of every round is the model before all of them."""
    pairs, model = some_pairs(3), tiny()
    reference = Reference(model)
    run(pairs, "dpo", QUICK, model)
    row = run(pairs, "dpo", QUICK, model, reference=reference).metrics[0]
    assert row["margin"] > 0.01, "against the model before this training it is 0"
    assert (row["loss"], row["margin"]) == pytest.approx(by_the_book(pairs, 2), abs=1e-5)
    (again,) = reference.score([pairs[0].chosen], 4096, "padded")
    (first,) = Reference(tiny()).score([pairs[0].chosen], 4096, "padded")
    assert again.ref_logprobs == first.ref_logprobs, "to the bit"


def by_the_book(pairs, steps: int) -> tuple[float, float]:
    """DPO's loss and margin after `steps` steps on all pairs, against the model before them."""
    model = run(pairs, "dpo", replace(QUICK, max_steps=steps), tiny()).model
    with torch.no_grad():
        margins = [
            (logprob(model, p.chosen) - logprob(tiny(), p.chosen))
            - (logprob(model, p.rejected) - logprob(tiny(), p.rejected))
            for p in pairs
        ]
    losses_ = [-torch.nn.functional.logsigmoid(0.1 * m) for m in margins]
    return float(sum(losses_)) / len(pairs), float(sum(margins)) / len(pairs)


@pytest.mark.parametrize("name", sorted(losses.OVER_PAIRS))
def test_every_preference_loss_trains(name) -> None:
    """Discovered preference optimisation has a second valley, so it need not get all right."""
    pairs = some_pairs(8, gold=losses.group_size(name) == 3)
    config = TrainConfig(lr=2e-3, max_steps=10, batch_size=8, schedule="constant")
    metrics = run(pairs, name, config).metrics
    mean = [sum(r["loss"] for r in part) for part in (metrics[:3], metrics[-3:])]
    assert mean[1] < mean[0]
    if name != "discopop":
        assert metrics[-1]["accuracy"] == 1
        assert metrics[-1]["margin"] > metrics[0]["margin"]


def test_dpo_generalises_to_new_pairs() -> None:
    model = tiny()
    test = some_pairs(40, seed=9)

    def right() -> float:
        with torch.no_grad():
            return sum(bool(logprob(model, p.chosen) > logprob(model, p.rejected)) for p in test)

    before = right() / 40
    run(some_pairs(100), "dpo", TrainConfig(lr=3e-3, epochs=2, batch_size=10), model)
    assert before < 0.75
    assert right() / 40 > 0.9


def test_kto_reads_its_marks_from_the_samples() -> None:
    pairs = some_pairs(16)
    samples = [
        replace(s, meta={"desirable": good})
        for p in pairs
        for s, good in ((p.chosen, True), (p.rejected, False))
    ]
    config = TrainConfig(lr=3e-3, epochs=6, batch_size=8, schedule="constant")
    last = run(samples, objective("kto", kl=0.0), config).metrics[-1]
    assert last["chosen_change"] > 0 > last["rejected_change"]
    with pytest.raises(ConfigError, match="'kto' needs a value for kl"):
        run(samples, "kto")
    with pytest.raises(DataError, match=r"meta\['desirable'\]"):
        run(some_samples(4), objective("kto", kl=0.0))
    with pytest.raises(ConfigError, match="desirable is not an option of training"):
        run(samples, losses.make("kto", desirable=[True], kl=0.0))


def test_the_reference_is_the_adapter_switched_off() -> None:
    pairs = some_pairs(6)
    config = replace(QUICK, max_steps=4, lora={"r": 4, "target_modules": {"q_proj", "v_proj"}})
    model = tiny()
    result = run(pairs, "dpo", config, model)
    assert result.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    with torch.no_grad():
        with result.model.disable_adapter():
            off = logprob(result.model, pairs[0].chosen).item()
        assert off == pytest.approx(logprob(tiny(), pairs[0].chosen).item(), abs=1e-5)
        assert logprob(result.model, pairs[0].chosen).item() != pytest.approx(off, abs=1e-4)


def test_given_reference_logprobs_are_kept_and_none_are_made_where_none_are_needed() -> None:
    pairs = [
        Pair(*(replace(s, ref_logprobs=[-1.0] * len(s.token_ids)) for s in (p.chosen, p.rejected)))
        for p in some_pairs(3)
    ]
    assert run(pairs).metrics[0]["loss"] != pytest.approx(math.log(2), abs=1e-3)
    free = run(some_pairs(3), losses.make("dpo", reference_free=True)).metrics[0]
    assert free["loss"] == pytest.approx(
        run(some_pairs(3), losses.make("cpo", beta=0.1, alpha=0.0)).metrics[0]["loss"], abs=1e-5
    )


def test_margins_and_flips_of_pairs_reach_the_loss() -> None:
    plain, wide = some_pairs(3), [replace(p, margin=2.0) for p in some_pairs(3)]
    flipped = [replace(p, meta={FLIP: 1.0}) for p in some_pairs(3)]
    expected = math.log(1 + math.exp(2.0))
    assert run(wide).metrics[0]["loss"] == pytest.approx(expected, abs=1e-5)
    up, down = (run(p).metrics[1]["chosen_change"] for p in (plain, flipped))
    assert up > 0 > down


def test_a_loss_of_your_own_on_pairs_is_a_mean_over_pairs() -> None:
    def half(logprobs_BT, batch, denominator):
        seen.append(denominator)
        return losses.LossOutput(losses.pair_scores(logprobs_BT, batch).chosen_P.sum() * 0.0)

    seen: list[float] = []
    run(some_pairs(4), half, replace(QUICK, batch_size=3, max_steps=2))
    assert set(seen) == {3.0, 1.0}


def test_resume_is_bit_for_bit(tmp_path) -> None:
    pairs, config = some_pairs(8), replace(QUICK, max_steps=6, save_every=2)

    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == 5:
            raise Killed

    whole = run(pairs, "dpo", config, out_dir=tmp_path / "a")
    with pytest.raises(Killed):
        run(pairs, "dpo", config, out_dir=tmp_path / "b", callbacks=[kill])
    again = run(pairs, "dpo", config, out_dir=tmp_path / "b", resume=True)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r["loss"] for r in whole.metrics] == [r["loss"] for r in again.metrics]
    with pytest.raises(ConfigError, match="loss: was"):
        run(pairs, "ipo", config, out_dir=tmp_path / "b", resume=True)


@pytest.mark.parametrize(
    ("data", "loss", "error", "words"),
    [
        (some_samples(4), "dpo", DataError, "'dpo' needs pairs"),
        (some_pairs(2), "sft", DataError, "'sft' needs samples"),
        (some_pairs(2), "tpo", DataError, "pair 0 has none"),
        ([*some_samples(1), *some_pairs(1)], "sft", DataError, "mixed"),
        (some_pairs(2), "dpoo", ConfigError, "dpo"),
        ([], "dpo", DataError, "no sample"),
    ],
)
def test_what_does_not_fit_is_refused(data, loss, error, words) -> None:
    with pytest.raises(error, match=words):
        run(data, loss)


def test_rows_of_samples_and_pairs_come_back(tmp_path) -> None:
    pairs = [*some_pairs(2, gold=True), replace(some_pairs(1)[0], margin=0.5, meta={"flip": 0.1})]
    rows.write(tmp_path / "pairs.jsonl", pairs)
    assert rows.read_pairs(tmp_path / "pairs.jsonl") == pairs
    samples = [answer([1, 2], [3], ref_logprobs=[0, 0, -1.5], advantages=[0, 0, 2.0])]
    rows.write(tmp_path / "samples.jsonl", samples)
    assert rows.read(tmp_path / "samples.jsonl") == samples
    with pytest.raises(DataError, match=r"pairs\.jsonl, line 1"):
        rows.read(tmp_path / "pairs.jsonl")


def test_the_command_trains_on_pairs(tmp_path, monkeypatch) -> None:
    from agentrl.chat import Chat
    from agentrl.commands import data
    from agentrl.engines.scripted import ByteTokenizer

    rows.write(tmp_path / "pairs.jsonl", some_pairs(4))
    monkeypatch.setattr(data, "chat_of", lambda name: Chat(ByteTokenizer()))
    monkeypatch.setattr("agentrl.train.export", lambda *args, **more: None)
    monkeypatch.setattr("agentrl.engines.models.load_model", lambda name, bits: tiny())
    argv = ["train", "dpo", "--data", str(tmp_path / "pairs.jsonl"), "--model", "tiny"]
    settings = ["loss.beta=0.5", "max_steps=2", "batch_size=2", "lr=1e-3"]
    assert main([*argv, *settings, "--out", str(tmp_path / "out")]) == 0
    lines = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert {"accuracy", "margin", "chosen_change", "rejected_change"} <= json.loads(lines[0]).keys()
    assert main([*argv, "loss.betta=1", "--out", str(tmp_path / "other")]) == 2

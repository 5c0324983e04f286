"""SFT's relatives: values of the specifications of LeTI, RISE, TL-Training and others."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_toys import one_batch, padded_batch, placed, sample, some_values
from transformers import LlamaConfig, LlamaForCausalLM

from agentrl import losses
from agentrl.batch import collate, trainable_weight
from agentrl.errors import ConfigError, DataError
from agentrl.losses import dft, poft, sft, sft_rows
from agentrl.losses.masked import masked_inputs, masked_rate
from agentrl.select.weights import (
    drop_turns,
    focal_weight,
    key_positions,
    key_weights,
    normalised,
    reward_weights,
    scaled,
    signed_weights,
)
from agentrl.train import Scorer


def loss_of(samples, values, denominator=None) -> float:
    logprobs_BT, batch = one_batch(samples, values)
    if denominator is None:
        denominator = math.fsum(map(trainable_weight, samples))
    return sft(logprobs_BT, batch, denominator).loss.item()


def test_leti_is_a_mean_over_tokens_of_the_batch() -> None:
    samples = [sample(1), sample(3)]
    assert loss_of(samples, [[-4.0], [-2.0] * 3]) == pytest.approx(2.5)


def test_rise_weights() -> None:
    plain = {"baseline": "none", "cap": None, "unit_mean": False}
    assert reward_weights([1, 0, -1], **plain) == pytest.approx([12.18249, 1, 0.0820850], rel=1e-6)

    def centred(rewards, groups=None):
        groups = [0] * len(rewards) if groups is None else groups
        return reward_weights(rewards, groups=groups, cap=None, unit_mean=False)

    assert centred([1, 0, 0, 0])[:2] == pytest.approx([6.52082, 0.535261], rel=1e-5)
    hard = centred([1, 1, 1, 0])
    assert (hard[0], hard[3]) == pytest.approx((1.868246, 0.153355), rel=1e-5)
    assert centred([1, 1, 1]) == [1, 1, 1]
    assert centred([1, 0, 5], ["a", "a", "b"])[2] == 1.0
    assert sum(reward_weights([1, 0, 0], groups=[1] * 3, cap=None)) == pytest.approx(3)
    assert max(reward_weights([100, 0, 0], baseline="none")) <= 20
    with pytest.raises(ValueError, match="one group for each"):
        reward_weights([1, 0])
    with pytest.raises(ValueError, match="tau"):
        reward_weights([1], baseline="none", tau=0)
    with pytest.raises(ConfigError, match="unknown baseline"):
        reward_weights([1], baseline="prompt")


def test_rise_s_weights_read_the_other_way():
    found = signed_weights([1, 0, 0, 0], [0] * 4)
    assert found == pytest.approx([8.38687, -2.79562, -2.79562, -2.79562], rel=1e-5)
    assert sum(found) == pytest.approx(0)
    assert signed_weights([1, 0], ["a", "b"]) == [0, 0]
    with pytest.raises(ValueError, match="tau"):
        signed_weights([1], [0], tau=0)
    with pytest.raises(ValueError, match="zip"):
        signed_weights([1, 0], [0])


@given(st.integers(1, 9), st.integers(1, 9))
def test_rise_a_right_answer_weighs_less_on_an_easier_prompt(right, more) -> None:
    n = right + more + 1

    def weight(k: int) -> float:
        rewards = [1.0] * k + [0.0] * (n - k)
        return reward_weights(rewards, groups=[0] * n, cap=None, unit_mean=False)[0]

    assert weight(right + more) < weight(right)


def test_rise_losses() -> None:
    """Section 7, test 4: token mean in a row, times w, mean over rows; and sums over tokens."""
    rows, values = [sample(2), sample(3)], [[-0.5, -1.5], [-0.3, -0.6, -0.9]]
    plain = reward_weights([1, 0], baseline="none", cap=None, unit_mean=False)
    weighted = [scaled(s, w) for s, w in zip(normalised(rows, "rows"), plain, strict=True)]
    assert loss_of(weighted, values, 2) == pytest.approx(6.391247, rel=1e-5)
    centred = reward_weights([1, 0], groups=[0, 0], cap=None, unit_mean=False)
    assert centred == pytest.approx([3.490343, 0.286505], rel=1e-5)
    weighted = [scaled(s, w) for s, w in zip(normalised(rows, "rows"), centred, strict=True)]
    assert loss_of(weighted, values, 2) == pytest.approx(1.831123, rel=1e-5)
    weighted = [scaled(s, w) for s, w in zip(rows, centred, strict=True)]
    assert loss_of(weighted, values, 2) == pytest.approx(3.748197, rel=1e-5)


def test_rise_a_step_of_heavy_rows_counts_more_than_one_of_light_rows() -> None:
    heavy, light = [scaled(s, w) for s, w in zip([sample(1)] * 2, (4.0, 0.5), strict=True)]
    logprobs_BT, batch = one_batch([heavy, heavy], [[-1.0], [-1.0]])
    assert losses.denominator("sft_rows", [heavy, heavy]) == 2
    assert sft_rows(logprobs_BT, batch, 2).loss.item() == pytest.approx(4.0)
    logprobs_BT, batch = one_batch([light], [[-1.0]])
    assert sft_rows(logprobs_BT, batch, 1).loss.item() == pytest.approx(0.5)
    assert loss_of([heavy], [[-1.0]]) == pytest.approx(loss_of([light], [[-1.0]]))


def test_rise_reward_zero_is_not_weight_zero() -> None:
    assert reward_weights([0.0], baseline="none", unit_mean=False) == [1.0]


def test_key_tokens() -> None:
    get, weather, news, search = 1, 2, 3, 4
    assert key_positions([get, weather], [[get, news], [search]]) == [0, 1]
    assert key_positions([get, weather], [[get, news], [get, 9]]) == [0, 1]
    assert key_positions([get], [[get, news]]) == [0]  # told apart after the name ...
    assert key_positions([get], [[get, news]], length=3) == [0, 1]  # ... where there is an after
    keys, parameters, others = [2.0, 1.0], [0.5] * 3, [0.1] * 7
    row = key_weights(sample(12), keys={1, 2}, parameters={3, 4, 5})
    assert row.weights[:4] == [0.0, 3.5, 3.5, 1.0]
    nll = [-x for x in keys + parameters + others]
    assert loss_of([row], [nll]) == pytest.approx(0.74706, abs=1e-5)
    capped = key_weights(sample(42), keys={1, 2})
    assert capped.weights[1] == 9.0
    assert key_weights(sample(4), keys={1, 2}).weights == [0, 1, 1, 1, 1]
    untrained = key_weights(sample(4, weights=[0, 1, 1, 1]), keys={1, 2})
    assert untrained.weights == [0, 0, 2.0, 1, 1]


def test_wrong_turns_stay_in_the_context() -> None:
    """AgentRefine: five turns of two tokens with an observation between, the second one wrong."""
    turns = [-1] + [t for k in range(5) for t in (k, k, -1)]
    made = sample(15, weights=[1, 1, 0] * 5)
    kept = drop_turns(made, turns, wrong={1})
    assert kept.token_ids == made.token_ids
    assert [i for i, w in enumerate(kept.weights) if w] == [1, 2, 7, 8, 10, 11, 13, 14]
    assert trainable_weight(kept) == 8  # kept tokens, not all assistant tokens
    both = drop_turns(made, turns, wrong={1, 2})
    assert trainable_weight(both) == 6
    values = [[-float(i) for i in range(15)]]
    logprobs_BT, batch = one_batch([kept], values)
    sft(logprobs_BT, batch, 8).loss.backward()
    assert logprobs_BT.grad[0, 4:6].tolist() == [0, 0]
    with pytest.raises(ValueError, match="turn numbers"):
        drop_turns(made, [0], wrong={0})


@pytest.mark.parametrize(
    ("case", "expected"),
    [("tokens", 3.0), ("rows", 7 / 3), ("task_tokens", 2.25), ("task_rows", 2.0)],
)
def test_mftcoder_cases(case, expected) -> None:
    samples = [sample(10), sample(10), sample(30)]
    values = [[-1.0] * 10, [-2.0] * 10, [-4.0] * 30]
    tasks = ["a", "b", "b"]
    made = normalised(samples, case, tasks)
    assert loss_of(made, values) == pytest.approx(expected)
    # a task that is absent shares out its weight: nothing changes
    weights = {"a": 2.0, "b": 2.0, "absent": 7.0}
    assert loss_of(normalised(samples, case, tasks, weights), values) == pytest.approx(expected)
    # micro-batches of one row each: the sums add up, as means of means would not
    n = math.fsum(map(trainable_weight, made))
    parts = [loss_of([s], [v], n) for s, v in zip(made, values, strict=True)]
    assert sum(parts) == pytest.approx(expected)


def test_mftcoder_weights_and_faults() -> None:
    samples, tasks = [sample(1), sample(1)], ["a", "b"]
    made = normalised(samples, "task_rows", tasks, {"a": 3.0, "b": 1.0})
    assert loss_of(made, [[-1.0], [-5.0]]) == pytest.approx((3 * 1 + 5) / 4)
    assert focal_weight(0.75, 2.0) == 0.0625
    with pytest.raises(DataError, match="has no mean"):
        normalised([sample(1, weights=[0])], "rows")
    with pytest.raises(ValueError, match="one task for each"):
        normalised(samples, "task_rows")
    with pytest.raises(ConfigError, match="unknown case"):
        normalised(samples, "case1")


def test_poft() -> None:
    made = [sample(2)]
    logprobs_BT, batch = one_batch(made, [[-0.25, -0.75]])
    out = poft(logprobs_BT, batch, 1, scores=[-0.8])
    assert out.loss.item() == pytest.approx(0.554355, abs=1e-6)
    assert out.metrics["tau"].item() == pytest.approx(0.425557, abs=1e-6)
    out.loss.backward()
    tau, ours = 0.425557, logprobs_BT.grad.clone()
    assert ours[0].tolist() == pytest.approx([0, -tau / 2, -tau / 2], abs=1e-6)
    geometric = math.exp(-0.8)
    assert tau == pytest.approx(geometric / (geometric + math.exp(-0.5)), abs=1e-6)
    logprobs_BT.grad = None
    plain = poft(logprobs_BT, batch, 1, scores=[math.inf])
    plain.loss.backward()
    assert plain.loss.item() == pytest.approx(0.5)
    assert logprobs_BT.grad[0].tolist() == pytest.approx([0, -0.5, -0.5])


def test_dft_scales_by_a_constant_probability() -> None:
    logprobs_BT, batch = one_batch([sample(2)], [[math.log(0.5), math.log(0.1)]])
    out = dft(logprobs_BT, batch, 2)
    out.loss.backward()
    assert logprobs_BT.grad[0].tolist() == pytest.approx([0, -0.25, -0.05])
    assert out.loss.item() == pytest.approx(-(0.5 * math.log(0.5) + 0.1 * math.log(0.1)) / 2)
    assert out.metrics["nll"].item() == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)


def test_masked_thought() -> None:
    samples = [sample(6, weights=[1, 1, 0, 0, 1, 1], prompt=3), sample(2, prompt=2)]
    batch = padded_batch(samples)
    labels = batch.input_ids_BT.clone()
    draw = torch.Generator().manual_seed(3)
    assert torch.equal(masked_inputs(batch, 0.0, 99, draw), labels)
    all_BT = masked_inputs(batch, 1.0, 99, draw)
    assert all_BT[0].tolist() == [1, 2, 3, 99, 99, 6, 7, 99, 99]  # prompt and tool output stay
    assert all_BT[1].tolist() == [1, 2, 99, 99, 0, 0, 0, 0, 0]
    assert torch.equal(batch.input_ids_BT, labels)
    one, again = (masked_inputs(batch, 0.5, 99, torch.Generator().manual_seed(s)) for s in (1, 1))
    assert torch.equal(one, again)
    draw = torch.Generator().manual_seed(1)
    epochs = [masked_inputs(batch, 0.5, 99, draw) for _ in range(4)]
    assert any(not torch.equal(epochs[0], e) for e in epochs[1:])
    with pytest.raises(ConfigError, match="from 0 to 1"):
        masked_inputs(batch, 1.5, 99, draw)
    tree = collate(samples, [[0, 1]], tree=True)
    with pytest.raises(ConfigError, match="rows of their own"):
        masked_inputs(tree, 0.5, 99, draw)
    assert [masked_rate(s, 100) for s in (0, 33, 66, 99)] == pytest.approx([0, 0.2, 0.4, 0.4])
    assert masked_rate(0, 100, warmup=0.0) == 0.4


def test_masked_thought_changes_what_is_read_not_what_is_learnt() -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    scorer = Scorer(LlamaForCausalLM(config))
    batch = padded_batch([sample(4, prompt=2)])
    masked_BT = masked_inputs(batch, 1.0, 49, torch.Generator())
    found_BT = scorer(batch, input_ids_BT=masked_BT).logprobs_BT
    logits_TV = scorer.model(input_ids=masked_BT).logits[0].log_softmax(-1)
    expected = [logits_TV[t - 1, batch.input_ids_BT[0, t]].item() for t in range(2, 6)]
    assert found_BT[0, 2:].tolist() == pytest.approx(expected, abs=1e-5)
    same = scorer(batch, input_ids_BT=batch.input_ids_BT).logprobs_BT
    assert torch.equal(same, scorer(batch).logprobs_BT)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["sft", "dft", "poft", "kto"]), some_values(5), st.integers(0, 10**6))
def test_splits_order_and_fill_change_nothing(name, values, seed) -> None:
    draw = random.Random(seed)
    samples = [sample(len(v), ref=[draw.uniform(-3, 0) for _ in v]) for v in values]
    options = {
        "poft": {"scores": [draw.uniform(-3, 0) for _ in values]},
        "kto": {"desirable": [draw.random() < 0.5 for _ in values], "kl": 0.2},
    }
    loss = losses.make(name, **options.get(name, {}))
    n = losses.denominator(name, samples)
    whole = loss(*one_batch(samples, values), n)
    order = draw.sample(range(len(values)), len(values))
    total, metrics = 0.0, dict.fromkeys(whole.metrics, 0.0)
    for i in range(0, len(order), 2):
        batch = collate(samples, [order[i : i + 2]])
        out = loss(placed(batch, samples, values), batch, n)
        total += out.loss.item()
        for key, x in out.metrics.items():
            metrics[key] += x.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-5)
    for key, x in whole.metrics.items():
        assert metrics[key] == pytest.approx(x.item(), rel=1e-5, abs=1e-6)

"""Batching changes no loss: fill, packing, order and the number of micro-batches do not matter."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_toys import gradients, reference_loss, some_samples, tiny

from agentrl.batch import MICRO_COST, check_samples, collate, plan, trainable_weight
from agentrl.errors import DataError
from agentrl.losses import sft
from agentrl.train import Scorer
from agentrl.types import Sample

MODEL = tiny()


def batched_loss(model, samples, micros, tree=False) -> float:
    """Loss and gradients of one step, as the training loop makes them."""
    denominator = math.fsum(trainable_weight(s) for s in samples)
    total = 0.0
    for rows in micros:
        batch = collate(samples, rows, tree=tree)
        out = sft(Scorer(model)(batch).logprobs_BT, batch, denominator)
        out.loss.backward()
        total += out.loss.item()
    return total


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
@pytest.mark.parametrize("budget", [1, 30, 70, 10_000])
def test_same_loss_and_gradients_as_one_by_one(layout, budget) -> None:
    samples = some_samples(9, seed=3)
    expected = reference_loss(MODEL, samples)
    expected.backward()
    wanted = gradients(MODEL)
    micros = plan(samples, budget, layout)
    loss = batched_loss(MODEL, samples, micros, tree=layout == "tree")
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for name, grad in gradients(MODEL).items():
        torch.testing.assert_close(grad, wanted[name], atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 10**6), st.integers(1, 120), st.booleans())
def test_any_split_into_rows_and_micro_batches(n, seed, budget, packed) -> None:
    """Random samples in random rows in random micro-batches give the loss of one by one."""
    samples = some_samples(n, seed=seed)
    draw = random.Random(seed)
    order = draw.sample(range(n), n)
    rows, micros = [], []
    while order:
        size = draw.randint(1, 3) if packed else 1
        rows.append(order[:size])
        order = order[size:]
    while rows:
        size = 1 + budget % 3
        micros.append(rows[:size])
        rows = rows[size:]
    expected = reference_loss(MODEL, samples)
    expected.backward()
    wanted = gradients(MODEL)
    assert batched_loss(MODEL, samples, micros) == pytest.approx(expected.item(), abs=1e-5)
    for name, grad in gradients(MODEL).items():
        torch.testing.assert_close(grad, wanted[name], atol=1e-5, rtol=1e-4)


def of_lengths(lengths) -> list[Sample]:
    """Samples that share nothing, of these lengths."""
    return [Sample([i] * n, [1.0] * n) for i, n in enumerate(lengths)]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=12),
    st.integers(1, 120),
    st.sampled_from(["padded", "packed", "tree"]),
)
def test_plan_holds_every_sample_once_within_the_budget(lengths, budget, layout) -> None:
    micros = plan(of_lengths(lengths), budget, layout)
    assert sorted(i for rows in micros for row in rows for i in row) == list(range(len(lengths)))
    for rows in micros:
        cells = len(rows) * max(sum(lengths[i] for i in row) for row in rows)
        assert cells <= budget or sum(len(row) for row in rows) == 1
        assert layout != "padded" or all(len(row) == 1 for row in rows)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=7), st.integers(300, 900))
def test_padded_plan_is_the_cheapest_of_all_cuts(lengths, budget) -> None:
    ordered = sorted(lengths, reverse=True)

    def cheapest(rest: list[int]) -> float:
        if not rest:
            return 0
        sizes = [k for k in range(1, len(rest) + 1) if k * rest[0] <= budget]
        return min(k * rest[0] + MICRO_COST + cheapest(rest[k:]) for k in sizes)

    micros = plan(of_lengths(lengths), budget, "padded")
    cost = sum(len(rows) * max(lengths[r[0]] for r in rows) + MICRO_COST for rows in micros)
    assert cost == cheapest(ordered)


def test_collate_packs_rows_with_positions_from_each_start() -> None:
    samples = [Sample([5, 6, 7], [1, 1, 0.5]), Sample([8, 9], [1, 1]), Sample([4], [0])]
    batch = collate(samples, [[0, 1], [2]], fill=3)
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8, 9], [4, 3, 3, 3, 3]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]
    assert batch.segment_ids_BT.tolist() == [[0, 0, 0, 1, 1], [2, -1, -1, -1, -1]]
    assert batch.weights_BT.tolist() == [[0, 1, 0.5, 0, 1], [0] * 5]  # first tokens: never
    assert batch.samples == (0, 1, 2)
    assert batch.packed
    assert batch.tokens == 6
    assert batch.advantages_BT is None
    assert batch.to("cpu").samples == batch.samples


def test_collate_carries_what_all_samples_have() -> None:
    full = Sample([1, 2], [0, 1], advantages=[0, 2.0], logprobs=[0, -1.0], ref_logprobs=[0, -3.0])
    batch = collate([full, full], [[0], [1]])
    assert batch.advantages_BT is not None
    assert batch.advantages_BT.tolist() == [[0, 2.0]] * 2
    assert batch.logprobs_BT is not None
    assert batch.ref_logprobs_BT is not None
    with pytest.raises(DataError, match="some samples have advantages"):
        collate([full, Sample([1, 2], [0, 1])], [[0], [1]])


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([], "no sample"),
        ([Sample([], [])], "sample 0 has no token"),
        ([Sample([1, 99], [0, 1])], "another tokenizer"),
        ([Sample([1, -100], [0, 1])], "another tokenizer"),
        ([Sample([1] * 40, [1] * 40)], "context is 30"),
        ([Sample([1, 2], [0, 1]), Sample([1, 2], [0, -1])], "sample 1 has a negative"),
        ([Sample([1, 2], [0, math.nan])], "non-finite weight"),
        ([Sample([1, 2], [0, 1]), Sample([1, 2], [1, 0])], "1 of 2 samples have no trainable"),
    ],
)
def test_samples_that_cannot_be_trained_on_are_named(samples, message) -> None:
    with pytest.raises(DataError, match=message):
        check_samples(samples, vocab_size=64, max_length=30)

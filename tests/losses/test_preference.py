"""Preference losses: values of the specifications, and what must hold for all of them."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_toys import one_batch, placed, sample, scores, some_values

from agentrl import losses
from agentrl.batch import collate
from agentrl.credit import SCHEMES
from agentrl.errors import ConfigError, DataError
from agentrl.losses import preference, reference_free
from agentrl.losses.kto import kto, kto_kl
from agentrl.losses.pairs import pair_scores, samples_of
from agentrl.pairing import FLIP, shared_prefix, suffix_only
from agentrl.pairing import visit_flip as flip
from agentrl.types import Pair, Sample

WITH_REFERENCE = [n for n in losses.OVER_PAIRS if hasattr(preference, n)]
PAIRED = sorted(losses.OVER_PAIRS)
SUMS = [*sorted(set(WITH_REFERENCE) - {"dpo_norm", "ipo", "rpo"}), "cpo", "tpo"]
OPTIONS = {"cpo": {"alpha": 0.0}, "tpo": {"alpha": 0.0}, "tpo_l": {"alpha": 0.0}}


def value(out) -> float:
    return out.loss.item()


def test_dpo_and_cdpo() -> None:
    assert value(preference.dpo(scores(-1, -1, -1, -1), 1)) == pytest.approx(math.log(2))
    # MCTS-DPO: visits 6 and 2 give a = 0.25; at beta * h = ln 3 the gradient is 0
    assert flip(6, 2) == 0.25
    assert flip(1, 3) == 0.5
    assert flip(0, 0) == 0.5
    for smoothing in ({"label_smoothing": 0.25}, {}):
        pairs = scores(math.log(3), 0.0, 0.0, 0.0, **({} if smoothing else {"flip_P": 0.25}))
        out = preference.dpo(pairs, 1, beta=1.0, **smoothing)
        assert value(out) == pytest.approx(0.56234, abs=1e-5)
        out.loss.backward()
        assert pairs.chosen_P.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_rpo() -> None:
    pairs = scores(-20, -30, -25, -28, tokens=(4.0, 5.0))
    out = preference.rpo(pairs, 1, beta=0.01, eta=0.005)
    assert value(out) == pytest.approx(0.659760, abs=1e-6)
    assert (
        preference.rpo(pairs, 1, beta=0.01, eta=0.0).loss
        == preference.dpo(pairs, 1, beta=0.01).loss
    )
    out.loss.backward()
    with_term = pairs.rejected_P.grad.clone()
    pairs.rejected_P.grad = None
    preference.dpo(pairs, 1, beta=0.01).loss.backward()
    assert torch.equal(pairs.rejected_P.grad, with_term)


def test_simpo_and_tpo() -> None:
    pairs = scores(-2.0, -6.0, tokens=(4.0, 4.0))
    # iTool's form: beta * (mlp_w - mlp_l) - gamma = 2.5 * 1 - 0.5
    out = reference_free.simpo(pairs, 1, beta=2.5, gamma=0.5)
    assert value(out) == pytest.approx(math.log1p(math.exp(-2.0)))
    pairs = scores(-10, -30, gold_P=-7.0, gold_tokens_P=10.0)
    out = reference_free.tpo(pairs, 1, beta=0.01, alpha=1.0)
    assert value(out) == pytest.approx(1.298139, abs=1e-6)
    out.loss.backward()
    before = pairs.chosen_P.grad.item(), pairs.rejected_P.grad.item()
    other = scores(-10, -30, gold_P=-1.0, gold_tokens_P=3.0)
    reference_free.tpo(other, 1).loss.backward()
    assert (other.chosen_P.grad.item(), other.rejected_P.grad.item()) == before
    no_gold = scores(-10, -30)
    assert value(reference_free.tpo(no_gold, 1, alpha=0.0)) == pytest.approx(0.598139, abs=1e-6)
    with pytest.raises(ConfigError, match="needs a gold answer"):
        reference_free.tpo(no_gold, 1)


def test_asft() -> None:
    pairs = scores(-0.5, -1.0)
    bracket = 0.958675
    assert value(reference_free.asft(pairs, 1, weight=0.1)) == pytest.approx(
        0.5 + 0.1 * bracket, abs=1e-6
    )
    assert value(reference_free.asft(pairs, 1, weight=1.0)) == pytest.approx(
        0.5 + bracket, abs=1e-6
    )


@pytest.mark.parametrize(("name", "coupled"), [("asft", False), ("dpo", True), ("orpo", True)])
def test_asft_alone_pushes_each_answer_on_its_own(name, coupled) -> None:
    grads = []
    for rejected in (-1.0, -0.2):
        pairs = scores(-0.5, rejected, -0.6, -0.6)
        (getattr(preference, name, None) or getattr(reference_free, name))(pairs, 1).loss.backward()
        grads.append(pairs.chosen_P.grad.item())
    assert (grads[0] != grads[1]) is coupled


@pytest.mark.parametrize("loss", [reference_free.asft, reference_free.orpo])
@pytest.mark.parametrize("sure", [0.0, -1e-12, -1e-30])
def test_sure_answers_stay_finite(loss, sure) -> None:
    for chosen, rejected in ((-1.0, sure), (sure, -1.0)):
        pairs = scores(chosen, rejected)
        out = loss(pairs, 1)
        out.loss.backward()
        assert math.isfinite(value(out))
        assert math.isfinite(pairs.chosen_P.grad.item())
        assert math.isfinite(pairs.rejected_P.grad.item())


@pytest.mark.parametrize("x", [-1e-6, -0.3, -math.log(2), -1.0, -30.0])
def test_log1mexp(x) -> None:
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    found = reference_free.log1mexp(at)
    assert found.item() == pytest.approx(math.log1p(-math.exp(x)), rel=1e-9)
    found.backward()
    assert at.grad.item() == pytest.approx(-1 / math.expm1(-x), rel=1e-9)


def test_kto() -> None:
    values = [[-1.0, -2.0], [-0.5]]
    samples = [sample(2, ref=[-1.5, -2.0]), sample(1, ref=[-0.25])]
    logprobs_BT, batch = one_batch(samples, values)
    out = kto(logprobs_BT, batch, 2, desirable=[True, False], kl=0.1, undesirable_weight=1.5)

    def s(x):
        return 1 / (1 + math.exp(-x))

    good, bad = 1 - s(0.1 * (0.5 - 0.1)), 1 - s(0.1 * (0.1 - -0.25))
    assert value(out) == pytest.approx((good + 1.5 * bad) / 2)
    out.loss.backward()
    assert (logprobs_BT.grad[0, 1:] < 0).all()  # descent makes the good answer more likely
    assert logprobs_BT.grad[1, 1] > 0
    assert out.metrics["chosen_change"].item() == pytest.approx(0.25)
    assert out.metrics["rejected_change"].item() == pytest.approx(-0.125)
    assert kto_kl([0.5, -1.5]) == 0.0
    assert kto_kl([0.5, 1.5]) == 1.0
    with pytest.raises(ValueError, match="at least one"):
        kto_kl([])


@given(*[st.lists(st.floats(-3, 3), min_size=1, max_size=5)] * 2)
def test_kto_s_reference_point_of_a_step_is_at_most_that_of_its_parts(one, other) -> None:
    """As a library that bounds each micro-batch at 0 has it: too high, the more the smaller."""
    n = len(one) + len(other)
    parts = (len(one) * kto_kl(one) + len(other) * kto_kl(other)) / n
    assert kto_kl(one + other) <= parts + 1e-9


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(PAIRED), some_values(3, even=True), st.integers(0, 10**6))
def test_splits_order_and_fill_change_nothing(name, values, seed) -> None:
    """One padded batch of all pairs, and each pair packed in a micro-batch of its own."""
    draw = random.Random(seed)
    samples = [sample(len(v), ref=[draw.uniform(-3, 0) for _ in v]) for v in values]
    loss = losses.make(name, **OPTIONS.get(name, {}), members=2)
    n = losses.denominator(name, samples, members=2)
    assert n == len(values) // 2
    logprobs_BT, batch = one_batch(samples, values)
    whole = loss(logprobs_BT, batch, n)
    whole.loss.backward()
    total, order = 0.0, draw.sample(range(len(values) // 2), len(values) // 2)
    metrics = dict.fromkeys(whole.metrics, 0.0)
    for i in order:
        row = draw.sample([2 * i, 2 * i + 1], 2)
        part_batch = collate(samples, [row])
        part_BT = placed(part_batch, samples, values)
        part = loss(part_BT, part_batch, n)
        part.loss.backward()
        total += part.loss.item()
        for key, x in part.metrics.items():
            metrics[key] += x.item()
        for segment, j in enumerate(part_batch.samples):
            torch.testing.assert_close(
                part_BT.grad[part_batch.segment_ids_BT == segment],
                logprobs_BT.grad[batch.segment_ids_BT == j],
                rtol=1e-5,
                atol=1e-8,
            )
    assert total == pytest.approx(whole.loss.item(), rel=1e-5)
    for key, x in whole.metrics.items():
        assert metrics[key] == pytest.approx(x.item(), rel=1e-5, abs=1e-6)


@given(
    st.sampled_from(sorted(set(PAIRED) - {"apo_down", "ipo", "sppo", "nca", "discopop"})),
    *[st.floats(-9.0, -0.1)] * 4,
)
def test_descent_prefers_the_chosen_answer(name, chosen, rejected, ref_c, ref_r) -> None:
    """These losses fall with the chosen and rise with the rejected log-probability."""
    pairs = scores(chosen, rejected, ref_c, ref_r, tokens=(3.0, 2.0))
    module = preference if hasattr(preference, name) else reference_free
    getattr(module, name)(pairs, 1, **OPTIONS.get(name, {})).loss.backward()
    if name in ("exo", "robust_dpo"):  # bounded below: past the label's own confidence they turn
        return
    assert pairs.chosen_P.grad.item() <= 0
    assert pairs.rejected_P.grad.item() >= 0


@pytest.mark.parametrize("name", SUMS)
def test_a_shared_prefix_cancels(name) -> None:
    """Trained prefix tokens get no gradient, and leaving them out changes no loss (step DPO)."""
    prefix = [-0.7, -1.3]
    values = [[*prefix, -0.4], [*prefix, -2.0, -0.1]]
    ids = [[1, 2, 3, 4], [1, 2, 3, 5, 6]]
    refs = [[0.0, -0.5, -1.0, -0.6], [0.0, -0.5, -1.0, -1.5, -0.2]]
    chosen, rejected = (
        Sample(i, [0.0] + [1.0] * (len(i) - 1), ref_logprobs=r)
        for i, r in zip(ids, refs, strict=True)
    )
    pair = Pair(chosen, rejected)
    assert shared_prefix(pair) == 3
    cut = suffix_only(pair)
    assert cut.chosen.weights == [0, 0, 0, 1]
    assert cut.rejected.weights == [0, 0, 0, 1, 1]
    loss = losses.make(name, members=2, **OPTIONS.get(name, {}))
    long_BT, long = one_batch(samples_of([pair]), values)
    short_BT, short = one_batch(samples_of([cut]), values)
    whole, suffix = loss(long_BT, long, 1), loss(short_BT, short, 1)
    per_answer = {"nca", "bco", "sppo", "apo_zero", "apo_down"}
    if name in per_answer:  # these read each reward alone: the prefix is part of it
        assert value(whole) != pytest.approx(value(suffix), abs=1e-6)
        return
    assert value(whole) == pytest.approx(value(suffix), abs=1e-6)
    whole.loss.backward()
    # one tree computes the prefix once: its gradient is the sum over both answers
    assert (long_BT.grad[0, 1:3] + long_BT.grad[1, 1:3]).abs().max() < 1e-7
    with pytest.raises(DataError, match="differ in no token"):
        suffix_only(Pair(chosen, chosen))


def test_pairs_keep_their_margins_and_flips() -> None:
    pairs = [
        Pair(sample(1, ref=[-1.0]), sample(1, ref=[-1.0]), margin=m, meta=meta)
        for m, meta in ((0.5, {FLIP: 0.25}), (0.0, {}))
    ]
    samples = samples_of(pairs)
    batch = collate(samples, [[3, 2], [1, 0]])  # any order
    logprobs_BT = placed(batch, samples, [[-1.0], [-2.0], [-3.0], [-4.0]])
    found = pair_scores(logprobs_BT, batch, pairs)
    assert found.chosen_P.tolist() == [-1.0, -3.0]
    assert found.rejected_P.tolist() == [-2.0, -4.0]
    assert found.margin_P.tolist() == [0.5, 0.0]
    assert found.flip_P.tolist() == [0.25, 0.0]
    plain = losses.make("dpo", beta=1.0)(logprobs_BT, batch, 2)
    asked = losses.make("dpo", beta=1.0, pairs=pairs)(logprobs_BT, batch, 2)

    def cross(x, f):
        return (1 - f) * math.log1p(math.exp(-x)) + f * math.log1p(math.exp(x))

    assert value(plain) == pytest.approx(cross(1.0, 0.0))
    assert value(asked) == pytest.approx((cross(0.5, 0.25) + cross(1.0, 0.0)) / 2)


def test_faults_are_named() -> None:
    samples = [sample(1), sample(1)]
    logprobs_BT, batch = one_batch(samples, [[-1.0], [-2.0]])
    with pytest.raises(ConfigError, match="reference_free=True"):
        losses.get("dpo")(logprobs_BT, batch, 1)
    assert value(losses.make("dpo", reference_free=True)(logprobs_BT, batch, 1)) > 0
    with pytest.raises(DataError, match="pair 0 is split"):
        losses.get("simpo")(*one_batch(samples[:1], [[-1.0]]), 1)
    with pytest.raises(ConfigError, match=r"unknown option of loss 'dpo'.*Did you mean 'beta'"):
        losses.make("dpo", betta=1)
    with pytest.raises(ConfigError, match="'kto' needs a value for desirable, kl"):
        losses.get("kto")
    with pytest.raises(ConfigError, match="label_smoothing"):
        preference.robust_dpo(scores(-1, -1, -1, -1), 1, label_smoothing=0.5)
    with pytest.raises(ConfigError, match="label_smoothing"):
        preference.exo(scores(-1, -1, -1, -1), 1, label_smoothing=0.0)
    with pytest.raises(ValueError, match="number of pairs"):
        losses.get("simpo")(logprobs_BT, batch, 0)
    with pytest.raises(ValueError, match="groups of 3"):
        losses.denominator("tpo", samples)
    empty = [sample(1, weights=[0.0]), sample(1)]
    with pytest.raises(DataError, match="no token with a weight"):
        losses.get("simpo")(*one_batch(empty, [[-1.0], [-2.0]]), 1)


def test_every_loss_has_one_unit_and_a_line() -> None:
    names = [*losses.OVER_WEIGHTS, *losses.OVER_SAMPLES, *losses.OVER_PAIRS]
    assert len(names) == len(set(names)) == len(losses.LOSSES)
    samples = [sample(2), sample(3), sample(1), sample(1), sample(2), sample(2)]
    expected = {"weights": 11.0, "samples": 6.0, "pairs": 3.0}
    for name in names:
        if name not in ("tpo", "tpo_l"):
            assert losses.denominator(name, samples) == expected[losses.unit(name)]
    assert losses.denominator("tpo", samples) == 2


def test_the_page_lists_every_loss_and_scheme() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "losses.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert sorted(listed) == sorted([*losses.LOSSES, *SCHEMES])

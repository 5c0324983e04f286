"""Policy-gradient losses: values by hand, gradients, masks, and splits that change nothing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_toys import one_batch, padded_batch, placed, sample, some_values

from agentrl import losses
from agentrl.batch import collate
from agentrl.errors import ConfigError
from agentrl.losses import Extras
from agentrl.losses import policy_gradient as pg
from agentrl.losses.importance import importance_weights
from agentrl.losses.values import value_loss

OPTIONS = {"dr_grpo": {"max_tokens": 7.0}}
NAMES = ["reinforce", "rloo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo"]


def by_hand(logprobs, old, advantages, name):
    """Each loss from its paper's formula, sample by sample, in plain Python."""
    total, tokens = 0.0, sum(len(x) for x in logprobs)
    for lp, lo, a in zip(logprobs, old, advantages, strict=True):
        r = [math.exp(x - y) for x, y in zip(lp, lo, strict=True)]
        n = len(lp)

        def clip(x, low, high):
            return min(max(x, 1 - low), 1 + high)

        def least(x, low, high, a=a):
            return min(x * a, clip(x, low, high) * a)

        if name == "reinforce":
            total += sum(a * x for x in lp) / len(logprobs)
        elif name == "rloo":
            total += least(math.prod(r), 0.2, 0.2) / len(logprobs)
        elif name == "gspo":
            total += least(math.prod(r) ** (1 / n), 3e-4, 4e-4) / len(logprobs)
        elif name == "grpo":
            total += sum(least(x, 0.2, 0.2) for x in r) / n / len(logprobs)
        elif name == "dr_grpo":
            total += sum(least(x, 0.2, 0.2) for x in r) / 7.0 / len(logprobs)
        elif name == "dapo":
            total += sum(least(x, 0.2, 0.28) for x in r) / tokens
        elif name == "ppo":
            total += sum(least(x, 0.2, 0.2) for x in r) / tokens
        elif name == "cispo":
            total += sum(min(x, 5.0) * a * y for x, y in zip(r, lp, strict=True)) / tokens
    return -total


LOGPROBS = [[-0.5, -1.0, -2.0], [-0.1], [-1.5, -0.2]]
OLD = [[-0.6, -0.7, -2.05], [-2.5], [-1.49, -0.21]]
ADVANTAGES = [1.5, -0.5, -1.0]


@pytest.mark.parametrize("name", NAMES)
def test_values_of_the_formulas(name) -> None:
    samples = [
        sample(len(v), advantages=a, old=o)
        for v, a, o in zip(LOGPROBS, ADVANTAGES, OLD, strict=True)
    ]
    logprobs_BT, batch = one_batch(samples, LOGPROBS)
    out = losses.make(name, **OPTIONS.get(name, {}))(
        logprobs_BT, batch, losses.denominator(name, samples)
    )
    assert out.loss.item() == pytest.approx(by_hand(LOGPROBS, OLD, ADVANTAGES, name), rel=1e-5)
    if name != "reinforce":
        assert out.maxima["ratio_max"].item() > 1
        biggest = max(
            abs(x - y)
            for a, b in zip(LOGPROBS, OLD, strict=True)
            for x, y in zip(a, b, strict=True)
        )
        assert out.maxima["log_ratio_abs_max"].item() == pytest.approx(biggest, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_on_policy_all_are_the_policy_gradient(name) -> None:
    """Without old log-probabilities the ratio is 1: the gradient is advantage times a constant."""
    samples = [sample(len(v), advantages=a) for v, a in zip(LOGPROBS, ADVANTAGES, strict=True)]
    logprobs_BT, batch = one_batch(samples, LOGPROBS)
    n = losses.denominator(name, samples)
    losses.make(name, **OPTIONS.get(name, {}))(logprobs_BT, batch, n).loss.backward()
    for segment, (v, a) in enumerate(zip(LOGPROBS, ADVANTAGES, strict=True)):
        per_token = {"grpo": 1 / len(v), "gspo": 1 / len(v), "dr_grpo": 1 / 7.0}.get(name, 1.0)
        expected = [-a * per_token / n] * len(v)
        assert logprobs_BT.grad[segment, 1 : 1 + len(v)].tolist() == pytest.approx(
            expected, rel=1e-5
        )


@pytest.mark.parametrize(
    ("name", "kl"),
    [
        (n, kl)
        for n in ("grpo", "dr_grpo", "dapo", "ppo")
        for kl in (None, "k2", "k3", "k3_weighted")
    ]
    + [("reinforce", None), ("reinforce", "k2"), ("reinforce", "k3")],
)
def test_gradients_by_finite_differences(name, kl) -> None:
    """Of losses without parts that are held constant (the others have tests of their own)."""
    samples = [
        sample(len(v), advantages=a, old=o, ref=[-1.0] * len(v))
        for v, a, o in zip(LOGPROBS, ADVANTAGES, OLD, strict=True)
    ]
    logprobs_BT, batch = one_batch(samples, LOGPROBS)
    lists = ("logprobs_BT", "ref_logprobs_BT", "advantages_BT", "weights_BT")
    batch = replace(batch, **{name: getattr(batch, name).double() for name in lists})
    extras = Extras() if kl is None else Extras(kl_coef=0.3, kl=kl)
    loss = losses.make(name, extras=extras, **OPTIONS.get(name, {}))
    n = losses.denominator(name, samples)
    loss(logprobs_BT, batch, n).loss.backward()
    for b, t in (batch.weights_BT > 0).nonzero().tolist():
        step, h = torch.zeros_like(logprobs_BT), 1e-6
        step[b, t] = h
        up, down = (loss(logprobs_BT.detach() + s, batch, n).loss.item() for s in (step, -step))
        assert logprobs_BT.grad[b, t].item() == pytest.approx((up - down) / 2 / h, abs=1e-6)


@pytest.mark.parametrize("name", ["rloo", "gspo"])
def test_gradient_of_a_sample_s_ratio(name) -> None:
    """The token form has the gradient of the one ratio of the whole sample."""
    a, values, old = 0.7, [-0.5, -1.0, -2.0], [-0.49, -1.02, -1.98]
    made = sample(3, advantages=a, old=old)
    logprobs_BT, batch = one_batch([made], [values])
    losses.make(name, clip_low=0.5, clip_high=0.5)(logprobs_BT, batch, 1).loss.backward()
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    d = x - torch.tensor(old, dtype=torch.float64)
    (-a * torch.exp(d.sum() if name == "rloo" else d.mean())).backward()
    assert logprobs_BT.grad[0, 1:].tolist() == pytest.approx(x.grad.tolist(), rel=1e-5)


def test_clipping_takes_the_gradient_and_is_counted_raw() -> None:
    """Ratios 2 and 0.5: clipped only where the advantage pushes further out."""
    old = [-2.0, -2.0]
    values = [math.log(2.0) - 2.0, math.log(0.5) - 2.0]
    for a, clipped in ((1.0, [True, False]), (-1.0, [False, True])):
        logprobs_BT, batch = one_batch([sample(2, advantages=a, old=old)], [values])
        out = pg.grpo(logprobs_BT, batch, 1)
        out.loss.backward()
        assert [g == 0 for g in logprobs_BT.grad[0, 1:].tolist()] == clipped
        assert out.metrics["clip_high"].item() == (0.5 if a > 0 else 0.0)
        assert out.metrics["clip_low"].item() == (0.5 if a < 0 else 0.0)
        assert out.metrics["ratio"].item() == pytest.approx(1.25)  # raw: not 1.0
        assert out.maxima["ratio_max"].item() == pytest.approx(2.0)
        k3 = (2 - 1 - math.log(2) + 0.5 - 1 + math.log(2)) / 2
        assert out.metrics["kl_old"].item() == pytest.approx(k3, abs=1e-6)
    # DAPO's upper bound is further out; the dual clip bounds where the advantage is negative
    logprobs_BT, batch = one_batch([sample(1, advantages=1.0, old=[-2.0])], [[math.log(1.25) - 2]])
    assert pg.grpo(logprobs_BT, batch, 1).loss.item() == pytest.approx(-1.2)
    assert pg.dapo(logprobs_BT, batch, 1).loss.item() == pytest.approx(-1.25)
    logprobs_BT, batch = one_batch([sample(1, advantages=-1.0, old=[-3.0])], [[math.log(6) - 3]])
    assert pg.grpo(logprobs_BT, batch, 1).loss.item() == pytest.approx(6.0)
    assert pg.grpo(logprobs_BT, batch, 1, dual_clip=3.0).loss.item() == pytest.approx(3.0)


def test_a_ratio_beyond_all_bounds_is_clipped_not_lost() -> None:
    """A sample's ratio of exp(120): where the advantage is positive the bound holds."""
    made = sample(3, advantages=1.0, old=[-41.0] * 3, prompt=2)
    logprobs_BT, batch = one_batch([made], [[-1.0] * 3])
    logprobs_BT = logprobs_BT.detach().float().requires_grad_()  # in which exp(120) is infinite
    out = pg.rloo(logprobs_BT, batch, 1)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(-1.2)
    assert logprobs_BT.grad.abs().max() == 0


def test_cispo_keeps_every_gradient() -> None:
    logprobs_BT, batch = one_batch([sample(2, advantages=1.0, old=[-9.0, -1.0])], [[-1.0, -1.0]])
    out = pg.cispo(logprobs_BT, batch, 2, cap=5.0)
    out.loss.backward()
    assert logprobs_BT.grad[0, 1:].tolist() == pytest.approx([-2.5, -0.5])
    assert out.metrics["clip_high"].item() == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_tokens_without_weight_count_nowhere(name) -> None:
    """Tool output between two turns: any values of it give the same loss, gradients and metrics."""
    found = []
    for tool in ((-0.1, -0.2, 3.0), (-7.0, -0.3, -2.0)):
        old = [-0.6, tool[1], -0.7]
        made = sample(3, weights=[1, 0, 1], advantages=[1.0, tool[2], 1.0], old=old, ref=old)
        logprobs_BT, batch = one_batch([made], [[-0.5, tool[0], -1.0]])
        loss = losses.make(name, extras=Extras(kl_coef=0.1), **OPTIONS.get(name, {}))
        out = loss(logprobs_BT, batch, losses.denominator(name, [made]))
        out.loss.backward()
        assert logprobs_BT.grad[0, 2] == 0
        found.append(
            [x.item() for x in (out.loss, *out.metrics.values(), *out.maxima.values())]
            + logprobs_BT.grad[0].tolist()
        )
    assert found[0] == found[1]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(NAMES), some_values(5), st.integers(0, 10**6), st.booleans())
def test_splits_order_and_fill_change_nothing(name, values, seed, packed) -> None:
    draw = random.Random(seed)
    samples = [
        sample(
            len(v),
            advantages=[draw.uniform(-2, 2) for _ in v],
            old=[x + draw.uniform(-0.5, 0.5) for x in v],
            ref=[draw.uniform(-3, 0) for _ in v],
            prompt=draw.randint(1, 3),
        )
        for v in values
    ]
    extras = Extras(kl_coef=0.2, kl=draw.choice(["k2", "k3", "k3_weighted"]))
    loss = losses.make(name, extras=extras, **OPTIONS.get(name, {}))
    n = losses.denominator(name, samples)
    logprobs_BT, batch = one_batch(samples, values)
    whole = loss(logprobs_BT, batch, n)
    order = draw.sample(range(len(values)), len(values))
    at = draw.randint(0, len(order))
    total, metrics, maxima = 0.0, dict.fromkeys(whole.metrics, 0.0), {}
    for part in (order[:at], order[at:]):
        if not part:
            continue
        part_batch = collate(samples, [part] if packed else [[i] for i in part])
        out = loss(placed(part_batch, samples, values), part_batch, n)
        total += out.loss.item()
        for key, x in out.metrics.items():
            metrics[key] += x.item()
        for key, x in out.maxima.items():
            maxima[key] = max(maxima.get(key, -math.inf), x.item())
    assert total == pytest.approx(whole.loss.item(), rel=1e-4, abs=1e-5)
    for key, x in whole.metrics.items():
        assert metrics[key] == pytest.approx(x.item(), rel=1e-4, abs=1e-5)
    for key, x in whole.maxima.items():
        assert maxima[key] == pytest.approx(x.item(), rel=1e-5)


def score_batch(a1: float, a2: float, ref1, ref2):
    """SCoRe, section 6, test 3: one sequence of two turns with a template token between."""
    made = sample(
        6,
        weights=[1, 1, 0, 1, 1, 1],
        advantages=[a1, a1, 0, a2, a2, a2],
        ref=[*ref1, -9.0, *ref2],
    )
    return one_batch([made], [[-0.5, -1.0, -3.0, -0.2, -0.3, -0.5]])


REF1, REF2 = (-0.7, -0.9), (-0.4, -0.3, -0.6)


def turns(first: float, second: float) -> torch.Tensor:
    return torch.tensor([[0.0, first, first, 0.0, second, second, second]])


def test_score_loss_values() -> None:
    """KL per turn by per-token coefficients; summed over tokens; k3 as the specification's test."""
    logprobs_BT, batch = score_batch(0.0, 1.0, REF1, REF2)
    stage1 = pg.reinforce(logprobs_BT, batch, 1, extras=Extras(turns(0.1, 0.0), "k3"))
    assert stage1.loss.item() == pytest.approx(1.0023902, abs=1e-6)
    logprobs_BT, batch = score_batch(0.0, 11.0, REF1, REF2)
    stage2 = pg.reinforce(logprobs_BT, batch, 1, extras=Extras(0.01, "k3"))
    assert stage2.loss.item() == pytest.approx(11.0004747, abs=1e-6)


def test_score_kl_scope() -> None:
    extras = Extras(turns(0.1, 0.0), "k3")
    logprobs_BT, batch = score_batch(0.0, 1.0, REF1, REF2)
    base = pg.reinforce(logprobs_BT, batch, 1, extras=extras).loss.item()
    other2 = score_batch(0.0, 1.0, REF1, (-2.0, -1.0, -0.1))
    assert pg.reinforce(*other2, 1, extras=extras).loss.item() == base
    other1 = score_batch(0.0, 1.0, (-2.0, -0.1), REF2)
    assert pg.reinforce(*other1, 1, extras=extras).loss.item() != base
    pg.reinforce(logprobs_BT, batch, 1).loss.backward()
    assert logprobs_BT.grad[0, 1:3].tolist() == [0.0, 0.0]  # no reward, no KL: no gradient on y1


def test_entropy_bonus() -> None:
    samples = [sample(2, advantages=1.0), sample(1, advantages=1.0)]
    logprobs_BT, batch = one_batch(samples, [[-1.0, -2.0], [-1.0]])
    entropy_BT = torch.tensor([[9.0, 1.0, 3.0], [9.0, 4.0, 9.0]], requires_grad=True)
    extras = Extras(entropy_coef=0.5, entropy_BT=entropy_BT)
    with_bonus = pg.dapo(logprobs_BT, batch, 3, extras=extras)
    assert with_bonus.metrics["entropy"].item() == pytest.approx(8 / 3)
    plain = pg.dapo(logprobs_BT, batch, 3)
    assert with_bonus.loss.item() == pytest.approx(plain.loss.item() - 0.5 * 8 / 3)
    with_bonus.loss.backward()
    assert entropy_BT.grad.tolist()[0] == pytest.approx([0, -1 / 6, -1 / 6])


def test_value_loss_is_clipped_and_halved() -> None:
    samples = [sample(2), sample(1)]
    batch = padded_batch(samples)
    old_BT = torch.tensor([[9.0, 0.0, 0.0], [9.0, 0.0, 9.0]])
    returns_BT = torch.tensor([[9.0, 1.0, 1.0], [9.0, -1.0, 9.0]])
    values_BT = torch.tensor([[0.0, 0.5, 0.1], [0.0, -0.1, 0.0]], requires_grad=True)
    out = value_loss(values_BT, old_BT, returns_BT, batch, 3)
    # moved by 0.5: clipped to 0.2, (0.2 - 1)^2 = 0.64 is larger than (0.5 - 1)^2
    assert out.loss.item() == pytest.approx((0.64 + 0.81 + 0.81) / 6)
    assert out.metrics["value_clipped"].item() == pytest.approx(1 / 3)
    assert out.metrics["value_error"].item() == pytest.approx((0.25 + 0.81 + 0.81) / 3)
    out.loss.backward()
    assert values_BT.grad[0].tolist() == pytest.approx([0.0, 0.0, -0.9 / 3])
    by_sample = value_loss(values_BT, old_BT, returns_BT, batch, 2, mean="samples")
    assert by_sample.loss.item() == pytest.approx(((0.64 + 0.81) / 2 + 0.81) / 4)
    free = value_loss(values_BT, old_BT, returns_BT, batch, 3, clip=None)
    assert free.loss.item() == pytest.approx((0.25 + 0.81 + 0.81) / 6)


def test_importance_weights() -> None:
    samples = [sample(3, weights=[1, 0, 1]), sample(1)]
    ours = [[math.log(3.0) - 2, -5.0, math.log(0.5) - 2], [-1.0]]
    logprobs_BT, batch = one_batch(samples, ours)
    behaviour_BT = torch.tensor([[0.0, -2.0, -2.0, -2.0], [0.0, -1.0, 0.0, 0.0]])
    token = importance_weights(logprobs_BT, behaviour_BT, batch)
    assert token.weights_BT[0].tolist() == pytest.approx([0, 2.0, 0, 0.5])
    assert not token.weights_BT.requires_grad
    assert token.metrics["importance_max"].item() == pytest.approx(3.0)  # raw
    assert token.metrics["importance_bounded"].item() == pytest.approx(1 / 3)
    masked = importance_weights(logprobs_BT, behaviour_BT, batch, mode="mask", floor=0.6)
    assert masked.weights_BT[0].tolist() == pytest.approx([0, 0, 0, 0])
    assert masked.weights_BT[1].tolist() == pytest.approx([0, 1.0, 0, 0])
    whole = importance_weights(logprobs_BT, behaviour_BT, batch, level="sample")
    assert whole.weights_BT[0].tolist() == pytest.approx([0, 1.5, 0, 1.5])
    mean = importance_weights(logprobs_BT, behaviour_BT, batch, level="geometric")
    assert mean.weights_BT[0, 1].item() == pytest.approx(math.sqrt(1.5))
    n, square = 1 + 3 + 0.5, 1 + 9 + 0.25
    assert token.metrics["importance_ess"].item() == pytest.approx(n * n / square / 3)
    with pytest.raises(ConfigError, match="importance level"):
        importance_weights(logprobs_BT, behaviour_BT, batch, level="turn")
    with pytest.raises(ConfigError, match="importance mode"):
        importance_weights(logprobs_BT, behaviour_BT, batch, mode="clip")


def test_what_is_missing_is_named() -> None:
    logprobs_BT, batch = one_batch([sample(1)], [[-1.0]])
    with pytest.raises(ConfigError, match=r"set Sample\.advantages"):
        pg.grpo(logprobs_BT, batch, 1)
    logprobs_BT, batch = one_batch([sample(1, advantages=1.0)], [[-1.0]])
    with pytest.raises(ConfigError, match=r"set Sample\.ref_logprobs"):
        pg.grpo(logprobs_BT, batch, 1, extras=Extras(kl_coef=0.1))
    with pytest.raises(ConfigError, match="zero in expectation"):
        made = one_batch([sample(1, advantages=1.0, ref=[-1.0])], [[-1.0]])
        pg.grpo(*made, 1, extras=Extras(kl_coef=0.1, kl="k1"))
    with pytest.raises(ConfigError, match="'dr_grpo' needs a value for max_tokens"):
        losses.get("dr_grpo")
    with pytest.raises(ValueError, match="must be positive"):
        pg.grpo(logprobs_BT, batch, 0)

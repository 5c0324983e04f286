"""Importance weights for a sampler that is not the trainer."""

from __future__ import annotations

import math
import random

import pytest
import torch
from train_toys import tiny

from agentrl.errors import ConfigError
from agentrl.train import TrainConfig, Trainer
from agentrl.train.mismatch import check, corrected, weighted
from agentrl.types import Sample

HALF, DOUBLE, TENTH = math.log(0.5), math.log(2), math.log(0.1)


def sample(sampler, advantage=1.0):
    """Two tokens of a prompt, then sampled ones; the trainer says `log 0.1` of each."""
    n = len(sampler)
    return Sample(
        [1, 2, *range(3, 3 + n)],
        [0.0, 0.0] + [1.0] * n,
        [0.0, 0.0] + [advantage] * n,
        [0.0, 0.0, *sampler],
    )


def own(n):
    return [0.0, 0.0] + [TENTH] * n


@pytest.mark.parametrize(
    ("correction", "cap", "weights", "limited"),
    [
        ("token", 1.5, [0.5, 1.5, 1.0], 1 / 3),
        ("token", 4.0, [0.5, 2.0, 1.0], 0),
        ("token_masked", 1.5, [0.0, 0.0, 1.0], 2 / 3),
        ("token_masked", 2.0 + 1e-9, [0.5, 2.0, 1.0], 0),
        ("sequence", 1.5, [1.0, 1.0, 1.0], 0),
        ("geometric", 1.5, [1.0, 1.0, 1.0], 0),
    ],
)
def test_weights_where_ratios_cancel(correction, cap, weights, limited):
    row = sample([TENTH - HALF, TENTH - DOUBLE, TENTH], advantage=2.0)
    [made], metrics = weighted([row], [own(3)], correction, cap)
    assert made.advantages == pytest.approx([0, 0, *(2 * w for w in weights)])
    assert made.logprobs == own(3)
    assert metrics["mismatch_limited"] == pytest.approx(limited)


@pytest.mark.parametrize(
    ("correction", "weight"),
    [
        ("token", 2.0),
        ("sequence", 4.0),
        ("geometric", 2.0),
        ("sequence_masked", 0.0),
        ("geometric_masked", 2.0),
    ],
)
def test_weights_where_ratios_agree(correction, weight):
    row = sample([TENTH - DOUBLE, TENTH - DOUBLE])
    cap = 3.0 if correction == "sequence_masked" else 5.0
    [made], _ = weighted([row], [own(2)], correction, cap)
    assert made.advantages == pytest.approx([0, 0, weight, weight])


def test_metrics_are_of_raw_ratios():
    row = sample([TENTH - HALF, TENTH - DOUBLE])
    _, metrics = weighted([row], [own(2)], "token_masked", 1.1)
    kl = ((0.5 - 1 - HALF) + (2 - 1 - DOUBLE)) / 2
    assert metrics == pytest.approx(
        {
            "mismatch_ratio": 1.25,
            "mismatch_ratio_min": 0.5,
            "mismatch_ratio_max": 2.0,
            "mismatch_limited": 1.0,
            "mismatch_kl": kl,
            "logprob_diff": DOUBLE,
            "logprob_diff_max": DOUBLE,
        }
    )


def test_a_ratio_beyond_all_floats_is_still_a_number():
    row = sample([-2000.0])
    [made], metrics = weighted([row], [own(1)], "sequence", 2.0)
    assert made.advantages[2] == 2.0
    assert math.isfinite(metrics["mismatch_kl"])


def test_token_weights_give_the_trainers_expectation():
    """Over samples from q, weighted by p/q: the mean of any function of a token under p."""
    p, q = [0.7, 0.2, 0.1], [0.5, 0.2, 0.3]
    value = [1.0, -2.0, 4.0]
    draws = random.Random(0).choices(range(3), q, k=40_000)
    rows = [sample([math.log(q[i])], value[i]) for i in draws]
    made, _ = weighted(rows, [[0.0, 0.0, math.log(p[i])] for i in draws], "token", 10.0)
    mean = sum(r.advantages[2] for r in made) / len(made)
    assert mean == pytest.approx(sum(a * b for a, b in zip(p, value, strict=True)), abs=0.03)


def test_the_trainers_own_log_probabilities_take_the_samplers_place():
    model = tiny()
    trainer = Trainer(model, TrainConfig(lr=1e-3))
    ids = [1, 5, 9, 7, 8]
    with torch.no_grad():
        nats_TV = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    exact = [float(nats_TV[t, i]) for t, i in enumerate(ids[1:])][2:]
    row = Sample(ids, [0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 0, *(x - HALF for x in exact)])
    [made], metrics = corrected([row], trainer, "token", 2.0)
    assert made.logprobs[3:] == pytest.approx(exact, abs=1e-4)
    assert made.advantages[3:] == pytest.approx([0.5, 0.5], abs=1e-4)
    assert metrics["logprob_diff"] == pytest.approx(DOUBLE, abs=1e-4)
    assert corrected([row], trainer, "none", 2.0) == ([row], {})


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="mismatch='tokens'"):
        check("tokens", 2.0)
    with pytest.raises(ConfigError, match="mismatch_cap=1"):
        check("token", 1.0)

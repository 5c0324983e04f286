"""Intervals and paired tests: known values, coverage, and what must not depend on the sampling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl import evaluate
from agentrl.errors import ConfigError
from agentrl.evaluate.accuracy import Proportion

# Efron's law school data (Efron and Tibshirani 1993, table 3.1): LSAT and GPA of 15 schools.
LSAT = [576, 635, 558, 578, 666, 580, 555, 661, 651, 605, 653, 575, 545, 572, 594]


def interval(values, **options):
    [found] = evaluate.bootstrap(values, **options)
    return found


def test_the_bootstrap_of_a_mean_agrees_with_the_normal_theory():
    values = np.random.default_rng(0).normal(0.5, 0.1, 400)
    half = 1.96 * values.std(ddof=1) / 20
    for method in ("bca", "percentile"):
        found = interval(values, method=method)
        assert found.value == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx(
            (values.mean() - half, values.mean() + half), abs=0.1 * half
        )


def test_bca_moves_with_the_skew():
    """Values of scipy.stats.bootstrap with 200,000 resamples."""
    bca = interval(LSAT, lowest=0, highest=800, resamples=20_000)
    assert (bca.low, bca.high) == pytest.approx((581.4, 622.4), abs=0.8)
    rare = [0.0] * 95 + [1.0] * 5
    skewed = interval(rare, resamples=20_000)
    plain = interval(rare, resamples=20_000, method="percentile")
    assert (skewed.low, skewed.high) == pytest.approx((0.02, 0.11))
    assert (plain.low, plain.high) == pytest.approx((0.01, 0.10))


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for i in range(300):
        values = (random.random(80) < 0.8).astype(float)
        found = interval(values, resamples=400, seed=i)
        hits += found.low <= 0.8 <= found.high
    assert 0.90 <= hits / 300 <= 0.985


def test_resampling_is_seeded_and_by_blocks_the_same(monkeypatch):
    values = np.random.default_rng(2).random((50, 3))
    first = evaluate.bootstrap(values, seed=5)
    assert evaluate.bootstrap(values, seed=5) == first
    assert evaluate.bootstrap(values, seed=6) != first
    monkeypatch.setattr("agentrl.evaluate.intervals._CELLS", 50 * 100)
    assert evaluate.bootstrap(values, seed=5) == first


def test_missing_values_are_left_out_of_their_column_only():
    full = np.array([0.0, 1.0, 1.0, 0.5, 0.0, 1.0])
    gaps = np.where(np.arange(6) == 1, np.nan, full)
    whole, part = evaluate.bootstrap(np.stack([full, gaps], axis=1))
    assert (whole.n, part.n) == (6, 5)
    assert part.value == pytest.approx(0.5)
    none = interval([np.nan, np.nan])
    assert (none.value, none.n, none.low, none.high) == (None, 0, 0.0, 1.0)
    assert interval([]).value is None


def test_equal_values_do_not_make_an_interval_of_no_width():
    unseen = evaluate.wilson(0, 20)[1]
    right = interval([1.0] * 20)
    assert (right.low, right.high) == pytest.approx((1 - unseen, 1.0))
    same = interval([0.0] * 20, lowest=-1)
    assert (same.low, same.high) == pytest.approx((-unseen, unseen))


def test_an_unknown_method_is_refused():
    with pytest.raises(ConfigError, match="bca"):
        evaluate.bootstrap([0.0, 1.0], method="bac")


def test_mcnemar_known_values():
    assert evaluate.mcnemar(0, 0) == 1.0
    assert evaluate.mcnemar(5, 5) == 1.0
    assert evaluate.mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert evaluate.mcnemar(9, 1) == evaluate.mcnemar(1, 9)
    assert evaluate.mcnemar(2000, 2000) == 1.0  # no overflow


def test_permutation_is_exact_for_few_differences():
    values = [0.5, 0.2, -0.1, 0.4]
    sums = [abs(np.dot(s, values)) for s in itertools.product((-1, 1), repeat=4)]
    exact = sum(s >= 1.0 - 1e-9 for s in sums) / 16
    assert evaluate.permutation(values) == exact
    assert evaluate.permutation([*values, 0.0, np.nan]) == exact
    assert evaluate.permutation([]) == evaluate.permutation([0.0, 0.0]) == 1.0


def test_permutation_of_ones_is_mcnemar():
    """Differences of -1, 0 and 1: both tests ask the same question."""
    values = [1.0] * 14 + [-1.0] * 4
    assert evaluate.permutation(values, draws=40_000) == pytest.approx(
        evaluate.mcnemar(14, 4), rel=0.15
    )
    assert evaluate.permutation([1.0] * 30) == pytest.approx(1 / 10_001)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=12), st.randoms())
def test_samples_of_one_problem_are_not_independent(sizes, random):
    clusters = [(random.randint(0, m), m) for m in sizes]
    worth = evaluate.effective_size(clusters)
    assert len(sizes) <= worth <= sum(sizes)


def test_effective_size_of_copies_and_of_independent_samples():
    assert evaluate.effective_size([(8, 8), (0, 8)] * 50) == pytest.approx(100, abs=1)
    assert evaluate.effective_size([(4, 8)] * 100) == 800
    assert evaluate.effective_size([(1, 1), (0, 1)]) == 2
    assert evaluate.effective_size([(8, 8)] * 10) == 10
    row = Proportion(400, 800, 100.0).to_json()
    assert row["ci95"] == pytest.approx(evaluate.wilson(50, 100), abs=1e-4)
    assert row["n"] == 800


@given(st.integers(1, 60), st.data())
def test_pass_at_k_is_the_hypergeometric_chance(n, data):
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - right, k) / math.comb(n, k)
    assert evaluate.pass_at_k(n, right, k) == pytest.approx(exact, abs=1e-12)


def test_pass_at_k_known_values():
    assert evaluate.pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert evaluate.pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert evaluate.pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)
    for wrong in ((3, 1, 4), (3, 4, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="not defined"):
            evaluate.pass_at_k(*wrong)

"""Votes with and without weights, and RM@k, with the values of the MAgICoRe specification."""

from __future__ import annotations

from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl import evaluate
from agentrl.errors import DataError
from agentrl.evaluate.votes import best, masses, rm_at_k, sigmoid, vote

SCORED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=7)


def test_magicore_the_weighted_vote():
    answers, weights = ["A", "B", "B"], [1.4, 0.8, 0.7]
    assert masses(answers, weights) == {"A": 1.4, "B": 1.5}
    assert vote(answers, weights) == 1  # of B's, the one that weighs most
    assert vote(["A", "A", "B"], [0.2, 0.3, 0.9]) == 2
    assert vote(["A", "B"], [0.5, 0.5]) == 1  # a tie: the answer given last


def test_empty_answers_have_no_vote():
    assert masses(["", "7", ""], [5.0, 0.1, 5.0]) == {"7": 0.1}
    assert vote(["", "7", ""], [5.0, 0.1, 5.0]) == 1
    assert vote([""], [1.0]) is None
    assert vote(["7"], [0.0]) == 0


@given(st.lists(st.sampled_from(["", "3", "7", "8"]), max_size=9))
def test_equal_weights_are_the_majority(answers):
    assert vote(answers, [0.5] * len(answers)) == vote(answers)


@pytest.mark.parametrize("weights", [[-0.1, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_what_is_no_weight_is_refused(weights):
    with pytest.raises(DataError, match="negative or not finite"):
        vote(["a", "b"], weights)


def test_there_is_a_weight_an_answer():
    with pytest.raises(DataError, match="1 weights for 2 answers"):
        vote(["a", "b"], [1.0])


def test_the_best_is_the_first_of_equal_ones():
    assert best([0.2, 0.9, -0.1, 0.9]) == 1
    with pytest.raises(DataError, match="nan"):
        best([0.2, float("nan")])
    with pytest.raises(DataError, match="no scores"):
        best([])


def test_rm_at_k_by_hand():
    scores, right = [0.1, 0.9, 0.5, 0.7], [True, False, True, False]
    assert rm_at_k(scores, right, 4) == 0
    assert rm_at_k(scores, right, 1) == 0.5
    assert rm_at_k(scores, right, 2) == pytest.approx(1 / 6)  # only {0.1, 0.5} of six
    assert rm_at_k([1.0, 1.0], [True, False], 2) == 0.5
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"RM@{k}"):
            rm_at_k([1.0, 2.0], [True, False], k)


@given(SCORED, st.data())
def test_rm_at_k_is_the_mean_over_all_choices(rows, data):
    k = data.draw(st.integers(1, len(rows)))

    def chosen(drawn):
        top = max(s for s, _ in drawn)
        return fmean(yes for s, yes in drawn if s == top)

    scores, right = zip(*rows, strict=True)
    expected = fmean(chosen(drawn) for drawn in combinations(rows, k))
    assert rm_at_k(scores, right, k) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_a_perfect_reward_model_is_pass_at_k(right, data):
    k = data.draw(st.integers(1, len(right)))
    found = rm_at_k([float(yes) for yes in right], right, k)
    assert found == pytest.approx(evaluate.pass_at_k(len(right), sum(right), k))


@given(st.floats(-2000, 2000))
def test_the_sigmoid_is_a_weight(score):
    assert 0 <= sigmoid(score) <= 1
    assert sigmoid(score) + sigmoid(-score) == pytest.approx(1)

"""The formulas of MCTS-DPO, iTool and RAIN, with values worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.search import rules
from agentrl.search.strategies import mcts_strategy, rain_strategy
from agentrl.search.table import Table
from agentrl.search.units import fragments, lines


def close(x):
    return pytest.approx(x, abs=1e-4)


def test_puct_picks_the_likelier_step_once_the_state_was_visited_often():
    assert rules.puct(0.8, 0, 0.5, 1) == close(1.3)
    assert rules.puct(0.2, 0, 0.9, 1) == close(1.1)
    assert rules.puct(0.8, 1, 0.5, 3) == close(1.2330)
    assert rules.puct(0.2, 0, 0.9, 3) == close(1.7588)


def test_one_visit_backs_up_the_mean_of_all_steps():
    strategy = mcts_strategy(lines(), b1=2, b2=2, depth=3)
    table = Table()
    root = table.add(0, None)
    a, b = (table.add(i, root, confidence=v) for i, v in ((1, 0.8), (2, 0.2)))
    for state in (a, b):
        strategy.created(table, state)
    assert (a.q, b.q) == (0.8, 0.2)
    strategy.backup(table, [root, a], 0.8)
    assert (a.q, a.visits, root.value, root.visits) == (close(0.8), 1, close(0.5), 1)


def test_a_value_is_a_difference_and_a_silent_judge_changes_nothing():
    strategy = mcts_strategy(lines(), b1=2, b2=2, depth=3)
    table = Table()
    root = table.add(0, None)
    a = table.add(1, root, confidence=0.6)
    strategy.created(table, a)
    b = table.add(2, a, confidence=0.0)
    strategy.created(table, b)
    assert (b.estimate, b.reward) == (0.6, 0.0)
    right = table.add(3, a, confidence=0.6, outcome=1.0)
    wrong = table.add(4, a, confidence=0.6, outcome=0.0)
    unscored = table.add(5, a, confidence=0.6, outcome=None)
    for state in (right, wrong, unscored):
        strategy.created(table, state)
    assert [s.reward for s in (right, wrong, unscored)] == [1.0, -1.0, 0.0]


def test_confidence_counts_less_further_down():
    assert [rules.step_value(0.6, d, 0.0) for d in (0, 3, 4, 5, 6)] == [
        0.6,
        0.6,
        0.6,
        0.3,
        close(0.2),
    ]


def test_the_prior_is_that_of_the_released_code_not_of_the_paper():
    assert rules.length_prior(-2, 4) == close(0.7022)
    assert math.exp(-2) / 4**1.25 == close(0.0239)


def test_itools_selection():
    assert rules.log_score(0.6, 1, 0.5, 4) == close(0.7163)
    assert rules.log_score(0.1, 0, 0.9, 4) == close(1.1597)
    assert rules.log_score(0.4, 0, 0.9, 0) == 0.4  # the reference takes the logarithm of 0
    assert rules.log_score(0.4, 0, 0.9, 1) == 0.4


def test_itools_grades():
    assert rules.grade_value(1, 0, 0, 0) == 0.25
    assert rules.grade_value(0, 0, 0, 1) == -0.5


def test_rains_selection():
    q = rules.scaled(0.5, 1, -1, 1)
    assert q == close(0.75)
    assert rules.puct(q, 1, 0.3, 4, 2.0) == close(1.35)
    assert rules.puct(rules.scaled(0.5, 0, -1, 1), 0, 0.3, 4, 2.0) == close(1.2)


def test_rains_votes():
    assert [rules.vote_value(*v) for v in ((1, 1), (1, 0), (0, 0))] == [1, 0, -1]


def test_similar_siblings_share_a_value():
    q, n = rules.shared(0.0, 2.0, 0.97, 1.0)
    assert (n, q) == (pytest.approx(2.194), close(0.08842))
    assert rules.shared(0.0, 2.0, 0.9499, 1.0) == (0.0, 2.0)
    assert rules.shared(0.0, 2.0, 0.95, 1.0)[1] == close(2.19)  # the released code: from 0.95 on


def test_fractional_visits_are_no_whole_ones():
    strategy = rain_strategy(text=lambda s: "same")
    table = Table()
    root = table.add(0, None)
    a, b = (table.add(i, root) for i in (1, 2))
    strategy.backup(table, [root, a], 1.0)
    assert (a.full, a.visits, b.full, b.visits) == (1, 1, 0, close(0.2))
    assert b.q == 1.0


def test_group_lengths():
    assert [rules.group_length(d) for d in range(5)] == [1, 2, 4, 10, 10]


def test_the_greedy_group_neither_drowns_the_others_nor_sinks_below_them():
    assert rules.group_priors([0.9, 0.06, 0.04]) == [close(0.5), close(0.3), close(0.2)]
    assert rules.group_priors([0.1, 0.3, 0.1]) == [close(0.5), close(0.375), close(0.125)]
    assert rules.root_prior(0.5, 4) == close(0.4375)


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20))
def test_group_priors_are_a_distribution(raw):
    made = rules.group_priors(raw)
    assert math.fsum(made) == pytest.approx(1)
    assert min(made) > 0
    assert made[0] >= max(made) - 1e-12


def test_overlap_divides_by_the_smaller_set_and_never_by_zero():
    assert rules.overlap("a b c", "a b") == 1.0
    assert rules.overlap("a b", "b c") == 0.5
    assert rules.overlap("", "a") == 0.0


def test_a_fragment_is_about_one_argument_and_the_last_step_is_the_rest():
    units = fragments(group=2, depth=3)
    assert units(0).parts == units(1).parts == 2
    assert units(2).stops == ()


@given(st.text(max_size=20), st.text(max_size=20))
def test_cosine_is_symmetric_and_one_for_equal_texts(a, b):
    assert rules.cosine(a, a) == 1.0
    assert rules.cosine(a, b) == pytest.approx(rules.cosine(b, a))
    assert 0 <= rules.cosine(a, b) <= 1 + 1e-9

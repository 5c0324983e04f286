"""iTool's selections: from easy to hard, and what surprises the model most."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError, DataError
from agentrl.select.itool import FILTERS, calls_in, deficient, difficulty, levels


def test_difficulty_is_the_schema_and_fifty_a_call():
    assert difficulty(120, 0) == 120
    assert difficulty(120, 3) == 270


def test_levels_go_from_easy_to_hard_and_equal_ones_keep_their_order():
    assert levels([30, 10, 20, 10, 40, 50]) == [[1, 3], [2, 0], [4, 5]]
    assert levels([1, 1, 1]) == [[0], [1], [2]]
    assert levels([2, 1]) == [[1], [0]]
    assert levels([]) == []
    with pytest.raises(ConfigError, match="at least 1"):
        levels([1], 0)


@given(st.lists(st.integers(0, 9)), st.integers(1, 5))
def test_levels_hold_everything_once_in_order_and_in_nearly_equal_parts(values, n):
    found = levels(values, n)
    assert sorted(i for level in found for i in level) == list(range(len(values)))
    ranked = [values[i] for level in found for i in level]
    assert ranked == sorted(ranked)
    assert len(found) == min(n, len(values))
    sizes = [len(level) for level in found]
    assert not sizes or max(sizes) - min(sizes) <= 1


def test_ten_rows_with_calls_and_ten_without_give_three_of_each_never_six_of_one():
    perplexities = [float(i) for i in range(20)]
    called = [True] * 10 + [False] * 10
    chosen = deficient(perplexities, called, share=0.3)
    assert chosen == [19, 18, 17, 9, 8, 7]


def test_a_share_of_a_few_is_at_least_one_and_rounding_loses_none():
    assert deficient([1.0, 2.0], [True, False], share=0.3) == [1, 0]
    assert len(deficient([1.0] * 100, [True] * 100, share=0.29)) == 29, "0.29 * 100 is 28.999..."
    assert deficient([], []) == []
    assert deficient([2.0, 2.0, 2.0], [True] * 3, share=0.5) == [0], "of equal ones the first"


def test_what_surprises_too_much_is_left_out():
    assert deficient([1.0, 5.0, 900.0], [True] * 3, share=0.5, most=100.0) == [1]
    assert deficient([math.inf], [True], most=1e9) == []


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(DataError, match="nan"):
        deficient([math.nan], [True])
    with pytest.raises(DataError, match="2 perplexities of 1 answers"):
        deficient([1.0, 2.0], [True])
    for share in (0.0, 1.1):
        with pytest.raises(ConfigError, match="share"):
            deficient([1.0], [True], share=share)


def test_a_bracket_in_a_sentence_is_no_call_as_it_is_in_the_released_code():
    sentence = "None of my tools (all three) can do this."
    assert ")" in sentence, "the released code takes this for a call"
    assert calls_in(sentence) == 0
    json_call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert ")" not in json_call, "and this for none"
    assert calls_in(json_call) == 1
    assert calls_in("<|tool_call_start|>[f(a=1), g()]<|tool_call_end|>") == 2


@pytest.mark.parametrize(
    ("better", "worse", "words", "reason"),
    [
        (0.3, 0.2, 19, None),
        (0.3, 0.2001, 19, "too near in value"),
        (0.3, 0.2, 20, "too near in words"),
        (-0.3, -0.4, 19, None),
        (-0.3001, -0.5, 19, "chosen value too low"),
        (0.3, 0.3, 0, "of one value"),
    ],
)
def test_the_boundaries_of_the_filters_are_kept(better, worse, words, reason):
    chosen = " ".join(f"w{i}" for i in range(20))
    rejected = " ".join([f"w{i}" for i in range(words)] + [f"v{i}" for i in range(20 - words)])
    assert FILTERS.reason(better, worse, chosen, rejected) == reason

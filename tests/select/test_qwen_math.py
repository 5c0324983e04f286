"""Qwen2.5-Math: rewards in which the verdict comes first, and what many answers are used for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.select.qwen_math import combined_reward, majority, sometimes_solved
from tests.fakes import attempt_at


@pytest.mark.parametrize(
    ("score", "right", "wrong"), [(2.0, 0.7311, -0.2689), (-2.0, 0.2689, -0.7311)]
)
def test_the_papers_values(score, right, wrong):
    assert combined_reward(score, True) == pytest.approx(right, abs=1e-4)
    assert combined_reward(score, False) == pytest.approx(wrong, abs=1e-4)


@given(st.floats(-2000, 2000), st.floats(-2000, 2000))
def test_no_wrong_answer_is_worth_more_than_a_right_one(a, b):
    assert -1 <= combined_reward(a, False) <= 0 <= combined_reward(b, True) <= 1


def test_problems_for_rl_are_solved_sometimes():
    graded = [
        attempt_at(f"solved{k}", j, float(j < k)) for k in (0, 1, 2, 5, 6, 8) for j in range(8)
    ]
    assert sometimes_solved(graded) == ["solved2", "solved5"]


def test_the_majority_is_taken_where_there_is_no_reference():
    def said(id, answers, **kw):
        return [attempt_at(id, i, None, answer=a, **kw) for i, a in enumerate(answers)]

    graded = [
        *said("a", ["7", "7", "8", ""]),
        *said("b", ["1", "2"]),
        *said("c", ["5", "5"], stop="max_tokens"),
        *said("d", ["3"], error="sandbox died"),
    ]
    found = majority(graded)
    assert [(t.task.id, a.answer) for t, a in found.kept] == [("a", "7"), ("a", "7")]
    assert dict(found.dropped) == {
        "not the majority's answer": 1,
        "no answer": 1,
        "no majority": 2,
        "truncated": 2,
        "failed in our hands": 1,
    }


def test_the_reward_models_loss():
    torch = pytest.importorskip("torch", reason="needs the extra 'train'")
    from agentrl.losses.reward_model import reward_model_loss

    for k in range(1, 6):
        right = torch.arange(6) < k
        loss = reward_model_loss(torch.zeros(6), right)
        assert loss is not None
        assert loss.item() == pytest.approx(math.log(2))
    for k in (0, 6):
        assert reward_model_loss(torch.zeros(6), torch.arange(6) < k) is None
    loss = reward_model_loss(torch.tensor([2.0, 0.0]), torch.tensor([True, False]))
    assert loss is not None
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.0)))

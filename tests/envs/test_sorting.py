"""Sorting by passes: exact grades, splits that share nothing, demonstrations of any quality."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from agentrl.errors import ConfigError
from agentrl.testing import check_env
from agentrl.types import Message, Task
from envs.sorting import Sorting, ordered, passes


def graded(env: Sorting, text: str, digits: str = "3142"):
    data = {"digits": digits, "answer": "".join(sorted(digits))}
    task = Task("t", (Message("user", digits),), "sorting", data=data)

    async def go():
        episode = env.open(task, None)
        await episode.reset()
        return await episode.step(Message("assistant", text))

    return asyncio.run(go())


@pytest.mark.parametrize("reward", ["exact", "fraction"])
def test_it_keeps_the_contract(reward):
    check_env(envs.make("sorting", reward=reward, split="test"))


def test_passes_of_bubble_sort():
    assert [passes("4321", n) for n in range(4)] == ["4321", "3214", "2134", "1234"]
    assert ordered("1224") == 1.0
    assert ordered("3142") == pytest.approx(1 / 3)


@given(st.text("0123456789", min_size=1, max_size=8))
def test_enough_passes_sort_and_none_loses_a_digit(digits):
    assert passes(digits, len(digits)) == "".join(sorted(digits))
    assert sorted(passes(digits, 1)) == sorted(digits)
    assert passes(passes(digits, 2), 3) == passes(digits, 5)


def test_grades():
    exact, fraction = Sorting(length=4), Sorting(length=4, reward="fraction")
    assert graded(exact, "1234").reward == graded(fraction, "1234").reward == 1.0
    assert graded(exact, "It was 3142, so: 1, 2, 3, 4.").info["answer"] == "1234"
    assert graded(exact, "2134").reward == 0.0
    assert graded(fraction, "2134").reward == pytest.approx(2 / 3)
    for other in ("1111", "123", "", "no idea"):
        assert graded(fraction, other).reward == 0.0, "in order, but not these digits"
    assert graded(exact, "2134").info["feedback"] == "2 stands before 1."
    assert "not the digits" in graded(exact, "1111").info["feedback"]
    brief = Sorting(length=4, brief=True)
    said = [graded(brief, text).info["feedback"] for text in ("2134", "1111", "1234")]
    assert said == ["21", "--", "ok"]
    assert [graded(brief, text).info["passed"] for text in ("2134", "1111")] == [2 / 3, 0.0]


def test_no_string_is_in_both_splits():
    train, test = (
        {t.id for t in Sorting(split=s, seed=seed, n=500).tasks()}
        for s, seed in (("train", 0), ("test", 7))
    )
    assert not train & test
    assert all("".join(sorted(t.data["digits"])) != t.data["digits"] for t in Sorting(n=50).tasks())


@pytest.mark.parametrize(
    "bad",
    [{"length": 1}, {"symbols": 11}, {"n": 0}, {"prompt": "sort"}, {"length": 3}, {"reward": "x"}],
)
def test_senseless_options_are_refused(bad):
    with pytest.raises(ConfigError):
        envs.make("sorting", **bad)

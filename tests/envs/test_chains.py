"""Chains of operations: values by hand, demonstrations that are right, splits that do not mix."""

from __future__ import annotations

import pytest

import envs
from agentrl.errors import ConfigError
from agentrl.select.dedupe import clean
from agentrl.testing import check_env
from envs.chains import grade, grade_all, results


def test_values_are_worked_out_from_the_left():
    assert results("7-5*3+2") == [2, 6, 8]
    env = envs.make("chains", kinds=["6+-*"])
    assert all(0 <= x <= 9 for task in env.tasks(200) for x in results(task.data["chain"]))


@pytest.mark.parametrize("skip", [0.0, 0.5, 1.0])
def test_it_is_an_environment_whose_demonstrations_are_right(skip):
    env = envs.make("chains", skip=skip, n=64)
    check_env(env, n=64)
    short = sum(len(env.demonstrations(t)[0]) == 1 for t in env.tasks())
    assert short == {0.0: 0, 1.0: 64}.get(skip, short)
    assert 0.0 < skip < 1.0 or short in (0, 64)
    if skip == 0.5:
        assert 20 < short < 44


def test_a_demonstration_says_every_result_in_one_of_many_texts():
    env = envs.make("chains", kinds=["4+-"], n=100)
    texts = [env.demonstrations(t)[0] for t in env.tasks()]
    for task, text in zip(env.tasks(), texts, strict=True):
        assert [int(c) for c in text[1::2]] == results(task.data["chain"])
        assert text[0] == ":"
        assert set(text[2::2]) <= {",", ";"}
    assert len({text[2::2] for text in texts}) == 8


def test_short_chains_are_filled_up():
    tasks = envs.make("chains", width=14).tasks(30)
    assert {len(t.prompt[0].content) for t in tasks} == {14}
    assert all(t.prompt[0].content.rstrip(".") == t.data["chain"] + "=" for t in tasks)


@pytest.mark.parametrize(
    ("text", "answer", "reason"),
    [(":2,6;4", "4", "right"), ("4", "4", "right"), ("4,5", "5", "wrong"), ("?", "", "no_answer")],
)
def test_the_last_digit_is_the_answer(text, answer, reason):
    task = envs.make("chains").tasks(1)[0]
    object.__setattr__(task, "data", {**task.data, "answer": "4"})
    found = grade(task, text)
    assert (found.answer, found.reason, found.right) == (answer, reason, reason == "right")


def test_strictly_every_result_counts():
    env = envs.make("chains", kinds=["3+-"], strict=True, n=16)
    check_env(env, n=16)
    for task in env.tasks():
        (said,) = env.demonstrations(task)
        first, *others = results(task.data["chain"])
        assert task.data["answer"] == ",".join(map(str, [first, *others]))
        assert grade_all(task, said).right
        luck = f":{(first + 1) % 10}{said[2:]}"
        assert grade_all(task, luck).reason == grade_all(task, said[-1]).reason == "wrong"
        assert grade_all(task, "?").reason == "no_answer"


def test_kinds_take_turns_and_splits_share_nothing():
    train, test = (envs.make("chains", split=s, n=300) for s in ("train", "test"))
    assert [t.kind for t in train.tasks(4)] == ["2+-", "4+-", "6+-*", "2+-"]
    assert clean(train.tasks(), test.tasks())[1] == 0
    other = envs.make("chains", split="test", n=300, seed=1)
    assert clean(train.tasks(), other.tasks())[1] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"split": "dev"},
        {"kinds": ()},
        {"kinds": "4+-"},
        {"kinds": ["1+"]},
        {"kinds": ["4/"]},
        {"skip": 2.0},
        {"n": 0},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError):
        envs.make("chains", **options)


def test_a_kind_may_run_out():
    with pytest.raises(ConfigError, match="no more of kind '8\\+'"):
        envs.make("chains", kinds=["8+"]).tasks()

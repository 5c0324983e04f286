"""The generator's answers against a second method, the splits, and the options."""

from __future__ import annotations

import contextlib
import io

import pytest

import envs
from agentrl.errors import ConfigError
from envs.arithmetic import KINDS, SPLITS, is_test
from envs.grading import grade, grade_task


def printed(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(program, {})
    return out.getvalue().strip()


@pytest.mark.parametrize("level", [1, 3])
@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_what_its_reference_program_prints(split: str, level: int) -> None:
    for task in envs.make("arithmetic", split=split, seed=3, level=level).tasks(400):
        result = grade(printed(task.data["program"]), task.data["answer"], task.data["type"])
        assert result.right, (task.prompt, task.data, result)


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_hold_no_answer_program_or_duplicate(split: str) -> None:
    tasks = envs.make("arithmetic", split=split).tasks(600)
    assert len({t.id for t in tasks}) == len({t.prompt for t in tasks}) == 600
    for task in tasks:
        text = task.prompt[-1].content
        assert task.data["program"] not in text
        if task.data["type"] != "number":
            assert task.data["answer"] not in text


def test_there_are_enough_kinds_and_some_are_held_out() -> None:
    trained = {k.name for k in KINDS.values() if k.trained}
    assert len(trained) >= 8
    assert len(KINDS) - len(trained) >= 3
    for split in ("train", "test"):
        assert {t.kind for t in envs.make("arithmetic", split=split).tasks(100)} == trained
    assert {t.kind for t in envs.make("arithmetic", split="unseen").tasks(100)} == set(
        KINDS
    ) - trained


def test_train_and_test_never_share_a_problem_whatever_seed_and_level() -> None:
    programs: dict[str, set[str]] = {"train": set(), "test": set()}
    for split, found in programs.items():
        for seed in range(3):
            for level in (1, 2):
                env = envs.make("arithmetic", split=split, seed=seed, level=level)
                found |= {t.data["program"] for t in env.tasks(700)}
    assert not programs["train"] & programs["test"]


def test_operands_that_commute_do_not_make_another_problem() -> None:
    from random import Random

    from envs.arithmetic.numbers import product

    keys = {product(Random(i), 1).key for i in range(50)}
    assert all(int(k.split()[1]) <= int(k.split()[2]) for k in keys)
    assert {is_test("product", k) for k in keys} == {True, False}


def test_tasks_are_the_same_in_any_order_of_asking() -> None:
    env = envs.make("arithmetic", split="test", seed=7)
    assert env.tasks(30) == env.tasks(300)[:30]
    alone = envs.make("arithmetic", split="test", seed=7, kinds=["gcd"]).tasks(5)
    assert alone == [t for t in env.tasks(300) if t.kind == "gcd"][:5]
    assert env.tasks(20) != envs.make("arithmetic", split="test", seed=8).tasks(20)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"kind": ["gcd"]}, "Did you mean 'kinds'"),
        ({"kinds": ["gdc"]}, "Did you mean 'gcd'"),
        ({"kinds": ["weekday"]}, "held out of training"),
        ({"kinds": ["gcd"], "split": "unseen"}, "trained on"),
        ({"kinds": []}, "list of names"),
        ({"kinds": "gcd"}, "list of names"),
        ({"n": 0}, "at least 1"),
        ({"level": 9}, "1 to 5"),
    ],
)
def test_bad_options_say_what_exists(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        envs.make("arithmetic", **options)


def test_size_of_the_split() -> None:
    assert len(envs.make("arithmetic", n=10).tasks()) == 10
    assert len(envs.make("arithmetic", n=10).tasks(50)) == 10
    assert len(envs.make("arithmetic", n=None).tasks(1500)) == 1500
    with pytest.raises(ConfigError, match="no end"):
        envs.make("arithmetic", n=None).tasks()


def test_system_prompt() -> None:
    task = envs.make("arithmetic", system="Be brief.").tasks(1)[0]
    assert [m.role for m in task.prompt] == ["system", "user"]


@pytest.mark.parametrize("split", ["train", "unseen"])
def test_demonstrations_run_the_program_and_state_its_answer(split):
    env = envs.make("arithmetic", split=split)
    for task in env.tasks(60):
        (shown,) = env.demonstrations(task)
        opening, code, rest = shown.partition(f"\n{task.data['program']}\n```\n")
        assert opening == "```python", "what it is played with is what other tests check"
        assert code
        assert grade_task(task, rest).right

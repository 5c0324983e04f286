"""The tiny language: exact values, feedback, splits and tasks."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import envs
from agentrl.errors import ConfigError
from agentrl.testing import check_env
from agentrl.types import Message, Step
from envs.postfix import INPUTS, ProgramError, answer_of, is_test, judge, outputs, run, spoilt, term


@pytest.mark.parametrize(
    ("program", "x", "left"),
    [
        ("x", 7, "7"),
        ("x2*3x-", 6, "27"),
        ("x3-", 1, "8"),
        ("x 4 <", 9, "4"),
        ("x4>", 9, "9"),
        ("x3+x2*0x-", 6, "924"),
        ("12+3*", 0, "9"),
        ("", 3, ""),
    ],
)
def test_programs_run_modulo_10(program: str, x: int, left: str) -> None:
    assert run(program, x) == left


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("x+", "err stack 2"),
        ("x3+-", "err stack 4"),
        ("x3/", "err word 3"),
        ("x²+", "err word 2"),
        ("x" * 33, "err long"),
    ],
)
def test_what_breaks_says_where(program: str, says: str) -> None:
    with pytest.raises(ProgramError, match=f"^{says}$"):
        run(program, 5)


def test_feedback_tells_what_the_label_does_not() -> None:
    expected = outputs("x3+x2*0x-")
    assert expected[:3] == ("300", "924", "281")
    assert judge("3x+xx+0x-", expected, 3) == judge("x3+x2*0x-", expected, 3)
    assert judge("x3+x2*", expected, 3).feedback == "got 0:30 6:92 9:28"
    wrong = judge("x3+x2*9x-", expected, 3)
    assert (wrong.passed, wrong.feedback) == (0.0, "got 0:309 6:923 9:280")
    assert judge("x+", expected, 3).feedback == "err stack 2"
    cube = judge("x", outputs("xxx**"), 3)  # the same modulo 10 for 0, 1, 4, 5, 6 and 9
    assert (cube.passed, cube.feedback) == (0.6, "hidden")


def test_the_first_three_inputs_tell_one_operator_apart() -> None:
    found: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    numbers = "x0123456789"
    for program in (f"{a}{b}{o}" for a in numbers for b in numbers for o in "+-*<>"):
        results = outputs(program)
        if "x" in program and len(set(results)) > 1:
            found.setdefault(results[:3], set()).add(results)
    assert len(found) == 44
    assert all(len(functions) == 1 for functions in found.values())


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
def test_made_programs_run_and_spoilt_ones_are_wrong(seed: int, terms: int, operators: int) -> None:
    rng = Random(seed)
    program = "".join(term(rng, operators) for _ in range(terms))
    expected = outputs(program)
    assert all(len(result) == terms for result in expected)
    assert len(program) == terms * (2 * operators + 1)
    wrong, feedback = spoilt(program, expected, 3, rng)
    judged = judge(wrong, expected, 3)
    assert judged.passed < 1.0
    assert judged.feedback == feedback
    assert feedback.startswith(("got ", "err "))


@given(st.text(max_size=40))
def test_no_text_breaks_the_judge(text: str) -> None:
    assert 0.0 <= judge(answer_of(text), ["0"] * 10, 3).passed <= 1.0


def test_the_answer_is_the_last_line() -> None:
    assert answer_of("It doubles.\n\nx2*\n") == "x2*"
    assert answer_of("```\nx2*\n```") == "x2*"
    assert answer_of("`x2*`") == "x2*"
    assert answer_of("\n```\n") == ""


def step(env: Any, task: Any, text: str) -> Step:
    async def go() -> Step:
        episode = env.open(task, None)
        await episode.reset()
        return await episode.step(Message("assistant", text))

    return asyncio.run(go())


def test_rewards_and_feedback_of_an_episode() -> None:
    env = envs.make("postfix")
    task = env.tasks(1)[0]
    right = step(env, task, task.data["solution"])
    assert (right.reward, right.info["feedback"], right.info["passed"]) == (1.0, "", 1.0)
    wrong = step(env, task, task.data["wrong"])
    assert (wrong.reward, wrong.info["feedback"]) == (0.0, task.data["feedback"])
    fraction = step(envs.make("postfix", reward="fraction"), task, task.data["wrong"])
    assert fraction.reward == fraction.info["passed"] == wrong.info["passed"]


def test_demonstrations_are_right() -> None:
    env = envs.make("postfix", operators=2)
    for task in env.tasks(20):
        (shown,) = env.demonstrations(task)
        assert step(env, task, shown).reward == 1.0


def test_the_contract() -> None:
    check_env(envs.make("postfix"), n=40)
    check_env(envs.make("postfix", repair=True, brief=False), n=40)


def test_no_function_is_in_training_and_in_the_test() -> None:
    found = {}
    for split in ("train", "test"):
        made = [envs.make("postfix", split=split, seed=s, terms=2, n=200) for s in (0, 1)]
        found[split] = {tuple(t.data["expected"]) for env in made for t in env.tasks()}
        assert {is_test(f) for f in found[split]} == {split == "test"}
    assert not found["train"] & found["test"]
    assert all(len(f) == len(INPUTS) for f in found["train"])


def test_tasks_are_the_same_in_any_order_of_asking() -> None:
    env = envs.make("postfix", seed=7)
    assert env.tasks(30) == env.tasks(300)[:30]
    assert env.tasks(20) != envs.make("postfix", seed=8).tasks(20)
    assert len({t.id for t in env.tasks()}) == len({t.prompt for t in env.tasks()}) == 512
    assert max(Counter(t.data["solution"] for t in env.tasks()).values()) == 1


def test_repair_shows_a_wrong_program_and_what_is_wrong_with_it() -> None:
    plain, repair = (envs.make("postfix", repair=r).tasks(1)[0] for r in (False, True))
    data = repair.data
    assert dataclasses.replace(plain, id="", prompt=(), kind="") == dataclasses.replace(
        repair, id="", prompt=(), kind=""
    )
    shown = repair.prompt[0].content
    assert shown == f"{plain.prompt[0].content}\n{data['wrong']}\n{data['feedback']}"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "unseen"}, "Known: test, train"),
        ({"reward": "some"}, "Known: all, fraction"),
        ({"shown": 11}, "1 to 10"),
        ({"terms": 0}, "at least 1"),
        ({"terms": 11}, "at most 32 words"),
        ({"n": 0}, "at least 1"),
    ],
)
def test_bad_options_say_what_exists(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        envs.make("postfix", **options)


def test_a_split_that_is_used_up_says_so() -> None:
    with pytest.raises(ConfigError, match="only 35 functions"):
        envs.make("postfix", terms=1).tasks()
    with pytest.raises(ConfigError, match="no end"):
        envs.make("postfix", n=None).tasks()

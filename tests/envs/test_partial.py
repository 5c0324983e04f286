"""ReFT's reward: 1, 0.1 for a number that is wrong, 0 for none; where numbers are asked for."""

from __future__ import annotations

import asyncio

import pytest

import envs
from agentrl.errors import ConfigError
from agentrl.interfaces import Demonstrated
from agentrl.testing import check_env
from agentrl.types import Message, Step
from envs.partial import PartialCredit
from tests.fakes import FakeEnv


def reward(env, task, text: str):
    async def go() -> Step:
        episode = env.open(task, None)
        await episode.reset()
        return await episode.step(Message("assistant", text))

    return asyncio.run(go()).reward


def test_a_wrong_number_earns_something_and_no_number_nothing():
    plain = envs.make("arithmetic", kinds=["product"], seed=0)
    env = PartialCredit(plain)
    task = env.tasks(1)[0]
    assert env.tasks(3) == plain.tasks(3)
    assert reward(env, task, f"It is {task.data['answer']}.") == 1.0
    assert reward(env, task, "It is 12.") == 0.1
    assert reward(env, task, "I do not know.") == 0.0
    assert reward(plain, task, "It is 12.") == 0.0


def test_where_answers_are_few_there_is_no_credit_for_guessing():
    env = PartialCredit(envs.make("arithmetic", split="unseen", seed=0))
    other = next(t for t in env.tasks(26) if t.data["type"] == "binary")
    assert reward(env, other, "The answer is 101.") == 0.0
    assert reward(env, other, f"The answer is {other.data['answer']}.") == 1.0


def test_it_is_an_environment_with_the_demonstrations_of_the_other():
    env = PartialCredit(envs.make("arithmetic", seed=0))
    check_env(env)
    assert isinstance(env, Demonstrated)
    assert env.demonstrations(env.tasks(1)[0])
    assert PartialCredit(FakeEnv()).demonstrations(FakeEnv().tasks()[0]) == ()


@pytest.mark.parametrize("credit", [-0.1, 1.0])
def test_credit_is_partial(credit):
    with pytest.raises(ConfigError, match="below 1"):
        PartialCredit(FakeEnv(), credit)

"""Demonstrations: played like any attempt, with nothing sampled."""

from __future__ import annotations

import pytest

import envs
from agentrl.chat import Chat
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError
from agentrl.rollouts import replay, tool_loop
from agentrl.rollouts.replay import demonstrated
from agentrl.select.rows import path_sample
from tests.fakes import FakeEnv, run, task, text

CHAT = Chat(ByteTokenizer())
SOLUTION = "I compute.\n```python\nprint(6*7)\n```\nThe answer is 42"


def test_a_demonstration_reads_as_if_it_had_been_sampled():
    policy = ScriptedPolicy([])
    played, _, _ = run(replay(lambda t: [SOLUTION]), policy)
    first, end = SOLUTION.split("```\n")
    sampled, _, _ = run(tool_loop(), [first + "```\n", end])
    assert policy.calls == 0
    assert text(played) == text(sampled)
    assert played.attempts[-1].reward == 1.0
    assert played.attempts[-1].metrics["calls"] == 1
    assert {n.source for n in played.nodes} == {"template", "hint", "environment"}
    mine, theirs = (path_sample(t, t.attempts[-1]) for t in (played, sampled))
    assert mine.token_ids == theirs.token_ids
    assert mine.weights == theirs.weights, "loss on what is said and its end, not on the output"
    assert mine.weights[-1] == 1.0


def test_a_wrong_demonstration_is_found_out():
    played, _, _ = run(replay(lambda t: ["The answer is 41"]), ScriptedPolicy([]))
    assert played.attempts[-1].reward == 0.0


def test_each_attempt_plays_another_one_and_there_must_be_one():
    rollout = replay(lambda t: ["41"])
    with pytest.raises(ConfigError, match="has 0 answers"):
        run(replay(lambda t: []), ScriptedPolicy([]))
    run(rollout, ScriptedPolicy([]))


def test_an_environment_without_demonstrations_says_so():
    with pytest.raises(ConfigError, match="'fake' has no demonstrations"):
        demonstrated(FakeEnv(), [task()])
    arithmetic = envs.make("arithmetic", seed=0)
    assert demonstrated(arithmetic, arithmetic.tasks(3)) == arithmetic.tasks(3)

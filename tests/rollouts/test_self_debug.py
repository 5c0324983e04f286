"""LeDex's conversation: what the policy is shown, what is graded, and where rewards can stand."""

from __future__ import annotations

import asyncio

import pytest

import envs
import sandboxes
from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.credit import episode_of
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, DataError, IsolationError
from agentrl.evaluate import final
from agentrl.rollouts import make, self_debug
from agentrl.rollouts.self_debug import explanation_of
from agentrl.select import ledex
from agentrl.select.rows import path_sample
from agentrl.select.similarity import TfIdf
from agentrl.types import Message, Task
from tests.rollouts.debug_env import DebugEnv

CHAT = Chat(ScriptedPolicy([]).tokenizer)


def attempt(rollout, replies, *, env=None, task=None):
    """The tree of one rollout, and the prompts that the policy saw."""
    env, seen = env or DebugEnv(), []
    waiting = iter(replies)

    def script(text):
        seen.append(text)
        return next(waiting)

    tasks = [task or env.tasks(1)[0]]
    how = {"tasks": tasks, "progress": False, "retries": 0}
    trees = asyncio.run(collect(env, rollout, ScriptedPolicy(script), **how))
    return trees[0], seen


def test_a_wrong_program_is_refined_once_by_its_feedback():
    tree, seen = attempt(self_debug(), ["p: a", "p: abcd"])
    made = tree.attempts[0]
    assert made.reward == 1.0
    assert [t["reward"] for t in made.metrics["turns"]] == [0.0, 1.0]
    assert made.metrics["feedback"] == ["test b failed"]
    assert made.metrics["passed"] == [0.25, 1.0]
    assert "test b failed" in seen[1]
    assert "explain" not in seen[1]


def test_a_right_program_is_left_alone():
    tree, seen = attempt(self_debug(rounds=3), ["p: abcd"])
    assert len(seen) == 1
    assert tree.attempts[0].metrics["feedback"] == []


def test_rounds_go_on_while_the_program_is_wrong():
    tree, seen = attempt(self_debug(rounds=3), ["p: a", "p: ab", "p: abcd", "p: never"])
    assert len(seen) == 3
    assert tree.attempts[0].metrics["feedback"] == ["test b failed", "a hidden test failed"]
    tree, seen = attempt(self_debug(rounds=2), ["p: a", "p: ab", "p: abc"])
    assert len(seen) == 3
    assert tree.attempts[0].reward == 0.0


def test_what_was_not_scored_is_not_debugged():
    tree, seen = attempt(self_debug(), ["p: broken"])
    assert len(seen) == 1
    assert tree.attempts[0].reward is None


def test_a_given_program_is_context_without_loss_or_reward():
    tree, seen = attempt(self_debug(given=True), ["p: abcd"])
    made = tree.attempts[0]
    assert seen[0].count("ab") == 1
    assert "a hidden test failed" in seen[0]
    assert [t["reward"] for t in made.metrics["turns"]] == [0.0, 1.0]
    assert [r.value for r in made.rewards] == [1.0]
    row = path_sample(tree, made)
    trained = CHAT.decode([i for i, w in zip(row.token_ids, row.weights, strict=True) if w])
    assert trained == "p: abcd<|im_end|>"
    assert episode_of(tree, made, outcome=False).turn_rewards() == [1.0]


def test_an_explanation_ends_a_node_where_the_program_begins():
    reply = "c and d are missing.\n```\np: abcd"
    tree, seen = attempt(self_debug(given=True, explain=True), [reply, "\np: abcd"])
    made = tree.attempts[0]
    assert "First explain" in seen[0]
    assert made.metrics["marks"] == [None, made.metrics["marks"][1]]
    nodes = tree.path(made.metrics["marks"][1])
    assert CHAT.decode(nodes[-1].token_ids) == "c and d are missing.\n```"
    assert nodes[-1].source == "policy"
    assert made.metrics["turns"][1]["text"] == "c and d are missing.\n```\np: abcd"
    episode = episode_of(tree, made, outcome=False)
    assert episode.n_turns == 1, "the explanation and the program are one answer"


def test_an_answer_without_the_mark_has_no_explanation():
    tree, _ = attempt(self_debug(given=True, explain=True), ["p: abcd"])
    assert tree.attempts[0].metrics["marks"] == [None, None]
    assert explanation_of("p: abcd") == ("", "p: abcd")
    assert explanation_of("why\n```\nx\n```") == ("why", "```\nx\n```")
    assert explanation_of("why\nx", "\n") == ("why", "x")


def test_your_own_words():
    _, seen = attempt(self_debug(ask="E {feedback} {x}"), ["p: a", "p: a"])
    assert "E test b failed {x}" in seen[1]
    with pytest.raises(ConfigError, match="feedback"):
        self_debug(ask="Try again.")
    with pytest.raises(ConfigError, match="mark"):
        self_debug(explain=True, mark="")


def test_no_feedback_is_an_error_and_not_an_empty_text():
    with pytest.raises(ConfigError, match="no feedback"):
        attempt(self_debug(), ["p: a", "p: b"], env=DebugEnv(mute=True))


def test_nothing_to_repair_is_an_error():
    task = Task("bare", (Message("user", "Write."),), "debug")
    with pytest.raises(DataError, match="bare"):
        attempt(self_debug(given=True), [], task=task)


def test_a_python_program_in_the_sandbox():
    try:
        found = asyncio.run(in_the_sandbox())
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    tree, repairs, scored = found
    first, second = tree.attempts[0].metrics["turns"]
    assert (first["reward"], second["reward"]) == (0.0, 1.0)
    assert tree.attempts[0].metrics["passed"][1] == 1.0
    (repair,) = repairs.values()
    assert repair.right[0].explanation == "It does not do what was asked."
    assert repair.right[0].code.startswith("def ")
    assert [r.value for r in scored.rewards] == pytest.approx([5.0, 5.0])


async def in_the_sandbox():
    """A built-in problem's wrong program, mended by its solution and rewarded by CodeBLEU."""
    env = envs.make("code", n=1, repair=True)
    task = env.tasks()[0]

    def script(text):
        code = f"python\n{task.data['solution']}\n```"
        return code if text.endswith("```") else f"It does not do what was asked.\n```{code}"

    rollout = self_debug(given=True, explain=True)
    async with sandboxes.open("embedded") as box:
        how = {"tasks": [task], "box": box, "progress": False}
        trees = await collect(env, rollout, ScriptedPolicy(script), **how)
    repairs, _ = ledex.pool(trees)
    embed = TfIdf(ledex.explanations(repairs.values()))
    graded = ledex.rewarded(final(trees), repairs, embed)
    return trees[0], repairs, graded[0][1]


def test_it_has_a_name():
    assert make("self_debug", rounds=2).__name__ == "self_debug"

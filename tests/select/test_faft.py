"""FAFT: rows behind their feedback, one to one; TravelPlanner's shares of checks."""

from __future__ import annotations

import asyncio

import pytest

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.rollouts import refine, single_turn
from agentrl.rollouts.condition import SUCCESS, conditioned, with_feedback
from agentrl.select.faft import Checked, feedback_of, rates, row, rows
from agentrl.testing import check_rollout
from agentrl.types import Message, SamplingParams
from envs.rooms import Rooms
from envs.rooms.player import player

TOKENIZER = CharTokenizer()
CHAT = Chat(TOKENIZER)


def games(n=30, budget=6, mistakes=0.3):
    """Games of which a part is lost, the budget being short."""
    policy = ScriptedPolicy(player(mistakes), tokenizer=TOKENIZER)
    env, params = Rooms(style="compact", budget=budget), SamplingParams(max_tokens=8)
    trees = asyncio.run(collect(env, refine(), policy, n=n, params=params, progress=False))
    return [(t, t.attempts[-1]) for t in trees]


def test_the_condition_stands_behind_the_prompt_and_nothing_else_changes():
    tree, attempt = games(1)[0]
    sample = row(tree, attempt, "violated: a, b", CHAT)
    text = CHAT.decode(sample.token_ids)
    prompt = tree.task.prompt[0].content
    assert text.startswith(f"<|user|>{prompt}\nFeedback on your answer: violated: a, b<|end|>")
    plain = CHAT.prompt(tree.task.prompt)
    told = CHAT.prompt(with_feedback(tree.task.prompt, "violated: a, b"))
    assert list(sample.token_ids[len(told) :]) == tree.ids(attempt.leaf)[len(plain) :]
    trained = [w for node in tree.path(attempt.leaf)[1:] for w in _weights(node)]
    assert list(sample.weights) == [0.0] * len(told) + trained


def _weights(node):
    return [float(node.source == "policy")] * len(node.token_ids)


def test_good_and_bad_are_mixed_one_to_one():
    graded = games()
    good = sum(a.reward == 1.0 for _, a in graded)
    assert 0 < good < 30
    made = rows(graded, CHAT)
    said = [s.meta["feedback"] for s in made]
    assert said.count(SUCCESS) == len(said) - said.count(SUCCESS) == min(good, 30 - good)
    assert all(s.startswith("violated: goal not reached") for s in said if s != SUCCESS)
    capped = rows(graded, CHAT, cap=5)
    assert [s.meta["feedback"] == SUCCESS for s in capped].count(True) * 2 == len(capped) == 4
    more = rows(graded, CHAT, ratio=0.5)
    bad = sum(s.meta["feedback"] != SUCCESS for s in more)
    assert bad == round((len(more) - bad) * 0.5)


def test_what_was_not_scored_is_neither_good_nor_bad():
    graded = games(6)
    for _, attempt in graded[:3]:
        attempt.reward = None
    graded[3][1].error = "the sandbox died"
    kept = {id(a) for _, a in graded[4:]}
    assert len(rows(graded, CHAT)) <= len(kept)


def test_feedback_names_what_was_violated():
    tree, attempt = games(1)[0]
    attempt.reward = 1.0
    assert feedback_of(tree, attempt) == "success"
    attempt.reward, attempt.metrics["violated"] = 0.0, ["budget", "lodging"]
    assert feedback_of(tree, attempt) == "violated: budget, lodging"


def test_at_inference_the_condition_is_success():
    seen = []

    def script(text):
        seen.append(text)
        return "!gA"

    policy = ScriptedPolicy(script, tokenizer=TOKENIZER)
    env = Rooms(style="compact", budget=1)
    asyncio.run(collect(env, conditioned(refine()), policy, n=1, progress=False))
    assert seen[0].endswith("\nFeedback on your answer: success<|end|><|assistant|>")
    check_rollout(conditioned(single_turn()))


def test_another_prompt_is_refused():
    tree, attempt = games(1)[0]
    tree.nodes[0].token_ids = tree.nodes[0].token_ids[1:]
    with pytest.raises(DataError, match="does not begin with the task's prompt"):
        row(tree, attempt, SUCCESS, CHAT)
    with pytest.raises(ConfigError, match="user"):
        with_feedback([Message("assistant", "hm")], SUCCESS)


GOOD = {"sandbox": True, "complete": True}


def test_an_empty_plan_delivers_and_passes_nothing():
    shares = rates([Checked(False)])
    assert shares == dict.fromkeys(shares, 0.0)
    assert Checked(False).violated == ["no plan"]


def test_hard_checks_that_were_not_run_fail_in_the_end():
    missing = Checked(True, {"sandbox": True, "complete": False}, None)
    shares = rates([missing, Checked(True, GOOD, {"budget": True})])
    assert shares["hard_micro"] == 1.0, "of the hard checks that were run"
    assert shares["hard_macro"] == shares["final"] == shares["commonsense_macro"] == 0.5
    assert shares["commonsense_micro"] == 0.75
    assert missing.violated == ["complete"]


def test_a_check_that_does_not_apply_neither_passes_nor_fails():
    plan = Checked(True, GOOD, {"budget": True, "cuisine": None})
    shares = rates([plan])
    assert shares["hard_macro"] == shares["final"] == 1.0
    assert plan.violated == []
    with_failure = rates([plan, Checked(True, GOOD, {"budget": False, "cuisine": None})])
    assert with_failure["hard_micro"] == 0.5, "two checks apply, not four"

"""The rollout of AgentRefine: a game of turns, each with the environment's verdict in its node."""

from __future__ import annotations

import asyncio
import re

import pytest

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.rollouts import refine
from agentrl.select.refine import verdicts
from agentrl.testing import check_rollout
from agentrl.types import SamplingParams, Task
from envs.rooms import Rooms, words
from envs.rooms.player import player
from envs.rooms.world import World

WORLD = World({"1": "A", "2": "B"}, {"a": "1", "b": "2"}, "B", ("a", "2"))
TOKENIZER = CharTokenizer()


class OneGame(Rooms):
    """Find `a` in 1 (room A), bring it to 2 (room B)."""

    def tasks(self, n=None):
        task = super().tasks(1)[0]
        data = {"world": vars_of(WORLD), "wording": ["g", "t", "p"]}
        text = words.prompt(WORLD, ("g", "t", "p"), "compact")
        message = type(task.prompt[0])("user", text)
        return [Task("game", (message,), "rooms", data=data)][:n]


def vars_of(world: World):
    return {name: getattr(world, name) for name in World.__slots__}


def game(replies, *, budget=16, max_tokens=8, **how):
    policy = ScriptedPolicy(replies, tokenizer=TOKENIZER, **how)
    env = OneGame(style="compact", budget=budget)
    params = SamplingParams(max_tokens=max_tokens)
    rollout = refine()
    trees = asyncio.run(collect(env, rollout, policy, n=1, params=params, progress=False))
    return trees[0], trees[0].attempts[-1]


def test_verdicts_stand_in_the_last_node_of_each_turn():
    tree, attempt = game(["!ta1", "!wA", "!gA", "!ta1", "!gB", "!pa2"])
    assert verdicts(tree, attempt) == [False, False, True, True, True, True]
    judged = [n for n in tree.path(attempt.leaf) if "ok" in n.info]
    assert [n.info.get("error") for n in judged[:3]] == ["?1A", "?gtp", None]
    assert all(n.source == "policy" and n.token_ids[-1] in TOKENIZER.eos_ids for n in judged)
    assert (attempt.reward, attempt.stop_reason) == (1.0, "env_terminated")
    assert attempt.metrics["errors"] == 2
    assert attempt.metrics["played"] == 6
    assert attempt.metrics["progress"] == 1.0


def test_observation_and_action_alternate():
    tree, attempt = game(["!ta1", "!gA", "!ta1", "!gB", "!pa2"])
    sources = [n.source for n in tree.path(attempt.leaf)]
    turns = [s for i, s in enumerate(sources) if i == 0 or s != sources[i - 1]]
    assert turns == ["template"] + ["policy", "environment"] * 4 + ["policy"]
    text = Chat(TOKENIZER).decode(tree.ids(attempt.leaf))
    assert "!ta1<|end|><|user|>?1A<|end|><|assistant|>!gA<|end|><|user|>@A1<|end|>" in text


def test_the_budget_ends_a_game_unwon():
    _, attempt = game(["!gA", "!ta1", "!gB"], budget=3)
    assert (attempt.reward, attempt.stop_reason) == (0.0, "max_turns")
    assert attempt.metrics["progress"] == pytest.approx(2 / 3)


def test_a_turn_that_is_cut_off_is_not_played():
    tree, attempt = game(["!gA" + ScriptedPolicy.CUT, "!gA", "!ta1", "!gB", "!pa2"])
    assert verdicts(tree, attempt) == [False, True, True, True, True]
    assert attempt.metrics["cut_turns"] == 1
    assert attempt.reward == 1.0
    text = Chat(TOKENIZER).decode(tree.ids(attempt.leaf))
    assert "!gA<|end|><|user|>?!gtp<|end|>" in text, "the cut turn is closed, and judged"


@pytest.mark.filterwarnings("ignore::agentrl.errors.AgentRLWarning")
def test_a_full_context_is_truncation_and_not_a_verdict():
    tree, attempt = game(["!gA", "!ta1", "!gBxxxxxxxxxxxxxxxxxxx"], max_context=50, max_tokens=99)
    assert attempt.stop_reason == "context_full"
    assert verdicts(tree, attempt) == [True, True]
    assert attempt.reward == 0.0


@pytest.mark.parametrize("style", ["react", "compact"])
def test_every_token_of_a_game_is_in_its_tree(style):
    check_rollout(refine(), env=Rooms(style=style), script=player(0.3))


def test_a_teacher_plays_in_the_students_tokens():
    student = ScriptedPolicy([], tokenizer=TOKENIZER)
    teacher = ScriptedPolicy(player(0.0))  # of bytes
    rollout, params = refine(teacher=teacher), SamplingParams(max_tokens=20)
    env = Rooms(style="compact", surprise=0.0)
    trees = asyncio.run(collect(env, rollout, student, n=3, params=params, progress=False))
    for tree in trees:
        attempt = tree.attempts[-1]
        assert attempt.reward == 1.0
        said = [n for n in tree.path(attempt.leaf) if n.source == "hint"]
        assert all(n.info["by"] == teacher.name for n in said)
        assert verdicts(tree, attempt) == [True] * attempt.metrics["played"]
        assert not any(n.source == "policy" for n in tree.nodes)


@pytest.mark.parametrize("style", ["react", "compact"])
def test_the_scripted_player_errs_and_repairs(style):
    policy = ScriptedPolicy(player(0.35), tokenizer=TOKENIZER)
    env, params = Rooms(style=style, budget=24), SamplingParams(max_tokens=300)
    trees = asyncio.run(collect(env, refine(), policy, n=40, params=params, progress=False))
    attempts = [t.attempts[-1] for t in trees]
    assert sum(a.reward for a in attempts) >= 36
    assert sum(a.metrics["errors"] > 1 for a in attempts) >= 20
    if style == "react":
        texts = [Chat(TOKENIZER).decode(t.ids(t.attempts[-1].leaf)) for t in trees]
        repaired = r"It is in the (\w+)\.<.*?>Thought: The \w+ is in the \1, and I am not\."
        assert any(re.search(repaired, text) for text in texts), "the thought says what was wrong"

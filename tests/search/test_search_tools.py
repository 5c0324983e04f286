"""Searches in whole episodes: calls run once, siblings do not see each other, states come back."""

from __future__ import annotations

import asyncio
import json

import pytest

import envs
import sandboxes
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, IsolationError
from agentrl.rollouts import make
from agentrl.search.evaluators import ByValue
from agentrl.select import pairs
from agentrl.testing import check_rollout
from agentrl.types import SamplingParams, Step
from envs.rooms.player import player
from tests.fakes import FakeEnv, FakeEpisode
from tests.search.tool_toys import (
    CALL,
    CHAT,
    Drawn,
    assign_and_print,
    check_states,
    in_a_sandbox,
    native,
    searched,
    table_of,
    tens,
)

SEARCHES = [
    ("mcts", {"unit": "call", "step_tokens": 200, "iterations": 4, "outcome": True, "b1": 4}),
    ("mcts", {"unit": "line", "iterations": 2, "max_tokens": 300, "outcome": True}),
    ("best_first", {"unit": "call", "step_tokens": 200, "max_iterations": 12}),
    ("beam", {"unit": "call", "step_tokens": 200, "width": 3, "beams": 3}),
    ("best_of_n", {"candidates": 8}),
    ("itool", {"iterations": 4}),
    ("rain", {"iterations": 4, "least": 2, "width": 3}),
]


def test_siblings_in_the_real_sandbox_do_not_see_each_other():
    async def go():
        async with sandboxes.open("embedded") as box:
            return [await in_a_sandbox(box, *one) for one in SEARCHES]

    try:
        made = asyncio.run(go())
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    assert sum(check_states(*one) > 0 for one in made) >= 4


@pytest.mark.parametrize(("name", "options"), SEARCHES[:-1])  # rain looks ahead outside the tree
def test_what_a_search_with_tools_leaves_keeps_the_contract(name, options):
    check_rollout(make(name, **{"judge": ByValue(tens), "tools": "blocks", **options}), n=1)


@pytest.mark.parametrize("tools", ["blocks", "native"])
def test_one_line_of_a_search_is_the_tool_loop_token_for_token(tools):
    code = "```python\n{}\n```\n" if tools == "blocks" else CALL
    replies = [code.format("x = 6"), "Now " + code.format("print(x * 7)"), "It is 42"]

    def script(text):
        return replies[text.count("6") + text.count("x * 7") - text.count("6*7")]

    def path(name, **options):
        tree = searched_with(name, ScriptedPolicy(script), tools=tools, **options)
        (attempt,) = tree.attempts
        return [(n.source, n.token_ids) for n in tree.path(attempt.leaf)], attempt, tree

    def searched_with(name, policy, **options):
        env, rollout = FakeEnv(), make(name, **options)
        params = SamplingParams(4000)
        return asyncio.run(collect(env, rollout, policy, params=params, progress=False))[0]

    plain, theirs, _ = path("tool_loop")
    mine, ours, tree = path("best_of_n", candidates=1, judge=ByValue(tens))
    assert mine == plain
    for fact in ("reward", "answer", "stop_reason"):
        assert getattr(ours, fact) == getattr(theirs, fact)
    assert ours.reward == 1.0
    assert ours.metrics["statuses"] == theirs.metrics["statuses"] == ["ok", "ok"]
    assert ours.metrics["calls"] == theirs.metrics["calls"] == 2
    table = table_of(tree)
    assert (table.calls, table.replayed) == (2, 0)  # a line goes on in one session


def test_candidates_that_begin_with_the_same_call_run_it_once():
    def choices(turn, text):
        if "output" in turn:
            return [f"It is {n}" for n in range(40, 43)]
        return ["```python\nx = 1\n```\n"]

    env = FakeEnv()
    (tree,) = searched(
        "best_of_n", Drawn(choices), env, tools="blocks", candidates=12, outcome=True
    )
    table = table_of(tree)
    assert (table.calls, table.replayed) == (1, 2)
    first = table.children(table.states[0])
    assert [(s.times, s.visits) for s in first] == [(12, 12.0)]
    assert sum(s.times for s in table.states if s.terminal) == 12
    assert len(env.episodes) == 1 + table.replayed  # the first to be graded went on in it


def rooms(mistakes=0.2):
    env = envs.make("rooms", style="compact", budget=12)
    say = [player(mistakes, seed) for seed in range(4)]
    return env, lambda turn, text: [f(text) for f in say]


@pytest.mark.parametrize("restore", ["fork", "replay", "auto"])
def test_a_simulator_is_forked_or_replayed_to_the_same_tree(restore):
    env, choices = rooms()
    env.tasks(1)
    options = {"tools": "turns", "outcome": True, "unit": "call", "b1": 3, "iterations": 4}
    rollout = make("mcts", judge=None, restore=restore, depth=8, **options)
    params = SamplingParams(400, 1.0)
    (tree,) = asyncio.run(collect(env, rollout, Drawn(choices), n=1, params=params, progress=False))
    table = table_of(tree)
    assert table.lost == 0
    assert (table.forked > 0) == (restore != "replay")
    assert (table.replayed > 0) == (restore == "replay")
    won = [a for a in tree.attempts if a.stop_reason == "env_terminated"]
    assert won
    assert all(a.reward == 1.0 for a in won)
    assert tree.attempts[-1].reward == 1.0
    told = [s.acted.observation[0].content for s in table.states if s.acted]
    assert hash_of(tree) == HASHES.setdefault("rooms", hash_of(tree))
    assert len(set(told)) > 3
    for attempt in tree.attempts:  # the same game by itself says the same
        replayed_game(env, table, next(s for s in table.states if s.node == attempt.leaf))


HASHES: dict[str, str] = {}


def hash_of(tree):
    return json.dumps([(n.parent, n.source, n.token_ids) for n in tree.nodes])


def replayed_game(env, table, state):
    async def play():
        episode = env.open(env.tasks(1)[0], None)
        await episode.reset()
        for at in table.acts(state):
            step = await episode.step(at.message)
            assert tuple(step.observation) == at.observation
            assert step.reward == at.reward

    asyncio.run(play())


def test_iterations_at_once_ask_for_each_step_once():
    env, options = FakeEnv(), {"tools": "blocks", "outcome": True, "unit": "call", "b1": 4, "b2": 3}
    (tree,) = searched("mcts", Drawn(assign_and_print), env, at_once=4, step_tokens=200, **options)
    table = table_of(tree)
    assert table.calls == sum(s.acted is not None for s in table.states) > 4
    assert sum(len(e.codes) for e in env.episodes) == table.calls + table.replayed
    assert all(e.closed for e in env.episodes)
    for state in table.states:
        said = CHAT.decode(tree.ids(state.node))
        if state.acted is not None and "print(x)" in state.acted.message.content:
            assert state.acted.observation[0].content == said.rpartition("x = ")[2][0]


def test_calls_end_after_as_many_as_a_path_may_have():
    (tree,) = searched(
        "best_of_n", Drawn(native), FakeEnv(), tools="native", max_calls=1, candidates=4
    )
    assert tree.attempts[-1].stop_reason == "max_turns"
    assert tree.attempts[-1].reward is None
    (tree,) = searched(
        "best_of_n", Drawn(assign_and_print), FakeEnv(), tools="blocks", max_calls=1, candidates=4
    )
    assert "[no more code can be run" in CHAT.decode(tree.ids(tree.attempts[-1].leaf))
    assert tree.attempts[-1].metrics["calls"] == 1


def test_a_judge_sees_the_turns_before():
    seen = []

    async def look(of, text):
        seen.append(text)
        return 0.5

    options = {"tools": "native", "judge": ByValue(look), "outcome": False, "unit": "call"}
    searched("mcts", Drawn(native), FakeEnv(), step_tokens=200, iterations=2, **options)
    assert any(t.startswith("<tool_call>") and "[tool] 2\n" in t for t in seen)
    assert not any("6*7" in t for t in seen)


def test_pairs_of_steps_with_calls_train_on_what_was_sampled_alone():
    options = {"tools": "native", "outcome": True, "unit": "call", "b1": 4, "b2": 3}
    trees = searched("mcts", Drawn(native), FakeEnv(), step_tokens=200, judge=None, **options)
    made = pairs.select(trees, CHAT, levels="all")
    assert made.pairs
    for pair in made.pairs:
        for side in (pair.chosen, pair.rejected):
            marked = [i for i, w in zip(side.token_ids, side.weights, strict=True) if w]
            assert CHAT.decode(marked).strip() in side_texts(trees[0])


def side_texts(tree):
    return "".join(CHAT.decode(n.token_ids) for n in tree.nodes if n.source == "policy")


class Silent(FakeEpisode):
    async def step(self, message):
        return Step(()) if message.tool_calls else await super().step(message)


class SilentEnv(FakeEnv):
    def open(self, of, box):
        return Silent(of)


def test_an_environment_that_says_nothing_is_an_error():
    with pytest.raises(ConfigError, match="answered an action with nothing"):
        searched("best_of_n", Drawn(native), SilentEnv(), tools="native")

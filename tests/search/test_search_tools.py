"""Searches in whole episodes: calls run once, siblings do not see each other, states come back."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import re
from random import Random

import pytest

import envs
import sandboxes
from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import AgentRLWarning, ConfigError, EngineError, IsolationError
from agentrl.rollouts import make
from agentrl.search.evaluators import ByValue
from agentrl.search.table import Table
from agentrl.select import pairs
from agentrl.testing import check_rollout
from agentrl.types import Message, SamplingParams, Step
from envs.base import PYTHON, QuestionEpisode
from envs.grading import grade_task
from envs.rooms.player import player
from tests.fakes import FakeEnv, FakeEpisode, task

CHAT = Chat(ByteTokenizer())
CALL = '<tool_call>\n{{"name": "python", "arguments": {{"code": "{}"}}}}\n</tool_call>'


class Drawn:
    """Says one of `choices(turn so far, whole text)`, by the call's seed, and goes on with what it
    began to say since the last output. It fails at call number `fails`."""

    name, version, max_context = "drawn", 0, 1 << 16

    def __init__(self, choices, fails=None):
        self.tokenizer, self.choices, self.fails = ByteTokenizer(), choices, fails
        self.calls = self.tokens = 0

    async def sample(self, ids, params: SamplingParams):
        self.calls += 1
        if self.calls - 1 == self.fails:
            raise EngineError("the engine is down")
        text = self.tokenizer.decode(ids)
        turn = text.rpartition("assistant\n")[2]
        done = [m.end() for m in re.finditer(r"```output\n.*?\n```\n", turn, re.S)]
        said = turn[done[-1] if done else 0 :]
        ends = [o for o in self.choices(turn, text) if o.startswith(said)]
        reply = ends[Random(params.seed).randrange(len(ends))].removeprefix(said)
        made = await ScriptedPolicy([reply]).sample(ids, params)
        self.tokens += len(made.token_ids)
        return made

    async def score(self, ids):
        return [-0.5] * (len(ids) - 1)

    async def update(self, weights):
        self.version += 1

    async def close(self):
        pass


def assign_and_print(turn, text):
    """Two lines of thought: x is 1 or 2; each then looks at x and says what it saw."""
    if "output" not in turn:
        return [f"Try {n}.\n```python\nx = {n}; 'y' in dir()\n```\n" for n in (1, 2)]
    if turn.count("output") == 1:
        return ["```python\ny = x * 10; print(y)\n```\n", "Look:\n```python\nprint(x)\n```\n"]
    return [f"The answer is {turn.rsplit('output')[-1].split()[0]}."]


async def tens(of, text):
    """A judge that likes long answers, and so keeps on going."""
    return len(text) / 1000


def searched(name, policy, env, *, box=None, retries=0, tokens=4000, **options):
    options = {"judge": ByValue(tens), **options}
    return asyncio.run(
        collect(
            env,
            make(name, **options),
            policy,
            params=SamplingParams(tokens, 1.0),
            box=box,
            retries=retries,
            progress=False,
        )
    )


def table_of(tree):
    return Table.from_json(tree.meta["search"])


SEARCHES = [
    ("mcts", {"unit": "call", "step_tokens": 200, "iterations": 4, "outcome": True, "b1": 4}),
    ("mcts", {"unit": "line", "iterations": 2, "max_tokens": 300, "outcome": True}),
    ("best_first", {"unit": "call", "step_tokens": 200, "max_iterations": 12}),
    ("beam", {"unit": "call", "step_tokens": 200, "width": 3, "beams": 3}),
    ("best_of_n", {"candidates": 8}),
    ("itool", {"iterations": 4}),
    ("rain", {"iterations": 4, "least": 2, "width": 3}),
]


class Noted(QuestionEpisode):
    ran: list[str]

    async def _execute(self, code):
        self.ran.append(code)
        return await super()._execute(code)


class Interpreter(FakeEnv):
    """Questions with the real python tool; `ran` is the code that the sandbox was given."""

    def __init__(self):
        super().__init__([task(answer="10")])
        self.ran = []

    def open(self, of, box):
        episode = Noted(of, grade_task, box, tools=(PYTHON,))
        episode.ran = self.ran
        return episode


async def in_a_sandbox(box, name, options):
    """A search in which x is 1 or 2; its tree, environment and policy."""
    env, policy = Interpreter(), Drawn(assign_and_print)
    rollout = make(name, **{"judge": ByValue(tens), "tools": "blocks", **options})
    params = SamplingParams(4000, 1.0)
    with_box = {"box": box, "params": params, "retries": 0, "progress": False}
    (tree,) = await collect(env, rollout, policy, **with_box)
    return tree, env, policy


def check_states(tree, env, policy):
    """Every call saw its own path alone, ran once, and what was replayed is counted apart."""
    table = table_of(tree)
    assert tree.attempts[-1].error is None
    for state in table.states:
        if state.acted is None:
            continue
        said = CHAT.decode(tree.ids(state.node))
        x = said.rpartition("x = ")[2][0]
        seen = state.acted.observation[0].content
        first = "'y' in dir()" in state.acted.message.content
        assert seen == ("False" if first else f"{x}0" if "y = " in said else x)
        assert said.endswith(f"```output\n{seen}\n```\n")
    assert table.calls == sum(s.acted is not None for s in table.states)
    assert len(env.ran) == table.calls + table.replayed
    assert table.tokens == policy.tokens
    return table.replayed


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
            step = await episode.step(at.acted.message)
            assert tuple(step.observation) == at.acted.observation
            assert step.reward == at.acted.reward

    asyncio.run(play())


class Forgetful(FakeEpisode):
    """Answers otherwise every time."""

    counter = itertools.count()

    async def step(self, message):
        step = await super().step(message)
        if not message.tool_calls:
            return step
        told = dataclasses.replace(step.observation[0], content=f"call {next(self.counter)}")
        return dataclasses.replace(step, observation=(told,))


class ForgetfulEnv(FakeEnv):
    def open(self, of, box):
        return Forgetful(of)


def test_a_state_that_comes_back_different_is_lost_and_never_taken_for_the_other():
    options = {"tools": "blocks", "outcome": True, "unit": "call", "step_tokens": 200, "b2": 3}
    with pytest.warns(AgentRLWarning, match="a state of a search is lost: a call answered"):
        (tree,) = searched("mcts", Drawn(assign_and_print), ForgetfulEnv(), **options)
    table = table_of(tree)
    assert table.lost > 0
    assert table.replayed >= table.lost
    assert tree.attempts[-1].error is None
    for state in table.states:  # none of two siblings of which the second could not be restored
        acted = [s for s in table.children(state) if s.acted is not None]
        assert len(acted) <= 1 or state is table.states[0]
    lost = [a for a in tree.attempts if a.metrics.get("lost")]
    assert all(a.reward is None for a in lost)


def test_an_address_is_no_difference():
    class Objects(FakeEpisode):
        async def step(self, message):
            step = await super().step(message)
            if not message.tool_calls:
                return step
            told = Message("tool", f"<object at {id(self):#x}>")
            return dataclasses.replace(step, observation=(told,))

    class Env(FakeEnv):
        def open(self, of, box):
            self.episodes.append(Objects(of))
            return self.episodes[-1]

    options = {"tools": "blocks", "outcome": True, "unit": "call", "step_tokens": 200}
    (tree,) = searched("mcts", Drawn(assign_and_print), Env(), **options)
    table = table_of(tree)
    assert table.replayed > 0
    assert table.lost == 0


def native(turn, text):
    if text.count("<tool_call>") < 2:
        return [CALL.format(c) for c in ("x = 40", "x = 2; print(x)", "print(x)")]
    return ["It is 42", "It is 40"]


@pytest.mark.parametrize(("tools", "choices"), [("blocks", assign_and_print), ("native", native)])
def test_a_stopped_search_with_tools_goes_on_where_it_was(tools, choices, tmp_path):
    options = {"tools": tools, "outcome": True, "unit": "call", "step_tokens": 200}
    options |= {"iterations": 3, "first": 2}
    whole = searched("mcts", policy := Drawn(choices), FakeEnv(), **options)[0]
    for fails in range(2, policy.calls, 3):
        kept = {"folder": str(tmp_path / str(fails)), **options}
        broken = searched("mcts", Drawn(choices, fails), FakeEnv(), **kept)[0]
        assert broken.attempts[-1].error is not None
        again = searched("mcts", Drawn(choices), FakeEnv(), **kept)[0]
        ours, theirs = again.meta["search"], whole.meta["search"]
        for a, b in zip(ours["states"], theirs["states"], strict=True):
            left_out = {"node": 0, "said": 0}
            assert {**a, **left_out} == {**b, **left_out}
        assert (ours["calls"], ours["tokens"]) == (theirs["calls"], theirs["tokens"])
        ends = [[t.ids(a.leaf) for a in t.attempts] for t in (again, whole)]
        assert ends[0] == ends[1]


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


def test_what_cannot_be_forked_says_so():
    with pytest.raises(ConfigError, match=r"FakeEpisode has no fork\(\)"):
        searched("best_of_n", Drawn(native), FakeEnv(), tools="native", restore="fork")
    for wrong in ({"tools": "block"}, {"restore": "copy"}, {"tools": "blocks", "max_calls": 0}):
        with pytest.raises(ConfigError):
            make("mcts", **wrong)


class Silent(FakeEpisode):
    async def step(self, message):
        return Step(()) if message.tool_calls else await super().step(message)


class SilentEnv(FakeEnv):
    def open(self, of, box):
        return Silent(of)


def test_an_environment_that_says_nothing_is_an_error():
    with pytest.raises(ConfigError, match="answered an action with nothing"):
        searched("best_of_n", Drawn(native), SilentEnv(), tools="native")

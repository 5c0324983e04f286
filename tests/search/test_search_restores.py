"""A search's states come back: after a stop, a dead sandbox, and in an episode of their own."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import AgentRLWarning, ConfigError, SandboxError, SnapshotRefused
from agentrl.rollouts import make
from agentrl.search.table import Acted, Table
from agentrl.search.worlds import Worlds
from agentrl.select import pairs
from agentrl.types import Message, Step
from tests.fakes import FakeEnv, FakeEpisode
from tests.search.tool_toys import CHAT, Drawn, assign_and_print, native, searched, table_of


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


class Breaking(FakeEnv):
    """The sandbox fails at call number `fails`, whatever episode that is in."""

    def __init__(self, fails):
        super().__init__()
        self.fails, self.calls = fails, 0

    def open(self, of, box):
        env, episode = self, super().open(of, box)
        answer = episode.step

        async def step(message):
            env.calls += 1
            if env.calls == env.fails:
                raise SandboxError("the sandbox was killed")
            return await answer(message)

        episode.step = step
        return episode


def test_a_sandbox_that_dies_loses_nothing_and_counts_nothing_twice(tmp_path):
    options = {"tools": "blocks", "outcome": True, "unit": "call", "step_tokens": 200}
    options |= {"iterations": 3, "first": 2, "judge": None}
    whole = searched("mcts", Drawn(assign_and_print), unbroken := Breaking(0), **options)[0]
    for fails in range(1, unbroken.calls, 2):
        kept = {"folder": str(tmp_path / str(fails)), "retries": 1, **options}
        again = searched("mcts", Drawn(assign_and_print), Breaking(fails), **kept)[0]
        assert again.meta["failures"] == ["SandboxError: the sandbox was killed"]
        for fact in ("calls", "tokens", "iterations", "chosen"):
            assert again.meta["search"][fact] == whole.meta["search"][fact]
        ends = [[(t.ids(a.leaf), a.reward) for a in t.attempts] for t in (again, whole)]
        assert ends[0] == ends[1]


def test_what_cannot_be_forked_says_so():
    with pytest.raises(ConfigError, match=r"FakeEpisode has no fork\(\)"):
        searched("best_of_n", Drawn(native), FakeEnv(), tools="native", restore="fork")
    for wrong in ({"tools": "block"}, {"restore": "copy"}, {"tools": "blocks", "max_calls": 0}):
        with pytest.raises(ConfigError):
            make("mcts", **wrong)


class Thoughtless(ByteTokenizer):
    """A template that drops the thinking of earlier turns."""

    def render(self, messages, **options):
        last = max(i for i, m in enumerate(messages) if m.role != "assistant")
        shown = [
            dataclasses.replace(m, content=m.content.split("</think>")[-1])
            if m.role == "assistant" and i < last
            else m
            for i, m in enumerate(messages)
        ]
        return super().render(shown, **options)


def thinking(turn, text):
    return [f"<think>{t}</think>{said}" for t in ("hm", "oh") for said in native(turn, text)]


def test_a_template_that_rewrites_history_is_searched_and_resumed_token_for_token(tmp_path):
    def drawn(fails=None):
        policy = Drawn(thinking, fails)
        policy.tokenizer = Thoughtless()
        return policy

    options = {"tools": "native", "outcome": True, "unit": "call", "step_tokens": 200}
    options |= {"iterations": 2, "first": 2, "judge": None}
    (tree,) = searched("mcts", policy := drawn(), FakeEnv(), **options)
    assert any(a.branches for a in tree.attempts)
    table = table_of(tree)
    for state in table.states[1:]:
        if state.acted is not None and state.acted.turn:
            assert "<think>" not in CHAT.decode(tree.ids(state.node))
            assert "<think>" in CHAT.decode(tree.ids(state.said))
    (kept,) = searched("mcts", drawn(policy.calls // 2), FakeEnv(), folder=str(tmp_path), **options)
    assert kept.attempts[-1].error is not None
    (again,) = searched("mcts", drawn(), FakeEnv(), folder=str(tmp_path), **options)
    ends = [
        [(t.ids(a.leaf), [t.ids(b) for b in a.branches]) for a in t.attempts] for t in (tree, again)
    ]
    assert ends[0] == ends[1]
    for pair in pairs.select([tree], CHAT, levels="all").pairs:
        marked = [i for i, w in zip(pair.chosen.token_ids, pair.chosen.weights, strict=True) if w]
        assert CHAT.decode(marked).endswith("<|im_end|>")


class Diary:
    """Its state is all that it was told. `open_now` counts those that are not closed."""

    tools, open_now, closed = (), 0, False

    def __init__(self, told=()):
        self.told = list(told)
        Diary.open_now += 1

    async def reset(self):
        return ()

    async def step(self, message):
        assert not self.closed
        self.told.append(message.content)
        return Step((Message("user", f"page {len(self.told)}"),))

    async def close(self):
        Diary.open_now -= not self.closed
        self.closed = True


class Copied(Diary):
    async def fork(self):
        return Copied(self.told)


class Put(Diary):
    """Its state can be put aside, and is refused now and then: at the taking, or later."""

    async def save(self):
        if len(self.told) % 3 == 2:
            raise SnapshotRefused("it has a thread")
        return PutAside(list(self.told))


class PutAside:
    def __init__(self, told):
        self.told, self.size = told, 1 + len(told)

    async def open(self):
        if self.told and self.told[-1].endswith("5"):
            raise SnapshotRefused("it is gone")
        return Put(self.told)


@settings(max_examples=75, deadline=None)
@given(
    kind=st.sampled_from([Diary, Copied, Put]),
    parents=st.lists(st.integers(0, 7), min_size=1, max_size=12),
    visits=st.lists(st.integers(0, 11), max_size=20),
    room=st.integers(1, 4),
)
def test_an_episode_stands_where_its_path_leads_whatever_was_closed_meanwhile(
    kind, parents, visits, room
):
    async def open_env():
        return kind()

    async def go():
        table, worlds = Table(), Worlds(open_env)
        states = [table.add(0, None)]
        for n, up in enumerate(parents):
            parent = states[up % len(states)]
            episode = await worlds.at(table, parent)
            message = Message("assistant", f"act {n}")
            step = await episode.step(message)
            states.append(table.add(n + 1, parent, acted=Acted(message, step.observation)))
            await worlds.keep(table, states[-1], episode)
        for n in visits:
            state = states[n % len(states)]
            episode = await worlds.at(table, state)
            assert episode.told == [a.message.content for a in table.acts(state)]
            await episode.step(Message("assistant", "nobody else sees this"))
            await episode.close()
        assert len(worlds._kept) <= room
        await worlds.close()
        return table

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentrl.search.worlds.LIVE", room)
        patch.setattr("agentrl.search.worlds.COPIES", room)
        patch.setattr("agentrl.search.worlds.SAVED_BYTES", 3 * room)
        patch.setattr("agentrl.search.worlds.WORTH_S", 0)
        Diary.open_now = 0
        table = asyncio.run(go())
    assert Diary.open_now == 0
    assert (table.forked > 0) <= (kind is not Diary)
    assert set(table.refused) <= {"it has a thread", "it is gone"}
    assert bool(table.refused) <= (kind is Put)


def test_the_reference_is_a_function_of_the_task():
    with pytest.raises(ConfigError, match="gold='42': expected a function"):
        make("mcts", gold="42")

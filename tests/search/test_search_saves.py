"""States of real sandbox sessions in a search: put aside and had again, or replayed, as it says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

import sandboxes
from agentrl.errors import AgentRLWarning, ConfigError, IsolationError, SnapshotRefused
from agentrl.interfaces import Saves
from agentrl.search import statistics
from agentrl.search.table import Acted, Table
from agentrl.search.worlds import Worlds
from agentrl.types import Message, Step, ToolCall
from envs.base import STATE_LOST, QuestionEpisode, SavedQuestion
from envs.grading import grade_task
from tests.fakes import task
from tests.search.tool_toys import check_states, in_a_sandbox, table_of

OPTIONS = {"unit": "call", "step_tokens": 200, "iterations": 4, "outcome": True, "b1": 4}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="module")
def box(runner: asyncio.Runner) -> Iterator[Any]:
    async def start() -> Any:
        return await sandboxes.open("embedded", spares=1, isolation="namespaces")

    try:
        opened = runner.run(start())
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    if not opened.capabilities.snapshots:
        runner.run(opened.close())
        pytest.skip("states of sessions cannot be taken on this machine")
    yield opened
    runner.run(opened.close())


def shape(tree: Any) -> list[Any]:
    """What a search found, without what it cost."""
    states = [(s.node, s.parent, s.q, s.visits, s.outcome) for s in table_of(tree).states]
    return [states, [n.token_ids for n in tree.nodes], [a.reward for a in tree.attempts]]


def test_fork_and_replay_grow_the_same_tree(runner: asyncio.Runner, box: Any) -> None:
    made = {}
    for restore in ("fork", "replay"):
        tree, env, policy = runner.run(in_a_sandbox(box, "mcts", {**OPTIONS, "restore": restore}))
        check_states(tree, env, policy)
        made[restore] = table_of(tree), len(env.ran), shape(tree)
    (forked, few, one), (replayed, many, two) = made["fork"], made["replay"]
    assert one == two
    assert forked.calls == replayed.calls
    assert (forked.replayed, forked.lost, forked.refused) == (0, 0, {})
    assert forked.forked > 0
    assert (replayed.forked, replayed.refused) == (0, {})
    assert few == forked.calls < many == replayed.calls + replayed.replayed


def test_auto_replays_what_is_cheap_and_saves_what_is_not(
    runner: asyncio.Runner, box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.search.worlds.WORTH_S", 1e9)
    cheap = runner.run(in_a_sandbox(box, "mcts", OPTIONS))[0]
    monkeypatch.setattr("agentrl.search.worlds.WORTH_S", 0.0)
    dear = runner.run(in_a_sandbox(box, "mcts", OPTIONS))[0]
    assert shape(cheap) == shape(dear)
    assert table_of(cheap).forked == table_of(dear).replayed == 0
    assert table_of(cheap).replayed > 0
    assert table_of(dear).forked > 0


def test_auto_saves_what_took_longer_than_saving_does() -> None:
    class Slow:
        """Takes 20 ms to answer, and `cost` seconds to save."""

        tools = ()

        def __init__(self, cost: float) -> None:
            self.cost, self.saved = cost, 0

        async def reset(self) -> tuple[Message, ...]:
            return ()

        async def step(self, message: Message) -> Step:
            return Step((Message("user", "done"),))

        async def close(self) -> None:
            pass

        async def save(self) -> Any:
            self.saved += 1
            await asyncio.sleep(self.cost)
            return SavedQuestion(None, None)  # type: ignore[arg-type]

    async def saves(cost: float, took: list[float]) -> int:
        table, episode = Table(), Slow(cost)
        worlds = Worlds(lambda: None)  # type: ignore[arg-type, return-value]
        state = table.add(0, None)
        for n, seconds in enumerate(took):
            acted = Acted(Message("assistant", ""), ())
            state = table.add(n + 1, state, acted=acted)
            await worlds.keep(table, state, episode, seconds)
        return episode.saved

    assert asyncio.run(saves(0.0, [0.01] * 4)) == 0
    assert asyncio.run(saves(0.0, [0.04, 0.02, 0.0, 0.0])) == 3
    assert asyncio.run(saves(0.05, [0.06, 0.0, 0.0])) == 2  # the second is passed over


def test_what_has_no_room_is_replayed(
    runner: asyncio.Runner, box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentrl.search.worlds.SAVED_BYTES", 1000)
    tree, env, policy = runner.run(in_a_sandbox(box, "mcts", {**OPTIONS, "restore": "fork"}))
    assert check_states(tree, env, policy) > 0


THREAD = (
    "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); "
)


def threads(turn: str, text: str) -> list[str]:
    if "output" not in turn:
        return [f"Try.\n```python\n{THREAD}x = {n}; 'y' in dir()\n```\n" for n in (1, 2)]
    if turn.count("output") == 1:
        return ["```python\ny = x * 10; print(y)\n```\n", "Look:\n```python\nprint(x)\n```\n"]
    return ["The answer is 10."]


def test_a_state_that_cannot_be_carried_is_replayed_and_counted_or_an_error(
    runner: asyncio.Runner, box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.search.tool_toys.assign_and_print", threads)
    monkeypatch.setattr("agentrl.search.worlds.WORTH_S", 0.0)
    tree, env, policy = runner.run(in_a_sandbox(box, "mcts", OPTIONS))
    assert check_states(tree, env, policy) > 0
    refused = table_of(tree).refused
    assert list(refused) == ["this session's state cannot be carried: it has more than one thread"]
    assert statistics([tree, tree])["refused"] == {k: 2 * n for k, n in refused.items()}
    with pytest.raises(ConfigError, match=r"more than one thread. Use restore='auto'"):
        runner.run(in_a_sandbox(box, "mcts", {**OPTIONS, "restore": "fork"}))


def chance(turn: str, text: str) -> list[str]:
    if "output" not in turn:
        return ["```python\nimport os; x = os.urandom(4).hex(); x\n```\n"]
    if turn.count("output") == 1:
        return [f"```python\ny = {n}; x\n```\n" for n in range(4)]
    return [f"The answer is {turn.rsplit('output')[-1].split()[0]}."]


def test_what_chance_made_is_kept_by_fork_and_lost_by_replay(
    runner: asyncio.Runner, box: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.search.tool_toys.assign_and_print", chance)
    options = {**OPTIONS, "b2": 4}
    kept = runner.run(in_a_sandbox(box, "mcts", {**options, "restore": "fork"}))[0]
    assert (table_of(kept).lost, table_of(kept).replayed) == (0, 0)
    for state in table_of(kept).states:
        seen = {a.observation[0].content for a in table_of(kept).acts(state)}
        assert len(seen) <= 1
    with pytest.warns(AgentRLWarning, match="a state of a search is lost"):
        tree = runner.run(in_a_sandbox(box, "mcts", {**options, "restore": "replay"}))[0]
    assert table_of(tree).lost > 1
    monkeypatch.setattr("agentrl.search.worlds.WORTH_S", 1e9)
    with pytest.warns(AgentRLWarning, match="a state of a search is lost"):
        auto = runner.run(in_a_sandbox(box, "mcts", options))[0]
    assert 0 < table_of(auto).lost <= table_of(tree).lost


def call(code: str) -> Message:
    return Message("assistant", "", (ToolCall("python", {"code": code}, "1"),))


async def told(episode: QuestionEpisode, code: str) -> str:
    return (await episode.step(call(code))).observation[0].content


def test_an_episode_goes_on_from_what_was_saved(runner: asyncio.Runner, box: Any) -> None:
    async def work() -> None:
        episode = QuestionEpisode(task(answer="3"), grade_task, box)
        assert isinstance(episode, Saves)
        before = await episode.save()  # it has no session yet
        await told(episode, "x = [1]")
        saved = await episode.save()
        assert saved.size > 0 == before.size
        one, two, none = await saved.open(), await saved.open(), await before.open()
        assert await told(one, "x.append(2); x") == "[1, 2]"
        assert await told(two, "x") == await told(episode, "x") == "[1]"
        assert "NameError" in await told(none, "x")
        assert (await one.step(Message("assistant", "It is 3"))).reward == 1.0
        await one.close()
        assert await told(two, "x") == "[1]"
        for each in (two, none, episode):
            await each.close()

    runner.run(work())


def test_a_session_that_its_code_ended_is_an_ended_one_in_each_copy(
    runner: asyncio.Runner, box: Any
) -> None:
    async def work() -> None:
        episode = QuestionEpisode(task(), grade_task, box)
        await told(episode, "x = 1")
        await told(episode, "import os; os._exit(3)")
        saved = await episode.save()
        one = await saved.open()
        assert (await told(episode, "2")).startswith(STATE_LOST)
        assert (await told(one, "3")).startswith(STATE_LOST)
        two = await saved.open()
        assert (await told(two, "4")).startswith(STATE_LOST)
        for each in (one, two, episode):
            await each.close()

    runner.run(work())


def test_a_sandbox_without_snapshots_says_so(runner: asyncio.Runner) -> None:
    class Plain:
        async def open(self) -> Any:
            return self

        async def close(self) -> None:
            pass

    class Bare:
        def session(self) -> Plain:
            return Plain()

    async def work() -> None:
        episode = QuestionEpisode(task(), grade_task, Bare())  # type: ignore[arg-type]
        await episode._open()
        with pytest.raises(SnapshotRefused, match="no snapshots"):
            await episode.save()

    runner.run(work())

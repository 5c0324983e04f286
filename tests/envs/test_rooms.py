"""The rooms game: what actions do, how they are worded and read, and what the splits hold out."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

import envs
from agentrl.errors import ConfigError
from agentrl.testing import check_env
from agentrl.types import Message
from envs.base import EpisodeOver
from envs.rooms import SPLITS, words, world
from envs.rooms.player import player
from envs.rooms.world import HOUSE, LETTERS, Action, World

WORLD = World({"1": "A", "2": "B"}, {"a": "1", "b": "1"}, "B", ("a", "2"))
PLAIN = ("go to ROOM", "take THING from FURNITURE", "put THING in FURNITURE")
SHORT = ("g", "t", "p")


def play(*actions: Action) -> list[world.Outcome]:
    outcomes, state = [], world.begin(WORLD)
    for action in actions:
        outcomes.append(world.act(WORLD, state, action))
        state = outcomes[-1].state
    return outcomes


def test_a_game_is_won_by_finding_carrying_and_putting():
    steps = [
        Action("go", ("A",)),
        Action("take", ("a", "1")),
        Action("go", ("B",)),
        Action("put", ("a", "2")),
    ]
    outcomes = play(*steps)
    assert [o.fault for o in outcomes] == [None] * 4
    assert [world.progress(WORLD, o.state) for o in outcomes] == [0.0, 1 / 3, 2 / 3, 1.0]
    assert world.done(WORLD, outcomes[-1].state)


@pytest.mark.parametrize(
    ("before", "action", "fault", "about"),
    [
        ((), Action("go", ("X",)), "parameter", ("room", "X")),
        ((), Action("go", ("B",)), "idle", ("B",)),
        ((), Action("take", ("z", "2")), "parameter", ("thing", "z")),
        ((), Action("take", ("a", "9")), "parameter", ("furniture", "9")),
        ((), Action("take", ("a", "1")), "room", ("1", "A")),
        ((), Action("take", ("a", "2")), "absent", ("a", "2")),
        ((), Action("put", ("a", "2")), "hands", ("a", "")),
        (
            (Action("go", ("A",)), Action("take", ("b", "1"))),
            Action("take", ("a", "1")),
            "hands",
            ("a", "b"),
        ),
    ],
)
def test_an_action_that_cannot_be_done_changes_nothing(before, action, fault, about):
    *_, last, wrong = play(Action("go", ("A",)), Action("go", ("B",)), *before, action)
    assert (wrong.fault, wrong.about) == (fault, about)
    assert wrong.state == last.state


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Thought: hm\nAction: go to A", Action("go", ("a",))),
        ("Action: Take the apple from the fridge.", Action("take", ("apple", "fridge"))),
        ("Action: put apple in drawer", Action("put", ("apple", "drawer"))),
        ("Action: walk to A", "unknown"),
        ("Action: take apple", "unknown"),
        ("go to A", "format"),
        ("**Action:** go to A", "format"),
        ("Action 1: go to A", "format"),
        ("action: go to A", "format"),
        ("Action:", "format"),
        ("Action: go to A\nObservation: You are in A.\nAction: take a from 1", "format"),
        ("", "format"),
    ],
)
def test_one_action_in_the_offered_form_is_read_from_a_message(text, read):
    assert words.read(text, PLAIN, "react") == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("!gA", Action("go", ("A",))),
        ("!ta1", Action("take", ("a", "1"))),
        ("!wA", "unknown"),
        ("!gAB", "unknown"),
        ("!", "unknown"),
        ("gA", "format"),
    ],
)
def test_the_compact_form_is_read(text, read):
    assert words.read(text, SHORT, "compact") == read


@pytest.mark.parametrize("style", ["react", "compact"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_prompt_tells_the_world_but_not_where_things_are(style, moved):
    rooms = HOUSE if style == "react" else LETTERS
    for seed in range(20):
        made = world.make(rooms, Random(seed), surprise=0.5, moved=moved)
        for wording in (*words.WORDINGS[style], *words.HELD_OUT[style]):
            told, forms = words.told(words.prompt(made, wording, style), style)
            assert forms == wording
            assert told == World(made.furniture, {}, made.start, made.goal)


@pytest.mark.parametrize("style", ["react", "compact"])
def test_what_is_written_is_read_again(style):
    for wording in (*words.WORDINGS[style], *words.HELD_OUT[style]):
        for verb in world.VERBS:
            action = Action(verb, ("x",) if verb == "go" else ("y", "z"))
            assert words.read(words.write(action, wording, style), wording, style) == action


def test_moved_worlds_have_nothing_in_its_usual_place():
    room = {place: name for name, places in HOUSE.items() for place in places}
    usual = world.usual_places(HOUSE)
    for seed in range(50):
        made = world.make(HOUSE, Random(seed), surprise=0.0, moved=True)
        assert all(made.furniture[p] != room[p] for p in room)
        assert all(made.things[t] != usual[t] for t in usual)
        same = world.make(HOUSE, Random(seed), surprise=0.0, moved=False)
        assert (same.furniture, same.things) == (room, usual)
        mislaid = world.make(HOUSE, Random(seed), surprise=1.0, moved=False)
        assert all(mislaid.things[t] != usual[t] for t in usual)
        for w in (made, same, mislaid):
            assert w.goal[1] != w.things[w.goal[0]], "no task is done before it begins"


@pytest.mark.parametrize("style", ["react", "compact"])
def test_splits_hold_out_words_and_places(style):
    def wordings(split):
        tasks = envs.make("rooms", split=split, style=style).tasks(40)
        return {tuple(t.data["wording"]) for t in tasks}

    held_in = set(words.WORDINGS[style])
    assert wordings("train") == wordings("test") == wordings("mislaid") == held_in
    for split in ("reworded", "unseen"):
        assert wordings(split) == set(words.HELD_OUT[style])
    assert not held_in & set(words.HELD_OUT[style])
    train, test = (
        {t.prompt for t in envs.make("rooms", split=s, style="react").tasks(5)}
        for s in ("train", "unseen")
    )
    assert not train & test


@pytest.mark.parametrize("style", ["react", "compact"])
def test_no_goal_and_start_of_training_is_measured(style):
    def goals(split):
        worlds = [t.data["world"] for t in envs.make("rooms", split=split, style=style).tasks(200)]
        return {(*w["goal"], w["start"]) for w in worlds}

    train = goals("train")
    for split in SPLITS[1:]:
        assert not train & goals(split)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("style", ["react", "compact"])
def test_rooms_keeps_the_contract(split, style):
    check_env(envs.make("rooms", split=split, style=style, budget=3), n=3)


def test_every_action_is_judged_and_the_budget_ends_the_game():
    env = envs.make("rooms", budget=2)

    async def go():
        episode = env.open(env.tasks(1)[0], None)
        with pytest.raises(EpisodeOver):
            await episode.close()
            await episode.step(Message("assistant", "Action: go to attic"))
        episode = env.open(env.tasks(1)[0], None)
        first = await episode.step(Message("assistant", "go to attic"))
        assert first.info["fault"] == "format"
        assert not first.truncated
        assert first.observation[0].content == first.info["error"]
        second = await episode.step(Message("assistant", "Action: sing"))
        assert (second.reward, second.truncated, second.info["ok"]) == (0.0, True, False)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "nowhere"}, "Known: "),
        ({"style": "verse"}, "Known: "),
        ({"budget": 0}, "budget"),
        ({"surprise": 1.5}, "surprise"),
    ],
)
def test_senseless_options_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        envs.make("rooms", **options)


@pytest.mark.parametrize("style", ["react", "compact"])
@pytest.mark.parametrize("split", SPLITS)
def test_a_careful_player_wins_and_errs_only_where_it_cannot_know(style, split):
    env = envs.make("rooms", split=split, style=style, budget=30)

    async def game(task):
        episode, script, faults = env.open(task, None), player(0.0), []
        text = "\n".join(m.content for m in await episode.reset())
        while True:
            said = script(text)
            step = await episode.step(Message("assistant", said))
            faults.append(step.info["fault"])
            if step.terminated or step.truncated:
                return step.reward, faults
            text += f"\n{said}\n{step.observation[0].content}\n"

    for task in env.tasks(20):
        reward, faults = asyncio.run(game(task))
        assert reward == 1.0
        assert set(faults) <= {None, "absent"}

"""AgentRefine's verifier (specification, section 6) and the environment around it."""

from __future__ import annotations

import asyncio
import json

import pytest

import envs
from agentrl.errors import ConfigError, DataError
from agentrl.testing import check_env
from agentrl.types import Message
from envs.scenarios.games import actions_of, conversation, read_script, verify

SCRIPT = {
    "description": "A room with a locked box.",
    "places": ["room: box, table"],
    "objects": ["key", "letter"],
    "goal": "read the letter",
    "actions": [
        {"name": "take", "format": "take {thing}", "parameters": {"thing": ["key", "letter"]}},
        {
            "name": "open",
            "format": "open {place} with {thing}",
            "parameters": {"place": ["box"], "thing": ["key"]},
        },
        {"name": "say", "format": "say {words}", "parameters": {"words": "text"}},
    ],
}
OFFERED = actions_of(SCRIPT)


def turn(name="take", ok=True, done=False, **parameters):
    parameters = parameters or {"thing": "key"}
    action = {"name": name, "parameters": parameters}
    return {"observation": "o", "thought": "t", "action": action, "ok": ok, "done": done}


def game(*oks, done=True):
    """A game of right and wrong turns; the last one reaches the goal."""
    turns = [turn(ok=ok) for ok in oks]
    turns[-1]["done"] = done
    return turns


def check(turns, before=()):
    return verify(turns if isinstance(turns, str) else json.dumps(turns), OFFERED, before)


def test_broken_json_is_made_anew():
    made = check("[{'observation': ")
    assert (made.accepted, made.turns, made.fault) == (False, (), "the answer is not JSON")


def test_json_that_is_nested_without_end_is_a_fault_and_no_crash():
    assert check("[" * 100_000).fault == "the answer is not JSON"


def test_a_missing_key_leaves_the_turns_before_it():
    turns = game(True, False, True, True)
    del turns[2]["thought"]
    made = check(turns)
    assert made.turns == tuple(turns[:2])
    assert made.fault == "turn 3: the key 'thought' is missing"


def test_an_unknown_action_that_is_not_flagged_is_a_fault_there():
    turns = [turn(), turn("fly"), turn(done=True)]
    made = check(turns)
    assert made.turns == tuple(turns[:1])
    assert made.fault == "turn 2: there is no action 'fly'"


def test_an_unknown_action_that_is_flagged_counts_as_a_mistake():
    turns = [turn(), turn("fly", ok=False), turn()]
    made = check(turns)  # unfinished, so that its count can be seen
    assert (made.errors, made.turns) == (1, tuple(turns))
    assert made.fault == "the goal is not reached yet"


def test_a_game_with_one_mistake_is_thrown_away():
    made = check(game(True, False, True))
    assert (made.accepted, made.turns) == (False, ())
    assert made.fault == "there were 1 mistakes, and 2 are wanted"


def test_a_game_with_two_mistakes_is_accepted():
    turns = game(True, False, False, True)
    made = check(turns)
    assert (made.accepted, made.errors, made.turns) == (True, 2, tuple(turns))


def test_mistakes_are_counted_over_all_parts_of_a_game():
    first, rest = game(False, True, done=False), game(False, True)
    made = check(rest, before=first)
    assert made.accepted
    assert made.turns == (*first, *rest)
    broken = check("oops", before=first)
    assert broken.turns == tuple(first), "what was verified before stays"


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (turn(thing="sword"), "'sword' is no 'thing' of 'take'"),
        (turn(place="box"), "'take' takes the parameters ['thing']"),
        (turn("say", words=""), "the parameter 'words' of 'say' is no text"),
        (turn() | {"ok": "yes"}, "'ok' is not true or false"),
        (turn() | {"action": "take key"}, "the action has no name"),
        (turn() | {"action": {"name": "take", "parameters": ["key"]}}, "no object"),
        (turn() | {"thought": None}, "are texts"),
        (7, "it is no object"),
    ],
)
def test_a_turn_that_breaks_a_rule_is_named(wrong, fault):
    made = check([turn(), wrong, turn(done=True)])
    assert len(made.turns) == 1
    assert fault in made.fault


def test_a_game_ends_with_the_goal_and_with_nothing_after_it():
    assert check(game(False, False, True, done=False)).fault == "the goal is not reached yet"
    assert check(game(False, True, False)).fault == "the goal is not reached yet"
    turns = [*game(False, False, True), turn()]
    assert check(turns).fault == "the game goes on after its goal"
    assert check([]).fault == "the answer is not a list of turns"
    assert check("```json\n" + json.dumps(game(False, False, True)) + "\n```").accepted


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"goal": ""}, "'goal' is missing"),
        ({"goal": 3}, "texts"),
        ({"actions": SCRIPT["actions"][:2]}, "fewer than three"),
        ({"actions": [{"name": "a"}]}, "needs 'name'"),
        ({"actions": [{"name": "a", "format": "a {b}", "parameters": {}}]}, "in braces"),
        ({"actions": "take"}, "not a list"),
        ({"actions": ["take"]}, "not an object"),
    ],
)
def test_a_script_that_cannot_be_used_is_refused(changes, fault):
    with pytest.raises(ValueError, match=fault):
        read_script(json.dumps(SCRIPT | changes))
    assert read_script(json.dumps(SCRIPT)) == SCRIPT
    for text in ("nothing", "[]"):
        with pytest.raises(ValueError, match="not"):
            read_script(text)


def test_a_game_as_a_chat():
    turns = game(True, False, True)
    turns[1]["action"] = {"name": "fly", "parameters": {"where": "away"}}
    turns[2]["action"] = {"name": "open", "parameters": {"place": "box", "thing": "key"}}
    said = conversation(SCRIPT, turns)
    assert [m.role for m in said] == ["user", "assistant"] * 3
    assert said[0].content.startswith("A room with a locked box.")
    assert said[0].content.endswith("Goal: read the letter\no")
    assert "- open {place} with {thing}" in said[0].content
    assert [m.content.split("\n")[1] for m in said[1::2]] == [
        "Action: take key",
        "Action: fly away",
        "Action: open box with key",
    ]


def test_scenarios_keeps_the_contract():
    check_env(envs.make("scenarios", retries=2), n=3)
    everyone = envs.make("scenarios").tasks()
    assert len({t.data["persona"] for t in everyone}) == len(everyone) == 1400
    more = envs.make("scenarios").tasks(1401)
    assert more[-1].data == more[0].data
    assert more[-1].id != more[0].id


def test_personas_come_from_a_file(tmp_path):
    path = tmp_path / "personas.txt"
    path.write_text("a baker\n\na diver\n")
    tasks = envs.make("scenarios", path=path).tasks()
    assert {t.data["persona"] for t in tasks} == {"a baker", "a diver"}
    path.write_text("\n")
    with pytest.raises(DataError, match="no persona"):
        envs.make("scenarios", path=path).tasks()
    with pytest.raises(DataError, match="cannot read"):
        envs.make("scenarios", path=tmp_path / "none").tasks()
    with pytest.raises(ConfigError, match="split"):
        envs.make("scenarios", split="test")


def test_retries_are_counted_for_script_and_game():
    env = envs.make("scenarios", retries=1)

    async def go(*answers):
        episode = env.open(env.tasks(1)[0], None)
        return [await episode.step(Message("assistant", a)) for a in answers]

    steps = asyncio.run(go("no", json.dumps(SCRIPT), "no", "no"))
    assert [s.truncated for s in steps] == [False, False, False, True]
    assert [s.info["ok"] for s in steps] == [False, True, False, False]
    assert steps[-1].reward == 0.0
    good = json.dumps(game(False, False, True))
    steps = asyncio.run(go(json.dumps(SCRIPT), good))
    assert (steps[-1].reward, steps[-1].terminated) == (1.0, True)
    assert steps[-1].info["scenario"]["script"] == SCRIPT

"""The environment functions: tasks, simulated tools, episodes and rewards."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

import envs
from agentrl.errors import ConfigError, DataError
from agentrl.testing import check_env
from agentrl.types import Message, Task, ToolCall
from envs.base import EpisodeOver
from envs.functions import generated, rewards
from envs.functions.catalogue import TOOLS
from envs.functions.demonstrations import known_badly, mistaken, reference
from envs.functions.schema import specs, written
from envs.functions.tools import Faults, Workshop, shown

OPTIONS: list[dict[str, Any]] = [
    {},
    {"split": "test", "tools_in": "system"},
    {"split": "unseen", "mode": "conversation"},
    {"source": "toy", "tools_in": "nowhere", "notation": "python"},
    {"source": "toy", "mode": "conversation", "failing": 0.5, "noisy": 0.5},
    {"reward": "classes", "system": "Be brief."},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_contract(options: dict[str, Any]) -> None:
    check_env(envs.make("functions", **options), n=25)


def test_every_task_offers_tools_of_its_own() -> None:
    env = envs.make("functions", kinds=["multiple"])
    shown = [[t.name for t in env.open(task, None).tools] for task in env.tasks(8)]
    assert len({tuple(names) for names in shown}) > 1
    assert all(len(names) == generated.OFFERED for names in shown)


def test_kinds_take_turns_and_splits_share_nothing() -> None:
    tasks = envs.make("functions").tasks(10)
    assert [t.kind for t in tasks] == [*generated.KINDS] * 2
    keys: dict[str, set[str]] = {}
    for split in ("train", "test"):
        made = envs.make("functions", split=split, kinds=["simple", "parallel"], seed=3).tasks(400)
        keys[split] = {json.dumps(t.data["calls"]) for t in made}
        assert len(keys[split]) == 400
    assert not keys["train"] & keys["test"]
    unseen = envs.make("functions", split="unseen").tasks(60)
    called = {c["name"] for t in unseen for step in t.data["calls"] for c in step}
    assert called
    assert not any(TOOLS[name].trained for name in called)
    offered = {f["name"] for t in envs.make("functions").tasks(200) for f in t.data["functions"]}
    assert all(TOOLS[name].trained for name in offered)


def test_a_question_that_no_tool_answers_offers_none_that_is_like_it() -> None:
    for task in envs.make("functions", kinds=["irrelevance"]).tasks(40):
        assert task.data["steps"] == [[]]
        assert task.data["functions"]


def test_a_chain_becomes_a_task_a_turn_with_what_went_before() -> None:
    first, second, *_ = envs.make("functions", kinds=["chain"]).tasks(2)
    assert [m.role for m in first.prompt] == ["user"]
    assert [m.role for m in second.prompt] == ["user", "assistant", "tool"]
    assert second.prompt[1].tool_calls[0].name == first.data["calls"][0][0]["name"]
    result = json.loads(second.prompt[2].content)
    assert set(result.values()) & set(second.data["calls"][0][0]["arguments"].values())


def task_of(kind: str, **options: Any) -> tuple[Any, Task]:
    env = envs.make("functions", kinds=[kind], **options)
    return env, env.tasks(1)[0]


def calls_of(task: Task, step: int = 0) -> tuple[ToolCall, ...]:
    return tuple(
        ToolCall(c["name"], c["arguments"], f"c{i}") for i, c in enumerate(task.data["calls"][step])
    )


def grade(env: Any, task: Task, *messages: Message) -> Any:
    async def go() -> Any:
        episode = env.open(task, None)
        await episode.reset()
        return [await episode.step(message) for message in messages][-1]

    return asyncio.run(go())


def say(*calls: ToolCall, text: str = "") -> Message:
    return Message("assistant", text, calls)


@pytest.mark.parametrize("kind", generated.KINDS)
def test_one_turn(kind: str) -> None:
    env, task = task_of(kind)
    right = grade(env, task, say(*calls_of(task)))
    assert (right.reward, right.terminated, right.info["reason"]) == (1.0, True, "right")
    wrong = grade(env, task, say(ToolCall("nothing", {})))
    assert wrong.reward == 0.0
    assert wrong.info["reason"] in ("wrong_name", "wrong_count")


def test_a_call_that_was_cut_off_is_no_way_to_say_that_no_tool_fits() -> None:
    env, task = task_of("irrelevance")
    assert grade(env, task, say(text="No tool fits.")).reward == 1.0
    cut = grade(env, task, say(text='<tool_call>{"name": "get_'))
    assert (cut.reward, cut.info["classes"]) == (0.0, ["unparsable"])


def test_a_conversation() -> None:
    env, task = task_of("chain", mode="conversation")
    calls = [say(*calls_of(task, i)) for i in range(len(task.data["calls"]))]
    end = say(text=f"It is {task.data['result']}.")
    assert grade(env, task, *calls, end).reward == 1.0
    assert grade(env, task, *calls, say(text="I am done.")).info["reason"] == "wrong_answer"
    assert grade(env, task, end).info["reason"] == "wrong_count"
    mistake = say(ToolCall(calls_of(task)[0].name, {"wrong": 1}))
    assert grade(env, task, mistake, *calls, end).reward == 1.0, "a mistake may be mended"
    assert grade(env, task, *calls, calls[0], end).reward == 0.0, "a call too many may not"


def test_in_a_conversation_that_needs_no_tool_even_a_failed_call_is_wrong() -> None:
    env, task = task_of("irrelevance", mode="conversation")
    end = say(text="I cannot do that.")
    assert grade(env, task, end).reward == 1.0
    assert grade(env, task, say(ToolCall("nothing", {})), end).reward == 0.0


def test_an_episode_ends_once() -> None:
    env, task = task_of("simple")
    with pytest.raises(EpisodeOver):
        grade(env, task, say(text="a"), say(text="b"))


WEATHER = [TOOLS["get_weather"].function()]


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (("get_wether", {}), "NameError: name 'get_wether' is not defined"),
        (("get_weather", {}), "TypeError: get_weather() missing required argument 'city'"),
        (
            ("get_weather", {"town": "Rome"}),
            "TypeError: get_weather() got an unexpected keyword argument 'town'",
        ),
        (("get_weather", {"city": 5}), "TypeError: get_weather() argument 'city' must be string"),
        (
            ("get_weather", {"city": "Rome", "unit": "kelvin"}),
            "ValueError: get_weather() argument 'unit' must be one of 'celsius', 'fahrenheit'",
        ),
        (("invalid", {"error": "not valid JSON", "text": "{"}), "SyntaxError: not valid JSON"),
    ],
)
def test_a_call_that_fails_says_why(call: tuple[str, Any], text: str) -> None:
    result = Workshop(TOOLS, WEATHER).run(ToolCall(*call))
    assert (result.status, shown(result)) == ("error", text)


def test_what_does_not_exist_is_not_found() -> None:
    offered = [TOOLS["track_order"].function()]
    result = Workshop(TOOLS, offered).run(ToolCall("track_order", {"order_id": "1"}))
    assert shown(result) == "LookupError: there is no order '1'"


def test_a_tool_that_is_not_offered_does_not_run() -> None:
    result = Workshop(TOOLS, WEATHER).run(ToolCall("get_population", {"city": "Rome"}))
    assert result.status == "error"


def test_failing_and_noisy_tools_are_seeded() -> None:
    call = ToolCall("get_weather", {"city": "Rome"})

    def runs(seed: str, **faults: float) -> list[Any]:
        shop = Workshop(TOOLS, WEATHER, Faults(**faults, seed=seed))
        return [shop.run(call) for _ in range(200)]

    failing = runs("a", failing=0.3)
    assert failing == runs("a", failing=0.3) != runs("b", failing=0.3)
    assert 30 < sum(r.status == "error" for r in failing) < 90
    plain = json.loads(runs("a")[0].value)
    noisy = [json.loads(r.value) for r in runs("a", noisy=0.5)]
    assert all(plain.items() <= n.items() for n in noisy)
    assert 50 < sum(len(n) > len(plain) for n in noisy) < 150


# TL-Training's rewards

PROPERTIES = {
    "a": {"type": "string"},
    "b": {"type": "integer"},
    "c": {"type": "array", "items": {"type": "integer"}},
}
OFFERED = [
    {"name": n, "parameters": {"type": "object", "properties": PROPERTIES}} for n in ("f", "g")
]
GOLD = {"f": {"a": ["x"], "b": [1]}}


@pytest.mark.parametrize(
    ("name", "arguments", "reward"),
    [
        ("h", {"a": "x", "b": 1}, -2.0),
        ("invalid", {"error": "not valid JSON", "text": "f("}, -2.0),
        ("g", {"a": "x", "b": 1}, -1.5),
        ("", {"a": "x", "b": 1}, -1.5),
        ("f", {"z": 1, "c": [1], "a": "x"}, -1.8),
        ("f", {"z": 1, "c": [1], "a": "x", "b": 1}, -1.3),
        ("f", {"z": 1, "a": "x"}, -1.3),
        ("f", {"c": [1], "a": "x"}, -1.0),
        ("f", {"z": 1, "a": "x", "b": 1}, -0.8),
        ("f", {"c": [1], "a": "x", "b": 1}, -0.5),
        ("f", {"a": "x"}, -0.5),
        ("f", {"a": "y", "b": 1}, -0.25),
        ("f", {"a": "x", "b": 2}, -0.25),
        ("f", {"a": "x", "b": "1"}, -0.25),
        ("f", {"b": 1, "a": "x"}, 1.0),
    ],
)
def test_the_table_of_rewards(name: str, arguments: dict[str, Any], reward: float) -> None:
    (found,) = rewards.classify_all([ToolCall(name, arguments)], [GOLD], OFFERED)
    assert rewards.TABLE[found] == reward


def test_nothing_that_can_be_read_is_the_worst() -> None:
    assert rewards.classify(None, GOLD, OFFERED) == "unparsable"


@pytest.mark.parametrize("wrong", [{"a": "y", "b": 1}, {"a": "x", "b": 7}, {"a": "x", "b": [1]}])
def test_values_of_every_notation_are_compared(wrong: dict[str, Any]) -> None:
    """The authors' pattern sees single-quoted strings alone: there all of these earn +1."""
    assert rewards.classify(ToolCall("f", wrong), GOLD, OFFERED) == "value"


def test_turns_of_several_calls() -> None:
    two = [{"f": {"a": ["x"]}}, {"f": {"a": ["y"]}}]
    x, y = ToolCall("f", {"a": "x"}), ToolCall("f", {"a": "y"})
    assert rewards.classify_all([y, x], two, OFFERED) == ["exact", "exact"]
    assert rewards.classify_all([x], two, OFFERED) == ["exact", "unparsable"]
    assert rewards.classify_all([x, y, x], two, OFFERED) == ["exact", "exact", "wrong_tool"]
    assert rewards.classify_all([x], [], OFFERED) == ["wrong_tool"]
    assert rewards.classify_all([], [], OFFERED) == ["exact"]
    assert rewards.reward(["exact", "unparsable"], rewards.TABLE) == -0.5


def test_the_table_can_be_changed() -> None:
    env, task = task_of("simple", reward="classes", rewards={"wrong_tool": -3, "unparsable": -4})
    assert grade(env, task, say(ToolCall("h", {}))).reward == -4.0
    assert grade(env, task, say(*calls_of(task))).reward == 1.0
    with pytest.raises(ConfigError, match=r"class of calls 'wrong_tol'.*wrong_tool"):
        envs.make("functions", rewards={"wrong_tol": 0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "bfcl"}, "a test set"),
        ({"source": "bfcl", "split": "test", "mode": "conversation"}, "not run"),
        ({"mode": "conversation", "reward": "classes"}, "one turn"),
        ({"failing": 2}, "a share"),
        ({"kinds": "simple"}, "a list of names"),
        ({"kinds": ["chains"]}, "Did you mean 'chain'"),
        ({"notation": "xml"}, "notation of functions 'xml'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        envs.make("functions", **options)


def test_the_leaderboard_without_files(monkeypatch: Any, tmp_path: Any) -> None:
    env = envs.make("functions", source="bfcl", split="test")
    monkeypatch.delenv("AGENTRL_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"Set AGENTRL_DATA.*generated"):
        env.tasks(1)
    env = envs.make("functions", source="bfcl", split="test", path=tmp_path)
    with pytest.raises(DataError, match=r"no file .*BFCL_v4_simple_python"):
        env.tasks(1)
    (tmp_path / "BFCL_v4_irrelevance.json").write_text('{"id": "a", "question": []}\n')
    env = envs.make("functions", source="bfcl", split="test", path=tmp_path, kinds=["irrelevance"])
    with pytest.raises(DataError, match=r"line 1: the field 'function' is missing"):
        env.tasks(1)


# How tools and calls are shown


def test_the_leaderboards_types_become_json_schema() -> None:
    about = {"type": "tuple", "items": {"type": "float"}}
    schema = {"type": "dict", "properties": {"a": about, "b": {"type": "any"}}, "required": ["a"]}
    (spec,) = specs([{"name": "f", "parameters": schema}])
    assert spec.parameters == {
        "type": "object",
        "properties": {
            "a": {"type": "array", "items": {"type": "number"}},
            "b": {"type": "string"},
        },
        "required": ["a"],
    }


def test_calls_are_written_as_they_are_read() -> None:
    calls = [ToolCall("f", {"a": "it's", "b": [1, 2.5], "c": True}), ToolCall("g.h", {})]
    assert written(calls, "python") == (
        '<|tool_call_start|>[f(a="it\'s", b=[1, 2.5], c=True), g.h()]<|tool_call_end|>'
    )
    assert (
        written(calls[1:], "json") == '<tool_call>\n{"name": "g.h", "arguments": {}}\n</tool_call>'
    )
    assert written([], "python") == written([], "json") == ""


# The teacher


def test_the_teachers_mistakes_fail_and_are_mended() -> None:
    tasks = envs.make("functions", kinds=["simple"]).tasks(100)
    speak = reference("python", wrong=0.5, seed=1)
    for task in tasks:
        (call,) = calls_of(task)
        first, second = speak(task, []), speak(task, [["error"]])
        assert second == written([call], "python")
        assert (first == second) == (not known_badly(call.name))
        wrong = mistaken(call, task.data["functions"][0])
        assert Workshop(TOOLS, task.data["functions"]).run(wrong).status == "error"
    assert reference("python")(tasks[0], [["ok"]]).startswith("The answer is ")
    assert reference()(task_of("irrelevance")[1], []) == "None of my tools can do this."


def test_only_calls_that_failed_are_made_again() -> None:
    _, task = task_of("parallel")
    calls = calls_of(task)
    again = reference("python")(task, [["ok"] + ["error"] * (len(calls) - 1)])
    assert again == written(calls[1:], "python")
    with pytest.raises(ConfigError, match=r"0 to 0\.5"):
        reference(wrong=0.6)

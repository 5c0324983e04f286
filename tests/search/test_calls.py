"""Grades of calls that are still being written, and iTool's search over calls."""

from __future__ import annotations

import asyncio
import json

import pytest

import envs
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError
from agentrl.evaluate import final, summarize
from agentrl.rollouts import make
from agentrl.search.calls import calls_so_far, can_go_on, grade
from agentrl.search.evaluators import reference_of
from agentrl.toolcalls import parse_tool_calls
from agentrl.types import SamplingParams, Task

OPEN, CLOSE = "<|tool_call_start|>", "<|tool_call_end|>"


def python(calls):
    return f"{OPEN}[{calls}]{CLOSE}"


WANTED = python("top(a=3, b='x, y'), sub(x=1)")
JSON = (
    '<tool_call>\n{"name": "top", "arguments": {"a": 3, "b": "x, y"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "sub", "arguments": {"x": 1}}\n</tool_call>'
)


@pytest.mark.parametrize(
    ("text", "said", "still_open"),
    [
        ("", [], True),
        (f"{OPEN}[to", [], True),
        (f"{OPEN}[top(", [("top", {})], True),
        (f"{OPEN}[top(a=3", [("top", {})], True),
        (f"{OPEN}[top(a=3, ", [("top", {"a": 3})], True),
        (f"{OPEN}[top(a=3, b='x, ", [("top", {"a": 3})], True),
        (f"{OPEN}[top(a=3, b='x, y'), ", [("top", {"a": 3, "b": "x, y"})], True),
        (WANTED, [("top", {"a": 3, "b": "x, y"}), ("sub", {"x": 1})], False),
        (JSON[:45], [("top", {})], True),
        (JSON[:56], [("top", {"a": 3})], True),
        (JSON, [("top", {"a": 3, "b": "x, y"}), ("sub", {"x": 1})], False),
    ],
)
def test_what_is_whole_of_a_turn_that_breaks_off(text, said, still_open):
    calls, found = calls_so_far(text)
    assert [(c.name, dict(c.arguments)) for c in calls] == said
    assert found == still_open


@pytest.mark.parametrize("reference", [WANTED, JSON])
@pytest.mark.parametrize("text", [WANTED, JSON])
def test_every_beginning_of_what_is_wanted_is_an_a(text, reference):
    for end in range(len(text) + 1):
        assert grade(text[:end], reference, finished=False) == "A", text[:end]
    assert grade(text, reference, finished=True) == "A"


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        (python("sub(x=1), top(b='x, y', a=3)"), True, "A"),
        (python("top(a=4, b='x, y'), sub(x=1)"), True, "B"),
        (python("top(a=3, b='x, y'), sub(x=True)"), True, "B"),
        (python("top(a=3), sub(x=1)"), True, "C"),
        (python("top(a=3, b='x, y', c=1), sub(x=1)"), True, "C"),
        (python("top(a=3, b='x, y')"), True, "C"),
        (python("top(a=3, b='x, y'), sub(x=1), sub(x=1)"), True, "C"),
        (python("top(a=3, b='x, y'), add(x=1)"), True, "D"),
        (f"{OPEN}[top(a=4, ", False, "B"),
        (f"{OPEN}[top(c=4, ", False, "C"),
        (f"{OPEN}[tip(", False, "D"),
        (f"{OPEN}[top(ad(", False, "D"),
        (f"{OPEN}[top(a=3=", False, "D"),
        (f"{OPEN}[top(a=3), {OPEN}[su", False, "D"),
        (f"{OPEN}top[a=", False, "D"),
        ('<tool_call>{"name": "top", "arguments": {"a": 3 4', False, "D"),
        (f"{OPEN}[top(a=3", True, "D"),
        ("I cannot.", True, "D"),
        ("Let me see. ", False, "A"),
    ],
)
def test_grades(text, finished, expected):
    assert grade(text, WANTED, finished=finished) == expected


@pytest.mark.parametrize(
    "calls",
    [
        "f(a=True, b=None, c=-1.5e3)",
        "f(a={'k': [1, 'it\\'s'], 'l': ''})",
        'f(a="[(", b=[[1], []]), g()',
    ],
)
def test_all_that_is_a_beginning_of_calls_can_go_on(calls):
    (json_calls,) = (c.arguments for c in parse_tool_calls(python(calls))[:1])
    tagged = "<tool_call>\n" + json.dumps({"name": "f", "arguments": json_calls}) + "\n</tool_call>"
    for text in (python(calls), tagged, tagged + "\n" + tagged):
        for end in range(len(text) + 1):
            assert can_go_on(text[:end]), text[:end]


@pytest.mark.parametrize(
    ("said", "wanted", "expected"),
    [
        ("[True, 2]", "[1, 2]", "B"),
        ("[1, 2]", "[1, 2]", "A"),
        ("[True, 2]", "[True, 2]", "A"),
        ("{'k': [0]}", "{'k': [False]}", "B"),
        ("{'k': [[False]]}", "{'k': [[False]]}", "A"),
        ("[1]", "[1, 2]", "B"),
        ("{'k': 1}", "{'l': 1}", "B"),
        ("[1.0]", "[1]", "A"),
        ("[]", "{}", "B"),
    ],
)
def test_values_inside_of_values_are_compared_with_their_types(said, wanted, expected):
    assert grade(python(f"f(a={said})"), python(f"f(a={wanted})"), finished=True) == expected


def test_where_no_call_is_wanted_any_is_wrong():
    assert grade("None of my tools (all three) can.", "No tool.", finished=True) == "A"
    assert grade(f"{OPEN}[to", "No tool.", finished=False) == "D"


def test_a_task_without_reference_is_said():
    task = Task("t", (), "fake", data={"answer": 7})
    assert reference_of(task) == "7"
    with pytest.raises(ConfigError, match=r"data\['reference'\]"):
        reference_of(Task("t", (), "fake"))


def searched(said, *, max_tokens=128, **options):
    env = envs.make("functions", source="toy", kinds=["multiple"], notation="python", n=1)
    task = env.tasks(1)[0]
    texts = iter(said(task.data["reference"]))
    policy = ScriptedPolicy(lambda text: next(texts))
    rollout = make("itool", judge="calls", width=2, depth=1, iterations=2, **options)
    params = SamplingParams(max_tokens=max_tokens)
    trees = asyncio.run(collect(env, rollout, policy, n=1, params=params, progress=False))
    return trees[0]


def test_itool_reads_the_calls_of_a_path_and_sees_the_reference():
    tree = searched(lambda right: [right, right.replace("=", "s=", 1)], outcome=True)
    last = tree.attempts[-1]
    assert last.reward == 1.0
    assert last.metrics["calls"] == 1
    table = tree.meta["search"]["states"]
    assert sorted(s["confidence"] for s in table[1:] if s["judged"]) == [0.25]
    with pytest.raises(ConfigError, match="reference"):
        summarize(final([tree]))


def test_a_call_that_was_cut_off_is_none():
    tree = searched(lambda right: [right + "and more", right + "yet more"], max_tokens=56)
    assert tree.attempts[-1].truncated
    assert tree.attempts[-1].metrics["calls"] == 0
    assert tree.attempts[-1].reward == 0.0

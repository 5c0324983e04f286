"""The checker of calls: the public checker's verdicts, and its rules one by one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from agentrl.errors import DataError
from agentrl.types import ToolCall
from benchmarks.bfcl_agreement import CORRUPTIONS, KINDS, corrupted, ours, references
from envs.functions import bfcl
from envs.functions.checker import check

FROZEN = Path(__file__).parent / "bfcl_verdicts.jsonl"


def data() -> Path:
    folder = Path(os.environ.get("AGENTRL_DATA", ""), "bfcl")
    if "AGENTRL_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("AGENTRL_DATA does not name a folder with bfcl")
    return folder


def test_verdicts_are_those_of_the_public_checker() -> None:
    """200 corruptions, and what bfcl-eval 2026.3.23 said of each (benchmarks/bfcl_agreement.py)."""
    rows = {row["id"]: row for row in references(data())}
    frozen = [json.loads(line) for line in FROZEN.read_text().splitlines()]
    assert len(frozen) == 200
    assert {f["change"] for f in frozen} == set(CORRUPTIONS)
    wrong = [f for f in frozen if ours({**rows[f["id"]], "calls": f["calls"]}) != f["valid"]]
    assert wrong == []
    assert 20 < sum(f["valid"] for f in frozen) < 100


def test_reference_answers_are_right() -> None:
    rows = references(data())
    assert len(rows) == 800
    assert all(map(ours, rows))


def test_corruptions_change_something_and_are_the_same_each_time() -> None:
    rows = references(data())
    made = corrupted(rows, 44, seed=3)
    assert made == corrupted(rows, 44, seed=3)
    plain = {row["id"]: row["calls"] for row in rows}
    assert all(json.dumps(m["calls"]) != json.dumps(plain[m["id"]]) for m in made)


def test_the_leaderboards_tasks() -> None:
    folder = data()
    counts = {kind: len(bfcl.read(folder, kind)) for kind in bfcl.SETS}
    assert counts == {"simple": 400, "multiple": 200, "parallel": 200, "irrelevance": 240}
    assert set(KINDS) < set(bfcl.SETS)
    plain = bfcl.read(folder, "simple", dots=False)
    assert not any("." in f["name"] for t in plain for f in t.data["functions"])
    assert not any("." in name for t in plain for one in t.data["steps"][0] for name in one)


def function(**properties: Any) -> dict[str, Any]:
    schema = {"type": "dict", "properties": properties, "required": []}
    return {"name": "f", "parameters": schema}


def verdict(schema: dict[str, Any], accepted: list[Any], value: Any) -> str:
    """The fault of a value, '' for none."""
    call = ToolCall("f", {"p": value})
    return check([call], [function(p=schema)], [{"f": {"p": accepted}}]).fault


STRING, INTEGER, FLOAT = {"type": "string"}, {"type": "integer"}, {"type": "float"}
ARRAY = {"type": "array", "items": STRING}
FLOATS = {"type": "array", "items": FLOAT}
DICT = {"type": "dict"}
DICTS = {"type": "array", "items": DICT}


@pytest.mark.parametrize(
    ("schema", "accepted", "value", "fault"),
    [
        (STRING, ["New York, NY"], "new york ny.", ""),
        (STRING, ["it's"], 'IT"S', ""),
        (STRING, ["Rome"], "Rom", "wrong_value"),
        (STRING, ["a;b"], "a,b", "wrong_value"),
        (STRING, ["x", ""], "", ""),
        (INTEGER, [5], 5, ""),
        (INTEGER, [5], 5.0, "wrong_type"),
        (INTEGER, [1], True, "wrong_type"),
        (INTEGER, [5], "5", "wrong_type"),
        (FLOAT, [5.0], 5, ""),
        (FLOAT, [0.5], 10**400, "wrong_value"),
        (FLOAT, [0.1], 0.1 + 1e-9, "wrong_value"),
        ({"type": "boolean"}, [True], 1, "wrong_type"),
        (STRING, [7], 7, ""),  # the accepted answer's own type passes
        (STRING, [7], "7", "wrong_value"),
        (ARRAY, [["A b", "c"]], ["ab", "C"], ""),
        (ARRAY, [["a", "b"]], ["b", "a"], "wrong_value"),
        (ARRAY, [["a"]], "a", "wrong_type"),
        (ARRAY, [["a"]], [1], "wrong_type"),
        (ARRAY, [["a"], ""], [], ""),
        (FLOATS, [[1.5, 2.0]], [1.5, 2], "wrong_type"),
        (FLOATS, [[1, 2]], [1, 2], ""),
        ({"type": "tuple", "items": INTEGER}, [[1, 2]], (1, 2), ""),
        (DICT, [{"a": [1], "b": ["x", ""]}], {"a": 1}, ""),
        (DICT, [{"a": [1], "b": ["x", ""]}], {"a": 1, "b": "X."}, ""),
        (DICT, [{"a": [1], "b": ["x"]}], {"a": 1}, "wrong_value"),
        (DICT, [{"a": [1]}], {"a": 1, "c": 2}, "wrong_value"),
        (DICT, [{"a": [1]}], [], "wrong_type"),
        (DICTS, [[{"a": [1]}, {"a": [2]}]], [{"a": 1}, {"a": 2}], ""),
        (DICTS, [[{"a": [1]}, {"a": [2]}]], [{"a": 2}, {"a": 1}], "wrong_value"),
        (DICTS, [[{"a": [1]}]], [{"a": 1}, {"a": 1}], "wrong_value"),
        (DICTS, [[{"a": [1]}], ""], [3], "wrong_value"),
    ],
)
def test_a_value(schema: dict[str, Any], accepted: list[Any], value: Any, fault: str) -> None:
    assert verdict(schema, accepted, value) == fault


TWO = [{**function(a=INTEGER), "name": "f"}, {**function(b=INTEGER), "name": "g"}]


@pytest.mark.parametrize(
    ("calls", "wanted", "fault"),
    [
        ([], [], ""),
        ([("f", {})], [], "wrong_count"),
        ([], [{"f": {}}], "wrong_count"),
        ([("g", {"b": 1}), ("f", {"a": 1})], [{"f": {"a": [1]}}, {"g": {"b": [1]}}], ""),
        ([("f", {"a": 1}), ("f", {"a": 1})], [{"f": {"a": [1]}}, {"f": {"a": [2]}}], "wrong_value"),
        ([("h", {"a": 1})], [{"f": {"a": [1]}}], "wrong_name"),
        ([("f", {"a": 1, "z": 1})], [{"f": {"a": [1]}}], "unexpected"),
        ([("f", {})], [{"f": {"a": [1]}}], "missing"),
        ([("f", {})], [{"f": {"a": [1, ""]}}], ""),
        # each wanted call takes the first that matches it, as in the public checker
        (
            [("f", {"a": 1}), ("f", {})],
            [{"f": {"a": [1, ""]}}, {"f": {"a": [1]}}],
            "missing",
        ),
    ],
)
def test_calls(calls: list[Any], wanted: list[Any], fault: str) -> None:
    assert check([ToolCall(*call) for call in calls], TWO, wanted).fault == fault


def test_a_wanted_function_that_is_not_offered_is_an_error_of_the_data() -> None:
    with pytest.raises(DataError, match="not among those"):
        check([ToolCall("f", {})], [], [{"f": {}}])

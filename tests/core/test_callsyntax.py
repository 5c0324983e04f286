"""Calls taken apart: Python's notation, and where names and values stand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.callsyntax import python_calls
from agentrl.toolcalls import parse_tool_calls, written_calls

START, END = "<|tool_call_start|>", "<|tool_call_end|>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{START}[f(a=1)]{END}", [("f", {"a": 1})]),
        (f"{START}f(a='x')", [("f", {"a": "x"})]),
        (
            f'so {START}[f(a="it\'s", b=[1, (2, 3)]), g.h(c={{"k": None}}, d=-1.5)]{END} then',
            [("f", {"a": "it's", "b": [1, [2, 3]]}), ("g.h", {"c": {"k": None}, "d": -1.5})],
        ),
        (f"{START}[f(a='{END}')]{END}", [("f", {"a": END})]),
        (f"{START}[f()]{END} and {START}[g()]{END}", [("f", {}), ("g", {})]),
        (f"<think>{START}[f()]{END}</think>no", []),
    ],
)
def test_python_calls_are_read(text: str, expected: list[tuple[str, dict[str, Any]]]) -> None:
    assert [(c.name, c.arguments) for c in parse_tool_calls(text)] == expected


@pytest.mark.parametrize(
    "body",
    [
        "[f(1)]",
        "[f(**x)]",
        "f",
        "[1]",
        "f(a=g())",
        "f(a=b'x')",
        "f(a=1e999)",
        "f(a=",
        "",
        "[" * 9999,
    ],
)
def test_what_is_no_list_of_calls_with_literals_is_invalid(body: str) -> None:
    (call,) = parse_tool_calls(f"{START}{body}{END}")
    assert call.name == "invalid"
    assert call.arguments["error"].startswith("not valid Python: ")
    assert written_calls(f"{START}{body}{END}") == []


TEXTS = [
    f"é\n{START}[f(ä='ö', b=[1,\n 2]), gg(c=3)]{END}",
    '<think>{"name"</think>ü<tool_call>\n{"name": "f", "arguments": {"ä": "ö", "b": [1, 2]}}\n'
    '</tool_call><tool_call>{"arguments": {"c": 3}, "name": "gg"}</tool_call>',
    '[TOOL_CALLS] [{"name": "f", "arguments": {"ä": "ö", "b": [1, 2]}}, '
    '{"name": "gg", "arguments": {"c": 3}}]',
    '[TOOL_CALLS]f[ARGS]{"ä": "ö", "b": [1, 2]}[TOOL_CALLS]gg{"c": 3}',
    ' {"name": "f", "parameters": {"ä": "ö", "b": [1, 2]}}; {"name": "gg", "parameters": {"c": 3}}',
]


@pytest.mark.parametrize("text", TEXTS)
def test_where_things_stand(text: str) -> None:
    f, g = written_calls(text)
    for call in (f, g):
        assert text[call.start : call.start + len(call.name)] == call.name
    assert (f.name, f.arguments) == ("f", {"ä": "ö", "b": [1, 2]})
    assert (g.name, g.arguments) == ("gg", {"c": 3})
    assert [text[end - 1] for end in (*f.ends, *g.ends)] in (list("']3"), list('"]3'))


def test_a_bad_call_hides_no_good_one() -> None:
    text = f"{START}[f(1)]{END}{START}[g(a=2)]{END}"
    assert [c.name for c in parse_tool_calls(text)] == ["invalid", "g"]
    assert [c.name for c in written_calls(text)] == ["g"]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "city"]), VALUES), st.text("é x\n", max_size=4))
def test_what_is_written_is_read(arguments: dict[str, Any], before: str) -> None:
    shown = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
    text = f"{before}[f({shown})]"
    (call,) = python_calls(text, len(before))
    assert (call.name, call.arguments, call.start) == ("f", arguments, len(before) + 1)
    ends = [text[:end] for end in call.ends]
    assert all(t.endswith(repr(v)) for t, v in zip(ends, arguments.values(), strict=True))

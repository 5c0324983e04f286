"""A tool call's text taken apart: its name and arguments, and where they stand.

Python's notation is read by Python's own parser and JSON by a JSON decoder, never by patterns: a
quote, a bracket or a comma in a value is part of that value.
"""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_JSON = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Written:
    """A call as it is written in a text: the name is `text[start:start + len(name)]`, and `ends`
    are the offsets just after the value of each argument."""

    name: str
    arguments: dict[str, Any]
    start: int
    ends: tuple[int, ...] = ()


def python_calls(text: str, start: int = 0, end: int | None = None) -> list[Written]:
    """The calls in `text[start:end]`, which is one call or a list of calls with named arguments
    that are literals: `[find(city='Rome', days=3)]`.

    Raises ValueError for anything else.
    """
    source = text[start:end].lstrip()
    start += len(text[start:end]) - len(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unknown escape in a string is no business of ours
            body = ast.parse(source.rstrip(), mode="eval").body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python expression: {getattr(error, 'msg', error)}") from error
    calls = body.elts if isinstance(body, ast.List) else [body]
    lines = source.splitlines(keepends=True)
    return [_python_call(call, lines, start) for call in calls]


def _python_call(node: ast.expr, lines: list[str], start: int) -> Written:
    if not isinstance(node, ast.Call):
        raise ValueError("not a call: write tool(argument=value)")
    if node.args or any(k.arg is None for k in node.keywords):
        raise ValueError("arguments are given by name: write tool(argument=value)")
    arguments = {str(k.arg): _literal(k.value) for k in node.keywords}
    ends = [_offset(lines, k.value.end_lineno, k.value.end_col_offset) for k in node.keywords]
    at = start + _offset(lines, node.lineno, node.col_offset)
    return Written(_dotted(node.func), arguments, at, tuple(start + end for end in ends))


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise ValueError("the name of a tool is a name, or names with dots between")


def _literal(node: ast.expr) -> Any:
    """A literal as JSON has it: tuples are lists."""
    try:
        return json.loads(json.dumps(ast.literal_eval(node), allow_nan=False))
    except (ValueError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("a value is a literal that JSON has as well") from error


def _offset(lines: list[str], line: int | None, column: int | None) -> int:
    """The character at a place of the parser, which counts lines from 1 and bytes of UTF-8."""
    number, within = (line or 1) - 1, column or 0
    before = sum(map(len, lines[:number]))
    here = lines[number].encode() if number < len(lines) else b""
    return before + len(here[:within].decode("utf-8", "ignore"))


def json_calls(text: str, at: int) -> list[Written]:
    """The calls in the JSON object, or list of objects, that starts at `at`.

    Only for what `agentrl.toolcalls` has read before: raises ValueError where that would.
    """
    at = _blank(text, at)
    if text[at : at + 1] == "[":
        return [_json_call(text, start) for start, _ in _elements(text, at)]
    return [_json_call(text, at)]


def json_arguments(text: str, at: int) -> tuple[dict[str, Any], tuple[int, ...]]:
    """The members of the object that starts at `at`, and where the value of each ends."""
    members = list(_members(text, _blank(text, at)))
    return {k: json.loads(text[a:b], strict=False) for k, a, b in members}, tuple(
        b for _, _, b in members
    )


def _json_call(text: str, at: int) -> Written:
    spans = {key: (start, end) for key, start, end in _members(text, at)}
    if "name" not in spans:
        raise ValueError("a call needs a name")
    start, end = spans["name"]
    name = json.loads(text[start:end], strict=False)
    given = spans.get("arguments", spans.get("parameters"))
    arguments: dict[str, Any] = {}
    ends: tuple[int, ...] = ()
    if given is not None and text[given[0]] == "{":
        arguments, ends = json_arguments(text, given[0])
    return Written(name, arguments, start + 1, ends)


def _members(text: str, at: int) -> Iterator[tuple[str, int, int]]:
    """Each key of the object at `at`, with where its value starts and ends."""
    if text[at : at + 1] != "{":
        raise ValueError("not a JSON object")
    at = _blank(text, at + 1)
    while text[at : at + 1] not in ("}", ""):
        key, at = _JSON.raw_decode(text, at)
        start = _blank(text, _blank(text, at) + 1)  # after the colon
        _, end = _JSON.raw_decode(text, start)
        yield str(key), start, end
        at = _blank(text, end)
        at = _blank(text, at + 1) if text[at : at + 1] == "," else at


def _elements(text: str, at: int) -> Iterator[tuple[int, int]]:
    at = _blank(text, at + 1)
    while text[at : at + 1] not in ("]", ""):
        start = at
        _, end = _JSON.raw_decode(text, start)
        yield start, end
        at = _blank(text, end)
        at = _blank(text, at + 1) if text[at : at + 1] == "," else at


def _blank(text: str, at: int) -> int:
    """The next character from `at` on that is no white space."""
    return at + len(text[at:]) - len(text[at:].lstrip())

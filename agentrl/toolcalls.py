"""Tool calls in an assistant turn's text: found in it, and given back to templates as structure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from agentrl.callsyntax import Written, json_arguments, json_calls, python_calls
from agentrl.types import Message, ToolCall

_MARK = re.compile(
    r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>|<\|tool_call_start\|>"
)  # Hermes and Qwen; Mistral; Llama; LFM2
_PYTHONIC, _PYTHONIC_END = "<|tool_call_start|>", "<|tool_call_end|>"
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*(\w+)\s*)?(?:\[ARGS\]\s*)?(?=\{)")
_CLOSED = re.compile(r"\s*(?:</tool_call>|\Z)")
_MORE = re.compile(r"\s*;\s*(?=\{)")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


_JSON = json.JSONDecoder(strict=False, parse_constant=_refuse)  # raw newlines in strings are fine


def parse_tool_calls(text: str) -> list[ToolCall]:
    """The native tool calls in an assistant turn, in order, in whichever of the common notations
    it is written: Hermes/Qwen tags, Mistral's lists (and names with arguments), Llama 3's objects,
    LFM2's lists of Python calls.

    What stands in a thought is no call. A call that cannot be read becomes one named `invalid`
    with arguments `error` and `text`. A call without an id gets one.
    """
    calls: list[ToolCall] = []
    for block in _blocks(_spoken(text)):
        ids = (f"call{i:05d}" for i in range(len(calls), len(calls) + len(block.items) + 1))
        if block.error:
            calls.append(_invalid(block.error, block.text, next(ids)))
        calls += [_call(item, default) for item, default in zip(block.items, ids, strict=False)]
    return calls


def written_calls(text: str) -> list[Written]:
    """The readable calls in an assistant turn, with where their parts stand in `text`."""
    spoken = _spoken(text)
    before = len(text) - len(spoken)
    found: list[Written] = []
    for block in _blocks(spoken):
        with suppress(ValueError):  # what is JSON and still no call
            found += _written(spoken, block) if not block.error else []
    return [
        replace(c, start=before + c.start, ends=tuple(before + e for e in c.ends)) for c in found
    ]


@dataclass(frozen=True, slots=True)
class _Block:
    """What one mark opens: its items, or why they cannot be read and the text that cannot."""

    start: int
    mark: str
    items: Sequence[Any]
    error: str = ""
    text: str = ""


def _blocks(text: str) -> Iterator[_Block]:
    """The blocks of calls in a text without thoughts, in order."""
    at = first_call(text)
    while at < len(text):
        found = _MARK.match(text, at)
        start, mark = (found.end(), found[0]) if found else (at, "")
        try:
            items, at = _read(text, start, mark)
            yield _Block(start, mark, items)
        except (ValueError, RecursionError) as error:
            following = _MARK.search(text, start)
            at = following.start() if following else len(text)
            end = _PYTHONIC_END if mark == _PYTHONIC else "</tool_call>"
            language = "Python" if mark == _PYTHONIC else "JSON"
            body = text[start:at].partition(end)[0].strip()
            yield _Block(start, mark, (), f"not valid {language}: {error}", body)
        if more := _MORE.match(text, at):  # Llama 3 separates calls by semicolons
            at = more.end()
        else:
            following = _MARK.search(text, at)
            at = following.start() if following else len(text)


def _written(text: str, block: _Block) -> list[Written]:
    if block.mark == _PYTHONIC:
        return _python(text, block.start)[0]
    named = _NAMED.match(text, block.start) if block.mark == "[TOOL_CALLS]" else None
    if named:
        arguments, ends = json_arguments(text, named.end())
        return [Written(named[1], arguments, named.start(1), ends)]
    return json_calls(text, block.start)


def first_call(text: str) -> int:
    """Where the first tool call starts in an assistant turn's text (its length if none does)."""
    spoken = _spoken(text)
    before = len(text) - len(spoken)
    if mark := _MARK.search(spoken):
        return before + mark.start()
    bare = spoken.lstrip()
    if bare.startswith("{") and '"name"' in bare and '"parameters"' in bare:  # Llama 3, unmarked
        return len(text) - len(bare)
    return len(text)


def _spoken(text: str) -> str:
    """What follows the thoughts of a turn ('' if they did not end)."""
    _, _, tail = text.rpartition("</think>")
    return "" if "<think>" in tail else tail


def _read(text: str, start: int, mark: str) -> tuple[list[Any], int]:
    """The items of the call that starts at `start`, and where it ends. Raises ValueError."""
    if mark == _PYTHONIC:
        calls, at = _python(text, start)
        return [{"name": c.name, "arguments": c.arguments} for c in calls], at
    named = _NAMED.match(text, start) if mark == "[TOOL_CALLS]" else None
    at = named.end() if named else start
    value, at = _JSON.raw_decode(text, at + len(text[at:]) - len(text[at:].lstrip()))
    json.dumps(value, ensure_ascii=False).encode()  # ValueError for half of a surrogate pair
    if mark == "<tool_call>" and not _CLOSED.match(text, at):
        raise ValueError("something follows the object")
    if named:
        return [{"name": named[1], "arguments": value, "id": named[2]}], at
    return (value if isinstance(value, list) else [value]), at


def _python(text: str, start: int) -> tuple[list[Written], int]:
    """The Python calls from `start` to the mark that ends them, or to the end of the text."""
    stop = text.find(_PYTHONIC_END, start)
    while True:
        end = stop if stop >= 0 else len(text)
        try:
            return python_calls(text, start, end), end + len(_PYTHONIC_END) * (stop >= 0)
        except ValueError:
            if stop < 0:
                raise
            stop = text.find(_PYTHONIC_END, stop + 1)  # that one may stand in a string
            if stop < 0:
                raise


def _call(item: Any, default_id: str) -> ToolCall:
    item = item if isinstance(item, dict) else {"value": item}
    name, call_id = item.get("name"), item.get("id")
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = _JSON.decode(arguments)
        except (ValueError, RecursionError):
            arguments = None
    call_id = call_id if isinstance(call_id, str) and call_id else default_id
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        text = json.dumps(item, ensure_ascii=False)
        return _invalid("a call needs a name and an object of arguments", text, call_id)
    return ToolCall(name, arguments, call_id)


def _invalid(error: str, text: str, call_id: str) -> ToolCall:
    return ToolCall("invalid", {"error": error, "text": text}, call_id)


def call_text(call: ToolCall, *, with_id: bool = False) -> str:
    """A structured call as text, in the notation that most templates and `parse_tool_calls` read.
    One that could not be read is what its writer wrote."""
    if call.name == "invalid" and set(call.arguments) == {"error", "text"}:
        return f"<tool_call>\n{call.arguments['text']}\n</tool_call>"
    body = {"name": call.name, "arguments": dict(call.arguments)}
    if with_id:
        body["id"] = call.id
    return f"<tool_call>\n{json.dumps(body, ensure_ascii=False)}\n</tool_call>"


def said_with_calls(content: str, calls: Iterable[ToolCall], *, with_id: bool = False) -> str:
    """What a turn says, its structured calls below it as text."""
    parts = [content] if content else []
    return "\n".join([*parts, *(call_text(call, with_id=with_id) for call in calls)])


def as_dict(message: Message) -> dict[str, Any]:
    """A message as chat templates take it, calls in it left as text."""
    data: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        data["name"] = message.name
    if message.tool_call_id:
        data["tool_call_id"] = message.tool_call_id
    return data


def structured(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates take them, calls as structure, each with an id of nine letters
    and digits (Mistral's) that its answer repeats."""
    data, asked = [], list[str]()
    for message in messages:
        shown = as_dict(message)
        if message.tool_calls:
            asked = [_nine(c.id or f"call{i:05d}") for i, c in enumerate(message.tool_calls)]
            shown["content"] = message.content[: first_call(message.content)].strip()
            shown["tool_calls"] = [
                {
                    "type": "function",
                    "id": call_id,
                    "function": {"name": call.name, "arguments": dict(call.arguments)},
                }
                for call_id, call in zip(asked, message.tool_calls, strict=True)
            ]
        elif message.role == "tool":
            following = asked.pop(0) if asked else ""
            shown["tool_call_id"] = _nine(message.tool_call_id or following)
        data.append(shown)
    return data


def _nine(call_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", call_id)[-9:].rjust(9, "0")

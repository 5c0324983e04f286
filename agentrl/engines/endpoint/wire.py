"""What travels: messages and tools as OpenAI-compatible endpoints take them, answers as they come
(and what a client sends, for our own endpoint).

Only what the common servers agree on is sent, and an answer is read with suspicion: whatever is
missing or of another type makes it malformed, never an empty answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrl.toolcalls import structured
from agentrl.types import Message, Role, SamplingParams, ToolCall, ToolSpec

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}


class Malformed(Exception):
    """A request or an answer that is not what the interface says."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model behind an endpoint said.

    `finish` is the server's own word: `stop`, `length`, `tool_calls`, `content_filter`, ... The
    token counts are None where the server does not say. `stop` is the stop string it names.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    stop: str | None = None
    cached: bool = False

    @property
    def truncated(self) -> bool:
        """True if a token limit cut it off."""
        return self.finish == "length"


def wire_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as JSON; calls as structure, their arguments as JSON text."""
    shown = structured(messages)
    for message in shown:
        for call in message.get("tool_calls", ()):
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return shown


def read_messages(data: Any) -> list[Message]:
    """Messages as OpenAI-compatible clients send them. Raises Malformed, naming the message."""
    if not isinstance(data, list) or not data:
        raise Malformed("messages is not a list with messages in it")
    return [_message(message, i) for i, message in enumerate(data)]


def _message(data: Any, number: int) -> Message:
    role = data.get("role") if isinstance(data, Mapping) else None
    role = _ROLES.get(role) if isinstance(role, str) else None
    if role is None:
        raise Malformed(f"message {number} has no role among {', '.join(_ROLES)}")
    given = data.get("tool_calls") or ()
    if not isinstance(given, list | tuple):
        raise Malformed(f"message {number}: tool_calls is not a list")
    try:
        calls = tuple(_call(c, i) for i, c in enumerate(given)) if role == "assistant" else ()
        text = _text(data.get("content"), required=role != "assistant")
    except Malformed as error:
        raise Malformed(f"message {number}: {error}") from error
    parts = data.get("content")
    strange = [k for p in parts if (k := _kind(p)) != "text"] if isinstance(parts, list) else []
    if strange:
        raise Malformed(f"message {number}: only text is taken, no {strange[0]}")
    call_id = str(data.get("tool_call_id") or "") if role == "tool" else ""
    return Message(role, text, calls, call_id, str(data.get("name") or ""))


def _kind(part: Any) -> str:
    return str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__


def read_tools(data: Any) -> tuple[ToolSpec, ...]:
    """The field `tools` of a request. Raises Malformed."""
    if data is not None and not isinstance(data, list):
        raise Malformed("tools is not a list")
    return tuple(_tool(tool, i) for i, tool in enumerate(data or ()))


def _tool(data: Any, number: int) -> ToolSpec:
    function = data.get("function") if isinstance(data, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Malformed(f"tool {number} is no function with a name")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise Malformed(f"tool {number}: parameters is not a JSON schema")
    return ToolSpec(function["name"], str(function.get("description") or ""), parameters)


def sampling(params: SamplingParams, limit_name: str) -> dict[str, Any]:
    """The fields of a request that say how to sample; what is off is not sent. Stop strings are
    not among them: see `agentrl.engines.endpoint.policy`."""
    body: dict[str, Any] = {limit_name: params.max_tokens, "temperature": params.temperature}
    if params.top_p < 1:
        body["top_p"] = params.top_p
    if params.top_k > 0:
        body["top_k"] = params.top_k  # not OpenAI's own; vLLM, SGLang and llama.cpp take it
    if params.seed is not None:
        body["seed"] = params.seed % (1 << 31)
    return body


def wire_tools(tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """The field `tools`, nothing without any."""
    return {"tools": [t.to_json() for t in tools]} if tools else {}


def read_chat(data: Mapping[str, Any]) -> Reply:
    """The reply in an answer of /chat/completions. Raises Malformed."""
    choice = _choice(data)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise Malformed("the choice has no message")
    calls = message.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise Malformed("tool_calls is not a list")
    refused = message.get("refusal")
    if isinstance(refused, str) and message.get("content") is None:
        message = {**message, "content": refused}
    spent = choice.get("finish_reason") in ("length", "content_filter")  # all of it on thinking
    text = _text(message.get("content"), required=not calls and not spent)
    return _reply(data, choice, text, tuple(_call(c, i) for i, c in enumerate(calls)))


def read_completion(data: Mapping[str, Any]) -> Reply:
    """The reply in an answer of /completions. Raises Malformed."""
    choice = _choice(data)
    return _reply(data, choice, _text(choice.get("text"), required=True), ())


def _choice(data: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = data.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        raise Malformed("there are no choices")
    return choices[0]


def _text(content: Any, *, required: bool) -> str:
    """The text of a message, which may come in parts; a refusal or a call has none."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, Mapping) and p.get("type") == "text"]
        return "".join(str(p.get("text", "")) for p in parts)
    if content is None and not required:
        return ""
    raise Malformed(f"the content is {type(content).__name__}, not text")


def _call(data: Any, number: int) -> ToolCall:
    function = data.get("function") if isinstance(data, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Malformed("a tool call has no function with a name")
    call_id, arguments = str(data.get("id") or f"call{number:05d}"), function.get("arguments")
    if isinstance(arguments, str):
        text = arguments
        try:
            arguments = json.loads(arguments or "{}", strict=False)
        except (ValueError, RecursionError) as error:
            return ToolCall("invalid", {"error": f"not valid JSON: {error}", "text": text}, call_id)
    if not isinstance(arguments, Mapping):
        told = {"error": "a call needs an object of arguments", "text": json.dumps(arguments)}
        return ToolCall("invalid", told, call_id)
    return ToolCall(function["name"], arguments, call_id)


def _reply(
    data: Mapping[str, Any], choice: Mapping[str, Any], text: str, calls: tuple[ToolCall, ...]
) -> Reply:
    usage = data.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    stop = choice.get("stop_reason")
    return Reply(
        text,
        calls,
        str(choice.get("finish_reason") or "stop"),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        stop if isinstance(stop, str) else None,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

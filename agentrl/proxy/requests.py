"""Requests and answers of /v1/chat/completions, as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentrl.engines.endpoint.wire import Malformed, read_messages, read_tools, wire_messages
from agentrl.rollouts.conversations import Said
from agentrl.types import Message, ToolSpec

# What would change the answer and is not done here, with the value that means "off".
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "min_p": (0,),
    "repetition_penalty": (1,),
    "tool_choice": ("auto", "none"),
    "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "modalities": (["text"],),
    "audio": (),
    "best_of": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
_RANGES: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 100.0),
    "top_p": (float, 1e-9, 1.0),
    "top_k": (int, 0, 1 << 30),
    "seed": (int, -(1 << 63), (1 << 63) - 1),
    "max_tokens": (int, 1, 1 << 30),
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. `sampling` are fields of SamplingParams."""

    messages: list[Message]
    tools: tuple[ToolSpec, ...]
    sampling: dict[str, Any]
    stream: bool = False
    stream_usage: bool = False


def read_request(data: Any) -> Request:
    """A request's body. Raises Malformed for what it cannot be, or asks and is not done here."""
    if not isinstance(data, Mapping):
        raise Malformed("the body is no JSON object")
    for name, off in _UNSUPPORTED.items():
        if data.get(name) is not None and data[name] not in off:
            raise Malformed(f"{name}={json.dumps(data[name])[:80]} is not supported: leave it out")
    tools = () if data.get("tool_choice") == "none" else read_tools(data.get("tools"))
    limit = data.get("max_completion_tokens")
    fields = {**data, "max_tokens": data.get("max_tokens") if limit is None else limit}
    sampling = {name: _number(name, fields.get(name)) for name in _RANGES}
    sampling["stop"] = _stop(data.get("stop"))
    options = data.get("stream_options")
    usage = isinstance(options, Mapping) and bool(options.get("include_usage"))
    messages = read_messages(data.get("messages"))
    return Request(messages, tools, sampling, bool(data.get("stream")), usage)


def _number(name: str, value: Any) -> Any:
    if value is None:
        return None
    kind, low, high = _RANGES[name]
    fits = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        raise Malformed(f"{name}={json.dumps(value)[:80]} cannot be")
    return kind(value)


def _stop(value: Any) -> tuple[str, ...] | None:
    stops = (value,) if isinstance(value, str) else value or ()
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        raise Malformed("stop is a text or a list of texts")
    return tuple(stops) or None


def answer(completion: str, model: str, said: Said) -> dict[str, Any]:
    """A reply as `chat.completion`."""
    choice = {"index": 0, "message": _message(said), "finish_reason": said.finish, "logprobs": None}
    return {**_head(completion, model, "chat.completion", [choice]), "usage": _usage(said)}


def chunks(completion: str, model: str, said: Said, *, usage: bool) -> Iterator[bytes]:
    """The same as server-sent events: all of it in one, then why it ended."""
    message = _message(said)
    for i, call in enumerate(message.get("tool_calls", ())):
        call["index"] = i
    deltas: list[tuple[Any, Any]] = [(message, None), ({}, said.finish)]
    for delta, finish in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        yield _event(_head(completion, model, "chat.completion.chunk", [choice]))
    if usage:
        head = _head(completion, model, "chat.completion.chunk", [])
        yield _event({**head, "usage": _usage(said)})
    yield b"data: [DONE]\n\n"


def _message(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said.message.content}
    calls = said.message.tool_calls
    if calls:
        message |= {"content": message["content"] or None}
        (shown,) = wire_messages([said.message])
        for call, own in zip(shown["tool_calls"], calls, strict=True):
            call["id"] = own.id
        message["tool_calls"] = shown["tool_calls"]
    return message


def _head(completion: str, model: str, kind: str, choices: list[Any]) -> dict[str, Any]:
    return {
        "id": completion,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "choices": choices,
    }


def _usage(said: Said) -> dict[str, int]:
    return {
        "prompt_tokens": said.prompt_tokens,
        "completion_tokens": said.sampled_tokens,
        "total_tokens": said.prompt_tokens + said.sampled_tokens,
    }


def _event(data: Any) -> bytes:
    return b"data: " + json.dumps(data, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"

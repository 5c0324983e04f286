"""Descriptions of tools: the leaderboard's, ours, and as templates and people read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agentrl.types import ToolCall, ToolSpec

Notation = Literal["json", "python"]

JSON_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    "any": "string",
}
"""The leaderboard's names of types that JSON schema calls otherwise."""

_ASK = {
    "json": "For each call write an object with the tool's name and arguments within tags:\n"
    '<tool_call>\n{"name": "TOOL", "arguments": {"ARGUMENT": VALUE}}\n</tool_call>',
    "python": "Write all calls of a turn as one list of Python calls with named arguments:\n"
    "<|tool_call_start|>[TOOL(ARGUMENT=VALUE)]<|tool_call_end|>",
}


def specs(functions: Sequence[Mapping[str, Any]]) -> tuple[ToolSpec, ...]:
    """The descriptions as templates take them, their parameters in JSON schema."""
    return tuple(
        ToolSpec(f["name"], f.get("description", ""), json_schema(f["parameters"]))
        for f in functions
    )


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A description of parameters in JSON schema's words."""
    made = dict(schema)
    if "type" in made:
        made["type"] = JSON_TYPES.get(made["type"], made["type"])
    if "properties" in made:
        made["properties"] = {k: json_schema(v) for k, v in made["properties"].items()}
    if "items" in made:
        made["items"] = json_schema(made["items"])
    return made


def instruction(functions: Sequence[Mapping[str, Any]], notation: Notation) -> str:
    """A system message that shows the tools, for models whose template shows none."""
    shown = _python if notation == "python" else _json
    listed = "\n".join(shown(f) for f in functions)
    return (
        "You may call these tools:\n\n"
        f"{listed}\n\n{_ASK[notation]}\n"
        "If no tool fits, answer without a call."
    )


def _json(function: Mapping[str, Any]) -> str:
    (spec,) = specs([function])
    return json.dumps(spec.to_json(), ensure_ascii=False)


def _python(function: Mapping[str, Any]) -> str:
    """A tool as TL-Training shows it (arXiv 2412.15495): a signature with a docstring."""
    schema = json_schema(function["parameters"])
    required = schema.get("required", ())
    names = sorted(schema["properties"], key=lambda name: name not in required)
    shown = ", ".join(n if n in required else f"{n}=None" for n in names)
    lines = [f'    """{function.get("description", "")}', ""]
    for name in names:
        about = schema["properties"][name]
        choice = f" One of: {', '.join(map(str, about['enum']))}." if "enum" in about else ""
        lines.append(f"    {name} ({about['type']}): {about.get('description', '')}{choice}")
    return "\n".join([f"def {function['name']}({shown}):", *lines, '    """'])


def written(calls: Sequence[ToolCall], notation: Notation) -> str:
    """The calls of a turn as a policy writes them; '' for none."""
    if notation == "json":
        objects = ({"name": c.name, "arguments": dict(c.arguments)} for c in calls)
        return "\n".join(
            f"<tool_call>\n{json.dumps(o, ensure_ascii=False)}\n</tool_call>" for o in objects
        )
    if not calls:
        return ""
    listed = ", ".join(
        f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in calls
    )
    return f"<|tool_call_start|>[{listed}]<|tool_call_end|>"

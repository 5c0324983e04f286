"""Simulated tools: what a call of one answers, and how it fails.

They keep no state: what a tool answers is a function of its arguments alone, and of nothing that a
model could know, so that an answer which is right was looked up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from agentrl.types import ExecError, ExecResult, ToolCall
from envs.functions.checker import TYPES

Draw = Callable[[Random], Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter: its JSON schema, and how a task draws a value. An optional one has a `default`,
    and the `phrase` by which a question that does not leave it out asks for it."""

    schema: Mapping[str, Any]
    draw: Draw
    default: Any = None
    phrase: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A simulated tool.

    `answer` takes the arguments and returns the result, of which `asks` is the part that a question
    is about; it raises LookupError for what does not exist. Tools of one `group` are alike; those
    that are not `trained` stand in the split `unseen` alone. One without `questions` is called with
    another one's result only.
    """

    name: str
    description: str
    group: str
    parameters: Mapping[str, Parameter]
    answer: Callable[..., dict[str, Any]]
    asks: str
    questions: tuple[str, ...] = ()
    trained: bool = True

    def function(self) -> dict[str, Any]:
        """The description that is offered: `name`, `description`, `parameters` (a JSON schema)."""
        required = [name for name, p in self.parameters.items() if not p.phrase]
        properties = {name: dict(p.schema) for name, p in self.parameters.items()}
        schema = {"type": "object", "properties": properties, "required": required}
        return {"name": self.name, "description": self.description, "parameters": schema}

    def wanted(self, arguments: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
        """The call with these arguments as what is wanted (see `checker`)."""
        accepted = {}
        for name, parameter in self.parameters.items():
            value = arguments.get(name, parameter.default)
            optional = parameter.phrase and value == parameter.default
            accepted[name] = [value, ""] if optional else [value]
        return {self.name: accepted}


@dataclass(frozen=True, slots=True)
class Faults:
    """Tools that fail or say too much: `failing` is the share of good calls that the service does
    not answer, `noisy` the share of answers with fields that nobody asked for."""

    failing: float = 0.0
    noisy: float = 0.0
    seed: str = ""


@dataclass(slots=True)
class Workshop:
    """The offered tools of one episode. Every call has a number, by which its faults are drawn."""

    tools: Mapping[str, Tool]
    offered: Sequence[Mapping[str, Any]]
    faults: Faults = field(default_factory=Faults)
    calls: int = 0

    def run(self, call: ToolCall) -> ExecResult:
        """What a call answers: JSON in `value` with status `ok`, or an error. Never raises."""
        self.calls += 1
        rng = Random(f"{self.faults.seed} {self.calls}")
        failing, noisy = rng.random() < self.faults.failing, rng.random() < self.faults.noisy
        function = next((f for f in self.offered if f["name"] == call.name), None)
        if function is None:
            return _misnamed(call)
        if complaint := misuse(call, function):
            return _error(*complaint)
        if failing:
            return _error("ConnectionError", f"{call.name}: the service does not answer; try again")
        try:
            result = self.tools[call.name].answer(**call.arguments)
        except LookupError as error:
            return _error("LookupError", str(error.args[0]))
        shown = _noise(rng, result) if noisy else result
        return ExecResult("ok", value=json.dumps(shown, ensure_ascii=False))


def shown(result: ExecResult) -> str:
    """The text of a tool's message."""
    if result.error is not None:
        return f"{result.error.name}: {result.error.message}"
    return result.value or ""


def misuse(call: ToolCall, function: Mapping[str, Any]) -> tuple[str, str] | None:
    """The name and the text of the exception for a call that the description does not allow."""
    schema = function["parameters"]
    for name in call.arguments:
        if name not in schema["properties"]:
            return "TypeError", f"{call.name}() got an unexpected keyword argument '{name}'"
    for name in schema.get("required", ()):
        if name not in call.arguments:
            return "TypeError", f"{call.name}() missing required argument '{name}'"
    for name, value in call.arguments.items():
        about = schema["properties"][name]
        if not _fits(value, about):
            return "TypeError", f"{call.name}() argument '{name}' must be {about['type']}"
        if "enum" in about and value not in about["enum"]:
            listed = ", ".join(map(repr, about["enum"]))
            return "ValueError", f"{call.name}() argument '{name}' must be one of {listed}"
    return None


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    kind = TYPES[schema["type"]]
    if kind is float:
        return type(value) in (int, float)
    if kind is list and isinstance(value, list):
        return all(_fits(v, schema["items"]) for v in value)
    return type(value) is kind


def _misnamed(call: ToolCall) -> ExecResult:
    if call.name == "invalid" and "error" in call.arguments:  # what could not be read
        return _error("SyntaxError", str(call.arguments["error"]))
    return _error("NameError", f"name '{call.name}' is not defined")


def _error(name: str, message: str) -> ExecResult:
    return ExecResult("error", error=ExecError(name, message, ""))


def _noise(rng: Random, result: Mapping[str, Any]) -> dict[str, Any]:
    """The result among fields that nobody asked for."""
    before = {"request": f"r{rng.randrange(10_000):04d}", "cached": rng.random() < 0.5}
    after = {"took_ms": rng.randrange(5, 900), "note": "Prices and times may change."}
    return {**before, **result, **after}


def number(*parts: Any, low: int = 0, high: int = 100) -> int:
    """A number from `low` to below `high` that depends on every part."""
    text = "\x1f".join(json.dumps(p, sort_keys=True) for p in parts)
    digest = hashlib.blake2b(text.casefold().encode(), digest_size=8).digest()
    return low + int.from_bytes(digest, "big") % (high - low)


def code(prefix: str, *parts: Any) -> str:
    """An identifier that depends on every part."""
    return f"{prefix}{number(prefix, *parts, low=1000, high=10_000)}"

"""Whether calls are the wanted ones, decided on their syntax tree: name, parameters, types, values.

The rules are those of the public checker of the Berkeley Function Calling Leaderboard (`bfcl-eval`,
`ast_checker.py`, for Python), odd ones included, so that scores can be compared:
`benchmarks/bfcl_agreement.py` measures the agreement. The odd ones:

- a string is compared without case, spaces and the characters `,./-_*^`, at the top, in a list and
  in an object, but not deeper;
- an int is taken for a float at the top only, a float never for an int, True never for 1;
- a value of the accepted answer's own type passes whatever the schema says, compared as it is;
- calls stand in any order; each wanted one takes the first call left that matches it.

A wanted call is `{name: {parameter: [accepted values]}}`, as in the leaderboard's files; `""` among
the accepted values says that the parameter may be left out. In an object each key has such a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from agentrl.errors import DataError
from agentrl.types import ToolCall

Fault = Literal[
    "", "wrong_count", "wrong_name", "missing", "unexpected", "wrong_type", "wrong_value"
]
Wanted = Mapping[str, Mapping[str, Sequence[Any]]]

TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "number": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "object": dict,
    "any": str,
}
"""Python's type of each type in a schema: the leaderboard's names, and JSON schema's."""

_IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the calls match, and what is wrong with the first that does not."""

    valid: bool
    fault: Fault = ""
    detail: str = ""


def check(
    calls: Sequence[ToolCall], functions: Sequence[Mapping[str, Any]], wanted: Sequence[Wanted]
) -> Verdict:
    """Whether `calls` are the `wanted` ones, in any order. Without any wanted, a call is a fault.

    `functions` are the descriptions (`name`, `parameters`) of the tools that were offered. Raises
    DataError if a wanted function is not among them.
    """
    if len(calls) != len(wanted):
        return Verdict(False, "wrong_count", f"{len(calls)} calls where {len(wanted)} are wanted")
    left = list(calls)
    for one in wanted:
        function = described(functions, name_of(one))
        verdicts = [check_call(call, function, one) for call in left]
        found = next((i for i, verdict in enumerate(verdicts) if verdict.valid), None)
        if found is None:
            return next((v for v in verdicts if v.fault != "wrong_name"), verdicts[0])
        del left[found]
    return Verdict(True)


def name_of(wanted: Wanted) -> str:
    """The function's name in a wanted call."""
    return next(iter(wanted))


def described(functions: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The description of the function `name`. Raises DataError if there is none."""
    for function in functions:
        if function["name"] == name:
            return function
    raise DataError(f"the wanted function {name!r} is not among those that are offered")


def check_call(call: ToolCall, function: Mapping[str, Any], wanted: Wanted) -> Verdict:
    """Whether one call is the wanted one."""
    accepted = wanted[name_of(wanted)]
    properties = function["parameters"]["properties"]
    if call.name != function["name"]:
        return Verdict(False, "wrong_name", f"{call.name!r} is called, not {function['name']!r}")
    for name in function["parameters"].get("required", ()):
        if name not in call.arguments:
            return Verdict(False, "missing", f"the required parameter {name!r} is missing")
    for name, value in call.arguments.items():
        if name not in properties or name not in accepted:
            return Verdict(False, "unexpected", f"the parameter {name!r} is not expected")
        if fault := value_fault(value, properties[name], accepted[name]):
            return Verdict(False, fault, f"{name}={value!r}: not one of {list(accepted[name])}")
    for name, values in accepted.items():
        if name not in call.arguments and "" not in values:
            return Verdict(False, "missing", f"the parameter {name!r} is missing")
    return Verdict(True)


def value_fault(
    value: Any, schema: Mapping[str, Any], accepted: Sequence[Any]
) -> Literal["", "wrong_type", "wrong_value"]:
    """What is wrong with a parameter's value ("" if nothing is)."""
    kind = TYPES[schema["type"]]
    items = TYPES[schema["items"]["type"]] if schema["type"] in ("array", "tuple") else None
    if schema["type"] == "tuple" and type(value) is tuple:
        value = list(value)
    if kind is float and type(value) is int:
        try:
            value = float(value)
        except OverflowError:
            return "wrong_value"
    own = _type_of(accepted)
    if type(value) is kind:
        if items is not None and not _items_fit(value, items, accepted):
            return "wrong_type"
        literal = own not in (None, kind)
    elif own is not None and type(value) is own:
        literal = True
    else:
        return "wrong_type"
    return "" if _equal(value, accepted, kind, items, literal) else "wrong_value"


def _equal(
    value: Any, accepted: Sequence[Any], kind: type, items: type | None, literal: bool
) -> bool:
    if literal:
        return value in accepted
    if kind is dict:
        return any(_object_equal(value, a) for a in accepted)
    if kind is list and items is dict:
        return any(_objects_equal(value, a) for a in accepted)
    if kind is str:
        return plain(value) in [plain(a) for a in accepted if type(a) is str]
    if kind is list:
        return _each_plain(value) in [_each_plain(a) for a in accepted]
    return value in accepted


def plain(value: Any) -> Any:
    """A string as it is compared; anything else as it is."""
    if type(value) is not str:
        return value
    return _IGNORED.sub("", value).lower().replace("'", '"')


def _each_plain(values: Iterable[Any]) -> list[Any]:
    return [plain(v) for v in values]


def _type_of(accepted: Iterable[Any]) -> type | None:
    """The type of the first accepted value that is one."""
    return next((type(a) for a in accepted if a != ""), None)


def _items_fit(values: Any, kind: type, accepted: Sequence[Any]) -> bool:
    """True if all items are of the schema's type or of the type in some accepted list; an accepted
    value that is no list (the `""`) fits everything."""
    return any(
        type(one) is not list or all(type(v) in (kind, _type_of(one)) for v in values)
        for one in accepted
    )


def _object_equal(value: Any, accepted: Any) -> bool:
    """True if an object is the accepted one, whose keys have lists of values."""
    if not isinstance(value, Mapping) or not isinstance(accepted, Mapping):
        return False
    if any(key not in value and "" not in values for key, values in accepted.items()):
        return False
    return all(
        key in accepted and plain(v) in _each_plain(accepted[key]) for key, v in value.items()
    )


def _objects_equal(values: Sequence[Any], accepted: Sequence[Any]) -> bool:
    return len(values) == len(accepted) and all(
        _object_equal(v, a) for v, a in zip(values, accepted, strict=True)
    )

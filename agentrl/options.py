"""Options by name: what a function takes, checked before it is called; and `MODULE:NAME` imported.

Everything that is named by a string (environments, rollouts, losses, selectors, recipes) is given
its options through here, so a wrong name or type is the same error everywhere.
"""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import importlib
import inspect
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from agentrl.errors import ConfigError, unknown

PLAIN = (str, int, float, list, dict, type(None))
"""What a value written on the command line or in YAML can be."""

SHOWN = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    list: "a list",
    tuple: "a list",
    collections.abc.Sequence: "a list",
    dict: "a mapping {key: value}",
    collections.abc.Mapping: "a mapping {key: value}",
}


def check(what: str, function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` as all that `function` is called with, each of the type that it is annotated with.

    Raises ConfigError for an option that `function` does not have, one without a default that is
    missing, and a value of another type; `what` is how the message calls the function. Types that
    are imported for type checkers alone, or that cannot be told at run time, are not checked; nor
    are texts where one of a few is expected: the function knows what these are called.
    """
    parameters = inspect.signature(function).parameters
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for option in given:
        if option not in parameters and not any_name:
            raise unknown(f"option of {what}:", option, parameters)
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind not in MANY]
    if missing := [name for name in needed if name not in given]:
        raise ConfigError(f"{what}: give {', '.join(f'{name}=...' for name in missing)}")
    return types_checked(what, function, given)


MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def types_checked(
    what: str, function: Callable[..., Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """`given`, each of the type that `function` is annotated with. Raises ConfigError otherwise."""
    hints = _hints(function)
    texts = {name for name, value in given.items() if isinstance(value, str)}
    hints = {n: h for n, h in hints.items() if n not in texts or not _is_literal(h)}
    return {
        name: typed(f"{what}: {name}", value, hints.get(name, Any)) for name, value in given.items()
    }


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The types of a function's parameters or a class's fields, of those that can be read here."""
    read: Any = inspect.unwrap(function)
    if dataclasses.is_dataclass(read):
        written = {f.name: f.type for f in dataclasses.fields(read)}
    else:
        read = vars(read).get("__init__", read) if isinstance(read, type) else read
        written = getattr(read, "__annotations__", {})
    names = vars(sys.modules[read.__module__]) if hasattr(read, "__module__") else {}
    found: dict[str, Any] = {}
    for name, hint in written.items():
        one = types.SimpleNamespace(__annotations__={name: hint})
        with contextlib.suppress(NameError):
            found |= typing.get_type_hints(one, globalns=names)
    return found


def typed(name: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the type `hint`, or as that type. Raises ConfigError otherwise."""
    options = typing.get_args(hint) if _is_union(hint) else (hint,)
    for option in options:
        origin = typing.get_origin(option) or option
        if origin is typing.Literal:
            if value in typing.get_args(option):
                return value
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif option is float and isinstance(value, str):
            try:
                return float(value)  # YAML reads 1e-5 as text
            except ValueError:
                continue
        elif origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        elif _is(value, origin):
            return value
    raise ConfigError(f"{name}={value!r}: expected {shown(hint)}")


def _is(value: Any, kind: Any) -> bool:
    """Whether `value` is of `kind`, as far as that can be told."""
    if kind is Any or isinstance(kind, typing.TypeVar):
        return True
    if kind is collections.abc.Callable:
        return callable(value)
    if not isinstance(kind, type):
        return True
    if isinstance(value, bool) and kind is not bool:
        return kind is object
    if isinstance(value, str) and kind in (collections.abc.Sequence, collections.abc.Iterable):
        return False
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol: nothing plain keeps one
        return not isinstance(value, PLAIN)


def _is_literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def shown(hint: Any) -> str:
    """A type in words, for people who write settings."""
    origin = typing.get_origin(hint) or hint
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if _is_union(hint):
        return " or ".join(shown(h) for h in typing.get_args(hint))
    if origin is collections.abc.Callable:
        return "a function (from Python)"
    if SHOWN.get(origin) == "a list" and str in typing.get_args(hint):
        return "a list of names such as [a, b]"
    return SHOWN.get(origin) or str(getattr(origin, "__name__", origin))


def imported(path: str, what: str) -> Any:
    """What `MODULE:NAME` names, looked for in this folder, too. Raises ConfigError, for `what`, if
    it cannot be imported or called."""
    module, _, name = path.partition(":")
    if os.getcwd() not in sys.path:  # where an installed command does not look by itself
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise ValueError(f"{name!r} is no function")
        return found
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        cause = (str(error).strip() or repr(error)).splitlines()[0]
        raise ConfigError(
            f"{what}: {cause}. Write MODULE:NAME with a module that can be imported from here."
        ) from error

"""What a client may ask a server for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from agentrl.errors import ConfigError
from agentrl.types import Limits
from sandboxes.rpc import codec

MOST = Limits(wall_s=120.0, cpu_s=600.0)
"""What a server allows unless it is told otherwise: the usual, and more time."""

_FIELDS = tuple(field.name for field in dataclasses.fields(Limits))


def smallest(*limits: Limits) -> Limits:
    """The smaller of each limit."""
    return Limits(**{name: min(getattr(each, name) for each in limits) for name in _FIELDS})


def checked(args: Any, most: Limits) -> dict[str, Any]:
    """The arguments of a request. Raises ConfigError if they ask for more than `most`."""
    if not isinstance(args, dict):
        raise ConfigError("a request's arguments are a JSON object")
    if args.get("limits") is not None:
        limits = codec.limits_from_wire(args["limits"])
        for name in _FIELDS:
            _within(name, getattr(limits, name), getattr(most, name))
    if args.get("timeout") is not None:
        _within("timeout", args["timeout"], most.wall_s)
    return args


def _within(name: str, value: object, most: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= most:  # type: ignore[operator]
        what = "wall_s" if name == "timeout" else name
        raise ConfigError(
            f"{name}={repr(value)[:80]}: this server allows more than 0 and at most {most:g}; "
            f"start it with {what}=... to allow more"
        )


def merged(base: Limits, changes: Any) -> Mapping[str, Any]:
    """Limits on the wire: `base` with `changes`, a JSON object. Raises ConfigError."""
    if changes is None:
        return codec.limits_to_wire(base)
    if not isinstance(changes, dict):
        raise ConfigError('limits are a JSON object, such as {"wall_s": 5}')
    return {**codec.limits_to_wire(base), **changes}

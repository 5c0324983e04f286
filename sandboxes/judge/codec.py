"""Python values as JSON with exact types. The judge and both of its guests use this file.

A list, str, bool, float, small int and None stand for themselves; every other type is an object of
one entry, `{"tuple": [...]}`. Only exact types are encoded: an instance of a subclass, whatever it
claims to be, is no value. Decoding makes plain values only, and refuses everything that `encode`
does not write.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_DEPTH = 100
MOST_NODES = 1_000_000
MOST_EQUAL_HASHES = 64  # in one set or dict: more is an attack on whoever builds it
_SMALL = 1 << 53
_CHECKED_SIZE = 1000

Opaque = Callable[[Any], dict[str, Any] | None]
"""How one end names an object that is no value: its form, or None if it cannot."""
Open = Callable[[dict[str, Any]], Any]
"""How the other end makes something of that form. Raises ValueError for a form of no such kind."""


class NotAValue(Exception):
    """The object has no exact form: its type is none of ours, or it is too deep or too large."""


_SEQUENCES: dict[type, str] = {tuple: "tuple", set: "set", frozenset: "frozenset"}
_MAPPINGS: dict[type, str] = {
    dict: "dict",
    Counter: "Counter",
    OrderedDict: "OrderedDict",
    defaultdict: "defaultdict",
}
_TYPES: dict[str, type] = {
    t.__name__: t
    for t in (
        *(bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict),
        *(range, object, type, type(None)),
    )
}
_NAMES = {t: name for name, t in _TYPES.items()}


class Encoder:
    """Encodes one message: the bounds hold for all values of it together."""

    def __init__(self, opaque: Opaque | None = None) -> None:
        self.nodes = 0
        self.opaque = opaque

    def encode(self, value: Any, depth: int = 0) -> Any:
        """The form of `value`. Raises NotAValue."""
        self.nodes += 1
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_SMALL < value < _SMALL else {"int": f"{value:x}"}
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if depth >= MOST_DEPTH:
            raise NotAValue("a value that is nested too deep")
        if self.nodes > MOST_NODES:
            raise NotAValue("a value that is too large")
        if kind is list:
            return [self.encode(v, depth + 1) for v in value]
        if kind in _SEQUENCES:
            return {_SEQUENCES[kind]: [self.encode(v, depth + 1) for v in value]}
        if kind in _MAPPINGS:
            pairs = [
                [self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in kind.items(value)
            ]
            return {_MAPPINGS[kind]: pairs}
        return self._rare(value, kind, depth)

    def _rare(self, value: Any, kind: type, depth: int) -> Any:
        if kind is bytes or kind is bytearray:
            return {kind.__name__: value.hex()}
        if kind is complex:
            return {"complex": [self.encode(value.real), self.encode(value.imag)]}
        if kind is range:
            return {"range": [self.encode(n) for n in (value.start, value.stop, value.step)]}
        if kind is deque:
            items = [self.encode(v, depth + 1) for v in value]
            return {"deque": [items, value.maxlen]}
        if kind is Decimal:
            return {"Decimal": str(value)}
        if kind is Fraction:
            return {"Fraction": [self.encode(value.numerator), self.encode(value.denominator)]}
        if kind is type and value in _NAMES:
            return {"type": _NAMES[value]}
        form = self.opaque(value) if self.opaque is not None else None
        if form is None:
            raise NotAValue(
                f"an object of type {str(kind.__name__)[:100]}, which is no plain value"
            )
        return form


def encode(value: Any, opaque: Opaque | None = None) -> Any:
    """The form of one value. Raises NotAValue."""
    return Encoder(opaque).encode(value)


def decode(form: Any, opened: Open | None = None) -> Any:
    """The value of a form. Raises ValueError for anything that `encode` does not write."""
    try:
        return _decode(form, opened, 0)
    except (TypeError, KeyError, OverflowError, ArithmeticError) as error:
        raise ValueError(f"not the form of a value: {error}") from error


def dumps(message: Any) -> str:
    """A message of forms as ASCII text."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False)


def loads(text: str) -> Any:
    """The message that `dumps` wrote. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _decode(form: Any, opened: Open | None, depth: int) -> Any:
    if form is None or type(form) in (bool, int, float, str):
        return form
    if depth > MOST_DEPTH:
        raise ValueError("nested too deep")
    if type(form) is list:
        return [_decode(v, opened, depth + 1) for v in form]
    if type(form) is not dict or len(form) != 1:
        raise ValueError("not the form of a value")
    ((tag, body),) = form.items()
    if tag in ("tuple", "set", "frozenset"):
        items = [_decode(v, opened, depth + 1) for v in _listed(body)]
        return tuple(items) if tag == "tuple" else _hashed(tag, items)
    if tag in ("dict", "Counter", "OrderedDict", "defaultdict"):
        pairs = [
            (_decode(k, opened, depth + 1), _decode(v, opened, depth + 1)) for k, v in _listed(body)
        ]
        return _mapping(tag, pairs)
    if tag == "deque":
        items, most = _listed(body)
        return deque([_decode(v, opened, depth + 1) for v in _listed(items)], most)
    if tag in _RARE:
        return _RARE[tag](body)
    if opened is None:
        raise ValueError(f"no value has the form {tag[:50]!r}")
    return opened(form)


def _listed(body: Any) -> list[Any]:
    if type(body) is not list:
        raise ValueError("not the form of a value")
    return body


def _hashed(tag: str, items: list[Any]) -> Any:
    _check_hashes(items)
    made = set(items) if tag == "set" else frozenset(items)
    if len(made) != len(items):
        raise ValueError("a set with equal items")
    return made


def _mapping(tag: str, pairs: list[tuple[Any, Any]]) -> Any:
    _check_hashes([k for k, _ in pairs])
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a dict with equal keys")
    if tag == "Counter":
        return Counter(made)
    if tag == "OrderedDict":
        return OrderedDict(pairs)
    return defaultdict(None, made) if tag == "defaultdict" else made


def _check_hashes(items: list[Any]) -> None:
    """Refuse keys chosen so that a table of them takes quadratic time."""
    if len(items) < _CHECKED_SIZE:
        return
    hashes = sorted(map(hash, items))
    if any(a == b for a, b in zip(hashes, hashes[MOST_EQUAL_HASHES:], strict=False)):
        raise ValueError("keys whose hashes collide")


def _numbers(body: Any) -> list[int]:
    numbers = [_decode(n, None, 0) for n in _listed(body)]
    if not all(type(n) is int for n in numbers):
        raise ValueError("not whole numbers")
    return numbers


def _float(body: Any) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[body]


def _complex(body: Any) -> complex:
    real, imaginary = (_decode(n, None, 0) for n in _listed(body))
    if type(real) is not float or type(imaginary) is not float:
        raise ValueError("not the parts of a complex number")
    return complex(real, imaginary)


def _decimal(body: Any) -> Decimal:
    if type(body) is not str or len(body) > 5000:
        raise ValueError("not a decimal number")
    return Decimal(body)


_RARE: dict[str, Callable[[Any], Any]] = {
    "int": lambda body: int(body, 16),
    "float": _float,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": _complex,
    "range": lambda body: range(*_numbers(body)),
    "Decimal": _decimal,
    "Fraction": lambda body: Fraction(*_numbers(body)),
    "type": _TYPES.__getitem__,
}

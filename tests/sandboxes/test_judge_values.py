"""The judge's codec and comparisons: exact types, plain values, bounds."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, deque
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import ConfigError
from sandboxes.judge import codec
from sandboxes.judge.compare import Tolerance, same, same_text
from sandboxes.judge.setting import shown

KEYS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
VALUES = st.recursive(
    KEYS | st.floats() | st.fractions() | st.decimals(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.lists(inner, max_size=4).map(deque)
        | st.sets(KEYS, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict)
    ),
    max_leaves=12,
)


def there_and_back(value: Any) -> Any:
    return codec.decode(codec.loads(codec.dumps(codec.encode(value))))


@given(VALUES)
def test_values_come_back_with_their_types(value: Any) -> None:
    back = there_and_back(value)
    assert repr(back) == repr(value) or same(value, back, True, Tolerance())
    assert same(value, back, True, Tolerance()) or "nan" in repr(value)


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, 1 << 53, -(1 << 80), 10**5000, True, 1.0, -0.0, 5e-324, math.inf, -math.inf),
        *("\ud800", "\0", "", b"\xff", bytearray(b"x"), 1 + 2j, complex(math.inf, -0.0), range(3)),
        *((), [], set(), frozenset([1]), {}, {(1, 2): {3}}, {1: "a", "1": "b"}),
        *(Counter("aab"), defaultdict(int, a=1), OrderedDict(b=1, a=2), deque([1], 3)),
        *(Decimal("1.10"), Decimal("NaN"), Fraction(1, 3), int, type(None), None),
    ],
    ids=lambda v: type(v).__name__,
)
def test_special_values(value: Any) -> None:
    back = there_and_back(value)
    assert type(back) is type(value)
    if isinstance(value, defaultdict):
        assert (back, back.default_factory) == (value, None)
    else:
        assert back == value or repr(back) == repr(value)


def test_a_huge_integer_is_shown_too() -> None:
    assert shown([10**5000]) == "a list with a huge integer"
    assert shown("x" * 1000) == "'" + "x" * 499 + "..."


def test_repr_of_a_default_factory_is_not_part_of_the_value() -> None:
    assert same(defaultdict(int, a=1), there_and_back(defaultdict(list, a=1)), True, Tolerance())


class MyInt(int): ...


class MyList(list): ...  # type: ignore[type-arg]


@pytest.mark.parametrize(
    "value",
    [MyInt(1), MyList(), [MyInt(1)], {MyInt(1): 1}, object(), iter([]), len, MyInt, ValueError()],
    ids=lambda v: type(v).__name__,
)
def test_what_is_no_plain_value_has_no_form(value: Any) -> None:
    with pytest.raises(codec.NotAValue, match="no plain value"):
        codec.encode(value)


def test_bounds_of_encoding(monkeypatch) -> None:
    deep: list[Any] = []
    for _ in range(codec.MOST_DEPTH + 1):
        deep = [deep]
    with pytest.raises(codec.NotAValue, match="too deep"):
        codec.encode(deep)
    monkeypatch.setattr(codec, "MOST_NODES", 10)
    with pytest.raises(codec.NotAValue, match="too large"):
        codec.encode([[1] * 20, [1]])


@pytest.mark.parametrize(
    "form",
    [
        *({}, {"a": 1, "b": 2}, {"unknown": []}, {"tuple": 1}, {"set": [[]]}, {"set": [1, 1]}),
        *({"set": [1, True]}, {"dict": [[1]]}, {"dict": [[1, 2], [1, 3]]}, {"dict": [[[], 1]]}),
        *({"int": "xyz"}, {"int": 5}, {"int": None}, {"float": "1"}, {"float": []}, {"bytes": "0"}),
        *({"complex": [1, 2]}, {"complex": [1.0]}, {"range": [1, 2, 0]}, {"range": [1.0]}),
        *({"Fraction": [1, 0]}, {"Decimal": "x"}, {"Decimal": 5}, {"deque": [[], -1]}),
        {"deque": [[], "a"]},
        *(
            {"deque": [1, 2, 3]},
            {"type": "eval"},
            {"type": []},
            {"object": 1},
            {"deque": [[], "a"]},
        ),
    ],
    ids=repr,
)
def test_forms_that_encode_does_not_write_are_refused(form: Any) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        codec.decode(form)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["tuple", "set", "dict", "int", "float", "range", "Fraction", "type"])
            | st.sampled_from(["bytes", "deque", "Decimal", "complex", "Counter", "object", "x"]),
            inner,
            max_size=2,
        )
    ),
    max_leaves=20,
)


@given(JSON)
def test_any_json_is_a_value_or_a_value_error(form: Any) -> None:
    try:
        value = codec.decode(form)
    except ValueError:
        return
    codec.encode(value)


@pytest.mark.parametrize("text", ["NaN", "[" * 100_000, "{", "1" * 5000, "\ud800", "", "Infinity"])
def test_text_that_is_no_message(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        codec.decode(codec.loads(text))


def test_keys_that_collide_are_refused() -> None:
    step = (1 << 61) - 1
    many = [codec.encode(k * step) for k in range(1, 2000)]
    for form in ({"set": many}, {"dict": [[k, 0] for k in many]}):
        with pytest.raises(ValueError, match="collide"):
            codec.decode(form)
    assert len(codec.decode({"set": list(range(5000))})) == 5000


EQUAL = [(1, 1), ([1, (2.5, "a")], [1, (2.5, "a")]), ({1: {2}}, {1: {2}}), (math.nan, math.nan)]
EQUAL_IN_PYTHON = [(1, True), (1, 1.0), ({1: 0}, {True: 0}), ({1}, {1.0}), ({1}, frozenset({1}))]
EQUAL_IN_PYTHON += [(Counter("a"), {"a": 1}), (Fraction(1, 2), 0.5), ([0], [False]), (1, 1 + 0j)]
DIFFERENT = [(1, 2), ([1], (1,)), ("1", 1), (1, None), ({1: 1}, {1: 2}), ([1], [1, 1]), (0.1, 0.2)]
DIFFERENT += [(math.nan, 1.0), (1.0, math.nan), (math.inf, -math.inf), ({1}, [1]), (b"a", "a")]
DIFFERENT += [(OrderedDict(a=1, b=2), OrderedDict(b=2, a=1)), (10**400, 1.5), (int, str)]


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal(a: Any, b: Any) -> None:
    assert same(a, b, True, Tolerance())
    assert same(a, b, False, Tolerance())


@pytest.mark.parametrize(("a", "b"), EQUAL_IN_PYTHON)
def test_equal_but_for_their_types(a: Any, b: Any) -> None:
    assert same(a, b, False, Tolerance())
    assert not same(a, b, True, Tolerance())
    assert not same([{"k": (a,)}], [{"k": (b,)}], True, Tolerance())


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different(a: Any, b: Any) -> None:
    for exact in (True, False):
        assert not same(a, b, exact, Tolerance())
        assert not same([a], [b], exact, Tolerance(rel=1e-6, abs=1e-6))


def test_tolerance() -> None:
    near = Tolerance(abs=1e-3)
    assert same([1.0, {"a": 2.0}], [1.0005, {"a": 1.9995}], True, near)
    assert not same([1.0], [1.002], True, near)
    assert not same(1.0, 1, True, near)
    assert same(1.0, 1, False, near)
    assert same(1j, 1.0001j, True, near)
    assert not same(math.nan, 1.0, False, Tolerance(abs=1e300))
    assert not same(1.0, math.inf, False, Tolerance(rel=0.99, abs=1e300))
    assert not same(0.5, 10**400, False, near)
    with pytest.raises(ConfigError):
        Tolerance(rel=1.0)


@pytest.mark.parametrize(
    ("checker", "expected", "found", "right"),
    [
        ("lines", "1 2\n", "1 2  \n\n\n", True),
        ("lines", "1\n\n2", "1\n2", False),
        ("lines", " 1", "1", False),
        ("lines", "1\r\n2", "1\n2\n", True),
        ("exact", "1\n", "1", False),
        ("exact", "1\n", "1\n", True),
        ("tokens", "1 2\n3", "1\n2  3\n", True),
        ("tokens", "1 2", "12", False),
        ("tokens", "1", "1.0", False),
        ("floats", "0.3333333 x", "0.33333331 x", True),
        ("floats", "0.3333333 x", "0.3334 x", False),
        ("floats", "1", "1e0", True),
        ("floats", "1", "nan", False),
        ("floats", "nan", "nan", True),
        ("floats", "1", "1 1", False),
        ("floats", "1000", "1_000", False),
        ("floats", "1", "١", False),
        ("floats", "1", "inf", False),
        ("floats", "1", "9" * 1000, False),
    ],
)
def test_text(checker: str, expected: str, found: str, right: bool) -> None:
    assert same_text(checker, expected, found, Tolerance(abs=1e-6)) is right

# ruff: noqa: E501
"""Displays of cells: what comes back, what is left out, and what hostile ones can do."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sandbox_arena import SMALL, Arena, Go, open_box

from agentrl.types import ExecResult, Limits
from sandboxes.embedded import EmbeddedSandbox, Profile, artifacts, results
from sandboxes.embedded.inside import displays

RICH = """
class Rich:
    def __init__(self, **forms): self.__dict__.update({f'_repr_{k}_': lambda v=v: v for k, v in forms.items()})
    def __repr__(self): return 'rich'
"""


def play(go: Go, box: EmbeddedSandbox, *sources: str, **limits) -> list[ExecResult]:
    async def cells():
        async with box.session(Limits(**{**SMALL, **limits})) as session:
            return [await session.run(source) for source in (RICH, *sources)][1:]

    return go(cells())


@pytest.mark.parametrize(
    ("forms", "found"),
    [
        ("png=b'P'", {"png": b"P"}),
        ("png='aGk='", {"png": b"hi"}),
        ("png=(b'P', {'width': 1})", {"png": b"P"}),
        ("svg='<svg/>', html='<b>é</b>'", {"svg": b"<svg/>", "html": "<b>é</b>".encode()}),
        ("markdown='*x*', latex='$x$'", {"md": b"*x*", "tex": b"$x$"}),
        ("json={'a': [1, None]}", {"json": b'{"a": [1, null]}'}),
        ("jpeg=b'J', pdf=b'%PDF'", {"jpg": b"J", "pdf": b"%PDF"}),
        ("html=None", {}),
        ("html='\\ud800'", {"html": b"\\ud800"}),
    ],
)
def test_forms_of_the_last_value(go: Go, box: EmbeddedSandbox, forms: str, found) -> None:
    (result,) = play(go, box, f"Rich({forms})")
    assert (result.status, result.value) == ("ok", "rich")
    assert result.artifacts == {f"display-1.{k}": v for k, v in found.items()}


def test_mime_bundles(go: Go, box: EmbeddedSandbox) -> None:
    source = """
class B:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {'text/plain': 'b', 'image/png': b'P', 'x/unknown': 1}, {'image/png': {}}
    def _repr_html_(self): return '<i>'
B()"""
    (result,) = play(go, box, source)
    assert result.artifacts == {"display-1.png": b"P", "display-1.html": b"<i>"}


def test_display_shows_text_and_forms(go: Go, box: EmbeddedSandbox) -> None:
    first, second = play(go, box, "display(1, Rich(html='a'), 'x'); Rich(html='b')", "1")
    assert first.stdout == "1\nrich\n'x'\n"
    assert first.artifacts == {"display-1.html": b"a", "display-2.html": b"b"}
    assert second.artifacts == {}


def test_methods_that_fail_are_said(go: Go, box: EmbeddedSandbox) -> None:
    source = """
class B:
    def _repr_html_(self): raise ValueError('no')
    def _repr_svg_(self): raise NotImplementedError
    def _repr_png_(self): return b'P'
B()"""
    (result,) = play(go, box, source)
    assert result.stderr == "_repr_html_ failed: ValueError: no\n"
    assert result.artifacts == {"display-1.png": b"P"}


def test_what_has_every_method_shows_nothing(go: Go, box: EmbeddedSandbox) -> None:
    (result,) = play(go, box, "from unittest.mock import MagicMock\nMagicMock()")
    assert (result.status, result.artifacts, result.stderr) == ("ok", {}, "")


def test_displays_before_an_error_come_back(go: Go, box: EmbeddedSandbox) -> None:
    error, late = play(
        go, box, "display(Rich(html='a')); 1/0", "display(Rich(html='a'))\nwhile True: pass"
    )
    assert (error.status, error.artifacts) == ("error", {"display-1.html": b"a"})
    assert (late.status, late.artifacts) == ("timeout", {"display-1.html": b"a"})


def test_displays_are_bounded(go: Go, box: EmbeddedSandbox) -> None:
    many, large, exact = play(
        go,
        box,
        "for n in range(40): display(Rich(html=str(n)))",
        "display(Rich(html='x' * 1001), Rich(html='y'))",
        "display(Rich(png=b'x' * 999), Rich(html='y'))",
        download_bytes=1000,
    )
    assert len(many.artifacts) == displays.MOST == 32
    assert (many.status, many.truncated) == ("ok", True)
    assert many.detail == "8 displays left out: too many or too large"
    assert large.artifacts == {"display-2.html": b"y"}
    assert large.truncated
    assert sum(map(len, exact.artifacts.values())) == 1000
    assert not exact.truncated


def test_displays_that_cannot_be_delivered_are_said(go: Go, box: EmbeddedSandbox) -> None:
    source = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))"
    _, result, after = play(go, box, source, "Rich(png=b'x' * 100)", "1")
    assert (result.status, result.artifacts, result.truncated) == ("ok", {}, True)
    assert "1 displays left out" in result.detail
    assert after.value == "1"


def test_programs_have_no_displays(go: Go, box: EmbeddedSandbox) -> None:
    result = go(box.run("display(1)"))
    assert result.error is not None
    assert result.error.name == "NameError"


@pytest.mark.parametrize(
    "forgery",
    [
        {"displays": [[1, "png", 1 << 40]]},
        {"displays": [[1, "exe", 1]]},
        {"displays": [[1, "../x", 1]]},
        {"displays": [[1, ["png"], 1]]},
        {"displays": [[1, "png", -1]]},
        {"displays": [[True, "png", 1]]},
        {"displays": [[1, "png", 1.0]]},
        {"displays": [[1, "png", 1]] * 33},
        {"displays": {"1": 1}},
        {"displays": None},
        {"left_out": -1},
        {"left_out": "1"},
    ],
)
def test_claims_of_displays_that_cannot_be(forgery) -> None:
    assert artifacts.check(forgery, Limits()) is not None
    assert artifacts.check({"displays": [[1, "png", 10]], "left_out": 1}, Limits()) is None


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
_KEYS = st.sampled_from([*sorted(results._CLAIM_KEYS), "other"])
_DISPLAY = st.tuples(
    st.integers(-1, 1 << 21) | _JSON,
    st.sampled_from(sorted(artifacts.ENDINGS)) | _JSON,
    st.integers(-1, 1 << 25) | _JSON,
).map(list)


@given(
    st.dictionaries(_KEYS, _JSON)
    | st.fixed_dictionaries(
        {
            "id": st.just(1),
            "status": st.sampled_from(["ok", "error", "exit"]),
            "displays": st.lists(_DISPLAY, max_size=40) | _JSON,
            "left_out": st.integers(-1, 3) | _JSON,
        }
    )
)
def test_any_claim_is_judged(claim) -> None:
    """Claims of any shape are refused or right, and never raise."""
    limits = Limits()
    if results.check_claim(claim, 1, limits) is None:
        shown = claim.get("displays", [])
        assert len(shown) <= displays.MOST
        assert sum(size for _, _, size in shown) <= limits.download_bytes
        fds = artifacts.hold(claim)
        found = artifacts.take(claim, fds)
        for fd in fds:
            os.close(fd)
        assert found is not None
        assert set(found) == {f"display-{n}.{ending}" for n, ending, _ in shown}


HOARD = """
import os, sys
frame = sys._getframe()
while frame and 'self' not in frame.f_locals or not hasattr(frame.f_locals['self'], 'cells'): frame = frame.f_back
shown = frame.f_locals['self'].cells.displays
kept = []
def write(fd):
    kept.append(os.dup(fd))
    os.pwrite(fd, b'x' * (1 << 19), 0)
    try: os.ftruncate(fd, 1 << 30)
    except OSError as error: print(error.errno)
shown.write = write
"""


def test_files_for_displays_hold_no_memory_afterwards(go: Go, arena: Arena) -> None:
    """The code may keep the file in which the host takes displays: it cannot grow, and is empty."""
    show = "display(type('R', (), {'_repr_png_': lambda s: b'x' * (1 << 19)})())"

    async def act(session):
        await session.run(HOARD)
        for _ in range(3):
            result = await session.run(show)
        assert len(result.artifacts["display-1.png"]) == 1 << 19
        return await session.run("[os.fstat(fd).st_size for fd in kept]")

    result = go(arena.attack(act, ("ok",), None))
    assert result.value == "[0, 0, 0]"


def test_late_or_missing_bytes_are_no_displays(go: Go, arena: Arena) -> None:
    async def act(session):
        await session.run(HOARD + "shown.write = lambda fd: os.ftruncate(fd, 3)")
        return await session.run("display(type('R', (), {'_repr_png_': lambda s: b'x' * 9})())")

    result = go(arena.attack(act, ("ok",), None))
    assert (result.artifacts, result.truncated) == ({}, True)


@pytest.fixture(scope="module")
def plots(go: Go):
    """A box with matplotlib, and one where cells import it first."""
    pytest.importorskip("matplotlib")
    lazy = Profile("lazy", packages=("matplotlib",))
    boxes = [go(open_box(profile=p, memory_mb=512, wall_s=30.0, pids=48)) for p in ("plot", lazy)]
    yield boxes
    for box in boxes:
        go(box.close())


SIZED = "import matplotlib.pyplot as plt\nimport matplotlib\n"


@pytest.mark.parametrize("which", [0, 1], ids=["preloaded", "lazy"])
def test_plots(go: Go, plots, which: int) -> None:
    async def cells():
        async with plots[which].session() as session:
            before = await session.run("import sys; 'matplotlib' in sys.modules")
            two = await session.run(SIZED + "plt.plot([1, 2]); plt.show()\nplt.figure()\nNone")
            own = await session.run("fig = plt.figure(); fig")
            state = await session.run("plt.get_fignums(), matplotlib.get_backend().lower()")
            again = await session.run("display(fig)")
            broken = await session.run("plt.title('$\\\\nothing$')\nNone")
            after = await session.run("plt.get_fignums()")
            pil = await session.run("from PIL import Image; Image.new('L', (2, 2))")
            return before, two, own, state, again, broken, after, pil

    before, two, own, state, again, broken, after, pil = go(cells())
    assert before.value == str(which == 0)
    assert [k for k, v in two.artifacts.items() if v.startswith(b"\x89PNG")] == [
        "display-1.png",
        "display-2.png",
    ]
    assert list(own.artifacts) == ["display-1.png"]  # not a second time as an open figure
    assert state.value == "([], 'agg')"
    assert list(again.artifacts) == ["display-1.png"]
    assert broken.error is not None
    assert broken.error.name == "ValueError"
    assert after.value == "[]"
    assert pil.artifacts["display-1.png"].startswith(b"\x89PNG")

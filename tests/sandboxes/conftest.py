"""One event loop and one small box for all tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from sandbox_arena import SMALL, Arena, Go, open_box, open_wide_box
from snapshot_states import opened_states

from agentrl.errors import IsolationError
from sandboxes.embedded import EmbeddedSandbox, uids


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="session")
def go(runner: asyncio.Runner) -> Go:
    """Run a coroutine in the folder's event loop."""
    return runner.run


@pytest.fixture(scope="session", params=["namespaces", "uid"])
def tier(request: pytest.FixtureRequest) -> str:
    """The isolation that is tested."""
    if request.param == "uid" and (reason := uids.why_not()):
        pytest.skip(f"no sessions with users of their own here: {reason}")
    return str(request.param)


@pytest.fixture(scope="session")
def box(go: Go, tier: str) -> Iterator[EmbeddedSandbox]:
    """A small box without spares, so that its processes can be counted."""
    try:
        opened = go(open_box(isolation=tier))
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    yield opened
    go(opened.close())


@pytest.fixture(scope="session")
def arena(go: Go, box: EmbeddedSandbox) -> Arena:
    return go(Arena(box).open())


@pytest.fixture(scope="session")
def wide_box(go: Go) -> Iterator[EmbeddedSandbox]:
    """A box with the default limits and spare sessions, for much work at once."""
    try:
        opened = go(open_wide_box())
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    yield opened
    go(opened.close())


@pytest.fixture(scope="module")
def wide_states(go: Go) -> Iterator[EmbeddedSandbox]:
    """A box with the usual limits, whose sessions' states can be taken."""
    yield from opened_states(go, spares=2)


@pytest.fixture(scope="module")
def small_states(go: Go) -> Iterator[EmbeddedSandbox]:
    """The same with small limits and without spares, so that its processes can be counted."""
    yield from opened_states(go, spares=0, **SMALL)

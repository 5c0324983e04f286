"""States of sessions, for tests."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from sandbox_arena import Go

import sandboxes
from agentrl.errors import IsolationError
from agentrl.types import ExecResult
from sandboxes.embedded import EmbeddedSandbox
from sandboxes.embedded.snapshot import Snapshot


async def open_namespaces(**changes: Any) -> EmbeddedSandbox:
    box: Any = await sandboxes.open("embedded", isolation="namespaces", **changes)
    if not box.capabilities.snapshots:
        await box.close()
        pytest.skip("states of sessions cannot be taken on this machine")
    return box


def opened_states(go: Go, **changes: Any) -> Iterator[EmbeddedSandbox]:
    try:
        box = go(open_namespaces(**changes))
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    yield box
    go(box.close())


async def taken(box: EmbeddedSandbox, *cells: str) -> Snapshot:
    """The state after the cells, of a session that has ended since."""
    async with box.session() as session:
        for source in cells:
            result = await session.run(textwrap.dedent(source))
            assert result.status == "ok", result
        return await session.snapshot()


async def answers(start: Snapshot, *cells: str) -> list[ExecResult]:
    async with start.session() as session:
        return [await session.run(textwrap.dedent(source)) for source in cells]

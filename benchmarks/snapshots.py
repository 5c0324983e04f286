"""What a session's state costs to have again (`python benchmarks/snapshots.py`).

`restored_ms`: from asking for a session in a state to its next cell's result, beside a fresh
session in which the cells that made the state are replayed. `taken_ms`: taking it from a session,
beside running the cells that made it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import sandboxes
from agentrl.interfaces import Session
from benchmarks import harness
from benchmarks.harness import WALL, Options, Row, alternate, rows

PACKAGES = ("agentrl",)
SPARES = 2
CHEAP = "n = n + 1 if 'n' in dir() else 1"
COMPUTE = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
PREFIXES: dict[str, tuple[str, ...]] = {
    "3 cheap cells": (CHEAP,) * 3,
    "20 cheap cells": (CHEAP,) * 20,
    "0.05 s of computing": (COMPUTE.replace("0.2", "0.05"),),
    "0.2 s of computing": (COMPUTE,),
    "20 MB made in a moment": ("kept = bytes(range(256)) * (20 << 12)",),
    "imports of the standard library": ("import asyncio, decimal, sqlite3, unittest, xml.dom",),
}


async def _cells(session: Session, cells: tuple[str, ...]) -> None:
    for source in cells:
        result = await session.run(source)
        if result.status != "ok":
            raise RuntimeError(f"a cell of ours failed: {result}")


async def _spares(box: sandboxes.EmbeddedSandbox) -> None:
    """Wait until the spares are there again."""
    while box.metrics().spares < SPARES:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def _median(
    box: sandboxes.EmbeddedSandbox, times: int, act: Callable[[], Awaitable[float]]
) -> float:
    took = []
    for _ in range(times):
        await _spares(box)
        took.append(await act())
    return sorted(took)[times // 2] * 1000


class Case:
    """One prefix in one box: a session that ran it, and its state."""

    def __init__(self, box: sandboxes.EmbeddedSandbox, cells: tuple[str, ...]) -> None:
        self.box, self.cells = box, cells
        self.session = box.session()

    async def open(self) -> None:
        """Run the prefix, and take its state."""
        await self.session.open()
        await _cells(self.session, self.cells)
        self.start = await self.session.snapshot()

    async def restored(self) -> float:
        """Seconds to the result of a cell in the state."""
        began = WALL()
        async with self.start.session() as session:
            await _cells(session, ("1",))
            return WALL() - began

    async def replayed(self) -> float:
        """The same in a session that came to the state by itself."""
        began = WALL()
        async with self.box.session() as session:
            await _cells(session, (*self.cells, "1"))
            return WALL() - began

    async def taken(self) -> float:
        """Seconds that taking the state takes."""
        began = WALL()
        await self.session.snapshot()
        return WALL() - began


def measured(options: Options) -> list[Row]:
    """Both cases for all prefixes."""
    made: list[Row] = []
    with asyncio.Runner() as runner:
        box = runner.run(_opened())
        try:
            for name, cells in PREFIXES.items():
                made += _measured(runner, Case(box, cells), name, options)
        finally:
            runner.run(box.close())
    return made


async def _opened() -> sandboxes.EmbeddedSandbox:
    box = sandboxes.EmbeddedSandbox(spares=SPARES)
    return await box.open()


def _measured(runner: asyncio.Runner, case: Case, name: str, options: Options) -> list[Row]:
    runner.run(case.open())
    times, rounds = options.scaled(15, 5), options.rounds(3)

    def side(act: Callable[[], Awaitable[float]]) -> Callable[[], float]:
        return lambda: runner.run(_median(case.box, times, act))

    sides = {
        "restored": side(case.restored),
        "replay": side(case.replayed),
        "taken": side(case.taken),
    }
    found = alternate(f"state after {name}", "ms", sides, rounds)
    runner.run(case.session.close())
    note = f"a state of {case.start.size / 1e6:.1f} MB"
    replay = {"replay": found["replay"]}
    return [
        *rows(f"{name}/restored_ms", "ms", found["restored"], replay, note=note),
        *rows(f"{name}/taken_ms", "ms", found["taken"], replay, note=note),
    ]


CASES = {"restored_ms": measured}


if __name__ == "__main__":
    sys.exit(harness.main("snapshots", CASES, PACKAGES))

"""What a session's state costs to have again (`python benchmarks/snapshots.py`).

`restored_ms`: from asking for a session in a state to its next cell's result, beside a fresh
session in which the cells that made the state are replayed. `taken_ms`: taking it from a session,
beside running the cells that made it. `search_s`: a tree search whose first call computes for a
while, its states saved, beside replayed.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import envs
import sandboxes
from agentrl.collect import collect
from agentrl.engines import ScriptedPolicy
from agentrl.interfaces import Session
from agentrl.rollouts import make
from agentrl.search import statistics
from agentrl.types import SamplingParams
from benchmarks import harness
from benchmarks.harness import WALL, Options, Row, alternate, rows

PACKAGES = ("agentrl",)
SPARES = 2
PARAMS = SamplingParams(max_tokens=4000, temperature=1.0)
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


def _player() -> ScriptedPolicy:
    """Computes for a while, then looks at what it has in several ways."""
    said = itertools.count()

    def say(text: str) -> str:
        outputs = text.rpartition("assistant")[2].count("```output")
        n = next(said)
        calls = (f"{COMPUTE}\nx = {n % 2}", f"y = x + {n % 3}; print(y)", f"print(x * {n % 5})")
        return f"```python\n{calls[outputs]}\n```\n" if outputs < len(calls) else f"It is {n % 7}."

    return ScriptedPolicy(say)


def searched(options: Options) -> list[Row]:
    """Seconds of one search."""
    ran: dict[str, str] = {}
    env = envs.make("arithmetic", split="train", seed=0)
    search = {"unit": "call", "tools": "blocks", "step_tokens": 400, "outcome": True, "judge": None}
    more = {"iterations": 4, "b1": 3, "b2": 3}
    with asyncio.Runner() as runner:
        box = runner.run(_opened())

        def side(restore: str) -> float:
            rollout = make("mcts", **search, **more, restore=restore)
            began = WALL()
            grown = collect(
                env, rollout, _player(), params=PARAMS, box=box, n=1, retries=0, progress=False
            )
            found = statistics(runner.run(grown))
            took = WALL() - began
            cost = (
                f"{found['calls']} calls, {found['replayed']} replayed, {found['forked']} restored"
            )
            ran[restore] = f"{restore}: {cost}"
            return took

        sides = {restore: partial(side, restore) for restore in ("auto", "fork", "replay")}
        found = alternate("a search", "s", sides, options.rounds(3))
        runner.run(box.close())
    note = "; ".join(ran.values())
    replay = {"replay": found["replay"]}
    return [
        *rows("auto/search_s", "s", found["auto"], replay, note=note),
        *rows("fork/search_s", "s", found["fork"], replay, note=note),
    ]


CASES = {"restored_ms": measured, "search_s": searched}


if __name__ == "__main__":
    sys.exit(harness.main("snapshots", CASES, PACKAGES))

# ruff: noqa: E501
"""Restored sessions under abuse and at their limits, and what is left of them: nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from abuse_cells import CELLS, cell
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_arena import Arena, Go, descriptors, groups, processes, settled
from snapshot_states import answers, taken

from sandboxes.embedded import EmbeddedSandbox, process
from sandboxes.embedded.memory import Area
from sandboxes.embedded.snapshot import Snapshot


class Restoring:
    """A box whose sessions begin in a state."""

    def __init__(self, start: Snapshot, capabilities: Any) -> None:
        self.session = start.session
        self.capabilities = capabilities


ABUSES = [name for name in CELLS if name[0] in "DE" or name[:3] in ("A01", "A04", "A08", "A12", "B08", "B09", "C02", "C09", "C21")]  # fmt: skip


@pytest.fixture(scope="module")
def restored(go: Go, small_states: EmbeddedSandbox) -> Arena:
    start = go(
        taken(
            small_states,
            "import os, sys, ctypes; kept = list(range(1000))",
            "open('/tmp/f', 'w').write('x')",
        )
    )
    measures = (lambda: processes(small_states), descriptors, lambda: groups(small_states))
    return go(Arena(Restoring(start, small_states.capabilities), *measures).open())


@pytest.mark.parametrize("name", ABUSES)
def test_abuse_in_a_restored_session(go: Go, restored: Arena, name: str) -> None:
    source, statuses, kept = cell(name, "namespaces")
    wall = 0.4 if statuses == ("timeout",) else None
    result = go(
        restored.attack(lambda s: s.run(textwrap.dedent(source), timeout=wall), statuses, kept)
    )
    assert "FORGED" not in (result.value or "")


def test_nothing_is_left_after_many(go: Go, small_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(small_states, "x = 1")
        before = (processes(small_states), descriptors(), groups(small_states), mounts())
        for _ in range(40):
            found = await asyncio.gather(*(answers(start, "x += 1; x") for _ in range(5)))
            assert [[r.value for r in one] for one in found] == [["2"]] * 5
        assert await settled(lambda: processes(small_states), before[0]) <= before[0]
        assert (descriptors(), groups(small_states), mounts()) == before[1:]
        assert not [t for t in os.listdir("/proc/self/task") if tracer(int(t))]

    go(work())


def mounts() -> int:
    return Path("/proc/self/mountinfo").read_text().count("\n")


def tracer(task: int) -> bool:
    """Whether a thread of this process traces anything: they end with what they do."""
    return "tracer" in Path(f"/proc/self/task/{task}/comm").read_text()


def test_the_cpu_time_of_the_state_counts(go: Go, wide_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(
            wide_states,
            "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass",
        )
        assert start.spent_s > 0.25
        async with start.session() as session:
            assert session._handle.spent_s() >= start.spent_s
        async with (await taken(wide_states, "x = 1")).session() as session:
            assert session._handle.spent_s() < 0.25

    go(work())


def test_limits_hold_in_a_restored_session(go: Go, small_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(small_states, "open('f', 'wb').write(bytes(3 << 20))")
        cells = ("bytearray(3 << 30)", "open('g', 'wb').write(bytes(2 << 20))", "while True: pass")
        memory, disk, wall = await answers(start, *cells)
        assert memory.error is not None
        assert memory.error.name == "MemoryError"
        assert disk.error is not None
        assert disk.error.name == "OSError"
        assert wall.status == "timeout"

    go(work())


def test_reset_gives_a_fresh_session(go: Go, wide_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(wide_states, "x = 1; open('f', 'w').close()")
        async with start.session() as session:
            await session.reset()
            result = await session.run("import os; 'x' in globals(), os.listdir()")
            assert result.value == "(False, [])"

    go(work())


def test_programs_and_commands_in_a_restored_session(go: Go, wide_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(
            wide_states, "open('p.py', 'w').write('import sys; print(sys.argv[1], input())')"
        )
        async with start.session() as session:
            assert (await session.exec(["cat", "p.py"])).stdout.startswith("import sys")
            await session.write_file("q", b"1")
            assert await session.read_file("q") == b"1"
            assert (await session.program("p.py", ["a"], stdin=b"b")).stdout == "a b\n"

    go(work())


def test_a_cancelled_snapshot_and_restore_leave_nothing(
    go: Go, small_states: EmbeddedSandbox
) -> None:
    async def work() -> None:
        start = await taken(small_states, "x = bytes(range(256)) * (4 << 12)")
        before = (processes(small_states), descriptors())
        for delay in (0.0, 0.002, 0.01, 0.02):
            session = start.session()
            opening = asyncio.ensure_future(session.open())
            await asyncio.sleep(delay)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await session.close()
            async with start.session() as other:
                taking = asyncio.ensure_future(other.snapshot())
                await asyncio.sleep(delay)
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)
        assert await settled(lambda: processes(small_states), before[0]) <= before[0]
        assert await settled(descriptors, before[1]) <= before[1]

    go(work())


HOST = """
import asyncio, sandboxes
async def main():
    box = await sandboxes.open("embedded", spares=1, isolation="namespaces")
    session = await box.session().open()
    await session.run("x = bytes(range(256)) * (8 << 12)")
    print(box._supply.zygotes[box.profile]._process.pid, flush=True)
    async def restore():
        while True:
            async with (await session.snapshot()).session() as other:
                await other.run("1")
    await asyncio.gather(*(restore() for _ in range(3)))
asyncio.run(main())
"""


def test_a_host_killed_halfway_leaves_nothing(wide_states: EmbeddedSandbox) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    jail = psutil.Process(int(host.stdout.readline()))
    time.sleep(0.3)
    jailed = [jail, *jail.children(recursive=True)]
    host.kill()
    host.wait(10)
    host.stdout.close()
    _, alive = psutil.wait_procs(jailed, timeout=5)
    assert not alive


AREAS = st.lists(
    st.tuples(
        st.integers(0, 40), st.integers(1, 8), st.sampled_from(["r--p", "rw-p", "r-xp"]),
        st.sampled_from(["", "", "1:2 /a", "1:3 /b"]), st.integers(0, 3),
    ),
    max_size=8,
)  # fmt: skip


def areas(found: list[tuple[int, int, str, str, int]]) -> tuple[Area, ...]:
    """Areas that do not overlap."""
    made: list[Area] = []
    for start, size, mode, file, offset in sorted(found):
        begin = max(start, made[-1].end if made else 0)
        made.append(Area(begin, begin + size, mode, file, offset if file else 0))
    return tuple(made)


@given(AREAS, AREAS)
@settings(max_examples=150, deadline=None)
def test_changes_turn_one_layout_into_another(old: Any, new: Any) -> None:
    """Done page by page, they leave what is wanted at every address, and nothing else."""
    one, two = areas(old), areas(new)

    def pages(found: tuple[Area, ...]) -> dict[int, Area]:
        return {n: area.cut(n, n + 1) for area in found for n in range(area.start, area.end)}

    now = pages(one)
    for start, end, before, after in process._changes(one, two):
        for n in range(start, end):
            assert now.get(n) == (before.cut(n, n + 1) if before else None)
            now.pop(n, None)
            if after is not None:
                now[n] = after.cut(n, n + 1)
    assert now == pages(two)

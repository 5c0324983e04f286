"""Turns, spares, the breaker, and what a box does with them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest
from sandbox_arena import Go, open_box, settled

import sandboxes
from agentrl.errors import ConfigError, SandboxError, SessionDead
from sandboxes import pool
from sandboxes.metrics import Clock, Timing
from sandboxes.pool import Breaker, Gate, QueueFull, Spares


def test_turns_are_first_come_first_served(go: Go) -> None:
    async def play() -> tuple[list[int], int, int]:
        gate = Gate(2, 100, Clock())
        order: list[int] = []
        most = 0

        async def work(number: int) -> None:
            nonlocal most
            async with gate.turn():
                order.append(number)
                most = max(most, gate.running)
                await asyncio.sleep(0)

        await asyncio.gather(*(work(n) for n in range(20)))
        return order, most, gate.running

    assert go(play()) == (list(range(20)), 2, 0)


def test_a_newcomer_does_not_overtake_the_line(go: Go) -> None:
    async def play() -> list[str]:
        gate, order = Gate(1, 10, Clock()), []

        async def work(name: str) -> None:
            async with gate.turn():
                order.append(name)

        async with gate.turn():
            waiting = asyncio.ensure_future(work("first"))
            await asyncio.sleep(0)
        await work("second")  # the turn was given on, not freed
        await waiting
        return order

    assert go(play()) == ["first", "second"]


def test_a_full_line_is_refused(go: Go) -> None:
    async def play() -> int:
        gate = Gate(1, 1, Clock())
        async with gate.turn():
            waiting = asyncio.ensure_future(_once(gate))
            await asyncio.sleep(0)
            with pytest.raises(QueueFull, match="1 run and 1 wait"):
                await _once(gate)
        await waiting
        return gate.running + gate.queued

    assert go(play()) == 0


async def _once(gate: Gate) -> None:
    async with gate.turn():
        pass


@pytest.mark.parametrize("given", [False, True])
def test_a_cancelled_waiter_loses_no_turn(go: Go, given: bool) -> None:
    async def play() -> tuple[int, int]:
        gate = Gate(1, 10, Clock())
        async with gate.turn():
            waiting = asyncio.ensure_future(_once(gate))
            await asyncio.sleep(0)
            if not given:
                waiting.cancel()
                await asyncio.sleep(0)
        waiting.cancel()  # when `given`, it has the turn, but has not run yet
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(_once(gate), 1)
        return gate.running, gate.queued

    assert go(play()) == (0, 0)


def test_what_cannot_be_is_refused() -> None:
    for options in ({"max_running": 0}, {"queue": -1}, {"ttl_s": 0}, {"recycle": 0}):
        with pytest.raises(ConfigError):
            sandboxes.open("embedded", **options)


def test_breaker_opens_cools_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(pool.time, "monotonic", lambda: now)
    breaker = Breaker("starting")
    attempts = 0

    def attempt(error: Exception | None) -> None:
        nonlocal attempts
        with breaker.watch():
            attempts += 1
            if error:
                raise error

    for _ in range(5):
        with pytest.raises(SandboxError, match="no memory"):
            attempt(SandboxError("no memory"))
    with pytest.raises(SandboxError, match=r"starting failed 5 times .* no memory.* in 5\.0 s"):
        attempt(None)
    assert attempts == 5
    now += 5.1
    with pytest.raises(SandboxError, match="again"):
        attempt(SandboxError("again"))  # the one trial
    with pytest.raises(SandboxError, match="failed 6 times"):
        attempt(None)
    assert attempts == 6
    now += 5.1
    attempt(None)
    attempt(None)
    assert attempts == 8


class Thing:
    def __init__(self) -> None:
        self.dead: str | None = None
        self.closed = False

    async def close(self) -> None:
        self.closed = True


def test_spares_are_made_ahead_and_given_once(go: Go) -> None:
    async def play() -> None:
        made: list[Thing] = []

        async def make() -> Thing:
            made.append(Thing())
            return made[-1]

        spares = Spares(2, make)
        assert await spares.take() is None
        await asyncio.sleep(0.01)
        assert len(spares) == 2
        made[0].dead = "killed"
        taken = await spares.take()
        assert taken is made[1]
        assert made[0].closed
        await asyncio.sleep(0)
        assert len(made) == 2  # the one that was taken has the processor first
        await asyncio.sleep(0.01)
        assert len(spares) == 2
        assert await spares.take() not in made[:2]
        await spares.close()
        assert [t.closed for t in made[2:]].count(False) == 1  # the one that was taken

    go(play())


def test_clock_counts() -> None:
    clock = Clock()
    assert clock.read() == Timing(0, 0.0, 0.0, 0.0, 0.0)
    for n in range(1, 102):
        clock.add(float(n))
    assert clock.read() == Timing(101, 51.0, 101.0, 51.0, 100.0)
    with pytest.raises(KeyError), clock.measure():
        raise KeyError
    assert clock.read().count == 101


def test_time_limits_do_not_run_while_queued(go: Go) -> None:
    """B15: many requests at once, all within their limits, but not all at once."""

    async def play() -> tuple[set[str], float, Any]:
        async with await open_box(max_running=2, wall_s=0.8) as box:
            programs = (box.run("import time; time.sleep(0.2)") for _ in range(16))
            results = await asyncio.gather(*programs)
            return {r.status for r in results}, max(r.duration for r in results), box.metrics()

    statuses, longest, metrics = go(play())
    assert statuses == {"ok"}
    assert longest < 0.8
    assert metrics.wait.count == 16
    assert metrics.wait.max > 0.8
    assert metrics.statuses == {"ok": 16}
    assert (metrics.running, metrics.queued, metrics.live) == (0, 0, 0)


def test_sessions_held_while_others_execute_do_not_deadlock(go: Go) -> None:
    """A rollout that holds one session and runs code in a second, with a single turn."""

    async def play() -> list[str | None]:
        async with await open_box(max_running=1) as box:

            async def rollout(n: int) -> str | None:
                async with box.session() as one, box.session() as two:
                    x = await one.run(f"{n} * 2")
                    return (await two.run(f"{x.value} + 1")).value

            return await asyncio.wait_for(asyncio.gather(*map(rollout, range(6))), 30)

    assert go(play()) == [str(2 * n + 1) for n in range(6)]


def test_a_full_queue_is_infra(go: Go) -> None:
    async def play() -> tuple[Any, Any, Any]:
        async with await open_box(max_running=1, queue=0) as box, box.session() as session:
            cell = asyncio.ensure_future(session.run("import time; time.sleep(0.3)"))
            await asyncio.sleep(0.1)
            program = await box.run("1")
            async with box.session() as other:
                refused = await other.run("1")
                await cell
                accepted = await other.run("1")
            assert box.metrics().statuses == {"infra": 2, "ok": 2}
            return program, refused, accepted

    program, refused, accepted = go(play())
    assert (program.status, refused.status, accepted.status) == ("infra", "infra", "ok")
    assert "queue of executions is full" in refused.detail


def test_closing_a_session_while_its_call_waits(go: Go) -> None:
    async def play() -> None:
        async with await open_box(max_running=1) as box, box.session() as busy:
            cell = asyncio.ensure_future(busy.run("import time; time.sleep(0.3)"))
            session = await box.session().open()
            waiting = asyncio.ensure_future(session.run("1"))
            await asyncio.sleep(0.05)
            await asyncio.wait_for(session.close(), 1)
            assert (await cell).status == "ok"
            with pytest.raises(SessionDead, match="closed"):
                await waiting

    go(play())


def test_idle_sessions_are_reaped(go: Go) -> None:
    """D22: opened, abandoned, still referenced."""

    async def play() -> None:
        async with await open_box(ttl_s=0.3) as box:
            idle = await box.session().open()
            used = await box.session().open()
            cell = asyncio.ensure_future(used.run("import time; time.sleep(0.7)"))
            assert await asyncio.wait_for(_until(lambda: box.metrics().reaped == 1), 5)
            with pytest.raises(SessionDead, match="nobody used it"):
                await idle.run("1")
            assert (await cell).status == "ok"
            await idle.reset()
            assert (await idle.run("1 + 1")).value == "2"
            await idle.close()
            await used.close()

    go(play())


async def _until(condition: Callable[[], bool]) -> bool:
    while not condition():
        await asyncio.sleep(0.02)
    return True


def test_forgotten_sessions_are_killed(go: Go) -> None:
    async def play() -> int:
        async with await open_box() as box:
            for _ in range(10):
                session = await box.session().open()
                await session.run("1")
            del session
            gc.collect()
            return await settled(lambda: box.metrics().live, 0)

    assert go(play()) == 0


def test_zygotes_are_recycled(go: Go) -> None:
    async def play() -> None:
        async with await open_box(recycle=3) as box:
            supply = box._supply
            assert supply is not None
            first = supply.zygotes[box.profile]
            old = await box.session().open()  # the second, after the box's trial
            await old.run("x = 5")
            for _ in range(4):
                async with box.session() as session:
                    assert (await session.run("1 + 1")).value == "2"
            assert first not in supply.zygotes.values()
            assert first.dead is None
            assert (await old.run("x")).value == "5"
            await old.close()
            assert await asyncio.wait_for(_until(lambda: first.dead is not None), 5)
            assert box.metrics().recycled == 2

    go(play())


def test_a_zygote_that_grew_is_replaced(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with await open_box() as box:
            supply = box._supply
            assert supply is not None
            zygote = supply.zygotes[box.profile]
            assert 5 < zygote.first_mb < 200
            zygote.made, zygote.first_mb = 100, zygote.first_mb - 300
            async with box.session():
                assert box.metrics().recycled == 1
            assert box.profile not in supply.zygotes

    go(play())


def test_spares_are_warm_and_counted(go: Go) -> None:
    async def play() -> None:
        async with await open_box(spares=2) as box:
            assert await asyncio.wait_for(_until(lambda: box.metrics().spares == 2), 5)
            async with box.session() as session:
                assert (await session.run("'x' in dir(), __name__")).value == "(False, '__main__')"
                assert box.metrics().live == 1

    go(play())


def test_failing_starts_fail_fast(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with await open_box() as box:

            async def refuse(*_: Any, **__: Any) -> None:
                raise SandboxError("no more processes")

            monkeypatch.setattr("sandboxes.embedded.supply.Handle.open", refuse)
            for _ in range(5):
                with pytest.raises(SandboxError, match="no more processes"):
                    await box.session().open()
            with pytest.raises(SandboxError, match="failed 5 times in a row"):
                await box.session().open()
            assert box.metrics().failed_spawns == 6

    go(play())


BURN = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"
CHILDREN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits: their time is in no parent's sum
for _ in range(2):
    if os.fork() == 0:
        end = time.process_time() + 0.15
        while time.process_time() < end: pass
        os._exit(0)
time.sleep(0.4)
"""


@pytest.mark.parametrize("cell", [BURN.format(0.3), CHILDREN], ids=["interpreter", "children"])
def test_the_cpu_budget_is_for_all_calls_together(go: Go, cell: str) -> None:
    """B14: work split over many cells, each far below the limits of one."""

    async def play() -> tuple[list[str], str]:
        async with await open_box(cpu_s=1, wall_s=5) as box, box.session() as session:
            if cell is CHILDREN and not box.capabilities.cgroup:
                pytest.skip("without control groups, time that nobody waited for is not counted")
            statuses: list[str] = []
            while "timeout" not in statuses and len(statuses) < 20:
                result = await session.run(cell)
                statuses.append(result.status)
            assert "s of CPU" in result.detail
            with pytest.raises(SessionDead, match="s of CPU"):
                await session.run("1")
            return statuses, result.status

    statuses, last = go(play())
    assert last == "timeout"
    assert set(statuses[:-1]) == {"ok"}
    assert 3 <= len(statuses) <= 12


def test_a_command_counts_into_the_budget(go: Go) -> None:
    async def play() -> tuple[str, str]:
        async with await open_box(cpu_s=1, wall_s=20) as box, box.session() as session:
            await session.exec(["sh", "-c", "(while :; do :; done) & (while :; do :; done) & exit"])
            result = await session.run("import time; time.sleep(10)")
            return result.status, result.detail

    status, detail = go(play())
    assert status == "timeout"
    assert "of 1 for all its calls" in detail

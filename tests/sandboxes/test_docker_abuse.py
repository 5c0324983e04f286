"""The hostile code of `test_abuse` in Docker containers: every test of it, and the games with the
kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import test_abuse
import test_abuse_kernel
from abuse_cells import CELLS, UID
from docker_daemon import IMAGE, daemon
from sandbox_arena import SMALL, Arena, Go, descriptors

import sandboxes
from sandboxes.docker import owner
from sandboxes.docker.engine import Engine

GAMES = {
    name: getattr(test_abuse_kernel, name)
    for name in ("test_kernel_game", "test_sources_that_bite_the_compiler")
}
IN_THE_HOST = {"test_descriptors_sent_to_the_host"}  # it changes what the host's process does
globals().update(
    {
        name: test
        for name, test in {**vars(test_abuse), **GAMES}.items()
        if name.startswith("test_") and name not in IN_THE_HOST
    }
)


@pytest.fixture(scope="module")
def engine(go: Go) -> Iterator[Engine]:
    pytest.importorskip("docker")
    with daemon():
        engine = go(Engine.connect())
        yield engine
        go(engine.close())


def fight(go: Go, engine: Engine, inner: str) -> Iterator[Arena]:
    """An arena in a container whose sessions are kept apart as `inner` says."""
    opening = sandboxes.open("docker", image=IMAGE, inner=inner, spares=0, **SMALL)
    box: Any = go(opening.__aenter__())
    assert box.capabilities.isolation == f"container/{inner}"
    (container,) = box._fleet._ready

    def processes() -> int:
        return len(engine.api.top(container.name)["Processes"])

    def containers() -> int:
        return len(engine.api.containers(all=True, filters={"label": f"{owner.LABEL}=1"}))

    arena = go(Arena(box, processes, descriptors, containers).open())
    arena.counts()  # the client keeps connections once it has made them
    yield arena
    before = containers()
    go(box.close())
    assert containers() == before - 1


@pytest.fixture(scope="module")
def arena(go: Go, engine: Engine) -> Iterator[Arena]:
    yield from fight(go, engine, "namespaces")


@pytest.fixture(scope="module")
def arena_of_users(go: Go, engine: Engine) -> Iterator[Arena]:
    yield from fight(go, engine, "uid")


@pytest.mark.parametrize("name", [n for n in dict.fromkeys([*CELLS, *UID]) if n[0] in "ADE"])
def test_cell_between_users(go: Go, arena_of_users: Arena, name: str) -> None:
    """Resources, reach and forging; the other families do not depend on the container."""
    test_abuse.test_cell(go, arena_of_users, name)

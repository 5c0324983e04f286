"""The hostile code of `test_abuse` in Docker containers: every test of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import test_abuse
from docker_daemon import IMAGE, daemon
from sandbox_arena import SMALL, Arena, Go, descriptors

import sandboxes
from sandboxes.docker import owner
from sandboxes.docker.engine import Engine

FAMILIES = ("-A", "-D", "-E")
IN_THE_HOST = {"test_descriptors_sent_to_the_host"}  # it changes what the host's process does
globals().update(
    {
        name: test
        for name, test in vars(test_abuse).items()
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


@pytest.fixture(scope="module", params=["namespaces", "uid"])
def tier(request: pytest.FixtureRequest) -> str:
    """What keeps the sessions of a container apart."""
    return str(request.param)


@pytest.fixture(autouse=True)
def _less_for_users(request: pytest.FixtureRequest, tier: str) -> None:
    """Of tier uid what a container may change: resources, reach and forging."""
    name = request.node.name
    if tier == "uid" and not (name.startswith("test_cell") and any(f in name for f in FAMILIES)):
        pytest.skip("played with namespaces, and without a container")


@pytest.fixture(scope="module")
def arena(go: Go, engine: Engine, tier: str) -> Iterator[Arena]:
    opening = sandboxes.open("docker", image=IMAGE, inner=tier, spares=0, **SMALL)
    box: Any = go(opening.__aenter__())
    assert box.capabilities.isolation == f"container/{tier}"
    (container,) = box._fleet._ready

    def processes() -> int:
        return len(engine.api.top(container.name)["Processes"])

    def containers() -> int:
        return len(engine.api.containers(all=True, filters={"label": f"{owner.LABEL}=1"}))

    arena = go(Arena(box, processes, descriptors, containers).open())
    arena.counts()  # the client keeps connections once it has made them
    yield arena
    go(box.close())
    assert containers() == 0

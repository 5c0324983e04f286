"""The hostile code of `test_abuse` in Docker containers: every test of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import test_abuse
from docker_daemon import IMAGE, daemon
from sandbox_arena import SMALL, Arena, Go, descriptors

import sandboxes
from sandboxes.docker import owner

IN_THE_HOST = {"test_descriptors_sent_to_the_host"}  # it changes what the host's process does
globals().update(
    {
        name: test
        for name, test in vars(test_abuse).items()
        if name.startswith("test_") and name not in IN_THE_HOST
    }
)


@pytest.fixture(scope="module")
def arena(go: Go) -> Iterator[Arena]:
    pytest.importorskip("docker")
    with daemon():
        box = go(sandboxes.open("docker", image=IMAGE, spares=0, **SMALL).__aenter__())
        (container,) = box._fleet._ready
        api = box._fleet._engine.api

        def processes() -> int:
            return len(api.top(container.name)["Processes"])

        def containers() -> int:
            return len(api.containers(all=True, filters={"label": f"{owner.LABEL}=1"}))

        yield go(Arena(box, processes, descriptors, containers).open())
        go(box.close())

"""The hostile code of `test_abuse`, through a server: every test of it, in a remote sandbox."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import test_abuse
from remote_servers import client, serving
from sandbox_arena import SMALL, Arena, Go

from sandboxes.embedded import cgroups

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
    place, _ = cgroups.detect()

    with serving() as server:
        prefix = f"agentrl-{server.process.pid}-"

        def groups() -> int:
            """Control groups of the server's sessions."""
            if place is None:
                return 0
            families = [e.path for e in os.scandir(place.path) if e.name.startswith(prefix)]
            return sum(entry.is_dir() for family in families for entry in os.scandir(family))

        box = go(client(server, **SMALL).open())
        yield go(Arena(box, server.processes, server.descriptors, groups).open())
        go(box.close())
        assert server.health()["sessions"] == 0

"""The hostile code of `test_abuse`, through a server.

What keeps sessions apart there is the embedded sandbox's own, which is tested where it is: here are
the cells that have to do with what travels, and with how sessions end.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import test_abuse
from abuse_cells import CELLS
from remote_servers import client, serving
from sandbox_arena import SMALL, Arena, Go

from sandboxes.embedded import cgroups

THROUGH = (
    "A04",
    "A15",
    "A16",
    "A17",
    "B01",
    "B03",
    "B06",
    "B10",
    "C01",
    "C02",
    "C15",
    "D18",
    "E01",
)
# The first is played here with fewer cells, the last changes what the host's process does.
NOT_HERE = {"test_cell", "test_other_ways", "test_descriptors_sent_to_the_host"}
globals().update(
    {
        name: test
        for name, test in vars(test_abuse).items()
        if name.startswith("test_") and name not in NOT_HERE
    }
)


@pytest.mark.parametrize("name", [name for name in CELLS if name.startswith(THROUGH)])
def test_cell_through_a_server(go: Go, arena: Arena, name: str) -> None:
    test_abuse.test_cell(go, arena, name)


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

"""What the peers of the sandbox benchmark have in common: the program, and ways to run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

PROGRAM = "total = sum(range(100))\nprint(total)"
PRINTED = "4950"

Run = Callable[[str], str]
"""Runs a program; what it printed."""
Start = Callable[[str], contextlib.AbstractContextManager[str]]
"""Starts a session and runs a program in it: what it printed, with the session still there."""


class Absent(Exception):
    """A peer cannot be measured here; its text is why."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer that is ready to be measured.

    `cold` starts everything that a session needs, `warm` takes what the peer keeps ready (as `cold`
    if it keeps nothing), `cell` runs one more program: in the session that is there, or, of a peer
    without sessions, in the next process. `at_once`: how many sessions it can start together.
    """

    cold: Start
    cell: Run
    warm: Start
    at_once: int = 8


def one_shot(run: Run) -> Peer:
    """A peer for which a program is a process that ends with it."""

    def start(program: str) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(run(program))

    return Peer(cold=start, cell=run, warm=start)

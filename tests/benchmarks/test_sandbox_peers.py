"""The sandbox benchmark: peers are measured on the same program, or named with the reason."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import pytest

from benchmarks import peer_jails, sandbox
from benchmarks.harness import Options, markdown
from benchmarks.peers import PRINTED, PROGRAM, Absent, Peer, one_shot


class Boxes:
    """A stage with one of our sandboxes and one peer; another is absent."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner = runner
        self.absent = {"jupyter kernel": "ipykernel is not installed"}


async def half() -> float:
    return 0.5


def test_peers_that_are_absent_have_rows_with_the_reason():
    name = peer_jails.BUBBLEWRAP
    with asyncio.Runner() as runner:
        made = sandbox.compare(
            Boxes(runner),  # type: ignore[arg-type]
            "cell_ms",
            "ms",
            {"embedded": half},
            {name: lambda: 5.0},
            Options(quick=True),
            goals={"embedded": 0.3},
        )
    measured, absent = made
    assert (measured.case, measured.peer_name, measured.ratio) == ("embedded/cell_ms", name, 10.0)
    assert (measured.goal, measured.met) == (0.3, False)
    assert (absent.peer_name, absent.peer, absent.ratio) == ("jupyter kernel", None, None)
    assert "not measured: ipykernel is not installed" in markdown(made, [], "x")
    assert set(sandbox.PEERS) >= {name, "jupyter kernel"}


def test_a_wrong_answer_is_no_measurement():
    make = partial(sandbox.Clock, 3, 1.0)
    assert sandbox.peer_cells(lambda program: PRINTED + "\n", make) >= 0
    with pytest.raises(RuntimeError, match="printed 'no'"):
        sandbox.peer_cells(lambda program: "no", make)
    with pytest.raises(RuntimeError, match="printed"):
        sandbox.peer_rate(one_shot(lambda program: ""), 0.01)


def test_only_the_first_result_is_timed_and_sessions_end():
    ended = []

    @contextlib.contextmanager
    def start(program: str):
        yield PRINTED
        ended.append(program)

    peer = Peer(cold=start, cell=lambda p: PRINTED, warm=start, at_once=2)
    sandbox.peer_sessions(peer.cold, partial(sandbox.Clock, 3, 1.0))
    assert ended == [PROGRAM] * 3
    assert sandbox.peer_rate(peer, 0.0) > 0
    assert len(ended) == 5


def test_bubblewrap_runs_the_program():
    try:
        with peer_jails.bubblewrap() as peer, peer.cold(PROGRAM) as printed:
            sandbox.check(printed)
    except Absent as error:
        pytest.skip(str(error))

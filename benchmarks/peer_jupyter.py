"""Jupyter: an ipykernel for each session, by jupyter_client."""

from __future__ import annotations

import contextlib
import importlib.util
import subprocess
from collections.abc import Iterator
from typing import Any

from benchmarks.peers import Absent, Peer

NAME = "jupyter kernel"
NOTE = "a process of this user for each session, without any isolation or limit; state is kept"
_WAIT_S = 60.0


@contextlib.contextmanager
def peer() -> Iterator[Peer]:
    """A kernel for each session; one that is kept, for cells."""
    for module in ("jupyter_client", "ipykernel"):
        if importlib.util.find_spec(module) is None:
            raise Absent(f"{module} is not installed")
    from jupyter_client.manager import start_new_kernel

    @contextlib.contextmanager
    def started() -> Iterator[Any]:
        manager, kernel = start_new_kernel(
            startup_timeout=_WAIT_S, kernel_name="python3", stderr=subprocess.DEVNULL
        )
        try:
            yield kernel
        finally:
            kernel.stop_channels()
            manager.shutdown_kernel(now=True)

    def run(kernel: Any, program: str) -> str:
        said: list[str] = []

        def heard(message: Any) -> None:
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])

        kernel.execute_interactive(program, output_hook=heard, timeout=_WAIT_S)
        return "".join(said)

    @contextlib.contextmanager
    def cold(program: str) -> Iterator[str]:
        with started() as kernel:
            yield run(kernel, program)

    with started() as kept:
        yield Peer(cold=cold, cell=lambda p: run(kept, p), warm=cold, at_once=2)

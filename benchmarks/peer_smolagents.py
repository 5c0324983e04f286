"""smolagents: its interpreter in this process, and its Docker executor."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import socket
from collections.abc import Iterator
from typing import Any

from benchmarks.peer_docker import IMAGE, client
from benchmarks.peers import Absent, Peer

LOCAL, DOCKER = "smolagents, local", "smolagents, Docker"
NOTES = {
    LOCAL: (
        "an interpreter of Python's syntax tree in this process, which its makers call no security "
        "boundary: no process, no limits but on operations; state is kept"
    ),
    DOCKER: (
        "a Jupyter kernel in a container for each session, state is kept; the host's network, as "
        "nothing here publishes ports (its own way is a published port)"
    ),
}


class _Unpublished(dict[str, Any]):
    """Ports for a container that has the host's network: none, whatever the executor sets."""

    def __setitem__(self, key: str, value: Any) -> None:
        pass


def _require() -> None:
    if importlib.util.find_spec("smolagents") is None:
        raise Absent("smolagents is not installed")


@contextlib.contextmanager
def local() -> Iterator[Peer]:
    """A new executor is a new session."""
    _require()
    from smolagents.local_python_executor import LocalPythonExecutor

    def executor() -> Any:
        made = LocalPythonExecutor([])
        made.send_tools({})
        return made

    def start(program: str) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(str(executor()(program).logs))

    kept = executor()
    yield Peer(cold=start, cell=lambda p: str(kept(p).logs), warm=start)


@contextlib.contextmanager
def docker() -> Iterator[Peer]:
    """A container for each executor."""
    _require()
    for module in ("websocket", "kernel_gateway"):
        if importlib.util.find_spec(module) is None:
            raise Absent(f"smolagents' Docker executor needs {module}, which is not installed")
    client().close()
    from smolagents.monitoring import AgentLogger, LogLevel
    from smolagents.remote_executors import DockerExecutor

    logging.getLogger("websocket").setLevel(logging.ERROR)

    @contextlib.contextmanager
    def made() -> Iterator[Any]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        gateway = ["python3", "-m", "kernel_gateway", f"--KernelGatewayApp.port={port}"]
        container = {"command": gateway, "network_mode": "host", "ports": _Unpublished()}
        executor = DockerExecutor(
            [],
            AgentLogger(LogLevel.OFF),
            port=port,
            image_name=IMAGE,
            build_new_image=False,
            container_run_kwargs=container,
        )
        try:
            yield executor
        finally:
            executor.container.remove(force=True)  # its own way to stop it takes ten seconds

    @contextlib.contextmanager
    def cold(program: str) -> Iterator[str]:
        with made() as executor:
            yield str(executor(program).logs)

    with made() as kept:
        yield Peer(cold=cold, cell=lambda p: str(kept(p).logs), warm=cold, at_once=2)

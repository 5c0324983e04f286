"""Servers for tests, each a process of its own on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import psutil
import pytest

import sandboxes
from sandboxes.remote import RemoteSandbox

TOKEN = "a-token-for-tests-only"


class Serving:
    """A running `agentrl sandbox serve`."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.port = int(url.rpartition(":")[2])

    def kill(self) -> None:
        """As if the machine had failed: nothing is tidied up."""
        self.process.kill()
        self.process.wait()

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        """One request by a plain HTTP client: the status, and the JSON or text of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}", **headers})
            answer = connection.getresponse()
            data = answer.read()
            typed = answer.headers.get_content_type() == "application/json"
            return answer.status, json.loads(data) if typed else data.decode("latin-1")

    def health(self) -> dict[str, Any]:
        return self.ask("GET", "/health")[1]

    def processes(self) -> int:
        return len(psutil.Process(self.process.pid).children(recursive=True))

    def rests(self) -> bool:
        """Whether it has its spare sessions, and no others."""
        lines = self.ask("GET", "/metrics")[1].splitlines()
        numbers = dict(line.rsplit(" ", 1) for line in lines)
        return [numbers[f"agentrl_sandbox_box_{n}"] for n in ("spares", "live")] == ["2", "0"]

    def descriptors(self) -> int:
        """All but the connections of clients."""
        process = psutil.Process(self.process.pid)
        connections = process.net_connections(kind="tcp")
        return process.num_fds() - sum(c.status != psutil.CONN_LISTEN for c in connections)


@contextlib.contextmanager
def serving(*options: str, token: str = TOKEN, port: int = 0) -> Iterator[Serving]:
    """A server that ends with the block: tidily, and with all its processes."""
    command = [sys.executable, "-m", "agentrl", "sandbox", "serve", "--port", str(port), *options]
    env = {**os.environ, "AGENTRL_SANDBOX_TOKEN": token}
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=env
        ) as process,
    ):
        try:
            assert process.stdout
            line = process.stdout.readline()
            if not line:
                error = _text(log)
                assert "isolat" in error, error
                pytest.skip(f"no isolation on this machine: {error}")
            started = Serving(process, line.split()[-1])
            below = psutil.Process(process.pid).children(recursive=True)
            yield started
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                assert process.wait(20) == 0
                said = process.stdout.read() + _text(log)
                assert not said, said[:3000]
            assert not psutil.wait_procs(below, timeout=5)[1]
        finally:
            process.kill()


def _text(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


def client(*servers: Serving, token: str = TOKEN, **options: Any) -> RemoteSandbox:
    """A sandbox on these servers, not yet open, that is quick to give up."""
    urls = [server.url for server in servers]
    opening = sandboxes.open("remote", urls=urls, token=token, **{"wait_s": 5, **options})
    box = opening._box
    assert isinstance(box, RemoteSandbox)
    return box


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for what must become true."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < end, "it did not become true"
        await asyncio.sleep(0.02)

"""An engine in a process of its own, and the client that talks to one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.engines.vllm import PYTHON
from agentrl.engines.vllm.thread import LoopThread
from agentrl.errors import ConfigError, EngineError, missing_extra

try:
    import aiohttp
except ImportError as error:
    raise missing_extra("aiohttp", "remote") from error

PROGRAM = Path(__file__).parent / "inside" / "vllm_server.py"
LOCAL = ("127.0.0.1", "::1", "localhost")
"""Hosts that need no token."""
FACTS = {"max_context", "vocab_size", "version", "lora", "workers"}
"""What an engine says of itself."""
GRACE_S = 15.0
"""How much later than the engine's own deadline the client gives up."""
DYING_S = 2.0
"""How long a server may take to end after its connections have broken."""


class Client:
    """An engine behind HTTP: `url` is `http://HOST:PORT`, or `unix:PATH` for a socket.

    `timeout_s` bounds one request. The token is that of the environment variable
    `AGENTRL_TOKEN` on both sides unless given.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 3600.0) -> None:
        self.url = url
        self._socket = url.removeprefix("unix:") if url.startswith("unix:") else None
        self._base = "http://engine" if self._socket else url.rstrip("/")
        self._token = os.environ.get("AGENTRL_TOKEN", "") if token is None else token
        self._limit = timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._there = LoopThread("agentrl-vllm-client")
        self._facts: dict[str, Any] = {}

    async def connect(self) -> dict[str, Any]:
        """Ask for the engine's facts. Raises EngineError if it does not answer, or is none; then
        no connection is left."""
        try:
            facts = await self._ask("GET", "health")
        except BaseException as error:
            await self._hang_up()
            if isinstance(error.__cause__, aiohttp.ClientConnectorError):
                raise EngineError(
                    f"nothing answers at {self.url}. Start an engine there (agentrl serve MODEL "
                    "--port N), and wait until it says that it is ready"
                ) from error
            raise
        if not (isinstance(facts, dict) and facts.keys() >= FACTS):
            await self._hang_up()
            raise EngineError(
                f"{self.url} is no engine of `agentrl serve`: it answers {str(facts)[:100]}. For "
                "an OpenAI-compatible endpoint write openai:MODEL@URL"
            )
        self._facts = facts
        return facts

    def facts(self) -> dict[str, Any]:
        """What `connect` found."""
        return self._facts

    async def sample(self, ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
        """See `inside.vllm_core.Core`."""
        made: dict[str, Any] = await self._ask("POST", "sample", {"ids": ids, "params": params})
        return made

    async def score(self, ids: list[int]) -> list[float]:
        """See `inside.vllm_core.Core`."""
        made: list[float] = await self._ask("POST", "score", {"ids": ids})
        return made

    async def update(self, source: dict[str, Any], seconds: float) -> int:
        """See `inside.vllm_core.Core`."""
        body = {"source": source, "seconds": seconds}
        return int(await self._ask("POST", "update", body, seconds + GRACE_S))

    async def close(self) -> None:
        """Hang up."""
        await self._hang_up()

    async def _hang_up(self) -> None:
        if self._session is not None:
            await self._there.run(self._session.close())
            self._session = None
        await self._there.stop()

    async def _ask(
        self, method: str, name: str, body: Any = None, seconds: float | None = None
    ) -> Any:
        """The answer. `seconds` bound it where the client's own limit is longer."""
        return await self._there.run(self._request(method, name, body, seconds))

    async def _request(self, method: str, name: str, body: Any, seconds: float | None) -> Any:
        limit = min(seconds or self._limit, self._limit)
        timeout = aiohttp.ClientTimeout(total=limit, sock_connect=10)
        try:
            async with self._opened().request(
                method, f"{self._base}/{name}", json=body, timeout=timeout
            ) as answer:
                made = await answer.json()
        except TimeoutError as error:
            raise EngineError(f"{self.url} gave no answer to {name} in {limit:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineError(f"{self.url}: {type(error).__name__}: {error}") from error
        if answer.status != 200:
            said = made.get("error", made) if isinstance(made, dict) else made
            raise EngineError(f"{self.url} refuses {name}: {said}")
        return made

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = (
                aiohttp.UnixConnector(self._socket, limit=0)
                if self._socket
                else aiohttp.TCPConnector(limit=0)
            )
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            self._session = aiohttp.ClientSession(connector=connector, headers=headers)
        return self._session


class Server(Client):
    """An engine started here, in a process (and, by `python`, an environment) of its own.

    Reached by a Unix socket in a private folder. It ends with `close`, and by itself when this
    process dies, however that happens.
    """

    def __init__(self, model: str, *, python: str | None = None, **options: Any) -> None:
        self.folder = tempfile.mkdtemp(prefix="agentrl-vllm-")
        self.log = Path(self.folder) / "log"
        self._given = (model, python, options)
        self.process: subprocess.Popen[bytes] | None = None
        super().__init__(f"unix:{self.folder}/socket", token=secrets.token_hex(16))

    async def start(self, seconds: float = 600.0) -> dict[str, Any]:
        """Start it and wait until it answers. Raises EngineError with the end of its log if it
        dies or takes longer; ConfigError if there is no such Python."""
        model, python, options = self._given
        command = program(model, python, options, socket=str(self._socket))
        began = time.monotonic()
        with self.log.open("wb") as log:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env=environment() | {"AGENTRL_TOKEN": self._token},
                )
            except OSError as error:
                raise ConfigError(f"cannot start {command[0]}: {error.strerror}") from error
        try:
            while True:
                if self.process.poll() is not None:
                    raise EngineError(f"the vLLM server ended by itself. {self.why()}")
                if _listens(str(self._socket)):
                    return await self.connect()
                if time.monotonic() - began > seconds:
                    raise EngineError(f"the vLLM server took over {seconds:g} s. {self.why()}")
                await asyncio.sleep(0.1)
        except BaseException:
            await self._end()  # the log stays
            raise

    def why(self) -> str:
        """The end of its log, errors first."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        errors = [line for line in lines if "Error" in line and "Traceback" not in line]
        shown = (errors or lines)[-3:]
        return f"Its log ({self.log}) says: " + " | ".join(shown) if shown else ""

    async def _ask(
        self, method: str, name: str, body: Any = None, seconds: float | None = None
    ) -> Any:
        try:
            return await super()._ask(method, name, body, seconds)
        except EngineError as error:
            if await self._died(error):
                raise EngineError(f"the vLLM server has died. {self.why()}") from error
            raise

    async def _died(self, error: EngineError) -> bool:
        """Whether the process is at its end; a connection that breaks may be a moment ahead."""
        process = self.process
        if process is not None and isinstance(error.__cause__, aiohttp.ClientError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, DYING_S)
        return process is not None and process.poll() is not None

    async def close(self) -> None:
        """End the server and everything it started."""
        await self._end()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _end(self) -> None:
        await self._hang_up()
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(process.wait, 15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.wait)


def _listens(path: str) -> bool:
    """Whether somebody listens at a socket: a moment after it is there."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def program(model: str, python: str | None, options: Mapping[str, Any], **where: Any) -> list[str]:
    """The command that runs a server: at a `socket`, for as long as this process lives; or at
    `host` and `port`."""
    python = python or os.environ.get(PYTHON) or sys.executable
    places = [word for name, value in where.items() for word in (f"--{name}", str(value))]
    ends = ["--with-parent"] if "socket" in where else []
    return [python, str(PROGRAM), model, *places, *ends, "--options", json.dumps(dict(options))]


def environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The server's environment: ours, without what points at our own packages."""
    dropped = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    return {k: v for k, v in given.items() if k not in dropped} | {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": given.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }

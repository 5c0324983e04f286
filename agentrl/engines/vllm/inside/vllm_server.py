"""The engine over HTTP: a file that any Python with vLLM runs, without agentrl.

    python vllm_server.py MODEL --socket PATH | --host 127.0.0.1 --port 8600
        [--options '{"dtype": "float32"}'] [--with-parent]

| | |
|---|---|
| GET /health | the engine's facts |
| POST /sample | `{"ids", "params"}`; a client that hangs up cancels |
| POST /score | `{"ids"}` |
| POST /update | `{"source", "seconds"}` |

Errors are `{"error": text, "kind": engine \\| value}`. Where `AGENTRL_TOKEN` is set, requests need
it as their bearer token. With `--with-parent` the server ends when its standard input does,
and removes the folder of its socket.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Answer = Callable[[dict[str, Any]], Awaitable[Any]]
LOCAL = ("127.0.0.1", "::1", "localhost")
CLOSING_S = 5.0
"""How long requests under way have when the server is told to end."""


def application(core: Any, token: str = "") -> web.Application:
    """The routes over `core`."""

    def route(answer: Answer) -> Any:
        async def handle(request: web.Request) -> web.Response:
            given = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and not hmac.compare_digest(given.encode(), token.encode()):
                return _failed("the token is wrong", "value", 401)
            try:
                asked = await request.json() if request.can_read_body else {}
                return web.json_response(await answer(asked))
            except (ValueError, KeyError, TypeError) as error:
                return _failed(f"{type(error).__name__}: {error}", "value", 400)
            except Exception as error:
                return _failed(f"{type(error).__name__}: {error}", "engine", 500)

        return handle

    async def health(asked: dict[str, Any]) -> Any:
        await core.check()
        return core.facts()

    async def sample(asked: dict[str, Any]) -> Any:
        return await core.sample(asked["ids"], asked["params"])

    async def score(asked: dict[str, Any]) -> Any:
        return await core.score(asked["ids"])

    async def update(asked: dict[str, Any]) -> Any:
        return await core.update(asked["source"], asked["seconds"])

    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/health", route(health))
    for name, answer in (("sample", sample), ("score", score), ("update", update)):
        app.router.add_post(f"/{name}", route(answer))
    return app


def _failed(text: str, kind: str, status: int) -> web.Response:
    return web.json_response({"error": text, "kind": kind}, status=status)


async def serve(options: argparse.Namespace) -> None:
    """Start the engine and answer until a signal, or the end of standard input."""
    over, loop, started = asyncio.Event(), asyncio.get_running_loop(), threading.Event()

    def alone() -> None:
        if not started.is_set():  # the loop does not run while an engine starts
            _end_at_once(options.socket)
        loop.call_soon_threadsafe(over.set)

    if options.with_parent:
        threading.Thread(target=_wait_for_parent, args=(alone,), daemon=True).start()
    port = None if options.socket else _bound(options.host, options.port)
    from vllm_core import Core  # beside this file

    core = Core(options.model, **json.loads(options.options))
    started.set()
    # a handler is cancelled when its client hangs up
    runner = web.AppRunner(
        application(core, os.environ.get("AGENTRL_TOKEN", "")),
        handler_cancellation=True,
        shutdown_timeout=CLOSING_S,
    )
    await runner.setup()
    site = web.UnixSite(runner, options.socket) if port is None else web.SockSite(runner, port)
    await site.start()
    where = options.socket if port is None else f"http://{options.host}:{port.getsockname()[1]}"
    print(json.dumps({"ready": where, **core.facts()}), flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    await over.wait()
    with contextlib.suppress(Exception):
        await core.close()
    await runner.cleanup()
    if options.with_parent and options.socket:  # who made the folder may be dead
        shutil.rmtree(os.path.dirname(options.socket), ignore_errors=True)


def _bound(host: str, port: int) -> socket.socket:
    """The port, taken before the engine is started: that takes a minute. Nobody is let in yet."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, _, _, address = min(found, key=lambda f: f[0] != socket.AF_INET)
        made = socket.socket(family, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise SystemExit(f"cannot listen on {host} port {port}: {error.strerror}") from error
    return made


def _wait_for_parent(alone: Callable[[], None]) -> None:
    """Call `alone` when standard input ends: who started this is gone."""
    while os.read(0, 4096):
        pass
    alone()


def _end_at_once(path: str | None) -> None:
    """End this process and what the engine has started so far: a session of its own."""
    if path:
        shutil.rmtree(os.path.dirname(path), ignore_errors=True)
    if os.getpgid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="vLLM for agentrl, over HTTP")
    parser.add_argument("model")
    parser.add_argument("--socket")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8600)
    parser.add_argument("--options", default="{}", help="engine arguments as JSON")
    parser.add_argument("--with-parent", action="store_true")
    options = parser.parse_args()
    if not (options.socket or options.host in LOCAL or os.environ.get("AGENTRL_TOKEN")):
        parser.error(
            f"--host {options.host}: set AGENTRL_TOKEN, which every request must then give"
        )
    asyncio.run(serve(options))


if __name__ == "__main__":
    main()

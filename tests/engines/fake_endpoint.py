"""An OpenAI-compatible server for tests, in this process: it answers as a script tells it to."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web

Script = Callable[[dict[str, Any], int], Any]


def said(text: str | None, finish: str = "stop", usage: Any = (10, 5), **message: Any) -> dict:
    """An answer of /chat/completions."""
    data: dict[str, Any] = {
        "choices": [
            {
                "message": {"role": "assistant", "content": text, **message},
                "finish_reason": finish,
            }
        ]
    }
    if usage:
        data["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return data


class Fake:
    """What came in: bodies, headers, paths. `script(body, number)` makes each answer: a mapping is
    sent as JSON, an int is a status, (status, data, headers) all of it, bytes are sent as they are,
    None cuts the connection; an awaitable is awaited first."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.busy = self.busiest = 0
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(json.loads(await request.read()))
        self.headers.append(dict(request.headers))
        self.paths.append(request.path)
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            answer = self.script(self.bodies[-1], len(self.bodies) - 1)
            if hasattr(answer, "__await__"):
                answer = await answer
        finally:
            self.busy -= 1
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="application/json")
        status, data, headers = answer if isinstance(answer, tuple) else (200, answer, {})
        if isinstance(answer, int):
            status, data = answer, {"error": {"message": f"status {answer}"}}
        return web.json_response(data, status=status, headers=headers)


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Fake]:
    """The server, for as long as the block runs."""
    fake = Fake(script)
    app = web.Application()
    app.router.add_post("/{path:.*}", fake.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield fake
    finally:
        await runner.cleanup()

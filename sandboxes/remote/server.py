"""A sandbox over HTTP: frames for our client, JSON for people and other languages."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from agentrl import __version__
from agentrl.errors import ConfigError
from agentrl.interfaces import Sandbox
from agentrl.types import Limits
from sandboxes.embedded import EmbeddedSandbox
from sandboxes.pool import Gate, QueueFull
from sandboxes.remote import bodies, caps
from sandboxes.remote.access import Tokens
from sandboxes.rpc import codec, frames
from sandboxes.rpc.service import Answer, Service

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger("agentrl.sandbox.serve")

# What must work on a server that is busy: short, and with small bodies.
_LIGHT = frozenset({"hello", "interrupt", "close", "touch"})
_HEAVY = frozenset({"open", "run", "exec", "write", "read", "reset", "program"})
_LIGHT_BYTES = 1 << 20
_SPARE_BYTES = 1 << 20  # of a request, besides its files and source
_TRANSFER_S = 120.0  # the most that one body may take to arrive, or to be taken
_RETRY_S = 1
_OWNER = "owner"


class Server:
    """Requests in, answers out.

    `most` bounds what clients may ask for; sessions and programs without limits of their own get
    `limits`. Requests that find no place at the gate, where they wait with their bodies unread, are
    told to come again (503). A request whose client hangs up ends its session.
    """

    def __init__(
        self, service: Service, tokens: Tokens, gate: Gate, limits: Limits, most: Limits
    ) -> None:
        self.service = service
        self.tokens = tokens
        self.limits = limits
        self.most = most
        self.gate = gate
        self.most_bytes = int(most.disk_mb * (1 << 20) + most.source_bytes) + _SPARE_BYTES
        self._done: Counter[tuple[str, str]] = Counter()
        self._refused = 0
        self._ending: set[asyncio.Task[Answer]] = set()
        self._started = time.monotonic()

    def app(self) -> web.Application:
        """The HTTP application. Run it with `handler_cancellation`."""
        base64_bytes = self.most_bytes * 4 // 3 + _SPARE_BYTES
        app = web.Application(middlewares=[self._guard], client_max_size=base64_bytes)
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/run", self._run)
        app.router.add_post("/call/{op}", self._call)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who is it, and what their mistakes are answered with."""
        if request.path != "/health":
            owner = self.tokens.owner(request.headers.get("Authorization"))
            if owner is None:
                return _problem(401, "a token is needed", {"WWW-Authenticate": "Bearer"})
            if "Origin" in request.headers:  # a page in a browser on this machine
                return _problem(403, "not for browsers")
            request[_OWNER] = owner
        try:
            return await handler(request)
        except QueueFull as error:
            self._refused += 1
            return _problem(503, str(error), {"Retry-After": str(_RETRY_S)})
        except (frames.FrameError, web.RequestPayloadError) as error:
            return _problem(400, str(error))
        except TimeoutError:
            return _problem(408, f"the body took longer than {_TRANSFER_S:g} s")
        except (web.HTTPException, ConnectionError):
            raise
        except Exception:
            log.exception("a request to %s failed", request.path)
            return _problem(500, "the server failed; its log says why")

    async def _health(self, request: web.Request) -> web.StreamResponse:
        capabilities = self.service.box.capabilities
        load = {
            "status": "ok",
            "version": __version__,
            "backend": capabilities.backend,
            "isolation": capabilities.isolation,
            "sessions": self.service.sessions,
            "max_sessions": self.service.most_sessions,
            "running": self.gate.running,
            "waiting": self.gate.queued,
            "max_running": self.gate.turns,
        }
        return web.json_response(load)

    async def _metrics(self, request: web.Request) -> web.StreamResponse:
        """As Prometheus reads them."""
        values: dict[str, float] = {
            "agentrl_sandbox_sessions": self.service.sessions,
            "agentrl_sandbox_running": self.gate.running,
            "agentrl_sandbox_waiting": self.gate.queued,
            "agentrl_sandbox_refused_total": self._refused,
            "agentrl_sandbox_uptime_seconds": round(time.monotonic() - self._started, 3),
        }
        values |= _flat("agentrl_sandbox_box", _metrics_of(self.service.box))
        for (op, outcome), count in sorted(self._done.items()):
            values[f'agentrl_sandbox_calls_total{{op="{op}",outcome="{outcome}"}}'] = count
        return web.Response(text="".join(f"{name} {value}\n" for name, value in values.items()))

    async def _call(self, request: web.Request) -> web.StreamResponse:
        """A frame with `args` in its body; the answer is a frame, an error's, too."""
        op = request.match_info["op"]
        if op in _LIGHT:
            message = await _message(request, _LIGHT_BYTES)
            return await _sent(request, await self._work(request[_OWNER], op, message))
        if op not in _HEAVY:
            return _problem(404, f"there is no call {op[:40]!r}")
        async with self.gate.turn():
            message = await _message(request, self.most_bytes)
            return await _sent(request, await self._work(request[_OWNER], op, message))

    async def _work(self, owner: str, op: str, message: frames.Message) -> Answer:
        try:
            args = caps.checked(message.body.get("args"), self.most)
        except ConfigError as error:
            return {"failed": codec.error_to_wire(error)}, []
        if op == "open" and self.service.full:
            raise QueueFull(f"{self.service.sessions} sessions are open")
        order = {"op": op, "args": args}
        try:
            body, blobs = await self.service.call(order, message.blobs, owner=owner)
        except asyncio.CancelledError:
            self._end(owner, args.get("session"))
            raise
        failed = body.get("failed")
        outcome = failed["type"] if failed else str(body.get("status", "done"))
        self._done[op, outcome] += 1
        if op == "hello":
            body |= {"limits": codec.limits_to_wire(self.limits), "most_bytes": self.most_bytes}
        return body, blobs

    def _end(self, owner: str, session: object) -> None:
        """Close a session whose client has hung up."""
        order = {"op": "close", "args": {"session": session}}
        task = asyncio.get_running_loop().create_task(self.service.call(order, owner=owner))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _run(self, request: web.Request) -> web.StreamResponse:
        """One program, in JSON: {"program", "language", "args", "stdin", "files", "limits"}."""
        if request.content_type != "application/json":
            return _problem(415, "send JSON, with Content-Type: application/json")
        async with self.gate.turn():
            async with asyncio.timeout(_TRANSFER_S):
                data = await request.read()
            try:
                message = program_message(data, self.limits)
            except ConfigError as error:
                return _problem(400, str(error))
            body, blobs = await self._work(request[_OWNER], "program", message)
        failed = body.get("failed")
        if failed:
            ours = failed["type"] not in ("ConfigError", "ValueError", "OSError")
            return _problem(500 if ours else 400, str(failed["message"]))
        shown = [base64.b64encode(blob).decode() for blob in blobs]
        body["artifacts"] = dict(zip(body["artifacts"], shown, strict=True))
        return web.json_response(body)

    async def close(self) -> None:
        """End what is left of sessions."""
        await asyncio.gather(*self._ending)
        await self.service.close()


_RUN = {"program", "language", "args", "stdin", "files", "limits", "profile"}


def program_message(data: bytes, limits: Limits) -> frames.Message:
    """The JSON of `POST /run` as the message of a program. Raises ConfigError."""
    try:
        order = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError("the body is not JSON") from error
    if not isinstance(order, dict) or not isinstance(order.get("program"), str):
        raise ConfigError('the body is a JSON object with the text "program"')
    if surplus := order.keys() - _RUN:
        raise ConfigError(f"no such field: {min(surplus)[:80]!r}. Known: {', '.join(sorted(_RUN))}")
    files, stdin = order.get("files") or {}, order.get("stdin") or ""
    if not isinstance(files, dict) or not isinstance(stdin, str):
        raise ConfigError('"files" is a JSON object of names and base64, "stdin" a text')
    try:
        contents = [base64.b64decode(data, validate=True) for data in files.values()]
    except (TypeError, ValueError, binascii.Error) as error:
        raise ConfigError('what "files" holds is not base64') from error
    args: Mapping[str, Any] = {
        "language": order.get("language") or "python",
        "args": order.get("args") or [],
        "files": list(files),
        "limits": caps.merged(limits, order.get("limits")),
        "profile": order.get("profile"),
    }
    texts = [text.encode("utf-8", "surrogatepass") for text in (order["program"], stdin)]
    return frames.Message({"args": args}, [*texts, *contents])


def _metrics_of(box: Sandbox) -> Mapping[str, Any]:
    """The numbers of a sandbox that keeps some."""
    return box.metrics().to_json() if isinstance(box, EmbeddedSandbox) else {}


def _flat(name: str, value: Mapping[str, Any]) -> dict[str, float]:
    """Numbers within numbers as one level of names."""
    flat: dict[str, float] = {}
    for key, inner in value.items():
        full = f"{name}_{key}"
        flat |= _flat(full, inner) if isinstance(inner, Mapping) else {full: inner}
    return flat


def _problem(status: int, text: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": text}, status=status, headers=headers)


async def _message(request: web.Request, most: int) -> frames.Message:
    async with asyncio.timeout(_TRANSFER_S):
        return await bodies.message(request.content, most)


async def _sent(request: web.Request, answer: Answer) -> web.StreamResponse:
    """The answer on its way: at once if it is small, else in chunks as the client takes them."""
    parts = frames.pieces(*answer)
    size = sum(map(len, parts))
    if size <= bodies.WHOLE_BYTES:
        return web.Response(body=b"".join(parts), content_type=bodies.TYPE)
    response = web.StreamResponse(headers={"Content-Type": bodies.TYPE})
    response.content_length = size
    async with asyncio.timeout(_TRANSFER_S):
        await response.prepare(request)
        async for chunk in bodies.chunks(parts):
            await response.write(chunk)
        await response.write_eof()
    return response

"""The sessions over HTTP, as OpenAI's clients speak it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from agentrl.engines.endpoint.wire import Malformed
from agentrl.errors import (
    BudgetError,
    ChatError,
    ConfigError,
    DeadlineError,
    InfraError,
    StoreError,
    missing_extra,
)
from agentrl.interfaces import Policy
from agentrl.proxy.requests import answer, chunks, read_request
from agentrl.proxy.sessions import Ended, NoSession
from agentrl.rollouts.conversations import Said
from agentrl.types import Message, ToolSpec

try:
    from aiohttp import web
except ImportError as error:
    raise missing_extra("aiohttp", "remote") from error

TOKEN_ENV = "AGENTRL_PROXY_TOKEN"
PORT = 8500
SESSION = "session-"
"""How an API key begins that names a session."""

_MOST_BYTES = 64 << 20
_SWEEP_S = 5.0
_CLOSING_S = 5.0
"""How long replies under way have when the proxy is told to end."""
log = logging.getLogger("agentrl.proxy")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# What goes wrong, as status, type and code; the first that fits.
_PROBLEMS: list[tuple[type[Exception], int, str]] = [
    (NoSession, 404, "no_such_session"),
    (Ended, 409, "session_ended"),
    (DeadlineError, 504, "deadline"),
    (InfraError, 503, "engine_failed"),
    (BudgetError, 402, "budget_used_up"),
    (StoreError, 507, "store_failed"),
    (Malformed, 400, "invalid_request"),
    (ChatError, 400, "invalid_request"),
    (ConfigError, 400, "invalid_request"),
]


class Served(Protocol):
    """What stands behind an address: the sessions of `agentrl proxy`, or those of one attempt."""

    @property
    def policy(self) -> Policy:
        """Who is asked."""
        ...

    def __len__(self) -> int: ...

    async def reply(
        self,
        name: str,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        **sampling: Any,
    ) -> tuple[str, Said]:
        """See `agentrl.proxy.sessions.Sessions.reply`."""
        ...

    def end(
        self,
        name: str,
        reward: float | None = None,
        *,
        task: str = "",
        answer: str = "",
        error: str | None = None,
        rewards: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """See `agentrl.proxy.sessions.Sessions.end`."""
        ...

    def sweep(self) -> int:
        """See `agentrl.proxy.sessions.Sessions.sweep`."""
        ...


def app(sessions: Served, token: str = "") -> web.Application:
    """The HTTP application. Run it with `handler_cancellation`, so that a client that hangs up
    stops its sampling. With a `token`, nobody is answered without it."""
    made = web.Application(middlewares=[_guard(token)], client_max_size=_MOST_BYTES)

    async def chat(request: web.Request) -> web.StreamResponse:
        return await _chat(sessions, request, _session_of(request, token))

    async def end(request: web.Request) -> web.StreamResponse:
        return web.json_response(_end(sessions, request.match_info["name"], await _json(request)))

    async def models(request: web.Request) -> web.StreamResponse:
        return web.json_response({"object": "list", "data": [_model(sessions)]})

    async def model(request: web.Request) -> web.StreamResponse:
        asked, own = request.match_info["model"], sessions.policy.name
        if asked != own:
            return _problem(404, "model_not_found", f"there is no model {asked!r}, only {own!r}")
        return web.json_response(_model(sessions))

    async def health(request: web.Request) -> web.StreamResponse:
        told = {"status": "ok", "sessions": len(sessions), "version": sessions.policy.version}
        return web.json_response(told)

    made.router.add_post("/v1/chat/completions", chat)
    made.router.add_post("/sessions/{name}/v1/chat/completions", chat)
    made.router.add_post("/sessions/{name}/reward", end)
    for before in ("", "/sessions/{name}"):
        made.router.add_get(f"{before}/v1/models", models)
        made.router.add_get(f"{before}/v1/models/{{model:.+}}", model)
    made.router.add_get("/health", health)
    return made


def _model(sessions: Served) -> dict[str, Any]:
    return {"id": sessions.policy.name, "object": "model", "created": 0, "owned_by": "agentrl"}


async def _chat(sessions: Served, request: web.Request, name: str) -> web.StreamResponse:
    asked = read_request(await _json(request))
    completion, said = await sessions.reply(name, asked.messages, asked.tools, **asked.sampling)
    model = sessions.policy.name
    if said.finish == "context":
        most = sessions.policy.max_context
        why = f"{said.prompt_tokens} tokens are in front of a context of {most}"
        return _problem(400, "context_length_exceeded", why)
    if not asked.stream:
        return web.json_response(answer(completion, model, said))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for chunk in chunks(completion, model, said, usage=asked.stream_usage):
        await response.write(chunk)
    await response.write_eof()
    return response


def _end(sessions: Served, name: str, data: Any) -> dict[str, Any]:
    """The reward of a session, which ends it."""
    known: dict[str, Any] = {"reward": None, "task": "", "answer": "", "error": None, "rewards": {}}
    if not isinstance(data, Mapping) or not set(data) <= set(known):
        raise Malformed(f"the body is a JSON object of: {', '.join(known)}")
    given = {**known, **data}
    texts = (given["task"], given["answer"], given["error"] or "")
    if not all(isinstance(text, str) for text in texts) or not isinstance(given["rewards"], dict):
        raise Malformed("task, answer and error are texts, rewards an object")
    reward, error = given.pop("reward"), given.pop("error") or None
    return sessions.end(name, reward, error=error, **given)


async def _json(request: web.Request) -> Any:
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not JSON: {error}") from error


def _session_of(request: web.Request, token: str) -> str:
    """The session that a request belongs to, by its path, its header or its key."""
    named = request.match_info.get("name") or request.headers.get("X-Session-Id")
    if named:
        return named
    rest = _key(request)[len(token) :].lstrip("/") if token else _key(request)
    if rest.startswith(SESSION) and rest != SESSION:
        return rest.removeprefix(SESSION)
    raise Malformed(
        "which session? Say it in the address (http://HOST:PORT/sessions/NAME/v1), in the header "
        f"X-Session-Id, or in the API key ({'TOKEN/' if token else ''}{SESSION}NAME)"
    )


def _key(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ").strip()


def _guard(token: str) -> Any:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Who is it, and what mistakes and failures are answered with."""
        shown = _key(request).partition("/")[0]
        if token and not hmac.compare_digest(shown.encode(), token.encode()):
            return _problem(401, "unauthorized", "the API key is not this proxy's token")
        if "Origin" in request.headers:
            return _problem(403, "forbidden", "not for pages in a browser")
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _problem(error.status, "http_error", error.reason)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except Exception as error:
            for kind, status, code in _PROBLEMS:
                if isinstance(error, kind):
                    return _problem(status, code, str(error))
            log.exception("a request to %s failed", request.path)
            return _problem(500, "failed", "the proxy failed; its log says why")

    return guard


def _problem(status: int, code: str, message: str) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"Retry-After": "1"} if status == 503 else {}
    data = {"error": {"message": message, "type": kind, "code": code, "param": None}}
    return web.json_response(data, status=status, headers=headers)


@contextlib.asynccontextmanager
async def serving(
    sessions: Served, *, host: str = "127.0.0.1", port: int = 0, token: str = ""
) -> AsyncIterator[str]:
    """Serve `sessions` while the block runs; gives the address. Raises ConfigError if it is not to
    be had, or others than this machine could sample without a token."""
    if not token and host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(
            f"whoever reaches {host} could use the policy: put a token in {TOKEN_ENV}, or listen "
            "on 127.0.0.1"
        )
    runner = web.AppRunner(
        app(sessions, token),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=_CLOSING_S,
    )
    await runner.setup()
    sweeping = asyncio.create_task(_sweep(sessions))
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(f"cannot listen on {host} port {port}: {error.strerror}") from error
        name, bound = runner.addresses[0][:2]
        yield f"http://[{name}]:{bound}" if ":" in name else f"http://{name}:{bound}"
    finally:
        sweeping.cancel()
        await runner.cleanup()


async def _sweep(sessions: Served) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        try:
            sessions.sweep()
        except StoreError:
            log.exception("idle sessions could not be stored")


async def serve(
    sessions: Served, *, host: str, port: int, token: str, ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; `ready` is told the address."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with serving(sessions, host=host, port=port, token=token) as url:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        ready(url)
        await stop.wait()

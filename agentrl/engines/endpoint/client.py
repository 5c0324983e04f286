"""A client for OpenAI-compatible endpoints: retries, deadlines, a budget, a cache.

The key comes from an environment variable at each request and goes nowhere but into that request's
header: not into the object, the cache, an error or a log; where a server repeats it, it is taken
out of what the server said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from agentrl.engines.endpoint import wire
from agentrl.engines.endpoint.budget import Budget, Cost, Prices, process_budget
from agentrl.engines.endpoint.cache import AnswerCache
from agentrl.engines.endpoint.http import (
    URL_ENV,
    checked_url,
    complaint,
    json_object,
    proxy_of,
    retry_after,
    without_key,
)
from agentrl.errors import BudgetError, ConfigError, ContextFullError, EngineError, missing_extra
from agentrl.types import Message, SamplingParams, ToolSpec

if TYPE_CHECKING:
    import aiohttp

KEY_ENV = "OPENAI_API_KEY"
MAX_BYTES = 32 << 20
"""The longest answer that is read."""

_JITTER = random.Random()  # of its own: others seed the shared one
_AGAIN = frozenset({408, 409, 425, 429})  # and all from 500 on
_FIRST_WAIT_S, _LONGEST_WAIT_S, _CONNECT_S = 0.5, 60.0, 20.0
_CONTEXT = ("context_length", "context length", "maximum context", "too many tokens")
_QUOTA = ("insufficient_quota", "billing", "credit balance")


@dataclass(frozen=True, slots=True)
class _Call:
    """A request, how its answer is read, and the most that it can cost."""

    url: str
    body: dict[str, Any]
    read: Callable[[Mapping[str, Any]], wire.Reply]
    most: Cost


@dataclass(frozen=True, slots=True)
class _Answer:
    data: dict[str, Any]
    reply: wire.Reply


@dataclass(frozen=True, slots=True)
class _Again:
    """Why a try failed, how many seconds the server asks to wait, whether the request got there."""

    reason: str
    wait_s: float | None = None
    sent: bool = True


@dataclass(slots=True)
class _Line:
    """What belongs to one event loop."""

    loop: asyncio.AbstractEventLoop
    session: aiohttp.ClientSession
    slots: asyncio.Semaphore


class Endpoint:
    """A model behind an OpenAI-compatible address such as `http://localhost:8000/v1`.

        async with Endpoint("gpt-4o-mini", url, cache="answers") as endpoint:
            reply = await endpoint.chat([Message("user", "Hello")])

    `key_env` names the environment variable with the key. `timeout_s` is for one try, `deadline_s`
    for a call with all its tries and waits. `extra` are further fields of every request (None
    takes one away). Answers are kept in the folder `cache`, if one is given. Calls draw on
    `budget` (default: the one of the process), in money by `prices`. `limit_name` is what the
    server calls the limit on new tokens. One event loop at a time may use it.

    Raises ConfigError for an address or number that cannot be.
    """

    def __init__(
        self,
        model: str,
        url: str = "",
        *,
        key_env: str = KEY_ENV,
        cache: str | os.PathLike[str] | None = None,
        budget: Budget | None = None,
        prices: Prices | None = None,
        concurrency: int = 16,
        timeout_s: float = 120.0,
        deadline_s: float = 300.0,
        retries: int = 6,
        extra: Mapping[str, Any] | None = None,
        limit_name: str = "max_tokens",
    ) -> None:
        if not key_env.isidentifier():
            raise ConfigError(
                "endpoint: key_env is the name of an environment variable, such as "
                f"{KEY_ENV}. If it was a key (it is not shown): export it under a name"
            )
        self.model, self.url = model, checked_url(url or os.environ.get(URL_ENV, ""))
        self.key_env, self.prices = key_env, prices
        self.cache = None if cache is None else AnswerCache(cache)
        self.budget = process_budget() if budget is None else budget
        self.concurrency, self.retries = concurrency, retries
        self.timeout_s, self.deadline_s = timeout_s, deadline_s
        self.extra, self.limit_name = dict(extra or {}), limit_name
        if not model or concurrency < 1 or retries < 0 or timeout_s <= 0 or deadline_s <= 0:
            raise ConfigError(
                "endpoint: a model's name, concurrency of at least 1, retries of at least 0, and "
                "timeout_s and deadline_s above 0 are needed"
            )
        if self.budget.limits["money"] is not None and prices is None:
            raise ConfigError(
                "endpoint: the budget limits money, and the prices of this model are not known; "
                "give prices=Prices(input, output) for a million tokens each"
            )
        self._line: _Line | None = None

    async def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[ToolSpec] = (),
        sample: int = 0,
        **fields: Any,
    ) -> wire.Reply:
        """The reply to a conversation (/chat/completions).

        `sample` tells apart calls with the same request that want answers of their own from the
        cache. `fields` are further fields of the request. Raises EngineError if no answer came in
        time, ContextFullError for a conversation that is too long, ConfigError where the endpoint
        refuses the key or the model, BudgetError if the budget is used up.
        """
        own = {"messages": wire.wire_messages(messages), **wire.wire_tools(tools)}
        return await self._ask("chat/completions", own, params, sample, fields, wire.read_chat)

    async def complete(
        self,
        prompt: str,
        params: SamplingParams | None = None,
        *,
        sample: int = 0,
        **fields: Any,
    ) -> wire.Reply:
        """What follows `prompt` (/completions). Options and errors are those of `chat`."""
        own = {"prompt": prompt}
        return await self._ask("completions", own, params, sample, fields, wire.read_completion)

    async def close(self) -> None:
        """Close the connections. Calling it twice is fine; a later call opens new ones."""
        line, self._line = self._line, None
        if line is not None and line.loop is asyncio.get_running_loop():
            await line.session.close()
        elif line is not None:
            _abandon(line)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Endpoint({self.model!r}, {self.url!r})"

    async def _ask(
        self,
        path: str,
        own: Mapping[str, Any],
        params: SamplingParams | None,
        sample: int,
        fields: Mapping[str, Any],
        read: Callable[[Mapping[str, Any]], wire.Reply],
    ) -> wire.Reply:
        chosen = params or SamplingParams(max_tokens=512)
        stops = {"stop": list(chosen.stop)} if chosen.stop else {}
        body = {
            "model": self.model,
            **own,
            **wire.sampling(chosen, self.limit_name),
            **stops,
            **self.extra,
            **fields,
        }
        body = {name: value for name, value in body.items() if value is not None}
        url = f"{self.url}/{path}"
        request = {"url": url, "body": body, "sample": sample}
        if self.cache is not None and (found := self.cache.get(request)) is not None:
            with contextlib.suppress(wire.Malformed):  # it could be read when it was kept
                return replace(read(found), cached=True)
        line = self._connected()
        async with line.slots:
            call = _Call(url, body, read, self._most(body, chosen.max_tokens))
            answer = await self._tries(line, call)
        if self.cache is not None:
            self.cache.put(request, answer.data)
        return answer.reply

    def _most(self, body: Mapping[str, Any], new_tokens: int) -> Cost:
        """What a request can cost, its prompt taken to have a token for three bytes."""
        prompt = len(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")) // 3 + 1
        return self._cost(prompt, new_tokens)

    def _cost(self, prompt: int, completion: int) -> Cost:
        money = self.prices.of(prompt, completion) if self.prices else 0.0
        return Cost(1, prompt + completion, money)

    async def _tries(self, line: _Line, call: _Call) -> _Answer:
        """Try until there is an answer, the retries are used up, or the deadline would pass."""
        end, most, tries = line.loop.time() + self.deadline_s, self.retries + 1, 1
        while isinstance(found := await self._try(line, call, end), _Again):
            back_off = min(_FIRST_WAIT_S * 2 ** (tries - 1), _LONGEST_WAIT_S)
            asked = found.wait_s
            wait = back_off * _JITTER.uniform(0.5, 1.0) if asked is None else asked
            if tries == most or line.loop.time() + wait >= end:
                told = "" if asked is None else f"; the server asks to wait {asked:.0f} s"
                raise EngineError(
                    f"{self.model} at {self.url}: no answer ({tries} of {most} tries, deadline "
                    f"{self.deadline_s:g} s): {found.reason}{told}"
                )
            await asyncio.sleep(wait)
            tries += 1
        return found

    async def _try(self, line: _Line, call: _Call, end: float) -> _Answer | _Again:
        """Send the request once, within what is left of the budget."""
        await self.budget.reserve(call.most)
        cost = (
            call.most
        )  # unless it is known: the server may have worked for an answer that got lost
        try:
            left = max(0.0, end - line.loop.time())
            got = await self._send(line, call, min(self.timeout_s, left))
            if isinstance(got, _Again):
                cost = cost if got.sent else Cost(1)
                return got
            status, headers, text = got
            data = json_object(text)
            if not 200 <= status < 300 or (data is not None and data.get("error")):
                cost = Cost(1)
                return self._failed(status, headers, data, text)
            if data is None:
                return _Again("malformed answer: not a JSON object")
            try:
                reply = call.read(data)
            except wire.Malformed as error:
                return _Again(f"malformed answer: {error}")
            if reply.prompt_tokens is not None and reply.completion_tokens is not None:
                cost = self._cost(reply.prompt_tokens, reply.completion_tokens)
            return _Answer(data, reply)
        finally:
            self.budget.settle(call.most, cost)

    async def _send(
        self, line: _Line, call: _Call, timeout_s: float
    ) -> tuple[int, Mapping[str, str], str] | _Again:
        """The status, headers and text of the answer, without the key wherever it stood in it."""
        import aiohttp

        key = self._key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        data = json.dumps(call.body, ensure_ascii=False).encode("utf-8", "replace")
        failure, sent = "", True
        try:
            async with (
                asyncio.timeout(timeout_s),
                line.session.post(
                    call.url,
                    data=data,
                    headers={**headers, "Content-Type": "application/json"},
                    allow_redirects=False,
                    proxy=proxy_of(call.url),
                ) as response,
            ):
                read = bytearray()
                async for chunk in response.content.iter_chunked(1 << 16):
                    read += chunk
                    if len(read) > MAX_BYTES:
                        return _Again(f"malformed answer: longer than {MAX_BYTES >> 20} MiB")
                text = without_key(key, read.decode("utf-8", "replace"))
                return response.status, dict(response.headers), text
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            failure, sent = f"cannot connect: {without_key(key, str(error))}", False
        except TimeoutError:
            failure = f"no answer within {timeout_s:.0f} s"
        except (aiohttp.ClientError, OSError) as error:
            failure = f"{type(error).__name__}: {without_key(key, str(error))}"
        return _Again(failure, sent=sent)  # no error is chained: aiohttp's hold the headers

    def _failed(
        self, status: int, headers: Mapping[str, str], data: dict[str, Any] | None, text: str
    ) -> _Again:
        """Whether to try again after an answer that says what went wrong. Raises where that is of
        no use."""
        code, said = complaint(data, text)
        if 200 <= status < 300:  # some proxies report errors so
            status = int(code) if code.isdigit() else 500
        where = f"{self.model} at {self.url}: {status}: {said}"
        about = f"{code} {said}".lower()
        if status == 402 or (status == 429 and any(word in about for word in _QUOTA)):
            raise BudgetError(f"{where}. The account's own quota is used up.")
        if status in _AGAIN or status >= 500:
            return _Again(f"{status}: {said}", retry_after(headers))
        if 300 <= status < 400:
            place = without_key(self._key(), headers.get("Location", "elsewhere"))
            raise ConfigError(f"{where}. It redirects to {place}: give that address.")
        if status in (401, 403):
            has = "is set" if self._key() else "is not set"
            raise ConfigError(f"{where}. The key comes from {self.key_env}, which {has}.")
        if status in (404, 405):
            raise ConfigError(f"{where}. Check the address (it often ends in /v1) and the model.")
        if any(word in about for word in _CONTEXT):
            raise ContextFullError(where)
        raise EngineError(where)

    def _key(self) -> str:
        """The key, '' if there is none. Raises ConfigError for one that is no header."""
        key = os.environ.get(self.key_env, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError(f"{self.key_env} holds characters that no key has; set it again")
        return key

    def _connected(self) -> _Line:
        """The connections of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._line is None or self._line.loop is not loop:
            try:
                import aiohttp
            except ImportError:
                raise missing_extra("aiohttp", "remote") from None
            if self._line is not None:
                _abandon(self._line)
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._line = _Line(loop, session, asyncio.Semaphore(self.concurrency))
        return self._line


def _abandon(line: _Line) -> None:
    """Let go of connections whose event loop has ended."""
    connector = line.session.connector
    line.session.detach()
    if connector is not None:
        for _ in connector.close().__await__():  # nothing to wait for in a loop that is gone
            break

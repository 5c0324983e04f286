"""The client: what is sent, what is tried again, what it costs, what is kept, what stays secret."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import multiprocessing
import pickle
import traceback
import warnings
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from agentrl.engines.endpoint import Budget, Cost, Endpoint, Prices, client, process_budget
from agentrl.engines.endpoint.cache import AnswerCache
from agentrl.engines.endpoint.http import retry_after
from agentrl.errors import (
    AgentRLWarning,
    BudgetError,
    ConfigError,
    ContextFullError,
    EngineError,
)
from agentrl.types import Message, SamplingParams, ToolCall, ToolSpec
from tests.engines.fake_endpoint import said, serving

KEY = "sk-a-key-for-tests-only-0123456789"
HELLO = [Message("user", "Hello")]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "_FIRST_WAIT_S", 0.005)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(script, *, calls=1, params=None, complete=False, fields=None, **options):
    """The replies (or errors) of some equal calls at once, and the server."""

    async def go():
        async with serving(script) as fake:
            options.setdefault("budget", Budget())
            async with Endpoint("m", fake.url, **options) as endpoint:
                call = endpoint.complete("Hello", params) if complete else None
                asked = [
                    call or endpoint.chat(HELLO, params, sample=i, **(fields or {}))
                    for i in range(calls)
                ]
                return await asyncio.gather(*asked, return_exceptions=True), fake

    return asyncio.run(asyncio.wait_for(go(), 20))


def one(script, **options):
    [found], fake = ask(script, **options)
    return found, fake


def test_what_is_sent_and_what_comes_back():
    params = SamplingParams(max_tokens=7, temperature=0.5, top_p=0.9, stop=("X",), seed=3)
    reply, fake = one(lambda b, n: said("Hi", usage=(11, 2)), params=params, extra={"user": "u"})
    assert (reply.text, reply.finish, reply.prompt_tokens, reply.completion_tokens) == (
        "Hi",
        "stop",
        11,
        2,
    )
    assert fake.paths == ["/v1/chat/completions"]
    assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert fake.bodies[0] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["X"],
        "user": "u",
    }


def test_fields_can_be_renamed_and_taken_away():
    _, fake = one(
        lambda b, n: said("Hi"), limit_name="max_completion_tokens", extra={"temperature": None}
    )
    assert set(fake.bodies[0]) == {"model", "messages", "max_completion_tokens"}


def test_plain_completions():
    reply, fake = one(
        lambda b, n: {"choices": [{"text": " world", "finish_reason": "length"}]}, complete=True
    )
    assert (reply.text, reply.truncated) == (" world", True)
    assert fake.paths == ["/v1/completions"]
    assert fake.bodies[0]["prompt"] == "Hello"


def test_without_a_key_no_header_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    _, fake = one(lambda b, n: said("Hi"))
    assert "Authorization" not in fake.headers[0]


def test_tool_calls_both_ways():
    def script(body, n):
        function = {"name": "add", "arguments": '{"a": 1, "b": 2}'}
        broken = {"name": "add", "arguments": '{"a": '}
        calls = [{"id": "c1", "type": "function", "function": f} for f in (function, broken)]
        return said(None, "tool_calls", tool_calls=calls)

    tool = ToolSpec("add", "Add.", {"type": "object", "properties": {}})
    reply, fake = one(script, fields={"tools": [tool]})
    assert fake.bodies[0]["tools"] == [tool.to_json()]
    assert reply.text == ""
    assert reply.tool_calls[0] == ToolCall("add", {"a": 1, "b": 2}, "c1")
    assert reply.tool_calls[1].name == "invalid"
    assert reply.tool_calls[1].arguments["text"] == '{"a": '


def test_calls_in_the_history_are_sent_as_structure():
    call = ToolCall("add", {"a": "é"}, "call00000")
    history = [
        *HELLO,
        Message("assistant", '<tool_call>\n{"name": "add"}\n</tool_call>', (call,)),
        Message("tool", "3", tool_call_id="call00000"),
    ]

    async def go():
        async with serving(lambda b, n: said("3")) as fake, Endpoint("m", fake.url) as endpoint:
            await endpoint.chat(history)
            return fake.bodies[0]["messages"]

    sent = asyncio.run(go())
    assert sent[1]["content"] == ""
    assert json.loads(sent[1]["tool_calls"][0]["function"]["arguments"]) == {"a": "é"}
    assert sent[2]["tool_call_id"] == sent[1]["tool_calls"][0]["id"]


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again(status):
    reply, fake = one(lambda b, n: status if n < 2 else said("Hi"))
    assert reply.text == "Hi"
    assert len(fake.bodies) == 3


@pytest.mark.parametrize(
    "broken",
    [
        b"<html>busy</html>",
        b'{"choices": [',
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": {"content": 3}}]}',
        b'{"choices": [{"message": {"content": null}}]}',
        b'{"choices": [{"message": {"tool_calls": [{}]}}]}',
        b'{"error": {"message": "overloaded", "code": 503}}',
        None,
    ],
)
def test_malformed_answers_and_cut_connections_are_tried_again(broken):
    reply, fake = one(lambda b, n: broken if n == 0 else said("Hi"))
    assert reply.text == "Hi"
    assert len(fake.bodies) == 2


def test_a_model_that_spent_its_limit_on_thinking_is_truncated_not_malformed():
    reply, fake = one(lambda b, n: said(None, "length"))
    assert (reply.text, reply.truncated, len(fake.bodies)) == ("", True, 1)
    refused, _ = one(lambda b, n: said(None, refusal="I cannot"))
    assert refused.text == "I cannot"


def test_retries_end_and_say_why():
    error, fake = one(lambda b, n: 503, retries=2)
    assert isinstance(error, EngineError)
    assert "3 of 3 tries" in str(error)
    assert "503: status 503" in str(error)
    assert len(fake.bodies) == 3


def test_retry_after_is_honoured(monkeypatch):
    waits = []
    real = asyncio.sleep

    async def sleep(seconds, *rest):
        waits.append(seconds)
        await real(0)

    script = lambda b, n: (429, {}, {"Retry-After": "1.5"}) if n == 0 else said("Hi")  # noqa: E731
    monkeypatch.setattr(client.asyncio, "sleep", sleep)
    reply, _ = one(script)
    assert reply.text == "Hi"
    assert 1.5 in waits


def test_a_wait_beyond_the_deadline_ends_at_once():
    error, fake = one(lambda b, n: (429, {}, {"Retry-After": "3600"}), deadline_s=5)
    assert "asks to wait 3600 s" in str(error)
    assert len(fake.bodies) == 1


def test_forms_of_retry_after():
    assert retry_after({"Retry-After": "2"}) == 2.0
    assert retry_after({"retry-after-ms": "250", "Retry-After": "9"}) == 0.25
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < retry_after({"RETRY-AFTER": soon}) < 31
    past = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    assert retry_after({"Retry-After": past}) == 0.0
    for odd in ({}, {"Retry-After": "soon"}, {"Retry-After": "-3"}, {"retry-after-ms": "x"}):
        assert not retry_after(odd)


async def never():
    await asyncio.sleep(60)


def test_a_slow_server_meets_the_timeout():
    error, _ = one(lambda b, n: never(), timeout_s=0.2, retries=1)
    assert isinstance(error, EngineError)
    assert "2 of 2 tries" in str(error)
    assert "no answer within" in str(error)


def test_a_slow_server_meets_the_deadline():
    error, _ = one(lambda b, n: never(), timeout_s=60, deadline_s=0.3, retries=1000)
    assert isinstance(error, EngineError)
    assert "deadline 0.3 s" in str(error)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (401, ConfigError, "OPENAI_API_KEY, which is set"),
        (403, ConfigError, "OPENAI_API_KEY"),
        (404, ConfigError, "Check the address"),
        ((307, {}, {"Location": "http://elsewhere/v1"}), ConfigError, "http://elsewhere/v1"),
        (400, EngineError, "status 400"),
        ((400, {"error": {"code": "context_length_exceeded"}}, {}), ContextFullError, "400"),
        ((429, {"error": {"code": "insufficient_quota"}}, {}), BudgetError, "quota"),
        (402, BudgetError, "quota"),
    ],
)
def test_what_cannot_pass_is_not_tried_again(answer, error, says):
    found, fake = one(lambda b, n: answer)
    assert type(found) is error
    assert says in str(found)
    assert len(fake.bodies) == 1


def test_only_so_many_requests_at_once():
    async def third(n):
        """The first two are answered when the third is there."""
        three.set() if n == 2 else None
        await three.wait()
        return said("Hi")

    three = asyncio.Event()
    replies, fake = ask(lambda b, n: third(n), calls=12, concurrency=3)
    assert [r.text for r in replies] == ["Hi"] * 12
    assert fake.busiest == 3


def test_a_second_event_loop_opens_connections_of_its_own(recwarn):
    endpoints = []

    async def go():
        async with serving(lambda b, n: said("Hi")) as fake:
            if not endpoints:
                endpoints.append(Endpoint("m", fake.url))
            endpoints[0].url = fake.url
            return (await endpoints[0].chat(HELLO)).text

    assert [asyncio.run(go()), asyncio.run(go())] == ["Hi", "Hi"]
    asyncio.run(endpoints[0].close())
    gc.collect()
    assert not [w for w in recwarn if issubclass(w.category, ResourceWarning | DeprecationWarning)]


# ---- budget


def test_requests_are_limited_retries_included():
    budget = Budget(requests=3)
    found, fake = ask(lambda b, n: 503 if n == 0 else said("Hi"), calls=3, budget=budget)
    assert len(fake.bodies) == 3
    assert sum(isinstance(f, BudgetError) for f in found) == 1
    assert budget.spent.requests == 3


def test_many_at_once_cannot_spend_what_is_there_once():
    async def slow():
        await asyncio.sleep(0.01)
        return said("Hi", usage=(40, 20))

    budget = Budget(tokens=300)
    params = SamplingParams(max_tokens=20)
    found, _ = ask(lambda b, n: slow(), calls=20, budget=budget, params=params)
    answered = [f for f in found if not isinstance(f, Exception)]
    assert budget.spent.tokens == 60 * len(answered) <= 300
    assert all(isinstance(f, BudgetError) for f in found if isinstance(f, Exception))


def test_what_was_set_aside_and_not_used_is_given_back():
    async def slow():
        await asyncio.sleep(0.005)
        return said("Hi", usage=(5, 2))

    budget = Budget(tokens=200)  # enough for two at a time at most
    params = SamplingParams(max_tokens=60)
    found, fake = ask(lambda b, n: slow(), calls=15, budget=budget, params=params)
    assert [f.text for f in found if not isinstance(f, Exception)] == ["Hi"] * 15
    assert budget.spent.tokens == 105
    assert fake.busiest <= 2


def test_money_is_counted_by_the_prices():
    budget = Budget(money=1.0)
    one(lambda b, n: said("Hi", usage=(1000, 100)), budget=budget, prices=Prices(3.0, 15.0))
    assert budget.spent == Cost(1, 1100, pytest.approx(0.0045))
    with pytest.raises(ConfigError, match="prices"):
        Endpoint("m", "http://localhost/v1", budget=budget)
    error, fake = one(
        lambda b, n: said("Hi"),
        budget=Budget(money=1e-6),
        prices=Prices(3.0, 15.0),
    )
    assert isinstance(error, BudgetError)
    assert "money" in str(error)
    assert not fake.bodies


def test_what_nobody_knows_is_charged_in_full_and_what_was_refused_is_not():
    params = SamplingParams(max_tokens=1000)
    lost, refused, silent = Budget(), Budget(), Budget()
    one(lambda b, n: None, budget=lost, retries=0, params=params)
    one(lambda b, n: 400, budget=refused, params=params)
    one(lambda b, n: said("Hi", usage=None), budget=silent, params=params)
    assert lost.spent.tokens > 1000
    assert refused.spent == Cost(1, 0, 0.0)
    assert silent.spent.tokens > 1000
    dead = Budget()

    async def nobody():
        async with Endpoint("m", "http://127.0.0.1:9/v1", budget=dead, retries=0) as endpoint:
            await endpoint.chat(HELLO, params)

    with pytest.raises(EngineError, match="cannot connect"):
        asyncio.run(nobody())
    assert dead.spent == Cost(1, 0, 0.0)


def test_the_budget_of_the_process_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("AGENTRL_BUDGET_REQUESTS", "1")
    process_budget.cache_clear()
    try:
        for _ in range(2):  # two runs in one process
            found, _ = one(lambda b, n: said("Hi"), budget=None)
        assert isinstance(found, BudgetError)
        process_budget.cache_clear()
        monkeypatch.setenv("AGENTRL_BUDGET_REQUESTS", "many")
        with pytest.raises(ConfigError, match="AGENTRL_BUDGET_REQUESTS"):
            process_budget()
    finally:
        process_budget.cache_clear()


# ---- cache


def test_nothing_is_asked_twice(tmp_path):
    budget = Budget()

    async def go():
        seen = []
        async with serving(lambda b, n: said(f"Hi {n}")) as fake:
            for sample in (0, 1, 0, 1):
                async with Endpoint("m", fake.url, cache=tmp_path, budget=budget) as endpoint:
                    seen.append(await endpoint.chat(HELLO, sample=sample))
            other = Endpoint("m2", fake.url, cache=tmp_path, budget=budget)
            seen.append(await other.chat(HELLO))
            await other.close()
            return seen

    seen = asyncio.run(go())
    assert [r.text for r in seen] == ["Hi 0", "Hi 1", "Hi 0", "Hi 1", "Hi 2"]
    assert [r.cached for r in seen] == [False, False, True, True, False]
    assert budget.spent.requests == 3  # the cache costs nothing


def test_fields_that_json_writes_otherwise_are_found_again(tmp_path):
    bias = {"logit_bias": {7: -100}, "order": (1, 2)}

    async def go():
        async with serving(lambda b, n: said("Hi")) as fake:
            endpoint = Endpoint("m", fake.url, cache=tmp_path, budget=Budget())
            made = [await endpoint.chat(HELLO, **bias) for _ in range(2)]
            await endpoint.close()
            return made

    assert [r.cached for r in asyncio.run(go())] == [False, True]


def test_a_kept_answer_that_is_none_is_asked_again(tmp_path):
    one(lambda b, n: said("Hi"), cache=tmp_path)
    (path,) = tmp_path.rglob("*.json")
    cache, entry = AnswerCache(tmp_path), json.loads(path.read_text())
    cache.put(entry["request"], {"choices": []})
    body = entry["request"]["body"]

    async def go():
        async with serving(lambda b, n: said("again")) as fake:
            url = fake.url
            cache.put({"url": f"{url}/chat/completions", "body": body, "sample": 0}, {"x": 1})
            async with Endpoint("m", url, cache=tmp_path, budget=Budget()) as endpoint:
                return await endpoint.chat(HELLO)

    reply = asyncio.run(go())
    assert (reply.text, reply.cached) == ("again", False)


def test_failures_are_not_kept(tmp_path):
    found, _ = one(lambda b, n: 400, cache=tmp_path)
    assert isinstance(found, EngineError)
    assert not list(tmp_path.rglob("*.json"))


def test_a_damaged_entry_is_asked_again_and_said(tmp_path):
    cache = AnswerCache(tmp_path)
    request = {"url": "u", "body": {"a": 1}, "sample": 0}
    cache.put(request, {"x": 1})
    [path] = tmp_path.rglob("*.json")
    path.write_text(path.read_text()[:-5])
    with pytest.warns(AgentRLWarning, match="cannot be read"):
        assert cache.get(request) is None
    cache.put(request, {"x": 2})
    assert cache.get(request) == {"x": 2}


def test_a_folder_that_takes_nothing_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(AgentRLWarning, match="could not be kept"):
        AnswerCache(tmp_path / "file").put({"a": 1}, {"b": 2})


def _write(folder, rounds):
    cache = AnswerCache(folder)
    for i in range(rounds):
        request = {"n": i % 5}
        cache.put(request, {"text": "x" * 20_000, "n": i % 5})
        found = cache.get(request)
        assert found is not None
        assert found["n"] == i % 5


def test_several_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(tmp_path, 60)) for _ in range(3)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 5  # no drafts are left


# ---- the key


def everything(error):
    """All that an error shows, the whole chain, locals apart."""
    return "".join(traceback.format_exception(error)) + repr(error) + str(vars(error))


def chain(error):
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    return seen


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {}),
        (400, {"error": {"message": f"bad header Bearer {KEY}"}}, {}),
        (500, {"error": f"debug: {KEY}"}, {}),
        (307, {}, {"Location": f"http://elsewhere/?key={KEY}"}),
        f"plain {KEY}".encode(),
        None,
    ],
)
def test_the_key_is_in_no_error_log_or_object(answer, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    budget = Budget()
    error, _ = one(lambda b, n: answer, retries=1, cache=tmp_path, budget=budget)
    assert isinstance(error, Exception)
    for link in chain(error):
        assert KEY not in everything(link)
        assert "Bearer" not in repr(vars(link))
    assert KEY not in caplog.text
    assert KEY not in str([p.read_text() for p in tmp_path.rglob("*.json")])


def test_a_key_that_the_server_repeats_is_not_kept(tmp_path):
    odd = f"your key is {KEY}"
    reply, _ = one(lambda b, n: said(odd), cache=tmp_path)
    assert reply.text == "your key is [key]"
    [path] = tmp_path.rglob("*.json")
    assert KEY not in path.read_text()


def test_a_placeholder_is_no_secret(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "EMPTY")
    reply, _ = one(lambda b, n: said("The list is EMPTY"))
    assert reply.text == "The list is EMPTY"


def test_the_object_does_not_hold_the_key():
    endpoint = Endpoint("m", "http://localhost/v1")
    assert KEY not in repr(endpoint) + repr(vars(endpoint))
    assert KEY.encode() not in pickle.dumps({k: repr(v) for k, v in vars(endpoint).items()})


def test_a_key_that_is_no_header_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\r\nX-Evil: 1")
    error, fake = one(lambda b, n: said("Hi"))
    assert isinstance(error, ConfigError)
    assert "sk-secret" not in everything(error)
    assert not fake.bodies


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{KEY}@localhost/v1",
        f"http://localhost/v1?key={KEY}",
        f"http://localhost/v1#{KEY}",
    ],
)
def test_an_address_with_a_key_in_it_is_refused_unseen(url):
    with pytest.raises(ConfigError, match="environment") as caught:
        Endpoint("m", url)
    assert KEY not in everything(caught.value)


def test_a_key_where_its_variables_name_belongs_is_refused_unseen():
    with pytest.raises(ConfigError, match="key_env is the name of") as caught:
        Endpoint("m", "http://localhost/v1", key_env=KEY)
    assert KEY not in everything(caught.value)


def test_addresses_and_numbers(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:1/v1/")
    assert Endpoint("m").url == "http://localhost:1/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    for wrong in ("", "localhost:8000", "ftp://localhost", "http://", "http://[::1"):
        with pytest.raises(ConfigError, match="address"):
            Endpoint("m", wrong)
    with pytest.raises(ConfigError, match="concurrency"):
        Endpoint("m", "http://localhost", concurrency=0)
    with pytest.raises(ConfigError, match="at least 0"):
        Budget(tokens=-1)


def test_the_proxy_of_the_environment_is_used(monkeypatch):
    async def go():
        async with serving(lambda b, n: said("by proxy")) as fake:
            monkeypatch.setenv("http_proxy", fake.url.removesuffix("/v1"))
            monkeypatch.setenv("no_proxy", "")
            async with Endpoint("m", "http://models.invalid/v1") as endpoint:
                return (await endpoint.chat(HELLO)).text

    assert asyncio.run(go()) == "by proxy"


def test_the_shared_random_generator_is_left_alone():
    import random

    random.seed(1)
    wanted = random.random()
    random.seed(1)
    one(lambda b, n: 503 if n == 0 else said("Hi"))
    assert random.random() == wanted


def test_without_aiohttp_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    with warnings.catch_warnings(), pytest.raises(ImportError, match="remote"):
        asyncio.run(Endpoint("m", "http://localhost/v1").chat(HELLO))


def test_a_cancelled_call_gives_its_place_back_and_is_charged():
    async def slow(n):
        await asyncio.sleep(30 if n == 0 else 0)
        return said("Hi", usage=(5, 2))

    async def go():
        budget = Budget()
        async with (
            serving(lambda b, n: slow(n)) as fake,
            Endpoint("m", fake.url, budget=budget, concurrency=1) as endpoint,
        ):
            call = asyncio.create_task(endpoint.chat(HELLO))
            while not fake.bodies:
                await asyncio.sleep(0.005)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            lost = budget.spent
            reply = await asyncio.wait_for(endpoint.chat(HELLO), 20)
        return reply.text, lost, budget.spent - lost

    text, lost, paid = asyncio.run(go())
    assert text == "Hi"
    assert lost.tokens > 512  # the server may be at work still
    assert paid == Cost(1, 7, 0.0)

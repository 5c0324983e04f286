"""The proxy: an agent over HTTP leaves the same trees as one in this process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="needs the extra 'remote'")

from agentrl.credit import credited, episode_of  # noqa: E402
from agentrl.engines.scripted import ScriptedPolicy  # noqa: E402
from agentrl.errors import BudgetError, ConfigError, EngineError  # noqa: E402
from agentrl.proxy import Sessions, Settings  # noqa: E402
from agentrl.proxy.server import serving  # noqa: E402
from agentrl.store import load  # noqa: E402
from agentrl.types import Message, SamplingParams  # noqa: E402

USER = {"role": "user", "content": "What is 6*7?"}
MESSAGE = Message("user", "What is 6*7?")
CALL = 'Compute.\n<tool_call>{"name": "python", "arguments": {"code": "print(6*7)"}}</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "python", "description": "Run code."}}]


def say(text: str) -> str:
    return "It is 42" if "<|im_start|>tool\n" in text else CALL


def proxied(folder, steps, script: Any = say, *, token: str = "", **settings: Any):
    """What `steps(call)` returns; `call(path, body, **headers)` gives a status and the answer."""
    policy = script if hasattr(script, "sample") else ScriptedPolicy(script)
    settings = {"params": SamplingParams(4000)} | settings

    async def go():
        with Sessions(policy, folder, Settings(**settings)) as sessions:
            async with (
                serving(sessions, token=token) as url,
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as http,
            ):

                async def call(path, body=None, **headers):
                    data = body if isinstance(body, bytes) or body is None else json.dumps(body)
                    method = "GET" if body is None else "POST"
                    async with http.request(
                        method, url + path, data=data, headers=headers
                    ) as answer:
                        text = await answer.text()
                        streams = answer.content_type == "text/event-stream"
                        return answer.status, text if streams else json.loads(text)

                return await steps(call)

    return asyncio.run(go())


async def solve(call, name="a", **end):
    """An agent of two turns: it calls the tool, and answers."""
    path = f"/sessions/{name}"
    chat = f"{path}/v1/chat/completions"
    status, first = await call(chat, {"messages": [USER], "tools": TOOLS})
    assert status == 200, first
    message = first["choices"][0]["message"]
    (made,) = message["tool_calls"]
    answer = {"role": "tool", "content": "42", "tool_call_id": made["id"]}
    # a client writes the arguments in its own way
    made["function"]["arguments"] = json.dumps(json.loads(made["function"]["arguments"]), indent=1)
    body = {"messages": [USER, message, answer], "tools": TOOLS}
    status, second = await call(chat, body)
    assert status == 200, second
    return first, second, await call(f"{path}/reward", {"reward": 1.0, **end})


def test_an_agent_with_tools_is_one_path_of_sampled_tokens(tmp_path):
    first, second, (status, ended) = proxied(tmp_path, solve)
    assert first["choices"][0]["finish_reason"] == "tool_calls"
    assert first["choices"][0]["message"]["content"] == "Compute."
    assert second["choices"][0]["message"] == {"role": "assistant", "content": "It is 42"}
    assert first["usage"]["completion_tokens"] > 0
    assert (status, ended["reward"], ended["replies"]) == (200, 1.0, 2)
    (tree,) = load(tmp_path)
    (attempt,) = tree.attempts
    assert (attempt.reward, attempt.answer, attempt.branches) == (1.0, "It is 42", ())
    decode = ScriptedPolicy([]).tokenizer.decode
    said = [decode(n.token_ids) for n in tree.nodes if n.source == "policy"]
    assert said == [CALL, "<|im_end|>", "It is 42", "<|im_end|>"]
    assert tree.meta["tokenizer"] == "bytes-chatml-1"
    episode = episode_of(tree, attempt)
    assert episode.valid
    assert len(credited(tree, attempt, [1.0] * len(episode.turns))) == 1


def test_sessions_are_named_by_header_key_or_path_and_grouped_by_task(tmp_path):
    chat, body = "/v1/chat/completions", {"messages": [USER]}

    async def steps(call):
        for headers in ({"X-Session-Id": "b"}, {"Authorization": "Bearer session-c"}):
            assert (await call(chat, body, **headers))[0] == 200
        status, told = await call(chat, body, Authorization="Bearer sk-secret")
        assert (status, "which session" in told["error"]["message"]) == (400, True)
        assert "sk-secret" not in json.dumps(told)
        await solve(call, "a", task="six times seven")
        await call("/sessions/b/reward", {"reward": 0, "task": "six times seven"})
        await call("/sessions/c/reward", {"reward": None})
        return (await call("/health"))[1]

    assert proxied(tmp_path, steps)["sessions"] == 0
    found = [(t.task.id, t.meta["attempt"], t.attempts[0].reward) for t in load(tmp_path)]
    assert found == [("six times seven", 0, 1.0), ("six times seven", 1, 0.0), ("c", 0, None)]


def test_a_stream_says_the_same(tmp_path):
    async def steps(call):
        body = {"messages": [USER], "tools": TOOLS, "stream": True}
        body["stream_options"] = {"include_usage": True}
        return await call("/sessions/a/v1/chat/completions", body)

    status, text = proxied(tmp_path, steps)
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert (status, events.pop()) == (200, "[DONE]")
    said, ended, usage = map(json.loads, events)
    delta = said["choices"][0]["delta"]
    assert (delta["content"], delta["tool_calls"][0]["index"]) == ("Compute.", 0)
    assert ended["choices"][0]["finish_reason"] == "tool_calls"
    assert usage["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{", "not JSON"),
        ([], "no JSON object"),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 0 has no role"),
        ({"messages": [{"role": "user"}]}, "message 0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text"),
        ({"messages": [USER], "tools": [{}]}, "tool 0"),
        ({"messages": [USER], "n": 2}, "n=2 is not supported"),
        ({"messages": [USER], "logprobs": True}, "logprobs=true is not supported"),
        ({"messages": [USER], "parallel_tool_calls": False}, "parallel_tool_calls=false"),
        ({"messages": [USER], "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ({"messages": [USER], "seed": 1 << 63}, "seed"),
        ({"messages": [USER], "tool_choice": "required"}, "tool_choice"),
        ({"messages": [USER], "response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [USER], "temperature": "hot"}, "temperature"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens"),
        ({"messages": [USER], "stop": [1]}, "stop"),
    ],
    ids=str,
)
def test_malformed_requests_are_told_why_and_leave_nothing(tmp_path, body, why):
    async def steps(call):
        told = await call("/sessions/a/v1/chat/completions", body)
        return told, (await call("/health"))[1]["sessions"]

    (status, told), sessions = proxied(tmp_path, steps)
    assert (status, sessions) == (400, 0)
    assert why in told["error"]["message"]


def test_rewards_of_single_replies_and_wrong_ones(tmp_path):
    async def steps(call):
        path = "/sessions/a"
        assert (await call(f"{path}/reward", {"reward": 1}))[0] == 404
        _, said = await call(f"{path}/v1/chat/completions", {"messages": [USER]})
        for wrong in ({"reward": "good"}, {"reward": True}, {"points": 1}, {"rewards": {"x": 1}}):
            assert (await call(f"{path}/reward", wrong))[0] == 400
        assert (await call(f"{path}/reward", b'{"reward": NaN}'))[0] == 400
        assert (await call(f"{path}/reward", {"rewards": {said["id"]: 0.5}}))[0] == 200
        assert (await call(f"{path}/reward", {"reward": 1}))[0] == 409
        assert (await call(f"{path}/v1/chat/completions", {"messages": [USER]}))[0] == 409

    proxied(tmp_path, steps)
    (tree,) = load(tmp_path)
    (attempt,) = tree.attempts
    assert [(r.node, r.value) for r in attempt.rewards] == [(attempt.leaf, 0.5)]


def test_a_token_keeps_others_out(tmp_path):
    async def steps(call):
        body, token = {"messages": [USER]}, "correct-horse"
        chat = "/v1/chat/completions"
        statuses = [
            (await call(chat, body, Authorization=f"Bearer {key}"))[0]
            for key in ("session-a", "wrong/session-a", token, f"{token}/session-a")
        ]
        return statuses, (await call("/health"))[0]

    assert proxied(tmp_path, steps, token="correct-horse") == ([401, 401, 400, 200], 401)
    with pytest.raises(ConfigError, match="AGENTRL_PROXY_TOKEN"):

        async def everywhere():
            with Sessions(ScriptedPolicy(say), tmp_path) as sessions:
                async with serving(sessions, host="0.0.0.0"):
                    pass

        asyncio.run(everywhere())


def test_requests_of_one_session_at_once_are_branches_of_one_tree(tmp_path):
    policy = ScriptedPolicy(lambda text: f"{text.count('?')} asked", latency=0.02)

    async def steps(call):
        def ask(text):
            body = {"messages": [{"role": "user", "content": text}]}
            return call("/sessions/a/v1/chat/completions", body)

        made = await asyncio.gather(*map(ask, ["what?", "what?", "why?", "who?", "who??"]))
        return made, await call("/sessions/a/reward", {"reward": 1})

    made, (_, ended) = proxied(tmp_path, steps, policy)
    assert [status for status, _ in made] == [200] * 5
    assert len({told["id"] for _, told in made}) == 5
    (tree,) = load(tmp_path)
    (attempt,) = tree.attempts
    assert (ended["replies"], len(attempt.branches)) == (5, 4)
    rows = credited(tree, attempt, [1.0] * len(episode_of(tree, attempt).turns))
    assert sum(sum(r.weights) for r in rows) == 5 * (len("1 asked") + 1)


def test_models_are_listed_and_found(tmp_path):
    async def steps(call):
        listed = await call("/sessions/a/v1/models")
        return listed, await call("/v1/models/scripted"), await call("/v1/models/gpt-x")

    (status, listed), (_, found), (missing, told) = proxied(tmp_path, steps)
    assert (status, missing, told["error"]["code"]) == (200, 404, "model_not_found")
    assert listed["data"] == [found]
    assert (found["id"], found["object"]) == ("scripted", "model")


def test_a_budget_that_is_used_up_is_said(tmp_path):
    class Spent(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            raise BudgetError("all 5 requests are spent")

    async def steps(call):
        return await call("/sessions/a/v1/chat/completions", {"messages": [USER]})

    status, told = proxied(tmp_path, steps, Spent(say))
    assert (status, told["error"]["code"]) == (402, "budget_used_up")
    assert told["error"]["message"] == "all 5 requests are spent"


def test_an_empty_error_is_none(tmp_path):
    async def steps(call):
        return (await solve(call, error=""))[-1]

    assert proxied(tmp_path, steps)[1]["reward"] == 1.0
    (tree,) = load(tmp_path)
    assert (tree.attempts[0].error, tree.attempts[0].reward) == (None, 1.0)


def test_failures_are_answered_and_are_no_rewards(tmp_path):
    def broken(text):
        raise EngineError("gone")

    async def steps(call):
        told = await call("/sessions/a/v1/chat/completions", {"messages": [USER]})
        return told, await call("/sessions/a/reward", {"reward": 0})

    (status, told), (ended, _) = proxied(tmp_path, steps, broken)
    assert (status, told["error"]["code"], ended) == (503, "engine_failed", 409)
    assert load(tmp_path) == []

    async def fails(call):
        await call("/sessions/b/v1/chat/completions", {"messages": [USER]})
        return await call("/sessions/b/reward", {"reward": 1, "error": "the agent crashed"})

    assert proxied(tmp_path, fails)[1]["reward"] is None
    (tree,) = load(tmp_path)
    assert (tree.attempts[0].error, tree.attempts[0].reward) == ("the agent crashed", None)


def test_a_deadline_and_a_full_context(tmp_path):
    async def steps(call):
        return await call("/sessions/a/v1/chat/completions", {"messages": [USER]})

    status, told = proxied(tmp_path, steps, ScriptedPolicy(say, latency=20), deadline_s=0.1)
    assert (status, told["error"]["code"]) == (504, "deadline")
    status, told = proxied(tmp_path, steps, ScriptedPolicy(say, max_context=20))
    assert (status, told["error"]["code"]) == (400, "context_length_exceeded")


def test_a_client_that_hangs_up_stops_its_sampling(tmp_path):
    cancelled = []

    class Slow(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    async def steps(call):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await call("/sessions/a/v1/chat/completions", {"messages": [USER]})
        for _ in range(100):
            if cancelled:
                break
            await asyncio.sleep(0.02)
        return await call("/health")

    assert proxied(tmp_path, steps, Slow(say))[0] == 200
    assert cancelled == [True]


def test_sampling_is_the_clients_unless_it_is_fixed(tmp_path):
    seen = []

    class Seeing(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            seen.append((params.temperature, params.max_tokens, params.seed == 5))
            return await super().sample(prompt_ids, params)

    async def steps(call):
        body = {"messages": [USER], "temperature": 0, "max_completion_tokens": 9, "seed": 5}
        await call("/sessions/a/v1/chat/completions", body)

    proxied(tmp_path / "1", steps, Seeing(say))
    params = SamplingParams(5, 0.7)
    proxied(tmp_path / "2", steps, Seeing(say), params=params, fixed=True)
    assert seen == [(0.0, 9, True), (0.7, 5, True)]


def test_sessions_that_nobody_ends_are_failures(tmp_path):
    async def idle():
        with Sessions(ScriptedPolicy(say), tmp_path, Settings(idle_s=0.01)) as sessions:
            await sessions.reply("old", [MESSAGE])
            await asyncio.sleep(0.05)
            assert sessions.sweep() == 1
            await sessions.reply("open", [MESSAGE])

    asyncio.run(idle())
    errors = [t.attempts[0].error for t in load(tmp_path)]
    assert errors[0].startswith("no request for")
    assert "stopped before" in errors[1]


def post(url: str, body: Any) -> dict[str, Any]:
    asked = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return json.loads(answer.read())


def started(folder, cwd) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "agentrl", "proxy", "--policy", "scripted:its_script:say"]
    command += ["--out", str(folder), "--port", "0"]
    paths = os.pathsep.join([str(cwd), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    line = process.stdout.readline()
    assert "Serving" in line
    return process, line.split()[-1].removesuffix("/v1")


def test_kill_minus_nine_keeps_what_has_ended(tmp_path):
    (tmp_path / "its_script.py").write_text("def say(text):\n    return 'It is 42'\n")
    folder = tmp_path / "trees"
    process, url = started(folder, tmp_path)
    try:
        for name in ("done", "open"):
            post(f"{url}/sessions/{name}/v1/chat/completions", {"messages": [USER]})
        assert post(f"{url}/sessions/done/reward", {"reward": 1})["attempt"] == 0
    finally:
        process.kill()
        process.wait(20)
    assert [t.attempts[0].reward for t in load(folder)] == [1.0]
    process, url = started(folder, tmp_path)
    try:
        with pytest.raises(urllib.error.HTTPError, match="409"):  # it had ended before
            post(f"{url}/sessions/done/v1/chat/completions", {"messages": [USER]})
        post(f"{url}/sessions/open/v1/chat/completions", {"messages": [USER]})
        post(f"{url}/sessions/open/reward", {"reward": 0, "task": "done"})
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait(20)
    assert [(t.task.id, t.meta["attempt"]) for t in load(folder)] == [("done", 0), ("done", 1)]


def test_another_tokenizers_folder_is_refused(tmp_path):
    proxied(tmp_path, solve)
    policy = ScriptedPolicy(say)
    policy.tokenizer.fingerprint = "another"
    with pytest.raises(ConfigError, match="another tokenizer"):
        Sessions(policy, tmp_path)

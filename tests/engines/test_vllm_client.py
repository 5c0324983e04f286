"""The client, the real HTTP server and the policy over a fake engine: no vLLM is needed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("aiohttp")
from aiohttp import web

import envs
from agentrl import rollouts
from agentrl.cli import main
from agentrl.collect import collect
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ByteTokenizer
from agentrl.engines.vllm import loading, sync
from agentrl.engines.vllm.inside.vllm_server import application
from agentrl.engines.vllm.policy import VLLMPolicy
from agentrl.engines.vllm.server import PROGRAM, Client, Server
from agentrl.engines.vllm.thread import LoopThread
from agentrl.errors import ConfigError, EngineError, InfraError
from agentrl.store import load
from agentrl.tree import Tree
from agentrl.types import SamplingParams

FAKE = Path(__file__).parent / "fake_vllm"
sys.path.insert(0, str(FAKE))
from vllm_core import CONTEXT, DIES, FAILS, HANGS, REFUSES, VOCABULARY, Core  # noqa: E402

PARAMS = SamplingParams(max_tokens=8, temperature=1.0, seed=1)
TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz")


@contextlib.asynccontextmanager
async def serving(token: str = "", **options: Any) -> AsyncIterator[tuple[Core, str]]:
    """The server's routes over a fake engine, in this process."""
    core = Core("fake", **options)
    runner = web.AppRunner(
        application(core, token), handler_cancellation=True, access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield core, f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def with_policy(work: Callable[[VLLMPolicy, Core], Awaitable[Any]], **options: Any) -> Any:
    """Run `work` on a policy over the server in this process."""
    how = {k: options.pop(k) for k in ("timeout_s", "sync_s", "via") if k in options}
    limit = {"timeout_s": how.pop("timeout_s")} if "timeout_s" in how else {}

    async def go() -> Any:
        async with serving(**options) as (core, url):
            client = Client(url, **limit)
            await client.connect()
            policy = VLLMPolicy(client, TOKENIZER, **how)
            try:
                return await work(policy, core)
            finally:
                await policy.close()

    return asyncio.run(go())


@pytest.fixture
def fake_python(tmp_path: Path) -> str:
    """A Python that runs the real server file with the fake engine."""
    path = tmp_path / "python"
    path.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            import runpy, sys
            sys.path.insert(0, {str(FAKE)!r})
            sys.argv = sys.argv[1:]
            runpy.run_path(sys.argv[0], run_name="__main__")
            """
        )
    )
    path.chmod(0o755)
    return str(path)


async def started(python: str, **options: Any) -> tuple[Server, VLLMPolicy]:
    server = Server("fake", python=python, **options)
    await server.start(60)
    return server, VLLMPolicy(server, TOKENIZER)


def test_a_completion_is_what_the_engine_says():
    async def work(policy: VLLMPolicy, core: Core) -> None:
        made = await policy.sample([9, 9], PARAMS)
        assert (made.token_ids, made.logprobs) == ((7, 7, 7), (-0.5, -0.5, -0.5))
        assert (made.finish_reason, made.policy_version, made.sampled_logprobs) == (
            "length",
            0,
            None,
        )
        warm = await policy.sample([9], SamplingParams(max_tokens=2, temperature=0.7))
        assert (warm.logprobs, warm.sampled_logprobs) == ((-0.5, -0.5), (-0.25, -0.25))
        assert await policy.score([9, 9, 9]) == [-0.5, -0.5]
        full = await policy.sample([9] * CONTEXT, PARAMS)
        assert (full.token_ids, full.finish_reason) == ((), "length")

    with_policy(work)


@pytest.mark.parametrize(
    ("ids", "params", "error", "says"),
    [
        ([FAILS], PARAMS, EngineError, "refuses sample: RuntimeError: out of blocks"),
        ([REFUSES], PARAMS, EngineError, "refuses sample: ValueError: top_p is odd"),
        ([], PARAMS, ValueError, "no tokens"),
        ([9] * (CONTEXT + 1), PARAMS, ValueError, f"max_context is {CONTEXT}"),
        ([VOCABULARY - 1], PARAMS, ConfigError, "outside the vocabulary"),
        ([9], SamplingParams(max_tokens=1, top_p=0.0), ValueError, "top_p=0.0"),
    ],
)
def test_errors_say_what_is_wrong_and_the_policy_stays_usable(ids, params, error, says):
    async def work(policy: VLLMPolicy, core: Core) -> None:
        with pytest.raises(error, match=says):
            await policy.sample(ids, params)
        assert len((await policy.sample([9], PARAMS)).token_ids) == 3

    with_policy(work)


def test_an_answer_that_is_too_slow_is_an_engine_error():
    async def work(policy: VLLMPolicy, core: Core) -> None:
        with pytest.raises(EngineError, match=r"no answer to sample in 0\.2 s"):
            await policy.sample([HANGS], PARAMS)

    with_policy(work, timeout_s=0.2)


def test_many_requests_run_at_once():
    async def work(policy: VLLMPolicy, core: Core) -> None:
        many = 150  # more than aiohttp's own limit of connections
        calls = [asyncio.create_task(policy.sample([HANGS], PARAMS)) for _ in range(many)]
        while core.running < many:
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    with_policy(work)


def test_hanging_up_cancels_in_the_engine():
    async def work(policy: VLLMPolicy, core: Core) -> None:
        call = asyncio.create_task(policy.sample([HANGS], PARAMS))
        while not core.running:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while core.running:
            await asyncio.sleep(0.01)
        assert core.cancelled == 1

    with_policy(work)


def test_where_nothing_answers_the_error_says_how_to_start_an_engine():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        for place in (url, "unix:/no/such/socket"):
            with pytest.raises(EngineError, match=f"nothing answers at {place}.*agentrl serve"):
                asyncio.run(Client(place).connect())


def test_closing_ends_what_is_under_way():
    """Nobody waits for an answer that cannot come."""

    async def work(policy: VLLMPolicy, core: Core) -> None:
        calls = [asyncio.create_task(policy.sample([HANGS], PARAMS)) for _ in range(3)]
        while core.running < 3:
            await asyncio.sleep(0.01)
        await policy.close()
        done, waiting = await asyncio.wait(calls, timeout=20)
        assert not waiting
        assert all(isinstance(call.exception(), EngineError) for call in done)

    with_policy(work)


def test_a_loop_that_is_stopped_answers_everybody():
    async def go() -> None:
        there = LoopThread("test")
        call = asyncio.create_task(there.run(asyncio.sleep(3600)))
        await there.run(asyncio.sleep(0))
        await there.stop()
        with pytest.raises(EngineError, match="closed before it had answered"):
            await asyncio.wait_for(call, 20)
        assert await there.run(asyncio.sleep(0, 7)) == 7
        call = asyncio.create_task(there.run(asyncio.sleep(3600)))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await there.stop()

    asyncio.run(go())


def test_a_wrong_token_is_refused_and_ours_is_sent(monkeypatch):
    async def go() -> None:
        async with serving(token="right") as (_, url):
            with pytest.raises(EngineError, match="the token is wrong"):
                await Client(url, token="wrong").connect()
            with pytest.raises(EngineError, match="the token is wrong"):
                await Client(url).connect()
            monkeypatch.setenv("AGENTRL_TOKEN", "right")
            client = Client(url)
            assert (await client.connect())["version"] == 0
            await client.close()

    asyncio.run(go())


@pytest.mark.parametrize("answer", [b"", b"<html>", b"HTTP/1.1 200 OK\r\n\r\nnot json", None])
def test_what_is_no_answer_is_an_engine_error(answer):
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            writer.transport.abort()
        else:
            writer.write(answer)
        writer.close()

    async def go() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(EngineError, match=r"http://127.0.0.1:\d+: "):
            await client.connect()
        await client.close()
        server.close()

    asyncio.run(go())


@pytest.mark.parametrize(
    "answer",
    [
        {"ids": [7, 7]},  # with three log-probabilities
        {"ids": [7, 7, VOCABULARY + 1]},
        {"ids": [7, 7, "8"]},
        {"ids": None},
        {"logprobs": [-0.5, -0.5, math.nan]},
        {"logprobs": [-0.5, -0.5, 0.5]},
        {"sampled": [-0.5]},
        {"finish": "because"},
        {"version": None},
    ],
)
def test_a_completion_that_is_none_is_an_engine_error(answer):
    async def work(policy: VLLMPolicy, core: Core) -> None:
        with pytest.raises(EngineError, match=r"no completion .* the engine's answer was"):
            await policy.sample([9], PARAMS)

    with_policy(work, answer=answer)


@pytest.mark.parametrize("scores", [None, [-0.5], [-0.5, None], [-0.5, 0.5], {"a": 1}])
def test_scores_that_are_none_are_an_engine_error(scores):
    async def work(policy: VLLMPolicy, core: Core) -> None:
        with pytest.raises(EngineError, match="2 log-probabilities were expected"):
            await policy.score([9, 9, 9])

    with_policy(work, scores=scores)


def test_what_serves_something_else_is_no_engine():
    async def health(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def go() -> None:
        app = web.Application()
        app.router.add_get("/health", health)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        client = Client(f"http://127.0.0.1:{runner.addresses[0][1]}")
        with pytest.raises(EngineError, match=r"no engine of `agentrl serve`.*'status': 'ok'"):
            await client.connect()
        await client.close()
        await runner.cleanup()

    asyncio.run(go())


@pytest.mark.filterwarnings("error")
def test_one_client_on_loop_after_loop():
    async def ask(client: Client) -> float:
        return (await client.score([1, 2]))[0]

    async def go() -> None:
        async with serving() as (_, url):
            client = Client(url)
            assert await asyncio.to_thread(asyncio.run, ask(client)) == -0.5
            assert await asyncio.to_thread(asyncio.run, ask(client)) == -0.5
            await client.close()
            gc.collect()  # a session left open would say so

    asyncio.run(go())


# --- weights


def there(path: str) -> bool:
    """Whether the weights that were sent are still kept (another file may have their number)."""
    if path.startswith("/proc/"):
        return os.path.islink(path) and "agentrl-weights" in os.readlink(path)
    return os.path.exists(path)


def test_updates_count_up_and_say_where_the_weights_are():
    torch = pytest.importorskip("torch")

    async def work(policy: VLLMPolicy, core: Core) -> None:
        await policy.update({"w": torch.ones(2)})
        assert policy.version == 1
        assert core.sources[0]["kind"] == "file"
        assert not there(core.sources[0]["path"])
        await policy.update({})
        assert core.sources[1] == {"kind": "none"}
        assert (await policy.sample([9], PARAMS)).policy_version == policy.version == 2

    with_policy(work)


def test_other_weights_than_before_are_refused():
    torch = pytest.importorskip("torch")

    async def work(policy: VLLMPolicy, core: Core) -> None:
        await policy.update({"a": torch.ones(2), "b": torch.ones(2)})
        with pytest.raises(ConfigError, match="the earlier one had others: b"):
            await policy.update({"a": torch.ones(2)})
        assert (policy.version, len(core.sources)) == (1, 1)

    with_policy(work)


@pytest.mark.parametrize("via", ["memory", "disk"])
def test_an_update_that_takes_too_long_is_an_engine_error(via):
    torch = pytest.importorskip("torch")

    async def work(policy: VLLMPolicy, core: Core) -> None:
        with pytest.raises(EngineError, match="TimeoutError"):
            await policy.update({"w": torch.ones(2)})
        assert policy.version == 0
        assert not there(core.sources[0]["path"])

    with_policy(work, update_s=60, sync_s=0.2, via=via)


def test_a_server_that_never_answers_an_update_is_given_up(monkeypatch):
    monkeypatch.setattr("agentrl.engines.vllm.server.GRACE_S", 0.2)

    async def work(policy: VLLMPolicy, core: Core) -> None:
        async def hang(source: dict[str, Any], seconds: float) -> int:
            await asyncio.sleep(3600)
            return 0

        core.update = hang
        with pytest.raises(EngineError, match=r"no answer to update in 0\.3 s"):
            await policy.update({})

    with_policy(work, sync_s=0.1)


def test_the_engines_own_error_is_in_the_exception():
    torch = pytest.importorskip("torch")

    for via in ("memory", "gloo"):

        async def work(policy: VLLMPolicy, core: Core) -> None:
            began = time.monotonic()
            with pytest.raises(EngineError, match="no module named lm_head"):
                await policy.update({"w": torch.ones(2)})
            assert time.monotonic() - began < 30  # the sender does not wait out its deadline

        with_policy(work, refuse="no module named lm_head", via=via, sync_s=60)


def test_gloo_without_a_receiver_ends_at_the_deadline():
    torch = pytest.importorskip("torch")

    async def work(policy: VLLMPolicy, core: Core) -> None:
        with pytest.raises(EngineError):
            await policy.update({"w": torch.ones(2)})

    with_policy(work, via="gloo", sync_s=1, update_s=60)


def test_the_address_that_an_engine_elsewhere_reaches_us_at():
    assert sync.own_address("unix:/tmp/socket") == "127.0.0.1"
    assert sync.own_address("http://127.0.0.1:8600") == "127.0.0.1"


# --- a server in a process of its own


def test_a_server_starts_answers_and_leaves_nothing(fake_python):
    async def go() -> tuple[int, str]:
        server, policy = await started(fake_python)
        assert len((await policy.sample([9], PARAMS)).token_ids) == 3
        assert server.process is not None
        pid, folder = server.process.pid, server.folder
        await policy.close()
        await policy.close()
        with pytest.raises(EngineError, match="closed"):
            await policy.sample([9], PARAMS)
        return pid, folder

    pid, folder = asyncio.run(go())
    assert not psutil.pid_exists(pid)
    assert not os.path.exists(folder)


def test_files_of_weights_lie_where_the_server_removes_them(fake_python):
    """Also if the trainer is killed while it sends them."""
    torch = pytest.importorskip("torch")

    async def go() -> tuple[str, str]:
        server, policy = await started(fake_python)
        policy.via = "disk"
        await policy.update({"w": torch.ones(2)})
        (source,) = (await server.connect())["sources"]
        await policy.close()
        return server.folder, source["path"]

    folder, path = asyncio.run(go())
    assert os.path.dirname(path) == folder
    assert not os.path.exists(folder)


def test_a_start_that_fails_shows_the_servers_log(fake_python):
    server = Server("fake", python=fake_python, start="no kernel for this chip")
    with pytest.raises(EngineError, match="RuntimeError: no kernel for this chip"):
        asyncio.run(server.start(60))
    assert server.log.exists()
    asyncio.run(server.close())


def test_a_python_that_is_not_there():
    server = Server("fake", python="/no/such/python")
    with pytest.raises(ConfigError, match="cannot start /no/such/python"):
        asyncio.run(server.start(5))
    asyncio.run(server.close())


def test_a_server_that_dies_in_mid_request_says_why(fake_python):
    async def go() -> None:
        _, policy = await started(fake_python)
        kept = await policy.sample([9], PARAMS)
        waiting = asyncio.create_task(policy.sample([HANGS], PARAMS))
        await asyncio.sleep(0.2)
        for ids in ([DIES], [9]):
            with pytest.raises(EngineError, match=r"has died.*the worker has died"):
                await policy.sample(ids, PARAMS)
        with pytest.raises(EngineError):
            await waiting
        assert len(kept.token_ids) == 3
        await policy.close()

    asyncio.run(go())


def test_rollouts_that_were_finished_outlive_the_server(fake_python, tmp_path):
    """Resumed with another one, only the others are made."""

    async def go(**options: Any) -> list[Tree]:
        server = Server("fake", python=fake_python, **options)
        await server.start(60)
        policy = VLLMPolicy(server, ByteTokenizer(), max_context=4000)
        try:
            return await collect(
                envs.make("arithmetic"),
                rollouts.make("single_turn"),
                policy,
                n=30,
                params=PARAMS,
                concurrency=4,
                out=tmp_path,
                progress=False,
            )
        finally:
            await policy.close()

    with pytest.raises(InfraError, match=r"the vLLM server has died.*the worker has died"):
        asyncio.run(go(lives=7, context=4000))
    kept = {t.task.id: t.to_json() for t in load(tmp_path) if not t.attempts[-1].error}
    assert len(kept) == 7
    trees = asyncio.run(go(lives=23, context=4000))
    assert len(trees) == 30
    assert not any(t.attempts[-1].error for t in trees)
    assert {t.task.id: t.to_json() for t in trees if t.task.id in kept} == kept


def test_a_server_for_others_does_not_start_without_a_token():
    """The program that runs where vLLM is says so itself, too."""
    env = {k: v for k, v in os.environ.items() if k != "AGENTRL_TOKEN"}
    command = [sys.executable, str(PROGRAM), "a model", "--host", "0.0.0.0"]
    made = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert made.returncode == 2
    assert "set AGENTRL_TOKEN" in made.stderr


def test_the_server_ends_when_its_parent_is_killed(fake_python):
    code = f"""
import asyncio
from agentrl.engines.vllm.server import Server
async def go():
    server = Server("fake", python={fake_python!r})
    await server.start(60)
    print(server.process.pid, server.folder, flush=True)
    await asyncio.sleep(600)
asyncio.run(go())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        word, folder = parent.stdout.readline().split()
        pid = int(word)
        assert psutil.pid_exists(pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 30
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.05)
        else:
            assert not psutil.pid_exists(pid)
        assert not os.path.exists(folder)


def test_a_server_that_still_starts_ends_with_its_parent_at_once(fake_python):
    """A real engine takes a minute, in which its event loop does not run."""
    folder = tempfile.mkdtemp(prefix="agentrl-vllm-")
    options = ["--socket", f"{folder}/socket", "--with-parent", "--options", '{"start_s": 60}']
    with subprocess.Popen(
        [fake_python, str(PROGRAM), "fake", *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert server.stdout.readline() == b"starting\n"
        server.stdin.close()
        assert server.wait(10) == -signal.SIGKILL
    assert not os.path.exists(folder)


def test_a_server_at_a_port_says_when_it_is_ready_and_ends_when_it_is_told_to(fake_python):
    command = [fake_python, str(PROGRAM), "fake", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = json.loads(server.stdout.readline())["ready"]

        async def go() -> float:
            client = Client(url)
            await client.connect()
            (score,) = await client.score([1, 2])
            await client.close()
            return score

        assert url.startswith("http://127.0.0.1:")
        assert asyncio.run(go()) == -0.5
        server.terminate()
        assert server.wait(20) == 0


def test_a_port_that_is_taken_is_said_before_an_engine_starts(fake_python):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [fake_python, str(PROGRAM), "fake", "--port", str(port)]
        made = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert made.returncode == 1
    assert made.stderr == f"cannot listen on 127.0.0.1 port {port}: Address already in use\n"


# --- names and commands


def test_a_server_of_another_model_is_noticed(monkeypatch):
    own = types.SimpleNamespace(vocab_size=300, hidden_size=64)
    monkeypatch.setattr("agentrl.engines.models.text_config", lambda name: own)
    shape = {"vocab_size": 300, "hidden_size": 64}
    facts = {"model": "/cache/tiny", "shape": shape}
    assert loading._other("org/tiny", facts) == ""
    assert loading._other("org/tiny-tuned", facts) == "/cache/tiny"
    assert loading._other("tiny", {"model": "tiny"}) == ""
    facts["shape"] = shape | {"hidden_size": 128}
    with pytest.raises(ConfigError, match=r"another model than 'tiny'.*hidden_size 128, not 64"):
        loading._other("tiny", facts)


def test_names_of_policies():
    assert loading.split("smollm2") == ("smollm2", "")
    assert loading.split("org/m@http://h:1") == ("org/m", "http://h:1")
    assert loading.split("m@unix:/tmp/s") == ("m", "unix:/tmp/s")
    for wrong in ("", "@http://h", "m@", "m@h:80"):
        with pytest.raises(ConfigError, match="vllm:MODEL@http://HOST:PORT"):
            loading.split(wrong)


def test_serving_to_others_needs_a_token(monkeypatch, capsys):
    monkeypatch.delenv("AGENTRL_TOKEN", raising=False)
    assert main(["serve", "smollm2", "--host", "0.0.0.0"]) == 2
    assert "Set AGENTRL_TOKEN" in capsys.readouterr().err


def test_without_vllm_the_error_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.delenv("AGENTRL_VLLM_PYTHON", raising=False)
    monkeypatch.setattr("agentrl.engines.vllm.loading.found", lambda: "")
    assert main(["serve", "smollm2"]) == 2
    assert "make vllm" in capsys.readouterr().err

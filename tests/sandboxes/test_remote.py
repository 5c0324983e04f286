"""Sandboxes on other machines: real servers on this one, what they refuse, and how they fail."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from remote_servers import TOKEN, Serving, client, serving, until
from sandbox_arena import Go

import sandboxes
from agentrl.errors import ConfigError, SandboxError, SessionDead
from agentrl.testing import check_sandbox
from agentrl.types import Limits
from sandboxes.remote import access, caps
from sandboxes.rpc import frames

pytestmark = pytest.mark.filterwarnings("ignore:lost a sandbox server")

OTHER = "the-token-of-somebody-else"
LOOP = "while True: pass"
SQUARE = [{"call": "f", "args": [3], "expect": 9}]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(token=f"{TOKEN} {OTHER}") as one:
        yield one
        assert one.health()["sessions"] == 0


# What a remote sandbox is.


def test_a_remote_sandbox_keeps_the_contract(server):
    check_sandbox(client(server))
    assert server.health()["sessions"] == 0


def test_what_it_can_do(go: Go, server):
    async def play():
        async with client(server) as box:
            has = box.capabilities
            assert (has.backend, has.network) == ("remote", False)
            assert "python" in has.languages
            assert box.limits == Limits()
            return (await box.run("1")).isolation == has.isolation

    assert go(play())


def test_large_files_and_outputs_arrive_whole(go: Go, server):
    async def play():
        data = os.urandom(16 << 20)
        async with client(server) as box, box.session() as session:
            await session.write_file("large", data)
            assert await session.read_file("large") == data
            result = await session.run("print('x' * 900_000, end=''); open('large').fileno() > 0")
            assert (len(result.stdout), result.value) == (900_000, "True")
            program = await box.run("print(len(open('f', 'rb').read()))", files={"f": data})
            assert program.stdout == f"{16 << 20}\n"
            with pytest.raises(ValueError, match="takes at most"):
                await session.write_file("larger", bytes(100 << 20))
            assert (await session.run("1")).value == "1"

    go(play())


def test_it_judges(go: Go, server):
    async def play():
        async with client(server) as box:
            right = await box.judge("def f(x): return x * x", SQUARE, mode="call")
            wrong = await box.judge("def f(x): return x + x", SQUARE, mode="call")
            assert (right.passed, wrong.passed, wrong.infra) == (True, False, False)

    go(play())


def test_by_name_and_without_async(server, monkeypatch):
    monkeypatch.setenv("AGENTRL_SANDBOX_TOKEN", TOKEN)
    result = sandboxes.run("print(6 * 7)", backend=f"remote:{server.url}", memory_mb=256)
    assert (result.status, result.stdout) == ("ok", "42\n")


def test_the_command_line_runs_there(server, monkeypatch, tmp_path, capsys):
    from agentrl.cli import main

    monkeypatch.setenv("AGENTRL_SANDBOX_TOKEN", TOKEN)
    (tmp_path / "p.py").write_text("print(6 * 7)")
    there = ["--backend", f"remote:{server.url}"]
    assert main(["sandbox", "run", str(tmp_path / "p.py"), *there]) == 0
    assert capsys.readouterr().out == "42\n"


def test_it_belongs_to_one_event_loop(server):
    box = client(server)
    with asyncio.Runner() as runner:
        runner.run(box.open())
        with pytest.raises(ConfigError, match="event loop"):
            asyncio.run(box.session().open())
        runner.run(box.close())
    with pytest.raises(SandboxError, match="not open"):
        asyncio.run(box.session().open())


# Who may, and what they may.


def test_a_token_is_needed(go: Go, server):
    for token in ("a-wrong-token-of-some-length", None):
        with pytest.raises(ConfigError, match=r"401.*AGENTRL_SANDBOX_TOKEN") as caught:
            go(client(server, token=token).open())
        assert "a-wrong" not in str(caught.value)
    for path, method in (("/metrics", "GET"), ("/run", "POST"), ("/call/hello", "POST")):
        assert server.ask(method, path, b"", Authorization="Bearer no")[0] == 401
        assert server.ask(method, path, b"", Authorization=f"Basic {TOKEN}")[0] == 401
    assert server.ask("GET", "/health", Authorization="")[1]["status"] == "ok"


def test_sessions_are_their_owners(go: Go, server):
    async def play():
        async with (
            client(server) as mine,
            client(server, token=OTHER) as theirs,
            mine.session() as session,
        ):
            thief = theirs.session()
            thief._channel = await theirs._fleet.acquire()
            thief._channel.join(theirs._servers._peers[0], session._name)
            thief._name, thief._dead = session._name, ""
            with pytest.raises(SessionDead, match="not known"):
                await thief.run("1")
            await thief.close()
            assert (await session.run("1")).value == "1"

    go(play())


def test_the_token_does_not_reach_the_code(go: Go, server):
    async def play():
        async with client(server) as box, box.session() as session:
            look = "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null"
            return await session.exec(["bash", "-c", look])

    result = go(play())
    assert "PATH" in result.stdout
    assert TOKEN not in result.stdout


def test_a_client_gets_what_the_server_allows(go: Go, tmp_path):
    async def play(server):
        async with client(server) as box:
            assert (box.limits.memory_mb, box.limits.wall_s) == (200, 2)
            async with box.session() as session:
                with pytest.raises(ConfigError, match=r"timeout=9: .* at most 2"):
                    await session.run("1", timeout=9)
                assert (await session.run("1")).value == "1"
            for limits in (Limits(wall_s=2), Limits(memory_mb=100, wall_s=3)):
                with pytest.raises(ConfigError, match="this server allows"):
                    await box.session(limits).open()
        async with client(server, memory_mb=100, wall_s=1, cpu_s=600) as box:
            assert (await box.run("print(1)")).stdout == "1\n"

    file = tmp_path / "tokens.txt"
    file.write_text(f"# of the cluster\n{OTHER}\n\n{TOKEN}\n")
    with serving("memory_mb=200", "wall_s=2", f"--token-file={file}", token="") as server:
        go(play(server))


def test_numbers_that_are_none_are_refused(server):
    name = "0" * 32
    for timeout in ("NaN", "Infinity", "-1", '"1"', "true", "1e999", "[1]"):
        text = f'{{"args": {{"session": "{name}", "timeout": {timeout}}}}}'.encode()
        data = len(text).to_bytes(4, "big") + bytes(4) + text
        status, answer = server.ask("POST", "/call/run", data)
        assert status == 200
        assert "this server allows" in answer, timeout


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--host", "0.0.0.0"], "whoever reaches 0.0.0.0 could run code here"),
        (["--host", "::"], "whoever reaches"),
        (["--host", "no.such.host.invalid"], "there is no host"),
        (["--max-running", "0"], "most_running must be above 0"),
        (["--token-file", "none.txt"], "cannot read the token file"),
        (["--token-file", "empty.txt"], "holds no token"),
        (["--token-file", "short.txt"], "at least 16 characters"),
        (["memory=5"], "Did you mean 'memory_mb'"),
        (["--backend", "elsewhere"], "unknown sandbox backend"),
    ],
)
def test_servers_that_do_not_start(argv, says, monkeypatch, tmp_path, capsys):
    from agentrl.cli import main

    monkeypatch.delenv("AGENTRL_SANDBOX_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("# none\n\n")
    (tmp_path / "short.txt").write_text("hunter2\n")
    assert main(["sandbox", "serve", *argv]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "hunter2" not in error


def test_a_port_in_use(server, capsys):
    from agentrl.cli import main

    assert main(["sandbox", "serve", "--port", str(server.port)]) == 2
    assert "Address already in use" in capsys.readouterr().err


# The face for people.


def test_a_program_by_json(server):
    order = {
        "program": "import sys; print(sys.argv[1], input(), open('a/f', 'rb').read())",
        "args": ["x"],
        "stdin": "y",
        "files": {"a/f": base64.b64encode(b"\xff").decode()},
        "limits": {"wall_s": 5},
    }
    typed = {"Content-Type": "application/json"}
    status, answer = server.ask("POST", "/run", json.dumps(order).encode(), **typed)
    assert (status, answer["status"], answer["stdout"]) == (200, "ok", "x y b'\\xff'\n")
    bad = [
        b"{",
        b"[]",
        b"{}",
        b'{"program": 3}',
        b'{"program": "", "files": {"a": "%"}}',
        b'{"program": "", "colour": 1}',
        b'{"program": "", "limits": {"memory_mb": 99999}}',
        b'{"program": "", "limits": 5}',
        b'{"program": "", "language": "klingon"}',
        b'{"program": "", "files": {"../x": ""}}',
    ]
    for body in bad:
        status, answer = server.ask("POST", "/run", body, **typed)
        assert status == 400, (body, answer)
        assert answer["error"]
    assert server.ask("POST", "/run", b"{}", **{"Content-Type": "text/plain"})[0] == 415
    assert server.ask("POST", "/run", b"{}", Origin="http://a.example", **typed)[0] == 403


def test_metrics_count(server):
    status, text = server.ask("GET", "/metrics")
    assert status == 200
    values = dict(line.rsplit(" ", 1) for line in text.splitlines())
    assert float(values["agentrl_sandbox_running"]) == 0
    assert {"agentrl_sandbox_uptime_seconds", "agentrl_sandbox_box_wait_p99"} <= values.keys()


# Noise.


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(["open", "run", "exec", "write", "read", "touch", "close", "program", "x"]),
    st.one_of(
        st.binary(max_size=200).map(lambda data: [data]),
        st.tuples(
            st.dictionaries(
                st.sampled_from(["session", "limits", "timeout", "argv", "path", "files", "args"]),
                st.recursive(
                    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                    max_leaves=5,
                ),
            ),
            st.lists(st.binary(max_size=50), max_size=3),
        ).map(lambda message: frames.pieces({"args": message[0]}, message[1])),
    ),
)
def test_garbage_is_answered(server, op, parts):
    status, _ = server.ask("POST", f"/call/{op}", b"".join(parts))
    assert status in (200, 400, 404)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.booleans())
def test_bytes_that_are_no_http(server, data, begun):
    start = f"POST /call/open HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        wire.sendall(start * begun + data)
        wire.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            wire.recv(100)


def test_the_server_stands_after_all_that(server):
    assert server.process.poll() is None
    assert server.health()["sessions"] == 0


def test_a_frame_above_the_limit_is_refused_at_once(server):
    data = (5).to_bytes(4, "big") + (1 << 31).to_bytes(4, "big")
    status, answer = server.ask("POST", "/call/write", data)
    assert (status, "at most" in answer["error"]) == (400, True)


# Full servers.


def test_a_full_server_is_waited_for(go: Go):
    async def play(server):
        async with client(server) as box, client(server, wait_s=0.2) as hasty:
            first = await box.session().open()
            with pytest.raises(SandboxError, match="1 sessions are open"):
                await hasty.session().open()
            second = asyncio.create_task(box.session().open())
            await asyncio.sleep(0.3)
            assert not second.done()
            await first.close()
            async with await second as session:
                assert (await session.run("1")).value == "1"
            nap = "import time; time.sleep(0.1); print(1)"
            results = await asyncio.gather(*(box.run(nap) for _ in range(6)))
            assert [r.stdout for r in results] == ["1\n"] * 6

    with serving("--max-sessions=1", "--max-running=1", "--max-waiting=2") as server:
        go(play(server))
        refused = server.ask("GET", "/metrics")[1].partition("refused_total ")[2].split()[0]
        assert int(refused) > 0


def test_a_busy_server_still_interrupts_and_closes(go: Go):
    async def play(server):
        async with client(server, wall_s=30) as box, box.session() as one, box.session() as two:
            running = asyncio.create_task(one.run("x = 1\n" + LOOP))
            waiting = asyncio.create_task(two.run(LOOP))
            await until(lambda: server.health()["waiting"] == 1)
            await one.interrupt()
            assert (await running).status == "timeout"
            await until(lambda: server.health()["running"] == 1)
            await two.close()
            assert (await waiting).status == "infra"
            assert (await one.run("x")).value == "1"

    with serving("--max-running", "1") as server:
        go(play(server))


# Failures.


def test_a_cancelled_call_ends_its_session(go: Go, server):
    async def play():
        async with client(server, wall_s=60) as box:
            await until(server.rests)
            before = server.processes()
            session = await box.session().open()
            task = asyncio.create_task(session.run(LOOP))
            await until(lambda: server.health()["running"] == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: server.health()["sessions"] == 0)
            await until(lambda: server.processes() <= before)
            with pytest.raises(SessionDead):
                await session.run("1")

    go(play())


def test_a_client_that_hangs_up_ends_its_session(go: Go, server):
    async def play():
        async with client(server, wall_s=60) as box:
            session = await box.session().open()
            data = frames.encode({"args": {"session": session._name}}, [LOOP.encode()])
            head = (
                f"POST /call/run HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                f"Content-Length: {len(data)}\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", server.port)) as wire:
                wire.sendall(head.encode() + data)
                await until(lambda: server.health()["running"] == 1)
            await until(lambda: server.health()["sessions"] == 0)
            with pytest.raises(SessionDead, match="not known"):
                await session.run("1")

    go(play())


CLIENT = """
import asyncio, sys, sandboxes
async def main():
    async with sandboxes.open("remote:" + sys.argv[1], heartbeat_s=0.2) as box:
        sessions = [await box.session().open() for _ in range(3)]
        print("open", flush=True)
        await sessions[0].run("while True: pass", timeout=60)
asyncio.run(main())
"""


def test_sessions_of_a_killed_client_are_closed(go: Go):
    async def play(server):
        env = {**os.environ, "AGENTRL_SANDBOX_TOKEN": TOKEN}
        lost = subprocess.Popen(
            [sys.executable, "-c", CLIENT, server.url], stdout=subprocess.PIPE, env=env
        )
        async with client(server, heartbeat_s=0.2) as box, box.session() as kept:
            assert lost.stdout
            assert await asyncio.to_thread(lost.stdout.readline) == b"open\n"
            await until(lambda: server.health()["running"] == 1)
            lost.kill()
            lost.wait()
            lost.stdout.close()
            await until(lambda: server.health()["running"] == 0)
            await until(lambda: server.health()["sessions"] == 1)
            assert (await kept.run("1")).value == "1"

    with serving("--idle", "1") as server:
        go(play(server))


def test_a_killed_server_is_infra(go: Go):
    async def play(server):
        async with client(server, wait_s=0.2, wall_s=60) as box:
            session = await box.session().open()
            task = asyncio.create_task(session.run(LOOP))
            await until(lambda: server.health()["running"] == 1)
            server.kill()
            result = await asyncio.wait_for(task, 5)
            assert result.status == "infra"
            assert server.url in result.detail
            assert result.isolation == box.capabilities.isolation
            with pytest.raises(SessionDead):
                await session.run("1")
            with pytest.raises(SandboxError, match="no server has a place"):
                await session.reset()
            with pytest.raises(SandboxError):
                await box.run("1")
            await session.close()

    with serving() as server:
        go(play(server))


def test_a_server_that_hangs_is_noticed(go: Go):
    async def play(server):
        async with client(server, wait_s=0.2, heartbeat_s=0.3, wall_s=60) as box:
            session = await box.session().open()
            task = asyncio.create_task(session.run(LOOP))
            await until(lambda: server.health()["running"] == 1)
            server.process.send_signal(signal.SIGSTOP)
            with pytest.warns(UserWarning, match="lost a sandbox server: .* does not answer"):
                result = await asyncio.wait_for(task, 10)
            assert result.status == "infra"
            assert "does not answer" in result.detail
            with pytest.raises(SandboxError):
                await asyncio.wait_for(box.session().open(), 10)
            server.process.send_signal(signal.SIGCONT)
            await until(lambda: server.health()["sessions"] == 0)
            box._servers._wait_s = 10
            async with box.session() as fresh:
                assert (await fresh.run("1")).value == "1"

    with serving() as server:
        go(play(server))


def test_two_servers_of_which_one_dies_and_comes_back(go: Go):
    def load(server: Serving) -> int:
        return server.health()["sessions"]

    async def play(one, two):
        async with client(one, two, heartbeat_s=0.3) as box:
            async with contextlib.AsyncExitStack() as stack:
                opened = [await stack.enter_async_context(box.session()) for _ in range(4)]
                assert (load(one), load(two)) == (2, 2)
                nap = "import time; time.sleep(1); print(1)"
                programs = [asyncio.create_task(box.run(nap)) for _ in range(4)]
                await until(lambda: one.health()["running"] > 0)
                one.kill()
                assert [(await p).stdout for p in programs] == ["1\n"] * 4, "run again elsewhere"
                statuses = sorted([(await s.run("1")).status for s in opened])
                assert statuses == ["infra", "infra", "ok", "ok"]
                async with box.session() as fresh:
                    assert (await fresh.run("2")).value == "2"
                    assert load(two) == 3
            with serving(port=one.port) as again:
                await until(lambda: box._servers._peers[0].state == "up")
                async with box.session(), box.session():
                    assert (load(again), load(two)) == (1, 1)

    with serving() as one, serving() as two:
        go(play(one, two))


def test_opening_goes_on_without_a_server_that_is_not_there(go: Go, server):
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        gone = f"http://127.0.0.1:{reserved.getsockname()[1]}"

    async def play():
        with pytest.raises(SandboxError, match="no sandbox server answers"):
            await sandboxes.open(f"remote:{gone}", token=TOKEN)
        with pytest.warns(UserWarning, match="going on without some servers"):
            box = await sandboxes.open("remote", urls=[gone, server.url], token=TOKEN)
        assert (await box.run("print(1)")).stdout == "1\n"
        await box.close()

    go(play())


def test_a_server_told_to_end_lets_calls_end(go: Go):
    async def play(server):
        async with client(server, wait_s=0.2) as box, box.session() as session:
            task = asyncio.create_task(session.run("import time; time.sleep(1); 5"))
            await until(lambda: server.health()["running"] == 1)
            below = psutil.Process(server.process.pid).children(recursive=True)
            server.process.terminate()
            assert (await task).value == "5"
            assert await asyncio.to_thread(server.process.wait, 10) == 0
            assert not psutil.wait_procs(below, timeout=5)[1]
            with pytest.raises(SandboxError):
                await box.session().open()

    with serving() as server:
        go(play(server))


# Parts.


def test_tokens_are_owners():
    tokens = access.Tokens([TOKEN, OTHER])
    owners = {
        tokens.owner(f"{scheme} {t}") for t in (TOKEN, OTHER) for scheme in ("Bearer", "bearer")
    }
    assert len(owners) == 2
    assert None not in owners
    assert not any(TOKEN in str(owner) for owner in owners)
    for header in (None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN):
        assert tokens.owner(header) is None
    assert access.Tokens().owner(None) == ""
    for bad in ("short", "with a space in the middle", "with\na\nnew\nline\nin\nit", "ö" * 20):
        with pytest.raises(ConfigError) as caught:
            access.checked_token(bad)
        assert bad not in str(caught.value)


def test_addresses():
    assert access.server_urls("http://a:1/, https://b ,http://a:1") == ["http://a:1", "https://b"]
    for bad in ("", "a:8400", "ftp://a", "http://", "http://a:99999", "http://a?x=1", "http://[x"):
        with pytest.raises(ConfigError):
            access.server_urls(bad)
    with pytest.raises(ConfigError) as caught:
        access.server_urls("http://user:hunter2@a")
    assert "hunter2" not in str(caught.value)
    assert access.is_loopback("127.0.0.1")
    assert access.is_loopback("::1")
    assert not access.is_loopback("0.0.0.0")
    assert not access.is_loopback("")


def test_caps_take_the_smaller_of_each():
    small = Limits(memory_mb=10, wall_s=99)
    assert caps.smallest(Limits(), small) == Limits(memory_mb=10)


def test_without_the_package_the_extra_is_named():
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "import sandboxes\n"
        "from agentrl.errors import MissingExtraError\n"
        "try: sandboxes.open('remote:http://a')\n"
        "except MissingExtraError as error: assert 'agentrl[remote]' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

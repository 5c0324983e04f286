"""The Docker backend: the contract, what a container may do, and what is left after any death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import docker_daemon
import pytest
from docker_daemon import IMAGE
from hypothesis import given
from hypothesis import strategies as st
from sandbox_arena import SMALL, Go

import sandboxes
from agentrl.errors import AgentRLWarning, ConfigError, IsolationError, SandboxError, SessionDead
from agentrl.testing import check_sandbox
from agentrl.types import Limits
from sandboxes.docker import bundle, docker_sandbox, hardening, owner
from sandboxes.docker.container import Container
from sandboxes.docker.engine import Engine
from sandboxes.docker.link import STDERR, STDOUT, Demultiplexer, Link
from sandboxes.rpc import frames


@pytest.fixture(scope="module")
def engine(go: Go) -> Iterator[Engine]:
    pytest.importorskip("docker")
    with docker_daemon.daemon():
        engine = go(Engine.connect())
        yield engine
        assert go(engine.owned(f"{owner.LABEL}=1")) == []
        go(engine.close())


def box(**options):
    return sandboxes.open("docker", **{"image": IMAGE, "spares": 0, **SMALL, **options})


def containers(engine: Engine) -> list[str]:
    found = engine.api.containers(all=True, filters={"label": f"{owner.LABEL}=1"})
    return [one["Id"] for one in found]


def running(one) -> Container:
    """The only container of a sandbox."""
    (container,) = one._fleet._ready
    return container


async def gone(engine: Engine, wanted: int = 0) -> bool:
    for _ in range(200):
        if len(containers(engine)) <= wanted:
            return True
        await asyncio.sleep(0.05)
    return False


# What comes on the stream


def chunk(kind: int, data: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


@given(
    st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=30))),
    st.integers(1, 11),
)
def test_streams_are_told_apart_however_they_are_cut(parts, size):
    stream = b"".join(chunk(kind, data) for kind, data in parts)
    split, found = Demultiplexer(), {STDOUT: b"", STDERR: b""}
    for at in range(0, len(stream), size):
        for kind, data in split.feed(stream[at : at + size]):
            found[kind] += bytes(data)
    for kind in found:
        assert found[kind] == b"".join(data for k, data in parts if k == kind)


@given(st.lists(st.binary(max_size=40)))
def test_no_bytes_of_a_daemon_break_a_link(parts):
    async def play():
        link = Link()
        link.data_received(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
        for part in parts:
            if link.dead is None:
                link.data_received(part)
        link.end("over")
        assert link.dead

    asyncio.run(play())


class Far:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.sent = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self.closed = True


def attached() -> tuple[Link, Far]:
    link, far = Link(), Far()
    link.connection_made(far)  # type: ignore[arg-type]
    link.data_received(b"HTTP/1.1 101 UPGR")
    link.data_received(b"ADED\r\nConnection: Upgrade\r\n\r\n" + chunk(STDERR, b"trouble"))
    return link, far


def test_a_stream_that_ends_fails_the_calls_that_wait():
    async def play():
        link, far = attached()
        calls = [asyncio.create_task(link.call("run", {"n": n})) for n in range(3)]
        await asyncio.sleep(0)
        (first, *_) = frames.Decoder().feed(far.sent)
        answer = frames.encode({"id": first.body["id"], "value": 1}, [b"blob"])
        link.data_received(chunk(STDOUT, answer[:5]) + chunk(STDOUT, answer[5:]))
        link.data_received(chunk(STDOUT, frames.encode({"id": 77})))  # nobody waits for it
        link.connection_lost(None)
        assert await calls[0] == ({"value": 1}, [b"blob"])
        for call in calls[1:]:
            with pytest.raises(SandboxError, match="it ended: trouble"):
                await call
        with pytest.raises(SandboxError, match="trouble"):
            await link.call("hello", {})
        assert far.closed

    asyncio.run(play())


def test_a_slow_container_holds_its_callers_back():
    async def play():
        link, far = attached()
        link.pause_writing()
        call = asyncio.create_task(link.call("run", {}))
        await asyncio.sleep(0.01)
        assert not far.sent
        link.resume_writing()
        await asyncio.sleep(0.01)
        assert far.sent
        link.pause_writing()
        held = asyncio.create_task(link.call("run", {}))
        await asyncio.sleep(0.01)
        link.end("gone")
        for one in (call, held):
            with pytest.raises(SandboxError, match="gone"):
                await one

    asyncio.run(play())


def test_a_container_without_a_sign_of_life_is_dead(monkeypatch):
    monkeypatch.setattr("sandboxes.docker.link.PING_S", 0.01)

    async def play():
        link, far = attached()
        link.start_pulse()
        await asyncio.wait_for(link.ended.wait(), 5)
        assert "not answered" in (link.dead or "")
        assert [m.body["op"] for m in frames.Decoder().feed(far.sent)] == ["hello"] * 3

    asyncio.run(play())


# What a container may do


@pytest.mark.parametrize("inner", hardening.INNER)
def test_the_filter_lists_what_is_allowed(inner):
    profile = json.loads(hardening.seccomp(inner))
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {
        n for r in profile["syscalls"] if r["action"] == "SCMP_ACT_ALLOW" for n in r["names"]
    }
    denied = "ptrace keyctl add_key bpf perf_event_open userfaultfd io_uring_setup kexec_load setns"
    assert not allowed & set(denied.split())
    assert ("mount" in allowed) == (inner == "namespaces")
    families = [r["args"][0]["value"] for r in profile["syscalls"] if r["names"] == ["socket"]]
    assert families == [1, 2, 10]


def test_options_that_cannot_be():
    for options in (
        {"inner": "none"},
        {"containers": 0},
        {"spares": -1},
        {"cpus": 0},
        {"memory_mb_total": -1},
        {"container_per_session": True, "memory_mb_total": 100},
        {"profile": "nothing"},
        {"memory": 3},
    ):
        with pytest.raises(ConfigError):
            docker_sandbox(**options)
    with pytest.raises(ConfigError, match=r"unknown sandbox option 'iner'. Did you mean 'inner'"):
        docker_sandbox(iner="uid")
    with pytest.raises(ConfigError, match=r"'isolation'\. Known: .*containers"):
        docker_sandbox(isolation="uid")


def test_the_bundle_needs_only_the_standard_library(tmp_path):
    assert len(bundle.archive()) < 200_000
    path = tmp_path / "bundle.zip"
    path.write_bytes(bundle.archive())
    script = f"import sys; sys.path.insert(0, {os.fspath(path)!r}); import sandboxes.docker.inside"
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True)


def test_owners_that_are_dead(monkeypatch):
    marks = owner.labels()
    assert not owner.abandoned(marks, "running", 0)
    assert not owner.abandoned(marks, "exited", 0)
    mine = marks["agentrl.owner"]
    dead = subprocess.Popen(["true"])
    dead.wait()
    place, _, _ = mine.partition(" | ")
    assert owner.abandoned({"agentrl.owner": f"{place} | {dead.pid} 1"}, "running", time.time())
    assert owner.abandoned({"agentrl.owner": f"{mine}0"}, "running", time.time())  # another process
    monkeypatch.setattr(owner, "_STAT", "/nowhere/{pid}")  # as where there is no /proc
    monkeypatch.setattr(owner, "_BOOT", "/nowhere")
    marks = owner.labels()
    assert marks["agentrl.owner"] != mine
    assert not owner.abandoned(marks, "running", 0)
    assert owner.abandoned({"agentrl.owner": f"{marks['agentrl.owner']}0"}, "running", time.time())
    elsewhere = {"agentrl.owner": "boot pid:[1] | 1 1"}
    assert not owner.abandoned(elsewhere, "running", 0)
    assert not owner.abandoned(elsewhere, "created", time.time())
    assert owner.abandoned(elsewhere, "created", 0)


# With a daemon


@pytest.mark.parametrize("inner", hardening.INNER)
def test_contract(engine, inner):
    check_sandbox(box(inner=inner))
    assert containers(engine) == []


def test_a_container_for_each_session(engine, go):
    async def play():
        async with (
            box(container_per_session=True) as one,
            one.session() as first,
            one.session() as second,
        ):
            assert (await first.run("x = 1\nx")).value == "1"
            assert (await second.run("'x' in dir()")).value == "False"
            assert first._channel.container is not second._channel.container
            await second.reset()
            assert (await second.run("2")).value == "2"
            assert len(containers(engine)) >= 2  # another is, or will be, ready

    go(play())
    assert containers(engine) == []


def test_containers_are_hardened(engine, go):
    async def play():
        async with box() as one:
            found = engine.api.inspect_container(running(one).name)
            async with one.session() as session:
                seen = await session.exec(["cat", "/proc/self/status", "/proc/self/mountinfo"])
            return found, one.capabilities, seen

    found, capabilities, seen = go(play())
    host = found["HostConfig"]
    assert capabilities.isolation == "container/namespaces"
    assert not capabilities.network
    assert "bash" in capabilities.languages
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["ReadonlyRootfs"]
    assert host["AutoRemove"]
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert host["LogConfig"]["Type"] == "none"
    assert "no-new-privileges" in host["SecurityOpt"]
    assert found["Config"]["User"] == "65534:65534"
    assert found["Config"]["StdinOnce"]
    assert "CapEff:\t0000000000000000" in seen.stdout


def test_profiles_and_packages_are_the_images(engine, go):
    async def play():
        async with box() as one:
            assert (await one.run("import mpmath; print(mpmath.mpf(2))")).stdout == "2.0\n"
            with pytest.raises(SandboxError, match="numpy"):
                await one.session(profile="numpy").open()

    go(play())


def test_large_files_and_outputs_travel(engine, go):
    data = os.urandom(3 << 20)

    async def play():
        async with box(disk_mb=8, download_bytes=4 << 20) as one, one.session() as session:
            await session.write_file("a", data)
            assert await session.read_file("a") == data
            result = await session.run("print('x' * 3_000_000)")
            assert (result.status, result.stdout_bytes) == ("ok", 3_000_001)

    go(play())


def test_a_cancelled_call_ends_the_session_only(engine, go):
    async def play():
        async with box() as one, one.session() as session, one.session() as other:
            call = asyncio.create_task(session.run("while True: pass", timeout=60))
            await asyncio.sleep(0.3)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            with pytest.raises(SessionDead):
                await session.run("1")
            assert (await other.run("2 + 2")).value == "4"

    go(play())


def test_death_of_a_container_is_ours_and_the_next_session_lives(engine, go):
    async def play():
        async with box(containers=1) as one:
            session = await one.session().open()
            name = running(one).name
            call = asyncio.create_task(session.run("import time; time.sleep(60)", timeout=50))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(engine.api.kill, name)
            result = await asyncio.wait_for(call, 10)
            assert (result.status, result.isolation) == ("infra", "container/namespaces")
            with pytest.raises(SessionDead):
                await session.run("1")
            async with one.session() as fresh:
                assert (await fresh.run("1 + 1")).value == "2"
            assert running(one).name != name
            await session.close()
        assert containers(engine) == []

    go(play())


def test_a_container_that_hangs_is_replaced(engine, go, monkeypatch):
    monkeypatch.setattr("sandboxes.docker.link.PING_S", 0.7)

    async def play():
        async with box() as one, one.session() as session:
            call = asyncio.create_task(session.run("import time; time.sleep(60)", timeout=50))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(engine.api.pause, running(one).name)
            result = await asyncio.wait_for(call, 20)
            assert result.status == "infra"
            assert "not answered" in result.detail
            async with one.session() as fresh:
                assert (await fresh.run("1 + 1")).value == "2"

    go(play())
    assert containers(engine) == []


def test_sessions_are_spread(engine, go):
    async def play():
        async with box(containers=2) as one:
            names = "import os; os.uname().nodename, open('/proc/self/cgroup').read()"
            async with one.session() as first, one.session() as second:
                assert len(containers(engine)) == 2
                places = {(await s.run(names)).value for s in (first, second)}
            held = [c.sessions for c in one._fleet._ready]
            return places, held

    places, held = go(play())
    assert len(places) == 2
    assert held == [0, 0]


def test_a_session_with_its_own_container_cannot_take_more_memory(engine, go):
    source = """
    import os, time
    for _ in range(6):
        if os.fork() == 0:
            block = bytearray(b'x') * (90 << 20)
            time.sleep(30)
    os.wait()
    """

    async def play():
        async with box(container_per_session=True, wall_s=10) as one:
            result = await one.run(textwrap.dedent(source))
            assert result.status != "infra", result  # the server is not what the kernel kills
            assert (await one.run("print(1)")).ok

    go(play())
    assert containers(engine) == []


def test_code_that_ends_its_own_container_for_want_of_memory_is_not_our_failure(engine, go):
    async def play(out_of_memory):
        async with box(container_per_session=True) as one, one.session() as session:
            container = session._channel.container
            assert not await container.out_of_memory()
            container.out_of_memory = out_of_memory
            call = asyncio.create_task(session.run("import time; time.sleep(60)", timeout=50))
            await asyncio.sleep(0.3)
            await asyncio.to_thread(engine.api.kill, container.name)
            return await asyncio.wait_for(call, 20)

    async def yes():
        return True

    async def no():
        return False

    result = go(play(yes))
    assert (result.status, result.isolation) == ("oom", "container/namespaces")
    assert go(play(no)).status == "infra"


def test_the_daemon_says_which_container_ran_out_of_memory(engine, go):
    began = time.time()
    for command, wanted in (("bytearray(200 << 20)", True), ("1", False)):
        made = engine.client.containers.run(
            IMAGE, ["python3", "-c", command], mem_limit="32m", memswap_limit="32m", detach=True
        )
        made.wait()
        made.remove()
        assert go(engine.out_of_memory(made.id, began)) is wanted


HOST = """
import asyncio, sandboxes, sys
async def main():
    box = await sandboxes.open("docker", image=sys.argv[1], spares=1)
    session = await box.session().open()
    print("ready", flush=True)
    await session.run("while True: pass", timeout=600)
asyncio.run(main())
"""


def test_kill_9_of_the_host_leaves_no_container(engine, go):
    with subprocess.Popen(
        [sys.executable, "-c", HOST, IMAGE], stdout=subprocess.PIPE, text=True
    ) as host:
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        assert len(containers(engine)) == 1
        os.kill(host.pid, signal.SIGKILL)
    assert go(gone(engine))


def test_what_a_dead_owner_left_is_removed_at_the_next_start(engine, go):
    async def play():
        shape = hardening.Shape(IMAGE, "uid", 64, 16)
        config = hardening.config(engine.api, shape)
        dead = owner.labels()
        dead["agentrl.owner"] = dead["agentrl.owner"] + "0"
        await engine.create({**config, "Labels": dead}, "agentrl-abandoned")
        await engine.create({**config, "Labels": owner.labels()}, "agentrl-mine")
        assert len(containers(engine)) == 2
        assert await owner.reap(engine) == 1
        await engine.remove("agentrl-mine")
        await engine.remove("agentrl-mine")  # gone already
        assert containers(engine) == []

    go(play())


def test_what_is_missing_is_named(engine, go, monkeypatch):
    async def attempt(match, **options):
        with pytest.raises(SandboxError, match=match):
            await box(**options)
        assert containers(engine) == []

    go(attempt("agentrl sandbox build --from-host", image="agentrl/absent"))
    go(attempt("runtime 'nothing'", runtime="nothing"))
    empty = engine.api.import_image_from_data(b"\0" * 10240, repository="agentrl/empty", tag="1")
    assert "error" not in empty
    go(attempt("no python3", image="agentrl/empty:1"))
    engine.api.remove_image("agentrl/empty:1")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    go(attempt("no Docker daemon answers at unix:///nowhere"))


def test_isolation_by_users_is_taken_loudly(engine, go, monkeypatch):
    """As where the daemon's system allows no namespaces in containers."""
    stock = hardening.seccomp
    monkeypatch.setattr(hardening, "seccomp", lambda inner: stock("uid"))

    async def play():
        with pytest.warns(AgentRLWarning, match="container/uid"):
            one = await box(inner="auto")
        assert one.capabilities.isolation == "container/uid"
        assert (await one.run("print(1)")).isolation == "container/uid"
        await one.close()
        with pytest.raises(IsolationError):
            await box(inner="namespaces")

    go(play())
    assert containers(engine) == []


def test_limits_of_one_session_do_not_bind_the_next(engine, go):
    async def play():
        async with box() as one:
            result = await one.run("bytearray(200 << 20)", limits=Limits(memory_mb=64))
            assert result.status in ("error", "oom")
            assert (await one.run("bytearray(100 << 20)")).ok

    go(play())


def test_a_search_in_containers_restores_states_by_replay(engine, go):
    from tests.search.tool_toys import check_states, in_a_sandbox

    async def search():
        async with box() as one:
            options = {"unit": "call", "step_tokens": 200, "iterations": 6, "outcome": True}
            return await in_a_sandbox(one, "mcts", {**options, "b1": 5, "b2": 3})

    assert check_states(*go(search())) > 0

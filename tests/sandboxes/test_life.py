"""How sessions, boxes and the host end: nothing is left behind, whoever dies and however."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from sandbox_arena import Arena, Go, begun, descriptors, open_box, processes, settled, steady

import sandboxes
from agentrl.errors import SandboxError, SessionDead
from sandboxes.embedded import EmbeddedSandbox

ROOT = Path(__file__).parents[2]
PLAIN_UID = 64_321


def test_a_cancelled_call_kills_its_session(go: Go, arena: Arena) -> None:
    async def play():
        before = arena.counts()
        async with arena.box.session() as session:
            cell = asyncio.ensure_future(session.run("import time; time.sleep(60)", timeout=60))
            await begun(session)
            cell.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cell
            with pytest.raises(SessionDead, match="cancelled"):
                await session.run("1")
        await arena.check_bystander()
        for measure, count in zip(arena.measures, before, strict=True):
            assert await settled(measure, count) <= count

    go(play())


@pytest.mark.parametrize("delay", [0, 0.0005, 0.001, 0.002, 0.004, 0.008])
def test_cancelled_while_opening(go: Go, arena: Arena, delay: float) -> None:
    async def play():
        before = arena.counts()
        opening = asyncio.ensure_future(arena.box.session().open())
        await asyncio.sleep(delay)
        opening.cancel()
        try:
            session = await opening
        except asyncio.CancelledError:
            pass
        else:
            await session.close()
        await arena.check_bystander()
        for measure, count in zip(arena.measures, before, strict=True):
            assert await settled(measure, count) <= count

    go(play())


def test_a_cancelled_program_and_command(go: Go, arena: Arena) -> None:
    async def play():
        before = arena.counts()
        for work in (
            arena.box.run("import time; time.sleep(60)"),
            arena.box.run("sleep 60 & sleep 60", language="bash"),
        ):
            task = asyncio.ensure_future(work)
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await settled(lambda: processes(arena.box), before[0]) == before[0]
        assert await settled(descriptors, before[1]) == before[1]

    go(play())


def test_closing_a_session_ends_its_running_cell(go: Go, box: EmbeddedSandbox) -> None:
    async def play():
        session = await box.session().open()
        cell = asyncio.ensure_future(session.run("import time; time.sleep(60)", timeout=60))
        await begun(session)
        await session.close()
        return await cell

    assert go(play()).status == "infra"


def test_abandoned_sessions_end_with_the_box(go: Go) -> None:
    """D22: sessions that nobody closes."""

    async def play():
        before = await steady(descriptors)
        box = await open_box(spares=2)
        for _ in range(20):
            session = await box.session().open()
            await session.run("1")
        cell = asyncio.ensure_future(session.run("while True: pass", timeout=60))
        await begun(session)
        pids = [z._process.pid for z in box._supply.zygotes.values()]
        await box.close()
        assert (await cell).status == "infra"
        assert not any(psutil.pid_exists(pid) for pid in pids)
        return before, await settled(descriptors, before)

    before, after = go(play())
    assert after == before


def test_many_sessions_leave_nothing(go: Go, arena: Arena) -> None:
    async def play():
        async with arena.box.session() as session:  # first use of whatever is made once
            await session.exec(["true"])
        memory = psutil.Process().memory_info().rss
        before = arena.counts()
        for _ in range(60):
            async with arena.box.session() as session:
                await session.run("print('x' * 1000); x = bytearray(10**6)")
                await session.exec(["true"])
                await session.write_file("f", bytes(10_000))
        assert await settled(lambda: processes(arena.box), before[0]) == before[0]
        assert arena.counts() == before
        return psutil.Process().memory_info().rss - memory

    assert go(play()) < 5 << 20


def test_a_dead_zygote_is_replaced(go: Go) -> None:
    async def play():
        async with await open_box() as box:
            session = await box.session().open()
            cell = asyncio.ensure_future(session.run("import time; time.sleep(60)", timeout=60))
            await begun(session)
            (launcher,) = (z._process.pid for z in box._supply.zygotes.values())
            await kill_zygote(launcher)
            result = await asyncio.wait_for(cell, 5)
            with pytest.raises(SessionDead):
                await session.run("1")
            await session.close()
            async with box.session() as fresh:
                return result, await fresh.run("40 + 2")

    result, fresh = go(play())
    assert result.status == "infra"
    assert fresh.value == "42"


async def kill_zygote(launcher: int) -> None:
    """Kill the process that clones sessions: the last before the sessions' own."""
    below = psutil.Process(launcher).children(recursive=True)
    zygotes = [
        p for p in below if "zygote.main" in " ".join(p.cmdline()) and "--" not in p.cmdline()
    ]
    zygotes[0].kill()
    await asyncio.sleep(0)


def test_a_zygote_that_cannot_start_says_why(go: Go) -> None:
    broken = sandboxes.Profile("broken", imports=("no_such_module",))
    with pytest.raises(SandboxError, match="no_such_module"):
        go(open_box(profile=broken))
    with pytest.raises(SandboxError, match="no_such_package"):
        go(open_box(profile=sandboxes.Profile("absent", packages=("no_such_package",))))


HOST = """
import asyncio, sandboxes, sys
async def main():
    box = await sandboxes.open("embedded", spares=1, wall_s=60, isolation=sys.argv[1])
    session = await box.session().open()
    zygotes = box._supply.zygotes.values()
    families = [z.family.path for z in zygotes if z.family]
    families += [z.block.base for z in zygotes if z.block]
    print(box._supply.zygotes[box.profile]._process.pid, *families, flush=True)
    await session.run("import os, time\\nif os.fork() == 0: os.setsid()\\ntime.sleep(60)")
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_a_killed_host(tier: str, number: signal.Signals) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, tier], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    wanted = 6 if tier == "uid" else 7  # bwrap's, the zygote, two sessions of two, a forked child
    assert host.stdout is not None
    launcher, *families = host.stdout.readline().split()
    jailed: list[psutil.Process] = []
    for _ in range(200):
        jailed = psutil.Process(int(launcher)).children(recursive=True)
        if len(jailed) >= wanted:
            break
        time.sleep(0.05)
    assert len(jailed) >= wanted
    host.send_signal(number)
    host.wait(10)
    host.stdout.close()
    _, alive = psutil.wait_procs([*jailed], timeout=5)
    assert not alive
    deadline = time.monotonic() + 5
    while any(os.path.exists(f) for f in families) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not [f for f in families if os.path.exists(f)]


@pytest.fixture(scope="module")
def plain_python(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line that runs Python with this environment's packages as a user without rights."""
    if os.geteuid() != 0:
        pytest.skip("the tests do not run as root: all of them ran as a plain user")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv is missing, which runs a command as another user")
    drop = [setpriv, f"--reuid={PLAIN_UID}", f"--regid={PLAIN_UID}", "--clear-groups"]
    site = [p for p in sys.path if "site-packages" in p]
    path = os.pathsep.join([str(ROOT), *site])
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    tried = dict.fromkeys([sys.executable, shutil.which(version, path="/usr/bin:/usr/local/bin")])
    home = tmp_path_factory.mktemp("plain")
    for folder in (home, *home.parents[:2]):
        os.chmod(folder, 0o755)
    for python in filter(None, tried):
        command = [*drop, "env", "-i", f"PYTHONPATH={path}", "PYTHONDONTWRITEBYTECODE=1", python]
        probe = [*command, "-c", "import psutil, pytest, sandboxes"]
        if subprocess.run(probe, cwd="/", capture_output=True).returncode == 0:
            return command
    pytest.skip("no interpreter with these packages that another user can read")


@pytest.mark.parametrize(
    "chosen",
    [
        "test_cell or test_command or test_files or test_links or test_other_system or "
        "test_one_shot_python or test_sessions_have or test_a_cancelled or "
        "test_nothing_outlives or test_without_isolation or test_doctor or test_siblings or "
        "test_a_process_that_hides or test_the_jail_is or "
        "(test_a_cell_answers and (names or files or place))",
        "test_game or test_forms",
    ],
    ids=["sessions", "games"],
)
def test_as_a_plain_user(plain_python: list[str], chosen: str) -> None:
    """The abuse and session tests once more, without root and so without control groups."""
    done = subprocess.run(
        [*plain_python, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-k", chosen,
         "--ignore-glob=*test_remote*",
         str(Path(__file__).parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_the_watchdog_limits_memory_without_control_groups(plain_python: list[str]) -> None:
    program = """
    import asyncio, sandboxes
    async def main():
        async with sandboxes.open("embedded", memory_mb=200, wall_s=20, spares=0) as box:
            assert not box.capabilities.cgroup
            async with box.session() as session:
                r = await session.run(
                    "import os, time\\n"
                    "for _ in range(4):\\n"
                    "    if os.fork() == 0:\\n"
                    "        block = bytearray(b'x') * (120 << 20)\\n"
                    "        time.sleep(30)\\n"
                    "time.sleep(30)"
                )
            print(r.status, r.duration < 15)
    asyncio.run(main())
    """
    done = subprocess.run(
        [*plain_python, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "oom True\n", done.stderr


def test_signals_that_the_host_ignores_are_not_ignored_in_sessions() -> None:
    program = """
    import asyncio, signal, sandboxes
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # as under nohup, and in a shell's background
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGTERM})
    async def main():
        async with sandboxes.open("embedded", spares=0) as box:
            for name in ("SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM"):
                async with box.session() as session:
                    r = await session.run(f"import os, signal; os.kill(os.getpid(), signal.{name})")
                    assert (r.status, r.signal) == ("crashed", getattr(signal, name)), (name, r)
            async with box.session() as session:
                r = await session.exec(["sh", "-c", "kill -QUIT $$; kill -INT $$; echo alive"])
                assert (r.status, r.stdout) == ("crashed", ""), r
                r = await session.run("import time; time.sleep(30)", timeout=0.1)
                assert r.status == "timeout", r
                assert (await session.run("6 * 7")).value == "42"
    asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]

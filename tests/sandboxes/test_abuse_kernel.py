"""Games with the kernel and with what is ours in the session: nobody else notices, and what code
does to itself is never taken for our failure."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path
from typing import Any

import pytest
from abuse_kernel import KERNEL, LATE, SOURCES
from sandbox_arena import Arena, Go

from agentrl.errors import ConfigError, EndedByCode, SessionDead
from agentrl.types import Limits
from sandboxes.embedded.inside import init

CHILDREN = 1 << 16  # SIGCHLD in a mask of signals
EXIT_SOON = "import os, threading, time\nthreading.Timer(0.05, os._exit, (0,)).start()"
SPEAK_SOON = """
import os, threading
def speak():
    for fd in range(900, 910):
        try: os.write(fd, b'{}')
        except OSError: pass
threading.Timer(0.05, speak).start()
"""


@pytest.mark.parametrize("name", KERNEL)
def test_kernel_game(go: Go, arena: Arena, name: str) -> None:
    source, statuses, kept = KERNEL[name]
    wall = 0.4 if statuses == ("timeout",) else 4.0

    async def play(session) -> Any:
        result = await session.run(textwrap.dedent(source), timeout=wall)
        await asyncio.sleep(0.1 if name in LATE else 0)
        return result

    go(arena.attack(play, statuses, kept))


def test_sources_that_bite_the_compiler(go: Go, arena: Arena) -> None:
    async def play(session):
        for name, source in SOURCES.items():
            result = await session.run(source, timeout=4)
            assert result.status in ("ok", "error"), (name, result)
        return result

    go(arena.attack(play, ("error",), True))


def test_the_first_process_has_a_handler_for_its_children_only(go: Go, arena: Arena) -> None:
    """Signals that have one reach the first process of a namespace, and would end it: which kernels
    before 6.12 cannot keep the code from sending."""

    async def play() -> int:
        async with arena.box.session() as session:
            status = Path(f"/proc/{session._handle.pid}/status").read_text()
            return int(status.partition("SigCgt:")[2].split()[0], 16)

    assert go(play()) | CHILDREN == CHILDREN


@pytest.mark.parametrize("source", [EXIT_SOON, SPEAK_SOON])
@pytest.mark.parametrize("during", ["files", "nothing"])
def test_what_ends_after_its_cell_was_ended_by_code(
    go: Go, arena: Arena, source: str, during: str
) -> None:
    """It must not be taken for our failure, which is never a reward."""

    async def play(session) -> Any:
        result = await session.run(source)
        with pytest.raises(EndedByCode):
            for _ in range(200):
                if during == "files":
                    await session.write_file("x", bytes(100_000))
                await asyncio.sleep(0.002)
            await session.run("1")
        for call in (session.run("1"), session.exec(["true"]), session.read_file("x")):
            with pytest.raises(EndedByCode):
                await call
        return result

    go(arena.attack(play, ("ok",), False))


def test_what_we_end_was_not_ended_by_code(go: Go, arena: Arena) -> None:
    async def play() -> list[type]:
        kinds = []
        async with arena.box.session() as session:
            call = asyncio.create_task(session.run("import time; time.sleep(60)"))
            await asyncio.sleep(0.05)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            for _ in range(2):
                with pytest.raises(SessionDead) as caught:
                    await session.run("1")
                kinds.append(caught.type)
                await session.close()
        return kinds

    assert go(play()) == [SessionDead, SessionDead]


HOG = """
import ctypes, os, signal
libc, timer, count = ctypes.CDLL(None), ctypes.c_void_p(), 0
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
while count < 100_000 and libc.sigqueue(os.getpid(), 40, None) == 0: count += 1
while libc.inotify_init() >= 0: pass
rt = ctypes.CDLL('librt.so.1')
for n in range(100): rt.mq_open(b'/q%d' % n, 0o102, 0o600, None)
count
"""
LOOK = """
import ctypes, os, signal
libc, timer = ctypes.CDLL(None), ctypes.c_void_p()
signal.pthread_sigmask(signal.SIG_BLOCK, {40})
(libc.sigqueue(os.getpid(), 40, None), libc.timer_create(0, None, ctypes.byref(timer)), libc.inotify_init() >= 0)
"""  # noqa: E501


def test_what_is_counted_for_the_user_of_all_sessions(go: Go, arena: Arena) -> None:
    """E15: no session uses up the signals, timers and watches of the others."""

    async def play(session) -> Any:
        hogs = [arena.box.session() for _ in range(3)]
        for hog in (session, *hogs):
            await hog.open()
            result = await hog.run(HOG, timeout=4)
            assert result.ok, result
            assert int(result.value) <= 1024
        async with arena.box.session() as other:
            result = await other.run(LOOK)
        for hog in hogs:
            await hog.close()
        return result

    result = go(arena.attack(play, ("ok",), True))
    watches = arena.box.capabilities.isolation == "namespaces"  # others have none
    assert result.value == f"(0, 0, {watches})"


def test_threads_whose_first_has_ended_are_swept(go: Go, arena: Arena) -> None:
    source = """
    import ctypes, os, threading, time
    child = os.fork()
    if child == 0:
        threading.Thread(target=time.sleep, args=(60,)).start()
        ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)
    print(child, flush=True)
    time.sleep(60)
    """

    async def play(session) -> Any:
        result = await session.run(textwrap.dedent(source), timeout=0.4)
        gone = "import os\ntry: os.waitpid(child, 0)[1]\nexcept ChildProcessError: -1"
        assert (await session.run(gone, timeout=0.4)).ok
        return result

    go(arena.attack(play, ("timeout",), True))


@pytest.mark.parametrize(
    "timeout", [0, -1, float("nan"), float("inf"), "1", True], ids=lambda t: str(t)
)
def test_times_that_are_none(go: Go, arena: Arena, timeout: Any) -> None:
    async def play(session) -> Any:
        for call in (session.run, session.exec):
            with pytest.raises(ConfigError, match="timeout"):
                await call(["true"] if call == session.exec else "1", timeout=timeout)
        return await session.run("1", timeout=1e9)

    assert go(arena.attack(play, ("ok",), True)).value == "1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wall_s", float("inf")),
        ("cpu_s", float("inf")),
        ("memory_mb", 1),
        ("memory_mb", 1e18),
        ("files", 1),
        ("pids", 0.5),
        ("disk_mb", 1 << 60),
        ("inodes", -1),
    ],
)
def test_limits_that_no_session_can_have(arena: Arena, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        arena.box.session(Limits(**{name: value}))


@pytest.mark.parametrize("language", ["python", "bash"])
def test_programs_with_a_million_lines_are_refused(go: Go, arena: Arena, language: str) -> None:
    """C16, as a program: what does not fit is an error of the program."""
    result = go(arena.box.run("\n" * 5_000_000, language=language))
    assert (result.status, result.error.name) == ("error", "SourceTooLong")


def test_commands_that_cannot_be_encoded(go: Go, arena: Arena) -> None:
    result = go(arena.attack(lambda s: s.exec(["echo", "\ud800\udc80"]), ("exit",), True))
    assert result.exit_code == 126
    assert "encode" in result.stderr


def test_a_command_without_room_for_its_process(monkeypatch) -> None:
    """Where the session's processes are all that it may have, and the first one counts as well."""
    sent: list[dict[str, Any]] = []
    first = init.Init.__new__(init.Init)
    first.facts, first.jobs = None, {}

    def no_room() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    said: list[bytes] = []
    monkeypatch.setattr(init.os, "fork", no_room)
    monkeypatch.setattr(init.os, "write", lambda fd, data: said.append(data))
    monkeypatch.setattr(init.wire, "send", lambda sock, message: sent.append(message))
    first.execute(7, ["true"], [0, 1, 2])
    assert said == [b"true: Resource temporarily unavailable\n"]
    assert sent == [{"ended": 7, "status": 126 << 8, "cpu": 0.0, "peak_kb": 0}]


def test_disks_are_not_made_to_write(go: Go, arena: Arena) -> None:
    source = "import os\nfor _ in range(30_000): os.sync()"
    go(arena.attack(lambda s: s.run(source, timeout=4), ("ok",), True))

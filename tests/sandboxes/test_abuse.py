# ruff: noqa: E501
"""Hostile and clumsy code: what it gets, and that nobody else notices.

The cells are in `abuse_cells`. The arena checks after each case that another live session answers
and that no process, descriptor or control group is left.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import platform
import textwrap
import time

import pytest
from abuse_cells import CELLS, UID, D, K, cell
from sandbox_arena import Arena, Go, settled

from sandboxes.embedded import EmbeddedSession, channels

WALL_S = {"A05-many-blocks": 8.0, "A06-children-together": 8.0}  # much memory takes time to touch


def wall_of(name: str, statuses: tuple[str, ...]) -> float | None:
    """A short limit where the time limit is what is tested, the box's own elsewhere."""
    return WALL_S.get(name, 0.4 if statuses == ("timeout",) else None)


@pytest.mark.parametrize("name", dict.fromkeys([*CELLS, *UID]))
def test_cell(go: Go, arena: Arena, name: str) -> None:
    tier = arena.tier
    if name not in CELLS and tier != "uid":
        pytest.skip("a case of tier uid")
    source, statuses, kept = cell(name, tier)
    source = textwrap.dedent(source)
    wall = wall_of(name, statuses)
    started = time.monotonic()
    result = go(arena.attack(lambda s: s.run(source, timeout=wall), statuses, kept))
    assert time.monotonic() - started < 12
    assert "FORGED" not in (result.value or "")


COMMANDS = {
    "A01-fork-for-ever": ("f() { f | f & }; f; sleep 5", ("exit", "timeout", "ok")),
    "A04-memory": ("tail /dev/zero", ("oom", "exit", "timeout", "crashed")),
    "A08-fill-work": ("cat /dev/zero > f", ("exit", "crashed")),
    "A15-print-for-ever": ("yes", ("output_limit",)),
    "B02-sleep": ("sleep 1000", ("timeout",)),
    "B04-ignore-signals": ("trap '' INT TERM HUP; while :; do :; done", ("timeout",)),
    "B08-kill-everybody": ("kill -9 -1", ("exit", "ok", "crashed")),
    "B10-orphan": ("setsid sleep 60 & echo done", ("ok",)),
    "C01-exit": ("exit 7", ("exit",)),
    "C02-segfault": ("kill -SEGV $$", ("crashed",)),
    "D07-setuid": ("mount -t tmpfs x /tmp", ("exit",)),
    "D08-write-system": ("echo x > /usr/bin/x", ("exit",)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command(go: Go, arena: Arena, name: str) -> None:
    script, statuses = COMMANDS[name]
    kept = None if name in ("A15-print-for-ever", "A04-memory", "A01-fork-for-ever") else True
    wall = wall_of(name, statuses)
    go(arena.attack(lambda s: s.exec(["bash", "-c", script], timeout=wall), statuses, kept))


FAMILIES = {"A": ("A",), "B": ("B",), "D": ("D",), "CE": ("C01", "C02", "E01-forge-on")}
WAYS = {"program": FAMILIES, "command": ("A", "B", "D")}
AT_ONCE = 4
# A command is beside the interpreter, which it sees; the locks that tier uid has for the
# interpreter's pools are not in another one.
NO_COMMANDS = {("D06-proc", "namespaces"), ("A20-pool", "uid")}


def as_command(statuses: tuple[str, ...]) -> set[str]:
    """How a command of its own may end: its errors are exit codes, and its memory is limited by the
    session's alone."""
    found = set(statuses)
    if "error" in found:
        found |= {"exit", "crashed", "oom"}
    return found


@pytest.mark.parametrize(("way", "family"), [(w, f) for w, names in WAYS.items() for f in names])
def test_other_ways(go: Go, arena: Arena, way: str, family: str) -> None:
    """The same as one-shot programs, and as commands beside the interpreter: nothing is left."""
    places = asyncio.Semaphore(AT_ONCE)

    async def play(name: str) -> tuple[str, str, set[str]]:
        source, statuses, _ = cell(name, arena.tier)
        source, wall = textwrap.dedent(source), wall_of(name, statuses) or 4.0
        async with places:
            if way == "program":
                limits = dataclasses.replace(arena.box.limits, wall_s=wall)
                result = await arena.box.run(source, limits=limits)
                return name, result.status, set(statuses)
            async with arena.box.session() as session:
                result = await session.exec(["python3", "-c", source], timeout=wall)
            return name, result.status, as_command(statuses)

    async def all_of_them() -> None:
        before = arena.counts()
        names = [n for n in dict.fromkeys([*CELLS, *UID]) if n.startswith(FAMILIES[family])]
        if arena.tier != "uid":
            names = [n for n in names if n in CELLS]
        if way == "command":
            names = [n for n in names if (n, arena.tier) not in NO_COMMANDS]
        ended = await asyncio.gather(*map(play, names))
        assert [one for one in ended if one[1] not in one[2]] == []
        await arena.check_bystander()
        for measure, count in zip(arena.measures, before, strict=True):
            assert await settled(measure, count) <= count

    go(all_of_them())


def test_output_is_exact_where_it_is_cut(go: Go, arena: Arena) -> None:
    async def play(session: EmbeddedSession):
        return await session.run("print('x' * 3_000_000, end='')")

    result = go(arena.attack(play, ("ok",), K))
    assert result.stdout_bytes == 3_000_000
    assert result.truncated


def test_late_output_of_an_orphan_is_not_waited_for(go: Go, arena: Arena) -> None:
    source = textwrap.dedent(CELLS["B10-orphan-holds-output"][0])
    result = go(arena.attack(lambda s: s.run(source), ("ok",), K))
    assert result.stdout == "done\n"
    assert result.duration < 0.9


def test_exit_without_a_word_is_never_a_pass(go: Go, arena: Arena) -> None:
    result = go(arena.attack(lambda s: s.run("import os; os._exit(0)"), ("exit",), D))
    assert (result.ok, result.exit_code) == (False, 0)
    program = go(arena.box.run("import os; os._exit(0)"))
    assert (program.ok, program.status, program.exit_code) == (False, "exit", 0)


def test_cpu_budget_of_a_session(go: Go, arena: Arena) -> None:
    """B14: work split over many cells, each within its limit, ends at the session's budget."""
    from agentrl.types import Limits

    async def play():
        limits = Limits(cpu_s=1, wall_s=5, memory_mb=128)
        async with arena.box.session(limits) as session:
            for _ in range(100):
                result = await session.run(
                    "import time\nend = time.process_time() + 0.15\nwhile time.process_time() < end: pass"
                )
                if result.status != "ok":
                    return result
        return None

    result = go(play())
    assert result is not None
    assert result.status == "timeout"
    assert "CPU" in result.detail


def test_patched_json_changes_claims_only(go: Go, arena: Arena) -> None:
    """E02: what is patched in the interpreter reaches the host as a claim, or as tampering."""
    patch = 'import json; json.dumps = lambda *a, **k: \'{"status": "ok"}\''

    async def play(session: EmbeddedSession):
        result = await session.run(patch)
        return result if result.status == "tampered" else await session.run("1/0")

    go(arena.attack(play, ("error", "tampered"), None))


def test_answers_between_calls_are_tampering(go: Go, arena: Arena) -> None:
    source = """
    import os, threading, time
    def later():
        time.sleep(0.2)
        for fd in range(900, 910):
            try: os.write(fd, b'{"id": 3, "status": "ok"}')
            except OSError: pass
    threading.Thread(target=later).start()
    """

    async def play(session: EmbeddedSession):
        result = await session.run(textwrap.dedent(source))
        await asyncio.sleep(0.5)
        return result

    go(arena.attack(play, ("ok",), D))


def test_sessions_have_their_own_files_and_sockets(go: Go, arena: Arena) -> None:
    """A10, D03: what one session fills or binds is not seen by the next."""
    if arena.tier == "uid":
        pytest.skip("no sockets and no /dev/shm in tier uid: see its own cases")
    fill = """
    for folder in ('/work', '/tmp', '/dev/shm'):
        try:
            with open(folder + '/fill', 'wb') as f:
                while True: f.write(bytes(1 << 16))
        except OSError: pass
    import socket
    s = socket.socket(socket.AF_UNIX); s.bind('\\0agentrl-test'); s.listen()
    t = socket.socket(); t.bind(('127.0.0.1', 5555)); t.listen()
    assert socket.create_connection(('127.0.0.1', 5555))
    """
    look = """
    import os, socket
    assert os.listdir('/dev/shm') == [] and os.listdir('/tmp') == [] and os.listdir('/work') == []
    for family, address in ((socket.AF_UNIX, '\\0agentrl-test'), (socket.AF_INET, ('127.0.0.1', 5555))):
        try: socket.socket(family).connect(address); raise SystemExit(str(address))
        except ConnectionRefusedError: pass
    """

    async def play(session: EmbeddedSession):
        first = await session.run(textwrap.dedent(fill))
        assert first.ok, first
        async with arena.box.session() as other:
            second = await other.run(textwrap.dedent(look))
            assert second.ok, second
        return first

    go(arena.attack(play, ("ok",), K))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="machine code for x86-64")
def test_other_system_call_tables(go: Go, arena: Arena) -> None:
    """D02, D10: no way round the filter through the 32-bit or the x32 table."""
    source = """
    import ctypes, mmap
    def call(code):
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    getpid_32 = call(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')
    getpid_x32 = ctypes.CDLL(None, use_errno=True).syscall(0x40000000 | 39)
    (getpid_32, getpid_x32)
    """
    result = go(arena.attack(lambda s: s.run(textwrap.dedent(source)), ("ok",), K))
    assert result.value == "(-38, -1)"


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/x",
        "a/../../x",
        "a\0b",
        "x" * 4096,
        "",
        "/",
        ".",
        "/work",
        "a/" * 2000 + "b",
        "\ud800",
    ],
)
def test_paths_outside_the_session(go: Go, arena: Arena, path: str) -> None:
    """D16: refused before anything is written."""

    async def play(session: EmbeddedSession):
        with pytest.raises(ValueError, match="path"):
            await session.write_file(path, b"x")
        with pytest.raises(ValueError, match="path"):
            await session.read_file(path)
        return await session.run("import os; os.listdir('.')")

    assert go(arena.attack(play, ("ok",), K)).value == "[]"


def test_links_pipes_and_devices_are_not_followed(go: Go, arena: Arena) -> None:
    """D14, D16: what code leaves behind cannot lead file calls elsewhere, or make them wait."""
    source = """
    import os
    os.symlink('/etc/passwd', 'link'); os.symlink('/tmp', 'folder'); os.symlink('/proc/1/mem', 'memory')
    os.mkfifo('pipe'); os.mkdir('real'); os.symlink('/proc/1/environ', 'real/environ')
    open('large', 'wb').truncate(3 << 20)
    """

    async def play(session: EmbeddedSession):
        result = await session.run(textwrap.dedent(source))
        for path in ("link", "memory", "pipe", "folder/x", "real", "real/environ"):
            with pytest.raises((ValueError, OSError)) as caught:
                await session.read_file(path)
            assert not isinstance(caught.value, FileNotFoundError)
        for path in ("link", "pipe", "folder/x", "link/x"):
            with pytest.raises(ValueError, match="links"):
                await session.write_file(path, b"x")
        with pytest.raises(ValueError, match="at most"):
            await session.read_file("large")
        return result

    go(arena.attack(play, ("ok",), K))


def test_sources_with_a_million_lines_are_refused(go: Go, arena: Arena) -> None:
    result = go(arena.attack(lambda s: s.run("\n" * 10**6 + "1"), ("error",), K))
    assert result.error is not None
    assert result.error.name == "SourceTooLong"


def test_secrets_of_the_host_stay_out(go: Go, arena: Arena, monkeypatch) -> None:
    """D18: neither the environment nor the files of the host reach a session."""
    monkeypatch.setenv("AGENTRL_TEST_TOKEN", "hunter2")

    async def play(session: EmbeddedSession):
        return await session.exec(
            ["bash", "-c", "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null"]
        )

    result = go(arena.attack(play, ("ok", "exit"), K))
    assert "hunter2" not in result.stdout
    assert os.fspath(os.getcwd()) not in result.stdout


def test_floods_of_messages_do_not_hold_the_host(go: Go, arena: Arena) -> None:
    source = """
    import os, threading
    def flood():
        while True:
            for fd in range(900, 910):
                try: os.write(fd, b'{"id": 1}')
                except OSError: pass
    for _ in range(4): threading.Thread(target=flood, daemon=True).start()
    while True: pass
    """
    result = go(arena.attack(lambda s: s.run(textwrap.dedent(source)), ("tampered",), D))
    assert result.duration < 1


LINGERING = """
import array, os, socket, struct
listener = socket.socket(); listener.bind(('127.0.0.1', 0)); listener.listen()
a = socket.create_connection(listener.getsockname()); b, _ = listener.accept()
a.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 20))
a.setblocking(False)
try:
    while True: a.send(bytes(1 << 16))
except BlockingIOError: pass
for fd in range(900, 910):
    try: channel = socket.socket(fileno=os.dup(fd))
    except OSError: continue
    for order in ([a, b], [b, a], [a] * 200):
        rights = array.array('i', [one.fileno() for one in order])
        try: channel.sendmsg([b'{"id": 1}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError: pass
a.close(); b.close()
"""


@pytest.mark.parametrize("kernel", ["refuses", "takes"])
def test_descriptors_sent_to_the_host(go: Go, arena: Arena, monkeypatch, kernel: str) -> None:
    """A connection that lingers would block, for 20 s here, whoever closes it last."""
    if arena.tier == "uid":
        pytest.skip("no connections in tier uid")
    if kernel == "takes":  # as before Linux 6.16
        monkeypatch.setattr(channels, "refuse_descriptors", lambda sock: False)
    longest = 0.0

    async def tick():
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    async def play():
        ticking = asyncio.create_task(tick())
        # Before Linux 6.16 the kernel keeps such a socket, and its namespace, for as long.
        result = await (
            arena.attack(lambda s: s.run(LINGERING), ("ok", "tampered", "timeout"), None)
            if kernel == "refuses"
            else _attack_without_counts(arena)
        )
        ticking.cancel()
        return result

    result = go(play())
    assert longest < 3
    assert result.status == "tampered" or kernel == "refuses"


async def _attack_without_counts(arena: Arena):
    async with arena.box.session() as session:
        result = await session.run(LINGERING)
        await arena.check_bystander()
    return result

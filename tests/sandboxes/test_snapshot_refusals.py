# ruff: noqa: E501
"""States that cannot be put into other sessions, and restores that fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sandbox_arena import Go, processes, settled
from snapshot_states import answers, open_namespaces, taken

from agentrl.errors import SessionDead, SnapshotRefused
from sandboxes.embedded import EmbeddedSandbox, memory, process, snapshot
from sandboxes.embedded.snapshot import Snapshot

REFUSED = {
    "thread": ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", "more than one thread"),
    "child": ("import os, time\nif os.fork() == 0: time.sleep(60)", "other processes"),
    "zombie": ("import os, time\nif os.fork() == 0: os._exit(0)\ntime.sleep(0.05)", "other processes"),
    "orphan": ("import subprocess; subprocess.run('sleep 60 &', shell=True)", "other processes"),
    "shared-memory": ("import mmap; m = mmap.mmap(-1, 4096)", "shares memory"),
    "semaphore": ("import multiprocessing; l = multiprocessing.Lock()", "shares memory"),
    "own-file-mapped": ("import ctypes\nl = ctypes.CDLL(None)\nopen('f', 'wb').write(bytes(8192))\nwith open('f', 'rb') as f: l.mmap(None, 8192, 1, 2, f.fileno(), 0)", "a file of its own"),
    "removed-file-mapped": ("import ctypes, os\nl = ctypes.CDLL(None)\nopen('f', 'wb').write(bytes(8192))\nwith open('f', 'rb') as f: l.mmap(None, 8192, 1, 2, f.fileno(), 0)\nos.remove('f')", "has no name any more"),
    "segment": ("import ctypes; assert ctypes.CDLL(None).semget(0, 1, 0o1600) >= 0", "System V objects"),
    "open-file": ("f = open('f', 'w')", "descriptor 3 is open"),
    "socket": ("import socket; s = socket.socket()", "descriptor 3 is open"),
    "event-loop": ("import asyncio; await asyncio.sleep(0)", "descriptor 3 is open"),
    "closed": ("import os; os.close(0)", "are closed"),
    "replaced": ("import os; r, w = os.pipe(); os.dup2(r, 0); os.close(r); os.close(w)", "descriptor 0 is open or changed"),
    "flags": ("import os; os.set_blocking(1, False)", "open or changed"),
    "handler": ("import signal; signal.signal(signal.SIGUSR1, lambda *_: None)", "handles other signals"),
    "ignored": ("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)", "ignores other signals"),
    "timer": ("import ctypes; t = ctypes.c_void_p(); ctypes.CDLL(None).timer_create(1, None, ctypes.byref(t))", "timers"),
    "limit": ("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", "resource limits"),
    "nice": ("import os; os.nice(3)", "priority"),
    "fifo": ("import os; os.mkfifo('p')", "neither file, directory nor link"),
    "socket-file": ("import socket\nwith socket.socket(socket.AF_UNIX) as s: s.bind('q')", "neither file, directory nor link"),
    "no-directory": ("import os; os.mkdir('d'); os.chdir('d'); os.rmdir('/work/d')", "working directory was removed"),
    "deep-directories": ("import os\nfor _ in range(80): os.mkdir('d'); os.chdir('d')", "deep"),
    "many-mappings": ("import mmap\nk = []\ntry:\n    for n in range(60_000): k.append(mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=1 + n % 2 * 2))\nexcept OSError: pass", "more than 4096 mappings"),
    "addresses": ("import ctypes, resource\nkept = resource.getrlimit(resource.RLIMIT_AS)\nresource.setrlimit(resource.RLIMIT_AS, (-1, kept[1]))\nl = ctypes.CDLL(None); l.mmap.restype = ctypes.c_void_p\nassert l.mmap(None, ctypes.c_size_t(1 << 40), 0, 0x4022, -1, ctypes.c_size_t(0)) != 2**64 - 1\nresource.setrlimit(resource.RLIMIT_AS, kept)", "GiB of addresses"),
    "own-filter": ("import ctypes\nl = ctypes.CDLL(None)\nclass F(ctypes.Structure): _fields_ = [('n', ctypes.c_ushort), ('f', ctypes.c_char_p)]\nassert l.prctl(22, 2, ctypes.byref(F(1, b'\\x06\\0\\0\\0\\0\\0\\xff\\x7f'))) == 0", "Seccomp_filters"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_is_refused(go: Go, wide_states: EmbeddedSandbox, name: str) -> None:
    source, reason = REFUSED[name]

    async def work() -> None:
        async with wide_states.session() as session:
            result = await session.run(f"state = 'kept'\n{source}")
            if name == "addresses" and result.status != "ok":
                pytest.skip("this machine does not allow so many addresses")
            assert result.status == "ok", result
            began = time.monotonic()
            with pytest.raises(SnapshotRefused, match=reason):
                await session.snapshot()
            assert time.monotonic() - began < 10
            assert (await session.run("state")).value == "'kept'"

    go(work())


def test_a_state_has_a_size(
    go: Go, wide_states: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with wide_states.session() as session:
            small = (await session.snapshot()).size
            await session.run("b = bytes(range(256)) * (20 << 12)")
            assert 20 << 20 < (await session.snapshot()).size - small < 22 << 20
            monkeypatch.setattr(snapshot, "MOST_MB", 10)
            with pytest.raises(SnapshotRefused, match="MiB of memory"):
                await session.snapshot()
            await session.run(
                "del b\nwith open('f', 'wb') as f:\n    for _ in range(12): f.write(bytes(1 << 20))"
            )
            with pytest.raises(SnapshotRefused, match="hold too much"):
                await session.snapshot()

    go(work())


# Cells that spoil the runner, the stack or the protocol before the state is taken.
HOSTILE = {
    "patched-runner": "import gc, types\nfor m in gc.get_objects():\n    if type(m).__name__ == 'Worker': m.pid = -1; m.saved = (0, 0)",
    "patched-wire": "import sys, gc\nfor f in gc.get_objects():\n    if getattr(f, '__name__', '') == 'decode' and getattr(f, '__module__', '') == 'inside.wire': f.__code__ = (lambda data: {'op': 'sync', 'token': 'x'}).__code__",
    "wrong-answers": "import gc\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Worker':\n        answer = type(o)._answer\n        type(o)._answer = lambda self, a: answer(self, {'sync': 'forged'} if 'sync' in a and state == 'armed' else a)\nstate = 'armed'",
    "stack-moved": "import ctypes, threading; threading.stack_size(1 << 20); t = threading.Thread(target=lambda: None); t.start(); t.join()",
    "locked-memory": "import ctypes; ctypes.CDLL(None).mlockall(3)",
    "huge-name": "import ctypes; ctypes.CDLL(None).prctl(15, b'(x) R 1 1 1 \\n')",
    "named-memory": "import ctypes, mmap\nm = mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\na = ctypes.addressof(ctypes.c_char.from_buffer(m))\nctypes.CDLL(None).prctl(0x53564d41, 0, ctypes.c_void_p(a), 8192, b'] [heap] /etc/passwd')",
    "unmapped": "import ctypes, mmap\nl = ctypes.CDLL(None)\nfor line in open('/proc/self/maps'):\n    if 'LC_CTYPE' in line: a, b = (int(n, 16) for n in line.split()[0].split('-')); l.munmap(ctypes.c_void_p(a), ctypes.c_size_t(4096)); break",
    "all-writable": "import ctypes\nl = ctypes.CDLL(None)\nfor line in open('/proc/self/maps'):\n    if 'libm.so' in line: a, b = (int(n, 16) for n in line.split()[0].split('-')); l.mprotect(ctypes.c_void_p(a), ctypes.c_size_t(b - a), 7)",
    "code-patched": "import ctypes\nl = ctypes.CDLL(None)\nfor line in open('/proc/self/maps'):\n    if 'libm.so' in line and 'r-xp' in line:\n        a, b = (int(n, 16) for n in line.split()[0].split('-')); l.mprotect(ctypes.c_void_p(a), ctypes.c_size_t(b - a), 7); ctypes.memset(a, 0xcc, b - a)",
    "no-read": "import ctypes, mmap\nm = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); m[:] = bytes([1]) * (1 << 20)\na = ctypes.addressof(ctypes.c_char.from_buffer(m)); ctypes.CDLL(None).mprotect(ctypes.c_void_p(a), 1 << 20, 0)",
    "guard-pages": "import ctypes, mmap\nm = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\na = ctypes.addressof(ctypes.c_char.from_buffer(m)); ctypes.CDLL(None).madvise(ctypes.c_void_p(a), 4096, 102)",
    "fork-wiped": "import ctypes, mmap\nm = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); m[:3] = b'abc'\na = ctypes.addressof(ctypes.c_char.from_buffer(m)); ctypes.CDLL(None).madvise(ctypes.c_void_p(a), 1 << 20, 18)",
    "alternate-stack": "import ctypes; kept = ctypes.create_string_buffer(1 << 16)\nimport struct; ctypes.CDLL(None).sigaltstack(struct.pack('QiiQ', ctypes.addressof(kept), 0, 0, 1 << 16), None)",
    "traced-by-itself": "import ctypes; ctypes.CDLL(None).ptrace(0, 0, 0, 0)",
    "many-files": "for n in range(200): open(f'{n}', 'w').write('x' * n)",
    "links-out": "import os\nos.symlink('/proc/1/root', 'a'); os.symlink('/', 'b'); os.symlink('a', 'c'); os.symlink('..', '/tmp/d')",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_states_are_refused_or_as_jailed_as_any(
    go: Go, small_states: EmbeddedSandbox, name: str
) -> None:
    async def work() -> None:
        before = processes(small_states)
        async with small_states.session() as session:
            await session.run(HOSTILE[name])
            began = time.monotonic()
            try:
                start = await session.snapshot()
            except (SnapshotRefused, SessionDead):
                return
            finally:
                assert time.monotonic() - began < 10
            try:
                async with start.session() as successor:
                    status = Path(f"/proc/{successor._handle.worker_pid}/status").read_text()
                    assert "Seccomp:\t2\n" in status
                    assert "CapEff:\t0000000000000000\n" in status
                    assert "NoNewPrivs:\t1\n" in status
                    result = await successor.run(
                        "import os\ntry: os.setuid(0)\nexcept OSError: pass\nos.getuid()", timeout=5
                    )
                    assert result.value in ("1000", None)
            except (SnapshotRefused, SessionDead):
                pass
            finally:
                assert time.monotonic() - began < 20
        assert await settled(lambda: processes(small_states), before) <= before

    go(work())


def test_a_replaced_zygote_has_no_place_for_old_states(go: Go) -> None:
    async def work() -> None:
        box = await open_namespaces(spares=0, recycle=2)
        try:
            async with box.session() as session, box.session():
                with pytest.raises(SnapshotRefused, match="was replaced"):
                    await session.snapshot()
                assert (await session.run("6 * 7")).value == "42"
        finally:
            await box.close()

    go(work())


def test_sessions_without_namespaces_refuse(go: Go, box: EmbeddedSandbox, tier: str) -> None:
    if tier == "namespaces":
        pytest.skip("a case of tier uid")

    async def work() -> None:
        assert not box.capabilities.snapshots
        async with box.session() as session:
            with pytest.raises(SnapshotRefused, match="namespaces of its own"):
                await session.snapshot()

    go(work())


def test_another_machine_refuses(
    go: Go, wide_states: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with wide_states.session() as session:
            monkeypatch.setattr("platform.machine", lambda: "aarch64")
            with pytest.raises(SnapshotRefused, match="x86-64 Linux only"):
                await session.snapshot()

    go(work())


def test_a_session_that_ended_says_so(go: Go, wide_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        session = await wide_states.session().open()
        await session.close()
        with pytest.raises(SessionDead):
            await session.snapshot()

    go(work())


def test_a_failing_restore_is_nobodys_cell(
    go: Go, small_states: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks halfway kills the new session, and the state is refused."""

    async def work() -> None:
        start = await taken(small_states, "x = 1")
        before = processes(small_states)

        def broken(*_: object) -> None:
            raise memory.Odd("broken")

        for module, name in ((process, "_lay_out"), (process, "_place"), (memory, "writes")):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, broken)
                with pytest.raises(SnapshotRefused, match="broken"):
                    await start.session().open()
        assert await settled(lambda: processes(small_states), before) <= before
        assert [r.value for r in await answers(start, "x")] == ["1"]

    go(work())


def test_what_does_not_answer_is_refused_in_time(
    go: Go, small_states: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        start = await taken(small_states, "x = 1")
        mask = (~0 & (1 << 64) - 1).to_bytes(8, "little")
        registers = {**start.state.registers, "rip": 0}  # it crashes at its first step
        lost = process.State(
            start.state.layout, start.state.pages, registers, start.state.floats, mask, "/work", 0
        )
        broken = Snapshot(start.zygote, start.fresh, lost, start.files, 0, 0.0, start.opener)
        with pytest.raises(SnapshotRefused):
            await broken.session().open()
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "_AWAKE_S", 0.2)
            deaf = {**start.state.registers, "rax": 34, "rdi": 0}  # pause(2)
            state = process.State(
                start.state.layout, start.state.pages, deaf, start.state.floats, mask, "/work", 0
            )
            waiting = Snapshot(start.zygote, start.fresh, state, start.files, 0, 0.0, start.opener)
            with pytest.raises(SnapshotRefused, match="no answer in time"):
                await waiting.session().open()

    go(work())

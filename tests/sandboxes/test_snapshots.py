# ruff: noqa: E501
"""States of sessions in new sessions: what is carried, what is refused, and that the jail is the
same."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from abuse_cells import CELLS, cell
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_arena import SMALL, Arena, Go, descriptors, groups, processes, settled

import sandboxes
from agentrl.errors import IsolationError, SessionDead, SnapshotRefused
from agentrl.interfaces import Snapshots
from agentrl.types import ExecResult
from sandboxes.embedded import EmbeddedSandbox, EmbeddedSession, memory, process, snapshot
from sandboxes.embedded.memory import Area
from sandboxes.embedded.snapshot import Snapshot


async def open_namespaces(**changes: Any) -> EmbeddedSandbox:
    box: Any = await sandboxes.open("embedded", isolation="namespaces", **changes)
    if not box.capabilities.snapshots:
        await box.close()
        pytest.skip("states of sessions cannot be taken on this machine")
    return box


def opened(go: Go, **changes: Any) -> Iterator[EmbeddedSandbox]:
    try:
        box = go(open_namespaces(**changes))
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    yield box
    go(box.close())


@pytest.fixture(scope="module")
def wide(go: Go) -> Iterator[EmbeddedSandbox]:
    """A box with the usual limits."""
    yield from opened(go, spares=2)


@pytest.fixture(scope="module")
def small(go: Go) -> Iterator[EmbeddedSandbox]:
    """A box with small limits, without spares."""
    yield from opened(go, spares=0, **SMALL)


async def taken(box: EmbeddedSandbox, *cells: str) -> Snapshot:
    """The state after the cells, of a session that has ended since."""
    async with box.session() as session:
        for source in cells:
            result = await session.run(textwrap.dedent(source))
            assert result.status == "ok", result
        return await session.snapshot()


async def answers(start: Snapshot, *cells: str) -> list[ExecResult]:
    async with start.session() as session:
        return [await session.run(textwrap.dedent(source)) for source in cells]


CARRIED = {
    "names": ("x = {'a': [1, 2]}; y = x['a']", "y.append(3); x, y is x['a']"),
    "functions": ("def counter():\n    n = 0\n    def up():\n        nonlocal n; n += 1; return n\n    return up\nup = counter(); up()", "up(), up()"),
    "generators": ("g = (n * n for n in range(9)); next(g); next(g)", "next(g), list(g)"),
    "classes": ("class A:\n    kept = []\na = A(); A.kept.append(a)", "A.kept == [a], type(a).__name__"),
    "random": ("import random; random.seed()", "random.random(), random.sample(range(99), 5)"),
    "modules": ("import _decimal, sqlite3, zoneinfo, lzma; d = _decimal.Decimal(2)", "d.sqrt(), lzma.decompress(lzma.compress(b'x'))"),
    "database": ("import sqlite3, gc; gc.collect()", "sqlite3.connect(':memory:').execute('select 6 * 7').fetchall()"),
    "depth": ("def deep(n): return 0 if n == 0 else 1 + deep(n - 1)\nimport sys; sys.setrecursionlimit(20_000); deep(9000)", "deep(9500)"),
    "c-stack": ("import re; re.match('(a|b)*' * 50, 'ab' * 2000) is None", "re.match('(a|b)*', 'ab' * 20000) is not None"),
    "heap": ("big = bytes(range(256)) * (50 << 12); hole = bytearray(30 << 20); del hole", "len(big), big[-1], big[1 << 20]"),
    "zeros": ("big = bytearray(40 << 20); big[1 << 20] = 7", "big.count(7), len(big)"),
    "mapping": ("import mmap\nm = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); m[5:8] = b'abc'", "m[4:9]"),
    "protection": ("import mmap\nk = [mmap.mmap(-1, 8192, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=1 + n % 2 * 2) for n in range(60)]; k[1][:3] = b'abc'", "k[1][:4], k[59][:2], [type(e) for e in [k[0]]][0]"),
    "mapped-file": ("import ctypes, sys\nl = ctypes.CDLL(None); l.mmap.restype = ctypes.c_void_p\nwith open(sys.executable, 'rb') as f: m = l.mmap(None, 8192, 3, 2, f.fileno(), 0)\nctypes.memset(m + 4096, 65, 3)", "ctypes.string_at(m, 4), ctypes.string_at(m + 4096, 4)[:3]"),
    "files": ("import os\nopen('a', 'w').write('one'); os.chmod('a', 0o640); os.utime('a', (5, 6)); os.makedirs('d/e'); os.link('a', 'd/b'); os.symlink('/etc/shadow', 'd/e/l'); open('/tmp/t', 'wb').write(bytes(9999)); open('/dev/shm/s', 'w').write('s')", "s = os.stat('d/b')\nopen('d/b').read(), oct(s.st_mode), s.st_nlink, s.st_mtime, os.readlink('d/e/l'), len(open('/tmp/t', 'rb').read()), open('/dev/shm/s').read(), sorted(os.listdir())"),
    "odd-names": ("import os\nos.mkdir(b'\\xff\\n'); open(b'\\xff\\n/ (deleted)', 'w').write('x')", "os.listdir(b'.'), open(b'\\xff\\n/ (deleted)').read()"),
    "place": ("import os\nos.mkdir('d'); os.chdir('d'); os.umask(0o77)", "open('f', 'w').close()\nos.getcwd(), os.umask(0o77), oct(os.stat('f').st_mode)"),
    "modes": ("import os\nos.mkdir('d'); open('d/f', 'w').write('x'); os.chmod('d', 0o500); os.chmod('.', 0o711)", "oct(os.stat('d').st_mode), open('d/f').read(), oct(os.stat('.').st_mode)"),
    "environment": ("import os; os.environ['A'] = 'b'", "import subprocess\nsubprocess.run(['sh', '-c', 'echo $A'], capture_output=True).stdout"),
    "shown": ("6 * 7", "_, display"),
    "rounding": ("import ctypes; ctypes.CDLL(None).fesetround(0x400), 1e308 * 10", "0.1 + 0.2, 1 / 3"),
    "stopped-cell": ("try:\n    raise ValueError('x')\nexcept ValueError as error: kept = error", "str(kept), kept.__traceback__.tb_lineno"),
}  # fmt: skip


@pytest.mark.parametrize("name", CARRIED)
def test_a_cell_answers_as_in_the_original(go: Go, wide: EmbeddedSandbox, name: str) -> None:
    before, after = CARRIED[name]

    async def work() -> None:
        async with wide.session() as session:
            assert isinstance(session, Snapshots)
            first = await session.run(before)
            assert first.status == "ok", first
            start = await session.snapshot()
            original = await session.run(after)
            [copy] = await answers(start, after)
        again = await answers(start, after)  # the original has ended
        assert original.status == "ok", original
        for one in (copy, *again):
            assert (one.status, one.value, one.stdout) == ("ok", original.value, original.stdout)

    go(work())


def test_a_process_that_hides_from_inspection(go: Go, wide: EmbeddedSandbox) -> None:
    """Only root sees it then."""

    async def work() -> None:
        async with wide.session() as session:
            await session.run("x = 42; import ctypes; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)")
            try:
                start = await session.snapshot()
            except SnapshotRefused as refusal:
                assert "cannot be inspected" in str(refusal)
                assert os.geteuid() != 0
            else:
                assert [r.value for r in await answers(start, "x")] == ["42"]
            assert (await session.run("x")).value == "42"

    go(work())


def test_numpy(go: Go) -> None:
    pytest.importorskip("numpy")

    async def work() -> None:
        box = await open_namespaces(profile="numpy", spares=0)
        try:
            start = await taken(
                box, "import numpy as np; a = np.arange(1 << 18); np.random.seed(5)"
            )
            after = "a[::1000].sum(), np.random.rand(3).tolist(), (a @ a), np.linalg.inv(np.eye(3) * 2)[1, 1]"
            one, two = await answers(start, after), await answers(start, after)
            assert one[0].status == "ok", one
            assert one[0].value == two[0].value
        finally:
            await box.close()

    go(work())


def test_ten_successors_go_their_own_ways(go: Go, wide: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(wide, "x = ['start']; open('f', 'w').write('start')")
        sessions = [start.session() for _ in range(10)]
        await asyncio.gather(*(s.open() for s in sessions))
        for n, session in enumerate(sessions):
            await session.run(
                f"x.append({n}); open('f', 'a').write(' {n}'); import os; pid = os.getpid()"
            )
        for n, session in enumerate(sessions):
            result = await session.run("x, open('f').read(), pid, os.listdir('/work')")
            assert result.value == f"(['start', {n}], 'start {n}', 2, ['f'])"
            await session.close()

    go(work())


def test_what_is_put_is_what_was_taken(
    go: Go, wide: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registers, mappings and every page, but for the one in which the kernel itself writes which
    processor a thread runs on (rseq)."""

    async def silent(_: object) -> None:
        return

    async def work() -> None:
        names = (
            "names",
            "depth",
            "heap",
            "protection",
            "mapped-file",
            "place",
            "modules",
            "rounding",
        )
        start = await taken(wide, *(CARRIED[name][0] for name in names))
        monkeypatch.setattr(snapshot, "_awake", silent)
        async with start.session() as session:
            again = (await session.snapshot()).state
        first = start.state
        assert again.layout == first.layout
        assert again.registers == first.registers
        assert again.floats == first.floats
        assert (again.blocked, again.cwd, again.umask) == (first.blocked, first.cwd, first.umask)
        both = first.pages.keys() | again.pages.keys()
        other = [a for a in both if first.pages.get(a) != again.pages.get(a)]
        assert len(other) <= 1, [hex(a) for a in other]

    go(work())


ACTS = (
    "names[{n}] = list(range({n}))",
    "names.setdefault('all', []).append({n})",
    "open('f{n}', 'a').write('{n}')",
    "random.seed({n})",
    "names['drawn'] = random.random()",
    "names['next'] = next(stream)",
    "names['big'] = bytes([{n}]) * ({n} << 16)",
    "names.clear()",
    "1 / 0",
    "def f(n=[]): n.append({n}); return list(n)",
    "names['f'] = f()",
    "names['freed'] = bytearray({n} << 18); del names['freed']",
)
LOOK = "import os, hashlib\nrepr(names)[:2000], hashlib.md5(repr(names).encode()).hexdigest(), next(stream), random.random(), f(), sorted((n, open(n).read()) for n in os.listdir())"


@given(st.data())
@settings(max_examples=8, deadline=None)
def test_a_restored_session_goes_on_as_the_original(
    go: Go, wide: EmbeddedSandbox, data: st.DataObject
) -> None:
    acts = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(1, 9)), max_size=6)
    before, after = data.draw(acts), data.draw(acts)

    async def play(session: EmbeddedSession, found: list[tuple[str, int]]) -> None:
        for act, n in found:
            await session.run(act.format(n=n))

    async def work() -> None:
        begin = "import random, itertools\nnames, stream, f = {}, itertools.count(), lambda: 0"
        async with wide.session() as original:
            await original.run(begin)
            await play(original, before)
            async with (await original.snapshot()).session() as copy:
                for session in (original, copy):
                    await play(session, after)
                one, two = await original.run(LOOK), await copy.run(LOOK)
        assert (one.status, two.status) == ("ok", "ok")
        assert one.value == two.value

    go(work())


def test_a_chain_of_snapshots(go: Go, wide: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(wide, "x = 0")
        for n in range(1, 5):
            async with start.session() as session:
                assert (await session.run(f"x += 1; open('f{n}', 'w').close(); x")).value == str(n)
                start = await session.snapshot()
        [last] = await answers(start, "import os; x, sorted(os.listdir())")
        assert last.value == "(4, ['f1', 'f2', 'f3', 'f4'])"

    go(work())


def test_siblings_are_out_of_reach(go: Go, wide: EmbeddedSandbox) -> None:
    """They have the same process ids, addresses and file names, each in a world of its own."""
    act = """
        import ctypes, os, signal, socket
        seen = sorted(int(n) for n in os.listdir('/proc') if n.isdigit())
        libc = ctypes.CDLL(None, use_errno=True)
        traced = [libc.ptrace(16, pid, 0, 0) for pid in range(1, 50)]
        killed = []
        for pid in range(1, 200):
            if pid not in (os.getpid(),):
                try: os.kill(pid, 0); killed.append(pid)
                except OSError: pass
        mark.append('mine'); open('f', 'w').write('mine')
        s = socket.socket(socket.AF_UNIX)
        try: s.connect('\\0meeting'); met = True
        except OSError: met = False
        s.close()
        seen, max(traced), killed, met
        """

    async def work() -> None:
        start = await taken(wide, "mark = ['start']; open('f', 'w').write('start')")
        async with start.session() as one, start.session() as two:
            await two.run(
                "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0meeting'); s.listen()"
            )
            got = await one.run(textwrap.dedent(act))
            assert got.value == "([1, 2], -1, [], False)", got
            other = await two.run("mark, open('f').read()")
            assert other.value == "(['start'], 'start')"

    go(work())


JAIL = """
    import os, resource
    kept = [l for l in open('/proc/self/status') if l.split(':')[0] in
            ('Uid', 'Gid', 'CapPrm', 'CapEff', 'CapBnd', 'NoNewPrivs', 'Seccomp', 'Seccomp_filters', 'SigIgn', 'SigCgt')]
    limits = [resource.getrlimit(n) for n in range(16)]
    mounts = open('/proc/self/mountinfo').read().split('\\n')
    sizes = [(os.statvfs(p).f_blocks, os.statvfs(p).f_files) for p in ('/work', '/tmp', '/dev/shm')]
    fds = sorted((int(n), os.readlink('/proc/self/fd/' + n).split(':')[0]) for n in os.listdir('/proc/self/fd') if os.path.exists('/proc/self/fd/' + n) or int(n) > 800)
    kept, limits, len(mounts), sizes, fds, open('/proc/self/uid_map').read()
    """


def test_the_jail_is_a_fresh_one(go: Go, small: EmbeddedSandbox) -> None:
    async def work() -> None:
        async with small.session() as fresh:
            usual = await fresh.run(textwrap.dedent(JAIL))
        [found] = await answers(await taken(small, "x = 1"), JAIL)
        assert usual.status == found.status == "ok"
        assert found.value == usual.value

    go(work())


def test_namespaces_and_control_group_are_its_own(go: Go, wide: EmbeddedSandbox) -> None:
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts")

    async def work() -> None:
        async with wide.session() as session:
            start = await session.snapshot()
            async with start.session() as other:
                pids = [s._handle.worker_pid for s in (session, other)]
                for kind in kinds:
                    one, two = (os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids)
                    assert one != two, kind
                groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid in pids]
                assert (groups[0] != groups[1]) == wide.capabilities.cgroup

    go(work())


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
def test_what_cannot_be_carried_is_refused(go: Go, wide: EmbeddedSandbox, name: str) -> None:
    source, reason = REFUSED[name]

    async def work() -> None:
        async with wide.session() as session:
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


def test_a_state_has_a_size(go: Go, wide: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        async with wide.session() as session:
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
    go: Go, small: EmbeddedSandbox, name: str
) -> None:
    async def work() -> None:
        before = processes(small)
        async with small.session() as session:
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
        assert await settled(lambda: processes(small), before) <= before

    go(work())


class Restoring:
    """A box whose sessions begin in a state."""

    def __init__(self, start: Snapshot, capabilities: Any) -> None:
        self.session = start.session
        self.capabilities = capabilities


ABUSES = [name for name in CELLS if name[0] in "DE" or name[:3] in ("A01", "A04", "A08", "A12", "B08", "B09", "C02", "C09", "C21")]  # fmt: skip


@pytest.fixture(scope="module")
def restored(go: Go, small: EmbeddedSandbox) -> Arena:
    start = go(
        taken(
            small,
            "import os, sys, ctypes; kept = list(range(1000))",
            "open('/tmp/f', 'w').write('x')",
        )
    )
    measures = (lambda: processes(small), descriptors, lambda: groups(small))
    return go(Arena(Restoring(start, small.capabilities), *measures).open())


@pytest.mark.parametrize("name", ABUSES)
def test_abuse_in_a_restored_session(go: Go, restored: Arena, name: str) -> None:
    source, statuses, kept = cell(name, "namespaces")
    wall = 0.4 if statuses == ("timeout",) else None
    result = go(
        restored.attack(lambda s: s.run(textwrap.dedent(source), timeout=wall), statuses, kept)
    )
    assert "FORGED" not in (result.value or "")


def test_nothing_is_left_after_many(go: Go, small: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(small, "x = 1")
        before = (processes(small), descriptors(), groups(small), mounts())
        for _ in range(40):
            found = await asyncio.gather(*(answers(start, "x += 1; x") for _ in range(5)))
            assert [[r.value for r in one] for one in found] == [["2"]] * 5
        assert await settled(lambda: processes(small), before[0]) <= before[0]
        assert (descriptors(), groups(small), mounts()) == before[1:]
        assert not [t for t in os.listdir("/proc/self/task") if tracer(int(t))]

    go(work())


def mounts() -> int:
    return Path("/proc/self/mountinfo").read_text().count("\n")


def tracer(task: int) -> bool:
    """Whether a thread of this process traces anything: they end with what they do."""
    return "tracer" in Path(f"/proc/self/task/{task}/comm").read_text()


def test_the_cpu_time_of_the_state_counts(go: Go, wide: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(
            wide,
            "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass",
        )
        assert start.spent_s > 0.25
        async with start.session() as session:
            assert session._handle.spent_s() >= start.spent_s
        async with (await taken(wide, "x = 1")).session() as session:
            assert session._handle.spent_s() < 0.25

    go(work())


def test_limits_hold_in_a_restored_session(go: Go, small: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(small, "open('f', 'wb').write(bytes(3 << 20))")
        cells = ("bytearray(3 << 30)", "open('g', 'wb').write(bytes(2 << 20))", "while True: pass")
        memory, disk, wall = await answers(start, *cells)
        assert memory.error is not None
        assert memory.error.name == "MemoryError"
        assert disk.error is not None
        assert disk.error.name == "OSError"
        assert wall.status == "timeout"

    go(work())


def test_reset_gives_a_fresh_session(go: Go, wide: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(wide, "x = 1; open('f', 'w').close()")
        async with start.session() as session:
            await session.reset()
            result = await session.run("import os; 'x' in globals(), os.listdir()")
            assert result.value == "(False, [])"

    go(work())


def test_programs_and_commands_in_a_restored_session(go: Go, wide: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(
            wide, "open('p.py', 'w').write('import sys; print(sys.argv[1], input())')"
        )
        async with start.session() as session:
            assert (await session.exec(["cat", "p.py"])).stdout.startswith("import sys")
            await session.write_file("q", b"1")
            assert await session.read_file("q") == b"1"
            assert (await session.program("p.py", ["a"], stdin=b"b")).stdout == "a b\n"

    go(work())


def test_a_cancelled_snapshot_and_restore_leave_nothing(go: Go, small: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(small, "x = bytes(range(256)) * (4 << 12)")
        before = (processes(small), descriptors())
        for delay in (0.0, 0.002, 0.01, 0.02):
            session = start.session()
            opening = asyncio.ensure_future(session.open())
            await asyncio.sleep(delay)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            await session.close()
            async with start.session() as other:
                taking = asyncio.ensure_future(other.snapshot())
                await asyncio.sleep(delay)
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)
        assert await settled(lambda: processes(small), before[0]) <= before[0]
        assert await settled(descriptors, before[1]) <= before[1]

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
    go: Go, wide: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with wide.session() as session:
            monkeypatch.setattr("platform.machine", lambda: "aarch64")
            with pytest.raises(SnapshotRefused, match="x86-64 Linux only"):
                await session.snapshot()

    go(work())


def test_a_session_that_ended_says_so(go: Go, wide: EmbeddedSandbox) -> None:
    async def work() -> None:
        session = await wide.session().open()
        await session.close()
        with pytest.raises(SessionDead):
            await session.snapshot()

    go(work())


def test_a_failing_restore_is_nobodys_cell(
    go: Go, small: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What breaks halfway kills the new session, and the state is refused."""

    async def work() -> None:
        start = await taken(small, "x = 1")
        before = processes(small)

        def broken(*_: object) -> None:
            raise memory.Odd("broken")

        for module, name in ((process, "_lay_out"), (process, "_place"), (memory, "writes")):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, broken)
                with pytest.raises(SnapshotRefused, match="broken"):
                    await start.session().open()
        assert await settled(lambda: processes(small), before) <= before
        assert [r.value for r in await answers(start, "x")] == ["1"]

    go(work())


def test_what_does_not_answer_is_refused_in_time(
    go: Go, small: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        start = await taken(small, "x = 1")
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


HOST = """
import asyncio, sandboxes
async def main():
    box = await sandboxes.open("embedded", spares=1, isolation="namespaces")
    session = await box.session().open()
    await session.run("x = bytes(range(256)) * (8 << 12)")
    print(box._supply.zygotes[box.profile]._process.pid, flush=True)
    async def restore():
        while True:
            async with (await session.snapshot()).session() as other:
                await other.run("1")
    await asyncio.gather(*(restore() for _ in range(3)))
asyncio.run(main())
"""


def test_a_host_killed_halfway_leaves_nothing(wide: EmbeddedSandbox) -> None:
    host = subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    jail = psutil.Process(int(host.stdout.readline()))
    time.sleep(0.3)
    jailed = [jail, *jail.children(recursive=True)]
    host.kill()
    host.wait(10)
    host.stdout.close()
    _, alive = psutil.wait_procs(jailed, timeout=5)
    assert not alive


AREAS = st.lists(
    st.tuples(
        st.integers(0, 40), st.integers(1, 8), st.sampled_from(["r--p", "rw-p", "r-xp"]),
        st.sampled_from(["", "", "1:2 /a", "1:3 /b"]), st.integers(0, 3),
    ),
    max_size=8,
)  # fmt: skip


def areas(found: list[tuple[int, int, str, str, int]]) -> tuple[Area, ...]:
    """Areas that do not overlap."""
    made: list[Area] = []
    for start, size, mode, file, offset in sorted(found):
        begin = max(start, made[-1].end if made else 0)
        made.append(Area(begin, begin + size, mode, file, offset if file else 0))
    return tuple(made)


@given(AREAS, AREAS)
@settings(max_examples=150, deadline=None)
def test_changes_turn_one_layout_into_another(old: Any, new: Any) -> None:
    """Done page by page, they leave what is wanted at every address, and nothing else."""
    one, two = areas(old), areas(new)

    def pages(found: tuple[Area, ...]) -> dict[int, Area]:
        return {n: area.cut(n, n + 1) for area in found for n in range(area.start, area.end)}

    now = pages(one)
    for start, end, before, after in process._changes(one, two):
        for n in range(start, end):
            assert now.get(n) == (before.cut(n, n + 1) if before else None)
            now.pop(n, None)
            if after is not None:
                now[n] = after.cut(n, n + 1)
    assert now == pages(two)

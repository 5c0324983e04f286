# ruff: noqa: E501
"""States of sessions in new sessions: all of a state is carried, and the jail is a fresh one."""

from __future__ import annotations

import asyncio
import os
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sandbox_arena import Go
from snapshot_states import answers, open_namespaces, taken

from agentrl.errors import SnapshotRefused
from agentrl.interfaces import Snapshots
from sandboxes.embedded import EmbeddedSandbox, EmbeddedSession, snapshot

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
def test_a_cell_answers_as_in_the_original(go: Go, wide_states: EmbeddedSandbox, name: str) -> None:
    before, after = CARRIED[name]

    async def work() -> None:
        async with wide_states.session() as session:
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


def test_a_process_that_hides_from_inspection(go: Go, wide_states: EmbeddedSandbox) -> None:
    """Only root sees it then."""

    async def work() -> None:
        async with wide_states.session() as session:
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


def test_ten_successors_go_their_own_ways(go: Go, wide_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(wide_states, "x = ['start']; open('f', 'w').write('start')")
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
    go: Go, wide_states: EmbeddedSandbox, monkeypatch: pytest.MonkeyPatch
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
        start = await taken(wide_states, *(CARRIED[name][0] for name in names))
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
    go: Go, wide_states: EmbeddedSandbox, data: st.DataObject
) -> None:
    acts = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(1, 9)), max_size=6)
    before, after = data.draw(acts), data.draw(acts)

    async def play(session: EmbeddedSession, found: list[tuple[str, int]]) -> None:
        for act, n in found:
            await session.run(act.format(n=n))

    async def work() -> None:
        begin = "import random, itertools\nnames, stream, f = {}, itertools.count(), lambda: 0"
        async with wide_states.session() as original:
            await original.run(begin)
            await play(original, before)
            async with (await original.snapshot()).session() as copy:
                for session in (original, copy):
                    await play(session, after)
                one, two = await original.run(LOOK), await copy.run(LOOK)
        assert (one.status, two.status) == ("ok", "ok")
        assert one.value == two.value

    go(work())


def test_a_chain_of_snapshots(go: Go, wide_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        start = await taken(wide_states, "x = 0")
        for n in range(1, 5):
            async with start.session() as session:
                assert (await session.run(f"x += 1; open('f{n}', 'w').close(); x")).value == str(n)
                start = await session.snapshot()
        [last] = await answers(start, "import os; x, sorted(os.listdir())")
        assert last.value == "(4, ['f1', 'f2', 'f3', 'f4'])"

    go(work())


def test_siblings_are_out_of_reach(go: Go, wide_states: EmbeddedSandbox) -> None:
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
        start = await taken(wide_states, "mark = ['start']; open('f', 'w').write('start')")
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


def test_the_jail_is_a_fresh_one(go: Go, small_states: EmbeddedSandbox) -> None:
    async def work() -> None:
        async with small_states.session() as fresh:
            usual = await fresh.run(textwrap.dedent(JAIL))
        [found] = await answers(await taken(small_states, "x = 1"), JAIL)
        assert usual.status == found.status == "ok"
        assert found.value == usual.value

    go(work())


def test_namespaces_and_control_group_are_its_own(go: Go, wide_states: EmbeddedSandbox) -> None:
    kinds = ("user", "mnt", "pid", "net", "ipc", "uts")

    async def work() -> None:
        async with wide_states.session() as session:
            start = await session.snapshot()
            async with start.session() as other:
                pids = [s._handle.worker_pid for s in (session, other)]
                for kind in kinds:
                    one, two = (os.readlink(f"/proc/{pid}/ns/{kind}") for pid in pids)
                    assert one != two, kind
                groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid in pids]
                assert (groups[0] != groups[1]) == wide_states.capabilities.cgroup

    go(work())

"""What a session and a one-shot program answer: values, errors, files, commands, limits."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from sandbox_arena import SMALL, Go, open_box

import sandboxes
from agentrl.errors import AgentRLWarning, ConfigError, IsolationError, SandboxError, SessionDead
from agentrl.interfaces import Sandbox, Session
from agentrl.types import Limits
from sandboxes.embedded import EmbeddedSandbox, jail, uids


def cells(go: Go, box: EmbeddedSandbox, *sources: str, **options):
    """The results of cells run one after the other in a fresh session."""

    async def play():
        async with box.session() as session:
            return [await session.run(source, **options) for source in sources]

    return go(play())


def test_meets_the_protocols(box: EmbeddedSandbox, tier: str) -> None:
    assert isinstance(box, Sandbox)
    assert isinstance(box.session(), Session)
    assert box.capabilities.backend == "embedded"
    assert box.capabilities.isolation == tier
    assert not box.capabilities.network
    assert "python" in box.capabilities.languages


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("x = 40 + 2\nx", "42"),
        ("x = 1", None),
        ("print('a')", None),
        ("'text'", "'text'"),
        ("", None),
        ("# nothing", None),
        ("def f(n):\n    return n * 2\nf(21)", "42"),
        ("import asyncio\nawait asyncio.sleep(0, 'slept')", "'slept'"),
        ("\ufeff1 + 1", "2"),
        ("x = 1\r\nx + 1\r\n", "2"),
        (
            "from __future__ import annotations\ndef f(a: missing): ...\nf.__annotations__['a']",
            "'missing'",
        ),
        ("import random, math, json, threading; math.floor(3.7)", "3"),
    ],
)
def test_value_of_the_last_expression(go: Go, box: EmbeddedSandbox, source: str, value) -> None:
    (result,) = cells(go, box, source)
    assert (result.status, result.value) == ("ok", value), result


def test_cells_share_state(go: Go, box: EmbeddedSandbox) -> None:
    results = cells(go, box, "import math\nn = 3", "n += 1", "math.sqrt(n)")
    assert [r.value for r in results] == [None, None, "2.0"]


def test_sessions_share_nothing(go: Go, box: EmbeddedSandbox) -> None:
    async def play():
        async with box.session() as one, box.session() as two:
            await one.run(
                "import os, tempfile; x = 1\n"
                "for folder in ('.', tempfile.gettempdir()): open(folder + '/f', 'w').write('x')"
            )
            return await two.run(
                "import os, tempfile\n"
                "('x' in globals(), os.listdir('.'), os.listdir(tempfile.gettempdir()))"
            )

    assert go(play()).value == "(False, [], [])"


def test_randomness_differs_between_sessions(go: Go, box: EmbeddedSandbox) -> None:
    values = [cells(go, box, "import random; random.random()")[0].value for _ in range(3)]
    assert len(set(values)) == 3


def test_hashes_are_the_same_in_every_box(go: Go, box: EmbeddedSandbox) -> None:
    (value,) = cells(go, box, "hash('agentrl')")

    async def other():
        async with sandboxes.open("embedded", spares=0) as another, another.session() as session:
            return await session.run("hash('agentrl')")

    assert value.value == go(other()).value


def test_output_is_captured_at_the_descriptor(go: Go, box: EmbeddedSandbox) -> None:
    source = (
        "import os, sys, subprocess, ctypes\n"
        "print('print'); sys.stderr.write('err\\n'); os.write(1, b'fd\\n')\n"
        "subprocess.run(['echo', 'child'])\n"
        "ctypes.CDLL(None).printf(b'C\\n')"
    )
    (result,) = cells(go, box, source)
    assert result.stdout.splitlines() == ["print", "fd", "child", "C"]
    assert result.stderr == "err\n"
    assert (result.stdout_bytes, result.stderr_bytes) == (17, 4)
    assert not result.truncated


def test_error_shows_the_codes_own_lines(go: Go, box: EmbeddedSandbox) -> None:
    first, second = cells(go, box, "def f(x):\n    return 1 / x", "import json\nf(0)")
    assert first.ok
    assert second.status == "error"
    assert second.error is not None
    assert (second.error.name, second.error.message) == ("ZeroDivisionError", "division by zero")
    assert 'File "<cell 1>", line 2, in f' in second.error.traceback
    assert "return 1 / x" in second.error.traceback
    assert 'File "<cell 2>", line 2, in <module>' in second.error.traceback
    assert "worker" not in second.error.traceback


def test_error_in_a_library_is_cut_to_the_codes_frames(go: Go, box: EmbeddedSandbox) -> None:
    (result,) = cells(
        go,
        box,
        "import json\n"
        "try:\n    json.loads('{')\n"
        "except ValueError as e:\n    raise KeyError('k') from e",
    )
    assert result.error is not None
    assert "decoder.py" not in result.error.traceback
    assert "json.loads('{')" in result.error.traceback
    assert "direct cause" in result.error.traceback
    assert result.error.name == "KeyError"


@pytest.mark.parametrize(
    "source", ["x = (", "return 1", "if True:\nx = 1", "\tx = 1\n  y = 2", "x = '\0'", "\ud800 = 1"]
)
def test_source_that_cannot_be_compiled(go: Go, box: EmbeddedSandbox, source: str) -> None:
    result, after = cells(go, box, source, "1 + 1")
    assert result.status == "error"
    assert result.error is not None
    assert result.error.name in (
        "SyntaxError",
        "IndentationError",
        "TabError",
        "UnicodeEncodeError",
    )
    assert after.value == "2"


def test_source_above_the_limit_is_not_sent(go: Go, box: EmbeddedSandbox) -> None:
    long, medium = cells(go, box, "x = 1\n" * 200_000, "y = 2\n" * 20_000 + "y")
    assert (long.status, long.error and long.error.name) == ("error", "SourceTooLong")
    assert medium.value == "2"


def test_exit_keeps_the_session(go: Go, box: EmbeddedSandbox) -> None:
    numbered, worded, after = cells(
        go, box, "x = 5\nimport sys; sys.exit(3)", "raise SystemExit('why')", "x"
    )
    assert (numbered.status, numbered.exit_code) == ("exit", 3)
    assert (worded.status, worded.exit_code, worded.stderr) == ("exit", 1, "why\n")
    assert after.value == "5"


def test_value_and_output_are_capped(go: Go, box: EmbeddedSandbox) -> None:
    value, output = cells(go, box, "'x' * 50_000", "print('a' * 60_000); print('end')")
    assert value.value is not None
    assert len(value.value) == box.limits.value_chars
    assert value.truncated
    assert output.status == "ok"
    assert output.truncated
    assert output.stdout_bytes == 60_005
    assert output.stdout.startswith("aaa")
    assert output.stdout.endswith("a\nend\n")
    assert "40005 bytes left out" in output.stdout


def test_timeout_keeps_state_where_an_interrupt_suffices(go: Go, box: EmbeddedSandbox) -> None:
    _, late, after = cells(go, box, "x = 7", "print('before')\nwhile True: pass", "x", timeout=0.4)
    assert late.status == "timeout"
    assert 0.4 <= late.duration < 1.4
    assert late.stdout == "before\n"
    assert late.cpu is not None
    assert late.cpu > 0.05
    assert after.value == "7"


def test_interrupt(go: Go, box: EmbeddedSandbox) -> None:
    async def play():
        async with box.session() as session:
            await session.run("x = 1")
            await session.interrupt()  # nothing runs: nothing happens
            cell = asyncio.ensure_future(session.run("import time\ntime.sleep(50)", timeout=60))
            await asyncio.sleep(0.2)
            started = time.monotonic()
            await session.interrupt()
            result = await cell
            return result, time.monotonic() - started, await session.run("x")

    result, waited, after = go(play())
    assert (result.status, result.detail) == ("timeout", "interrupted")
    assert waited < 1
    assert after.value == "1"


def test_reset(go: Go, box: EmbeddedSandbox) -> None:
    async def play():
        async with box.session() as session:
            await session.run("x = 1")
            await session.write_file("f", b"1")
            await session.reset()
            fresh = await session.run("import os; ('x' in globals(), os.listdir('.'))")
            await session.run("import os; os._exit(0)")
            with pytest.raises(SessionDead, match="ended without a word"):
                await session.run("1")
            await session.reset()
            return fresh, await session.run("2")

    fresh, revived = go(play())
    assert fresh.value == "(False, [])"
    assert revived.value == "2"


def test_files(go: Go, box: EmbeddedSandbox) -> None:
    data = bytes(range(256)) * 1000

    async def play():
        async with box.session() as session:
            await session.write_file("a/b/c.bin", data)
            await session.write_file("/work/d.txt", b"first, and long")
            await session.write_file("d.txt", b"second")
            seen = await session.run("(len(open('a/b/c.bin', 'rb').read()), open('d.txt').read())")
            await session.run("open('made', 'w').write('by code')")
            with pytest.raises(FileNotFoundError):
                await session.read_file("absent")
            with pytest.raises(OSError, match=r"No space|too large"):
                await session.write_file("big", bytes(8 << 20))
            return seen, await session.read_file("a/b/c.bin"), await session.read_file("made")

    seen, back, made = go(play())
    assert seen.value == "(256000, 'second')"
    assert back == data
    assert made == b"by code"


def test_commands(go: Go, box: EmbeddedSandbox) -> None:
    async def play():
        async with box.session() as session:
            await session.run("x = 1; open('f', 'w').write('shared')")
            return [
                await session.exec(
                    ["bash", "-c", "cat; cat f; echo oops >&2; exit 3"], stdin=b"in "
                ),
                await session.exec(["no-such-command"]),
                await session.exec(["bash", "-c", "kill -SEGV $$"]),
                await session.exec(["sleep", "60"], timeout=0.3),
                await session.exec(["bash", "-c", "sleep 60 & echo started"]),
                await session.exec(["python3", "-c", "import sys; print(sys.version_info[0])"]),
                await session.exec(["true"]),
                await session.run("x"),
            ]

    mixed, absent, crashed, late, background, python, true, state = go(play())
    assert (mixed.status, mixed.exit_code) == ("exit", 3)
    assert (mixed.stdout, mixed.stderr) == ("in shared", "oops\n")
    assert (absent.status, absent.exit_code) == ("exit", 127)
    assert "No such file" in absent.stderr
    assert (crashed.status, crashed.signal) == ("crashed", 11)
    assert late.status == "timeout"
    assert late.duration < 1.3
    assert (background.status, background.stdout) == ("ok", "started\n")
    assert background.duration < 1
    assert python.stdout == "3\n"
    assert (true.status, true.exit_code) == ("ok", 0)
    assert state.value == "1"


@pytest.mark.parametrize("argv", [[], "ls", ["a\0b"], ["x" * 200_000], ["\x01" * 40_000], [""]])
def test_commands_that_cannot_be(go: Go, box: EmbeddedSandbox, argv) -> None:
    async def play():
        async with box.session() as session:
            with pytest.raises(ValueError, match="argv"):
                await session.exec(argv)
            return await session.run("1")

    assert go(play()).value == "1"


@pytest.mark.parametrize(
    ("program", "status", "code", "out"),
    [
        ("print(6 * 7)", "ok", 0, "42\n"),
        ("import sys; print(input(), sys.argv[1:]); sys.exit(0)", "exit", 0, "line ['a', 'b']\n"),
        ("raise ValueError('no')", "error", 1, ""),
        ("import os; print('x', flush=True); os._exit(0)", "exit", 0, "x\n"),
        ("import sys; sys.exit(4)", "exit", 4, ""),
        ("import atexit; atexit.register(print, 'last'); print('first')", "ok", 0, "first\nlast\n"),
        (
            "import threading as t; t.Thread(target=lambda: print('thread')).start()",
            "ok",
            0,
            "thread\n",
        ),
        (
            "if __name__ == '__main__': print(open(__file__).read()[:2], open('d/f').read())",
            "ok",
            0,
            "if data\n",
        ),
        ("x = (", "error", 1, ""),
    ],
)
def test_one_shot_python(go: Go, box: EmbeddedSandbox, program, status, code, out) -> None:
    result = go(box.run(program, args=["a", "b"], stdin=b"line\n", files={"d/f": b"data"}))
    assert (result.status, result.exit_code, result.stdout) == (status, code, out), result
    if status == "error":
        assert result.error is not None
        assert result.error.name in result.stderr
        assert "main.py" in result.stderr


@pytest.mark.parametrize(
    ("language", "program", "out"),
    [
        ("bash", 'read x; echo "$x $1"', "line a\n"),
        ("sh", "echo sh", "sh\n"),
        ("perl", 'print "perl\\n"', "perl\n"),
        ("javascript", "console.log(process.argv[2])", "a\n"),
        ("c", '#include <stdio.h>\nint main(void) { puts("c"); return 0; }', "c\n"),
        (
            "cpp",
            "#include <iostream>\nint main(int n, char **a) {\n"
            "std::string s; std::cin >> s; std::cout << s << a[1] << std::endl; }",
            "linea\n",
        ),
    ],
)
def test_one_shot_languages(go: Go, box: EmbeddedSandbox, language, program, out) -> None:
    if language not in box.capabilities.languages:
        pytest.skip(f"no tools for {language} on this machine")
    limits = Limits(memory_mb=256, wall_s=20)
    result = go(box.run(program, language=language, args=["a"], stdin=b"line\n", limits=limits))
    assert (result.status, result.stdout) == ("ok", out), result


@pytest.mark.parametrize(
    ("language", "program"),
    [
        ("bash", "exit 3"),
        ("javascript", "process.exit(3)"),
        ("c", "int main(void) { return 3; }"),
        ("cpp", "int main() { return 3; }"),
    ],
)
def test_exit_codes_of_languages(go: Go, box: EmbeddedSandbox, language, program) -> None:
    if language not in box.capabilities.languages:
        pytest.skip(f"no tools for {language} on this machine")
    limits = Limits(memory_mb=256, wall_s=20)
    result = go(box.run(program, language=language, limits=limits))
    assert (result.status, result.exit_code, result.error) == ("exit", 3, None)


@pytest.mark.parametrize("language", ["c", "cpp"])
def test_programs_that_do_not_compile(go: Go, box: EmbeddedSandbox, language) -> None:
    if language not in box.capabilities.languages:
        pytest.skip(f"no tools for {language} on this machine")
    limits = Limits(memory_mb=256, wall_s=0.5)  # the program's, which the compiler does not use up
    result = go(box.run("int main(void) { return x; }", language=language, limits=limits))
    assert (result.status, result.stdout) == ("error", "")
    assert result.error is not None
    assert result.error.name == "CompileError"
    assert "error: " in result.error.message
    assert "x" in result.error.traceback


def test_profiles_bring_packages(go: Go) -> None:
    async def play():
        async with sandboxes.open("embedded", profile="numpy", spares=0) as box, box.session() as s:
            value = await s.run("import numpy as np; int(np.arange(10).sum())")
            child = await s.exec(["python3", "-c", "import numpy; print(numpy.ones(3).sum())"])
            other = await s.run("import pytest")
            first = await s.run("float(np.random.rand())")
            async with box.session() as second:
                again = await second.run("import numpy as np; float(np.random.rand())")
            return value, child, other, first, again

    value, child, other, first, again = go(play())
    assert value.value == "45"
    assert child.stdout == "3.0\n"
    assert other.error is not None
    assert other.error.name == "ModuleNotFoundError"
    assert first.value != again.value


def test_synchronous_run() -> None:
    result = sandboxes.run("print(1)")
    assert (result.status, result.stdout, result.isolation) == ("ok", "1\n", "namespaces")


def test_synchronous_run_inside_a_loop(go: Go) -> None:
    async def inside():
        return sandboxes.run("print(2)")

    assert go(inside()).stdout == "2\n"


def test_many_tasks_at_once(go: Go, box: EmbeddedSandbox) -> None:
    async def one(number: int):
        async with box.session() as session:
            await session.run(f"x = {number}")
            return (await session.run("x * 2", timeout=20)).value

    async def play():
        return await asyncio.gather(*(one(n) for n in range(24)))

    assert go(play()) == [str(2 * n) for n in range(24)]


def test_spares_are_taken_and_replaced(go: Go) -> None:
    async def play():
        async with await open_box(spares=2) as box:
            stock = box._supply.spares(box.profile)
            for _ in range(500):
                if len(stock._ready) == 2:
                    break
                await asyncio.sleep(0.01)
            pids = {handle.pid for handle in stock._ready}
            async with box.session() as one, box.session() as two:
                taken = {one._handle.pid, two._handle.pid}
                assert (await one.run("1")).value == "1"
            return pids, taken

    pids, taken = go(play())
    assert len(pids) == 2
    assert pids == taken


def test_calls_on_a_session_that_is_not_open(go: Go, box: EmbeddedSandbox) -> None:
    async def play():
        session = box.session()
        with pytest.raises(SessionDead, match="not opened"):
            await session.run("1")
        async with session:
            pass
        with pytest.raises(SessionDead, match="closed"):
            await session.run("1")
        await session.close()

    go(play())


def test_names_and_values_that_cannot_be() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown sandbox backend 'embeded'\. Did you mean 'embedded'"
    ):
        sandboxes.open("embeded")
    with pytest.raises(ConfigError, match="Did you mean 'memory_mb'"):
        sandboxes.open("embedded", memory_md=1)
    with pytest.raises(ConfigError, match="wall_s must be a number above 0"):
        sandboxes.open("embedded", wall_s=0)
    with pytest.raises(ConfigError, match="unknown isolation"):
        sandboxes.open("embedded", isolation="some")
    with pytest.raises(ConfigError, match="unknown sandbox profile"):
        sandboxes.open("embedded", profile="numpi")


def test_unknown_language(go: Go, box: EmbeddedSandbox) -> None:
    with pytest.raises(ConfigError, match="language 'pyton'"):
        go(box.run("1", language="pyton"))


def test_a_box_that_is_not_open(go: Go) -> None:
    async def play():
        with pytest.raises(SandboxError, match="not open"):
            await EmbeddedSandbox().run("1")

    go(play())


def test_refuses_where_isolation_fails(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jail, "find_bwrap", lambda: "/bin/false")
    with pytest.raises(IsolationError, match="isolation='none'"):
        go(open_box(isolation="namespaces"))
    monkeypatch.setattr(uids, "why_not", lambda: "of the test")
    with pytest.raises(IsolationError, match="isolation='none'"):
        go(open_box())
    with pytest.raises(IsolationError, match="of the test"):
        go(open_box(isolation="uid"))


def test_falls_back_to_users_of_their_own_aloud(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := uids.why_not():
        pytest.skip(reason)
    monkeypatch.setattr(jail, "find_bwrap", lambda: "/bin/false")

    async def play():
        with pytest.warns(AgentRLWarning, match="isolation 'uid'"):
            box = await open_box()
        async with box, box.session() as session:
            return box.capabilities.isolation, await session.run("1")

    isolation, result = go(play())
    assert (isolation, result.isolation, result.value) == ("uid", "uid", "1")


def test_without_isolation_by_explicit_choice(go: Go) -> None:
    async def play():
        async with await open_box(isolation="none") as box:
            async with box.session() as session:
                await session.write_file("d/f", b"data")
                cell = await session.run("x = open('d/f').read()\nx")
                late = await session.run("import subprocess; subprocess.run(['sleep', '60'])")
                state = await session.run("x")
            return box.capabilities, cell, late, state, await box.run("print(3)")

    capabilities, cell, late, state, program = go(play())
    assert (capabilities.isolation, capabilities.network) == ("none", True)
    assert (cell.value, cell.isolation) == ("'data'", "none")
    assert late.status == "timeout"
    assert state.value == "'data'"
    assert (program.stdout, program.isolation) == ("3\n", "none")


def test_doctor() -> None:
    report = sandboxes.doctor()
    assert report.ok
    assert report.tier == "namespaces"
    assert report.tiers == (("namespaces",) if uids.why_not() else ("namespaces", "uid"))
    assert any("not root" in reason for reason in report.reasons) == (os.geteuid() != 0)
    assert "python" in report.languages
    assert report.to_json()["details"]["kernel"]
    assert report.details["snapshots"] == "yes" or report.details["snapshots"].startswith("no: ")


def test_limits_of_one_session(go: Go, box: EmbeddedSandbox) -> None:
    async def play():
        limits = Limits(**{**SMALL, "files": 20})
        async with box.session(limits) as session:
            return await session.run("import resource; resource.getrlimit(resource.RLIMIT_NOFILE)")

    assert go(play()).value == "(20, 20)"


def test_any_characters_travel(go: Go, box: EmbeddedSandbox) -> None:
    source = "x = '" + "\x01" * 60_000 + "'\n(len(x), '\x01' * 9_000)"
    (result,) = cells(go, box, source)
    assert result.value is not None
    assert result.value.startswith("(60000, ")


def test_numpy_memory_is_limited(go: Go) -> None:
    """A07"""

    async def play():
        async with await open_box(profile="numpy") as box, box.session() as session:
            await session.run("import numpy as np; x = 1")
            return [
                await session.run("np.zeros(10**11)"),
                await session.run("np.ones(10**8)"),
                await session.run("x"),
            ]

    absurd, large, state = go(play())
    assert absurd.error is not None
    assert "Memory" in absurd.error.name
    assert large.status in ("error", "oom")
    assert state.value == "1"

"""The contract of sandboxes and sessions."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any, get_args

from agentrl.errors import SandboxError
from agentrl.interfaces import Capabilities, Sandbox, Session, Snapshots
from agentrl.testing.common import raises, require
from agentrl.types import ExecResult, ExecStatus


def check_sandbox(box: AbstractAsyncContextManager[Sandbox], *, timeout: float = 1.0) -> None:
    """Check sessions and one-shot programs of a sandbox. `timeout` is what an endless loop gets."""

    async def go() -> None:
        async with box as opened:
            require(isinstance(opened, Sandbox), f"{type(opened).__name__} lacks a Sandbox member")
            named = isinstance(opened.capabilities, Capabilities)
            require(named, "capabilities is no agentrl.interfaces.Capabilities")
            async with opened.session() as session:
                require(isinstance(session, Session), "session() gave no Session")
                await _check_state(session)
                await _check_files(session)
                await _check_reset(session)
            require(await raises(session.run("1"), SandboxError), "a closed session ran code")
            await session.close()
            await _check_apart(opened)
            if opened.capabilities.snapshots:
                await _check_snapshots(opened)
            await _check_timeout(opened, timeout)
            await _check_death(opened)
            await _check_program(opened)
            await _check_judge(opened)
            await opened.close()

    asyncio.run(go())


async def _cell(session: Session, code: str, status: str = "ok", **kw: Any) -> ExecResult:
    result = await session.run(code, **kw)
    require(isinstance(result, ExecResult), "run gave no ExecResult")
    require(result.status in get_args(ExecStatus), f"{result.status!r} is no status")
    found = f"{result.status!r} ({result.detail or result.stderr[-200:]})"
    require(result.status == status, f"{code!r} gave status {found}, not {status!r}")
    require(result.isolation, "a result does not name the isolation that was in force")
    return result


async def _check_state(session: Session) -> None:
    await _cell(session, "x = 41")
    result = await _cell(session, "print('hi')\nx + 1")
    require(result.value == "42", f"the value of a last expression is {result.value!r}, not '42'")
    require(result.stdout == "hi\n", f"stdout is {result.stdout!r}, not what was printed")
    require((await _cell(session, "y = 1")).value is None, "a cell without expression has a value")
    result = await _cell(session, "import sys; print('e', file=sys.stderr)")
    require(result.stderr == "e\n" and not result.stdout, "stdout and stderr are mixed up")
    error = (await _cell(session, "1/0", "error")).error
    require(error and error.name == "ZeroDivisionError", "error.name is not the exception's name")
    require(error and "1/0" in error.traceback, "the traceback does not show the failing line")
    error = (await _cell(session, "1 +", "error")).error
    require(error and error.name == "SyntaxError", "a syntax error is not reported as one")
    require((await _cell(session, "x")).value == "41", "names were lost after an exception")


async def _check_files(session: Session) -> None:
    data = bytes(range(256))
    await session.write_file("data.bin", data)
    read = await session.read_file("data.bin")
    require(read == data, "read_file does not give back what write_file wrote")
    result = await _cell(session, "len(open('data.bin', 'rb').read())")
    require(result.value == "256", "code does not see a written file in its working directory")
    executable = (await _cell(session, "import sys; print(sys.executable)")).stdout.strip()
    result = await session.exec(
        [executable, "-c", "import sys; print(sys.stdin.read()); sys.exit(3)"], stdin=b"in"
    )
    require(result.stdout == "in\n", "exec does not pass stdin and stdout")
    require((result.status, result.exit_code) == ("exit", 3), "exec hides a non-zero exit status")


async def _check_reset(session: Session) -> None:
    await session.reset()
    result = await _cell(session, "import os\n('x' in globals(), os.path.exists('data.bin'))")
    require(result.value == "(False, False)", "reset left names or files behind")


async def _check_apart(box: Sandbox) -> None:
    async with box.session() as one, box.session() as two:
        paths = "import os, tempfile\npaths = ['mine', tempfile.gettempdir() + '/mine']\n"
        await _cell(one, f"{paths}secret = 1\nfor path in paths: open(path, 'w').close()")
        look = f"{paths}[os.path.exists(p) for p in paths] + ['secret' in dir()]"
        result = await _cell(two, look)
        require(result.value == "[False, False, False]", "two sessions share names or files")
        both = await asyncio.gather(_cell(one, "1 + 1"), _cell(two, "2 + 2"))
        require([r.value for r in both] == ["2", "4"], "results of two sessions are mixed up")


async def _check_snapshots(box: Sandbox) -> None:
    async with box.session() as session:
        has = isinstance(session, Snapshots)
        require(has, "capabilities promise snapshots, and sessions have none")
        assert isinstance(session, Snapshots)
        await _cell(session, "n = iter(range(9)); next(n); open('f', 'w').write('kept')")
        state = await session.snapshot()
        after = "next(n), open('f').read()"
        require(
            (await _cell(session, after)).value == "(1, 'kept')", "a snapshot changed a session"
        )
    for _ in range(2):
        async with state.session() as other:
            value = (await _cell(other, after)).value
            require(value == "(1, 'kept')", f"a session in a snapshot's state gave {value!r}")


async def _check_timeout(box: Sandbox, timeout: float) -> None:
    async with box.session() as slow, box.session() as other:
        result, _ = await asyncio.gather(
            _cell(slow, "while True: pass", "timeout", timeout=timeout), _cell(other, "1")
        )
        late = f"a loop with {timeout:g} s to run was stopped after {result.duration:.1f} s"
        require(timeout * 0.5 <= result.duration <= timeout + 2, late)
        await _cell(other, "2")
        running = asyncio.create_task(
            other.run("import time; keep = 1; time.sleep(60)", timeout=30)
        )
        await asyncio.sleep(0.3)
        await other.interrupt()
        status = (await running).status
        require(status == "timeout", f"an interrupted cell gave {status!r}, not 'timeout'")
        require((await _cell(other, "keep")).value == "1", "an interrupt lost the session's state")


async def _check_death(box: Sandbox) -> None:
    async with box.session() as session:
        result = await _cell(session, "import os; os._exit(3)", "exit")
        require(result.exit_code == 3, f"os._exit(3) gave exit_code {result.exit_code}")
        require(await raises(session.run("1"), SandboxError), "a dead session ran code")


async def _check_program(box: Sandbox) -> None:
    program = "import sys; print(sys.argv[1:], sys.stdin.read(), open('f.txt').read())"
    result = await box.run(program, args=["a"], stdin=b"b", files={"f.txt": b"c"})
    require(result.status == "ok", f"a whole program gave {result.status!r} ({result.detail})")
    require(result.stdout == "['a'] b c\n", "args, stdin or files did not reach a whole program")
    result = await box.run("import sys; sys.exit(4)")
    require((result.status, result.exit_code) == ("exit", 4), "run hides a non-zero exit status")


async def _check_judge(box: Sandbox) -> None:
    cases = [{"call": "f", "args": [n], "expect": n * n} for n in range(3)]
    verdict = await box.judge("def f(n): return n * n", cases)
    require(verdict.passed, f"a right program did not pass: {verdict.detail}")
    for wrong in ("def f(n): return n", "import os; os._exit(0)"):
        verdict = await box.judge(wrong, cases)
        require(not verdict.passed and not verdict.infra, f"{wrong!r} was judged {verdict.status}")

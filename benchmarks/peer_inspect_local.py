"""inspect_ai's local sandbox: a process for each program."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from benchmarks.peers import Absent, Peer, one_shot
from sandboxes.embedded import jail

NAME = "inspect_ai, local"
NOTE = "a process of this user for each program, without any isolation; only output is limited"


@contextlib.contextmanager
def peer() -> Iterator[Peer]:
    """`exec` of a Python, without the login shell that its python tool starts."""
    if importlib.util.find_spec("inspect_ai") is None:
        raise Absent("inspect_ai is not installed")
    from inspect_ai.util._sandbox.local import LocalSandboxEnvironment

    here = jail.interpreter()
    python = [str(Path(here.prefix, here.executable)), "-I", "-S", "-c"]
    sandbox = LocalSandboxEnvironment()

    def run(program: str) -> str:
        done = asyncio.run(sandbox.exec([*python, program], concurrency=False))
        if not done.success:
            raise RuntimeError(done.stderr)
        return str(done.stdout)

    try:
        yield one_shot(run)
    finally:
        sandbox.directory.cleanup()

"""Whether a program does what it should, where the program may lie.

    verdict = await box.judge(program, [{"call": "f", "args": [3], "expect": 9}])

What a program says of itself is a claim. It is judged in fresh sessions, and expected results,
inputs not yet asked and checkers never enter its process. See docs/judge.md.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Coroutine
from dataclasses import fields
from typing import Any

from agentrl.errors import SandboxError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import Verdict
from sandboxes.judge.call import judge_calls
from sandboxes.judge.pytest_inproc import judge_in_process
from sandboxes.judge.pytest_rpc import judge_tests
from sandboxes.judge.setting import Setting
from sandboxes.judge.stdio import judge_stdio

__all__ = ["MODES", "judge"]

Mode = Callable[..., Coroutine[Any, Any, Verdict]]

MODES: dict[str, Mode] = {
    "call": judge_calls,
    "stdio": judge_stdio,
    "pytest_rpc": judge_tests,
    "pytest_inproc": judge_in_process,
}
_ATTEMPTS = 2
_SHARED = {f.name for f in fields(Setting)} - {"box", "started"}


async def judge(
    box: Sandbox, program: str, cases: Any, *, mode: str = "call", **options: Any
) -> Verdict:
    """Judge `program` by `cases`, in fresh sessions of any sandbox.

    For every mode: `limits` and `profile` of the sessions; `timeout`, seconds for one case;
    `total_timeout` for all of them (120); `files`, name -> content, copied into /work first; `seed`
    of the order of the cases; `isolate_cases`: a fresh session for each; `stop_early`: leave out
    what follows a failed case. The modes' own options and cases are those of the functions in
    `MODES`.

    A failure of the sandbox is tried again once, then it is the verdict's `infra`. Raises
    ConfigError for an unknown mode or option and for cases that cannot be.
    """
    if mode not in MODES:
        raise unknown("judge mode", mode, MODES)
    run = MODES[mode]
    own = {n for n, p in inspect.signature(run).parameters.items() if p.kind is p.KEYWORD_ONLY}
    for name in options:
        if name not in own | _SHARED:
            raise unknown(f"option of the judge's mode {mode!r}", name, own | _SHARED)
    shared = {n: v for n, v in options.items() if n in _SHARED}
    rest = {n: v for n, v in options.items() if n in own}
    started = time.monotonic()
    problem = ""
    for _ in range(_ATTEMPTS):
        try:
            return await run(Setting(box, **shared), program, cases, **rest)
        except SandboxError as error:
            problem = str(error)
    return Verdict(False, "infra", infra=True, detail=problem, duration=time.monotonic() - started)

"""A sandbox of canned results, for tests of episodes."""

from __future__ import annotations

from typing import Any, Self

from agentrl.errors import SandboxError, SessionDead
from agentrl.interfaces import Capabilities
from agentrl.types import ExecResult, Limits, Verdict

DEADLY = ("timeout", "oom", "crashed", "exit", "output_limit", "tampered")


class CannedSession:
    def __init__(self, box: CannedBox) -> None:
        self.box, self.codes, self.opened, self.closed, self.dead = box, [], False, 0, False

    async def open(self) -> Self:
        self.opened = True
        return self

    async def run(self, code: str, *, timeout: float | None = None) -> ExecResult:
        if self.dead:
            raise SessionDead("it has ended")
        self.codes.append(code)
        result = self.box.results.pop(0)
        if isinstance(result, Exception):
            raise result
        self.dead = result.status in DEADLY
        return result

    async def close(self) -> None:
        self.closed += 1


class CannedBox:
    """Answers every cell with the next of `results` (an exception among them is raised)."""

    capabilities = Capabilities("fake", "none", False, False, ("python",))

    def __init__(self, *results: ExecResult | Exception, fails: bool = False) -> None:
        self.results: list[Any] = list(results)
        self.sessions: list[CannedSession] = []
        self.fails = fails

    def session(self, limits: Limits | None = None, *, profile: str | None = None) -> CannedSession:
        if self.fails:
            raise SandboxError("no more sessions")
        self.sessions.append(CannedSession(self))
        return self.sessions[-1]

    async def run(self, program: str, **kw: Any) -> ExecResult:
        raise NotImplementedError

    async def judge(self, program: str, cases: Any, **options: Any) -> Verdict:
        raise NotImplementedError

    async def close(self) -> None: ...


def ok(stdout: str = "", value: str | None = None, **kw: Any) -> ExecResult:
    return ExecResult("ok", stdout=stdout, value=value, **kw)

"""Interpreters for untrusted code.

async with sandboxes.open("embedded", memory_mb=512) as box:
    async with box.session() as session:
        result = await session.run("x = 40 + 2\\nx")      # result.value == "42"

sandboxes.run("print(1)").stdout                          # one program, without async
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol, Self

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import ExecResult, Limits
from sandboxes.doctor import Report, doctor
from sandboxes.embedded import PROFILES, EmbeddedSandbox, EmbeddedSession, Profile

__all__ = [
    "BACKENDS",
    "PROFILES",
    "EmbeddedSandbox",
    "EmbeddedSession",
    "Profile",
    "Report",
    "doctor",
    "open",
    "run",
]


class Box(Sandbox, Protocol):
    """A sandbox that is made closed, and then opened."""

    async def open(self) -> Self: ...


def _embedded(place: str, limits: Limits | None, **options: Any) -> Box:
    if place:
        raise ConfigError(
            f"the embedded sandbox is on this machine; write 'embedded', not {place!r}"
        )
    return EmbeddedSandbox(limits, **options)


def _remote(place: str, limits: Limits | None, **options: Any) -> Box:
    from sandboxes.remote import RemoteSandbox

    return RemoteSandbox(limits, **{"urls": place, **options})


def _docker(place: str, limits: Limits | None, **options: Any) -> Box:
    from sandboxes.docker import docker_sandbox

    return docker_sandbox(limits, **{**options, **({"image": place} if place else {})})


BACKENDS: Mapping[str, Callable[..., Box]] = {
    "embedded": _embedded,
    "docker": _docker,
    "remote": _remote,
}
"""Name -> a function of what stands behind the name's colon, limits and options."""


class Opening:
    """What `open` returns: `async with` it, or `await` it for an open sandbox that you close."""

    def __init__(self, box: Box) -> None:
        self._box = box

    def __await__(self) -> Generator[Any, None, Sandbox]:
        return self._box.open().__await__()

    async def __aenter__(self) -> Sandbox:
        return await self._box.open()

    async def __aexit__(self, *exc: object) -> None:
        await self._box.close()


def open(backend: str = "embedded", limits: Limits | None = None, **options: Any) -> Opening:
    """A sandbox, opened by `async with` or `await`.

    `options` are fields of Limits (`memory_mb=512`) and what the backend takes: for "embedded" see
    `EmbeddedSandbox` (`isolation`, `profile`, `spares`), for "docker" and "docker:IMAGE" see
    `sandboxes.docker.docker_sandbox` (`inner`, `containers`, `runtime`), for "remote:URL[,URL ...]"
    see `sandboxes.remote.RemoteSandbox` (`token`, `profile`). Raises ConfigError for an unknown
    backend or option; opening raises IsolationError where code cannot be isolated, and SandboxError
    where no daemon or server answers.
    """
    name, _, place = backend.partition(":")
    if name not in BACKENDS:
        raise unknown("sandbox backend", name, BACKENDS)
    return Opening(BACKENDS[name](place, limits, **options))


def run(
    program: str,
    *,
    language: str = "python",
    args: Sequence[str] = (),
    stdin: bytes = b"",
    files: Mapping[str, bytes] | None = None,
    backend: str = "embedded",
    **options: Any,
) -> ExecResult:
    """Run one program in a sandbox of its own, and wait for it. `options` as for `open`.

    Works inside a running event loop, too, which it blocks. To run more than a few programs open a
    sandbox once: starting one takes a tenth of a second. Raises what `open` raises.
    """
    once_only = {} if backend.partition(":")[0] == "remote" else {"spares": 0}
    opening = open(backend, **{**once_only, **options})

    async def once() -> ExecResult:
        async with opening as box:
            return await box.run(program, language=language, args=args, stdin=stdin, files=files)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(once())
    return _in_thread(once)


def _in_thread(work: Any) -> ExecResult:
    outcome: list[ExecResult] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(asyncio.run(work()))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=target, name="sandboxes.run")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]

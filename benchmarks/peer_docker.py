"""Docker without more: `docker exec` in a container that runs, `docker run` for a fresh one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from benchmarks.peers import Absent, Peer

NAME = "docker exec / docker run"
NOTE = (
    "cold: a container for each program, by the SDK; otherwise `exec` of a Python process in one "
    "container that runs, which programs share: files and processes of one are seen by the next, "
    "no limits for each, no state of the interpreter; no network, no capabilities"
)
IMAGE = "agentrl/sandbox-bench:latest"
HARDENED: dict[str, Any] = {
    "network_mode": "none",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 64,
    "mem_limit": "256m",
    "tmpfs": {"/tmp": ""},
    "user": "65534:65534",
}
_PYTHON = ["python3", "-I", "-S", "-c"]


def client() -> Any:
    """A client of the daemon. Raises Absent without one."""
    try:
        import docker
    except ModuleNotFoundError:
        raise Absent("the docker SDK is not installed") from None
    try:
        found = docker.from_env()
        found.ping()
        found.images.get(IMAGE)
        return found
    except docker.errors.DockerException as error:
        raise Absent(f"no daemon that has the image {IMAGE} ({error})") from None


@contextlib.contextmanager
def peer() -> Iterator[Peer]:
    """The container that runs, until the end."""
    daemon = client()
    idle = daemon.containers.run(IMAGE, ["sleep", "infinity"], detach=True, init=True, **HARDENED)

    def execute(program: str) -> str:
        done = idle.exec_run([*_PYTHON, program])
        if done.exit_code:
            raise RuntimeError(done.output.decode())
        return str(done.output.decode())

    def executed(program: str) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(execute(program))

    @contextlib.contextmanager
    def fresh(program: str) -> Iterator[str]:
        made = daemon.containers.create(IMAGE, [*_PYTHON, program], **HARDENED)
        try:
            made.start()
            made.wait()
            yield made.logs(stderr=False).decode()
        finally:
            made.remove(force=True)

    try:
        yield Peer(cold=fresh, cell=execute, warm=executed)
    finally:
        idle.remove(force=True)

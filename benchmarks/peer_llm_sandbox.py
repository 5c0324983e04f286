"""llm-sandbox: its Docker sessions, its pool and its interactive session; its bubblewrap backend.

Its image is made here, as nothing is downloaded: a virtual environment where it looks for one, with
a `pip` that does nothing, as IPython is in the image. It spares it its set-up.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peer_docker import IMAGE, client
from benchmarks.peers import Absent, Peer, one_shot
from sandboxes.embedded import jail

DOCKER, BUBBLEWRAP = "llm-sandbox, Docker", "llm-sandbox, bubblewrap"
NOTES = {
    DOCKER: (
        "skip_environment_setup, a pool of containers for warm sessions (root in the container, "
        "used ones are handed to the next user as they are), its interactive session (IPython, "
        "results in files that the program may write) for cells; network off"
    ),
    BUBBLEWRAP: (
        "its default settings: namespaces and a filter of system calls for each program, files "
        "kept from program to program, no state of the interpreter"
    ),
}
_TAG = "agentrl/sandbox-bench-llm:latest"
_DOCKERFILE = f"""
FROM {IMAGE}
RUN mkdir -p /sandbox/.sandbox-venv/bin && cd /sandbox/.sandbox-venv/bin \\
    && ln -s "$(command -v python3)" python && ln -s "$(which true)" pip
"""
_RUNTIME = {"network_mode": "none", "mem_limit": "1g", "command": ["sleep", "infinity"]}


def _require() -> None:
    if importlib.util.find_spec("llm_sandbox") is None:
        raise Absent("llm-sandbox is not installed")
    logging.getLogger("llm_sandbox").setLevel(logging.ERROR)


@contextlib.contextmanager
def docker() -> Iterator[Peer]:
    """With an interactive session for cells, and a pool of 8 containers."""
    _require()
    daemon = client()
    daemon.images.build(
        fileobj=io.BytesIO(_DOCKERFILE.encode()), tag=_TAG, network_mode="none", rm=True
    )
    from llm_sandbox import InteractiveSandboxSession, SandboxSession
    from llm_sandbox.pool import PoolConfig, create_pool_manager

    common: dict[str, Any] = {"client": daemon, "image": _TAG, "lang": "python"}
    common |= {"runtime_configs": dict(_RUNTIME), "keep_template": True}

    @contextlib.contextmanager
    def cold(program: str) -> Iterator[str]:
        with SandboxSession(skip_environment_setup=True, **common) as session:
            yield session.run(program).stdout

    @contextlib.contextmanager
    def warm(program: str) -> Iterator[str]:
        with SandboxSession(pool=pool, lang="python") as session:
            yield session.run(program).stdout

    size = PoolConfig(min_pool_size=8, max_pool_size=8)
    pool = create_pool_manager(config=size, skip_environment_setup=True, **common)
    try:
        with InteractiveSandboxSession(skip_environment_setup=True, **common) as session:
            yield Peer(cold=cold, cell=lambda p: str(session.run(p).stdout), warm=warm)
    finally:
        pool.close()


@contextlib.contextmanager
def bubblewrap() -> Iterator[Peer]:
    """Its session without a daemon; cells are further programs of one session."""
    _require()
    from llm_sandbox import SandboxSession
    from llm_sandbox.local.config import DEFAULT_READ_ONLY_PATHS, LocalSandboxConfig

    here = jail.interpreter()
    shown = dict.fromkeys((*DEFAULT_READ_ONLY_PATHS, here.prefix))
    options: dict[str, Any] = {
        "backend": "bubblewrap",
        "bwrap_path": jail.find_bwrap(),
        "lang": "python",
        "skip_environment_setup": True,
        "sandbox_config": LocalSandboxConfig(
            read_only_paths=tuple(shown),
            python_executable=str(Path(here.prefix, here.executable)),
            env={"PATH": f"{os.path.dirname(Path(here.prefix, here.executable))}:/usr/bin:/bin"},
        ),
    }

    @contextlib.contextmanager
    def cold(program: str) -> Iterator[str]:
        with SandboxSession(**options) as session:
            yield session.run(program).stdout

    with SandboxSession(**options) as kept:
        run = one_shot(lambda program: str(kept.run(program).stdout)).cell
        yield Peer(cold=cold, cell=run, warm=cold)

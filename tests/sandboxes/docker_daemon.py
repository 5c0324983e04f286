"""A Docker daemon for the tests, and an image made from this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from agentrl.errors import AgentRLError
from sandboxes.docker import dockerd, image
from sandboxes.docker.engine import Engine

IMAGE = "agentrl/sandbox:test"
REQUIRED = "AGENTRL_REQUIRE_DOCKER"


def refuse(reason: str) -> NoReturn:
    """Skip, or fail where the tests must run."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but: {reason}")
    pytest.skip(reason)


@contextlib.contextmanager
def daemon() -> Iterator[None]:
    """A daemon that answers as DOCKER_HOST says, and has the image: the one that there is, else one
    of our own until the tests' end."""
    folder = None
    before = os.environ.get("DOCKER_HOST")
    problem = asyncio.run(_problem())
    if problem is not None:
        if dockerd.why_not() is not None:
            refuse(f"{problem}; none can be started: {dockerd.why_not()}")
        folder = Path(tempfile.mkdtemp(prefix="agentrl-dockerd-"))
        try:
            os.environ["DOCKER_HOST"] = dockerd.start(folder)
        except AgentRLError as error:
            refuse(str(error))
    try:
        asyncio.run(image.build(IMAGE, ["mpmath"], []))
        yield
    finally:
        if folder is not None:
            dockerd.stop(folder)
            del os.environ["DOCKER_HOST"]
            if before is not None:
                os.environ["DOCKER_HOST"] = before


async def _problem() -> str | None:
    try:
        await (await Engine.connect()).close()
    except AgentRLError as error:
        return str(error)
    return None

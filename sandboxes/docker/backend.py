"""`sandboxes.open("docker", ...)`: its options."""

from __future__ import annotations

from typing import Any

from agentrl.errors import ConfigError, unknown
from agentrl.types import Limits
from sandboxes.docker.fleet import DockerFleet, Plan
from sandboxes.docker.hardening import INNER
from sandboxes.embedded import profiles
from sandboxes.embedded.plan import limits_of
from sandboxes.rpc.client import ServedSandbox

IMAGE = "agentrl/sandbox:latest"
"""The image that `agentrl sandbox build --from-host` makes."""


def docker_sandbox(
    limits: Limits | None = None,
    *,
    image: str = IMAGE,
    inner: str = "auto",
    containers: int = 1,
    container_per_session: bool = False,
    memory_mb_total: int | None = None,
    cpus: float | None = None,
    runtime: str | None = None,
    profile: str = "bare",
    spares: int = 2,
    **changes: Any,
) -> ServedSandbox:
    """A sandbox whose sessions are in Docker containers, not yet open.

    `image` needs a python3 (3.11 or newer) and what the code shall find there; a profile's packages
    among it. `inner` is what keeps the sessions of a container apart: "namespaces" of their own, or
    user ids ("uid"); "auto" takes namespaces where the daemon allows them. Sessions are spread over
    `containers`; with `container_per_session` each has one of its own, and that many are kept
    ready. `memory_mb_total` and `cpus` limit each container, `changes` (fields of Limits) each
    session. `runtime` is one that the daemon knows, "runsc" for instance. DOCKER_HOST is respected.

    Raises ConfigError on values that cannot be.
    """
    if inner not in ("auto", *INNER):
        raise unknown("isolation in a container", inner, ("auto", *INNER))
    for name, value in (("containers", containers), ("spares", spares + 1)):
        if value < 1:
            raise ConfigError(f"{name} is too small")
    for name, number in (("memory_mb_total", memory_mb_total), ("cpus", cpus)):
        if number is not None and not number > 0:
            raise ConfigError(f"{name} must be above 0, not {number!r}")
    if container_per_session and memory_mb_total is not None:
        raise ConfigError("with container_per_session memory_mb is a container's limit, too")
    wanted = limits_of(limits, changes, docker_sandbox)
    plan = Plan(
        image=image,
        limits=wanted,
        profile=profiles.find(profile).name,
        spares=0 if container_per_session else spares,
        inner=inner,
        containers=containers,
        per_session=container_per_session,
        memory_mb_total=memory_mb_total,
        cpus=cpus,
        runtime=runtime,
    )
    return ServedSandbox(DockerFleet(plan), wanted, plan.profile)

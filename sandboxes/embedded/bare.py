"""Starting a zygote without bubblewrap: in a container, with users for sessions, or unprotected.

In a container sessions see what the container shows. Elsewhere sessions with users of their own see
the system, the interpreter and the profile's packages; what is installed for the interpreter itself
is hidden if this process may mount.
"""

from __future__ import annotations

import os
import site
from typing import Any

from agentrl.errors import IsolationError
from sandboxes.embedded import jail, uids
from sandboxes.embedded.inside import kernel
from sandboxes.embedded.inside.launch import STAGE
from sandboxes.embedded.profiles import Profile


def build(
    profile: Profile, control: int, *, container: bool, block: uids.Block | None
) -> tuple[dict[str, Any], list[int]]:
    """The launcher's plan, and the descriptors that it inherits and the caller closes.

    Raises IsolationError if sessions could not reach what they need, SandboxError without the
    profile's packages.
    """
    packages, python = profile.paths(), jail.interpreter()
    prefix, links, stage = python.prefix, {}, {}
    if container:
        folders = [path for path in site.getsitepackages() if os.path.isdir(path)]
        visible = [prefix, *folders]
    elif block is None:
        folders = sorted({os.path.dirname(path) for path in packages.values()})
        visible = []
    elif kernel.capabilities() & 1 << kernel.CAP_SYS_ADMIN:
        stage = {"python": prefix} | {f"site/{name}": path for name, path in packages.items()}
        prefix, folders, visible = f"{STAGE}/python", [f"{STAGE}/site"], [STAGE]
    else:
        _check_reachable(prefix, *packages.values())
        links, folders, visible = packages, [block.site], [block.site, prefix, *packages.values()]
    code = os.memfd_create("inside", 0)
    with open(code, "wb", closefd=False) as file:
        file.write(jail.archive())
    command = jail.boot(f"/proc/self/fd/{code}", "zygote.main", control)
    inherited = [code]
    if block is not None:
        inherited.append(os.dup(block.lock))
    plan = {
        "uid": None,
        "stage": stage,
        "argv": [os.path.join(prefix, python.executable), *command],
        "visible": visible,
        "env": jail.environment(prefix, os.pathsep.join(folders), "/tmp"),
        "users": block.plan(links, inherited[-1]) if block else None,
    }
    return plan, inherited


def _check_reachable(*paths: str) -> None:
    for path in paths:
        if not uids.reachable(path):
            raise IsolationError(
                f"sessions cannot reach {path}, which only its owner can: install Python and the "
                "packages where every user can read them, for example below /usr/local"
            )

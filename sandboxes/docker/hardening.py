"""What a container is allowed: as little as its kind of sessions needs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandboxes.docker import bundle, owner

INNER = ("namespaces", "uid")
_USER = 65534  # nobody, whom images do not give files
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* that clone(2) takes
# What the server of sessions with users of their own needs, the last one to see how much memory
# they use (the filter allows no tracing). Foreign code has none of them.
_UID_CAPABILITIES = ["CHOWN", "DAC_OVERRIDE", "KILL", "SETGID", "SETPCAP", "SETUID", "SYS_PTRACE"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A container's image and limits. `inner` is the isolation between its sessions."""

    image: str
    inner: str
    memory_mb: int
    pids: int
    cpus: float | None = None
    runtime: str | None = None


def seccomp(inner: str) -> str:
    """The container's system-call filter, in Docker's format.

    An allow-list without tracing, keyrings, BPF, io_uring, and sockets but unix and internet ones.
    Where sessions are namespaces the server may make those; each session's own filter takes that
    away again before foreign code runs.
    """
    profile = json.loads((Path(__file__).parent / "seccomp.json").read_text())
    clone: dict[str, Any] = {"names": ["clone"], "action": "SCMP_ACT_ALLOW"}
    if inner == "namespaces":
        clone["names"] += ["mount", "pivot_root", "umount2", "unshare"]
    else:
        mask = {"index": 0, "value": _NEW_NAMESPACES, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        clone["args"] = [mask]
    profile["syscalls"].append(clone)
    return json.dumps(profile)


def config(api: Any, shape: Shape) -> dict[str, Any]:
    """The container as the daemon's interface wants it. `api` is the SDK's."""
    namespaces = shape.inner == "namespaces"
    memory = shape.memory_mb << 20
    security = ["no-new-privileges", f"seccomp={seccomp(shape.inner)}"]
    if namespaces:
        security.append("apparmor=unconfined")  # its stock profile forbids all mounts
    scratch = f"rw,exec,nosuid,nodev,size={memory // 2},mode=1777"
    host = api.create_host_config(
        auto_remove=True,
        cap_add=None if namespaces else _UID_CAPABILITIES,
        cap_drop=["ALL"],
        ipc_mode="private",
        log_config={"Type": "none", "Config": {}},
        mem_limit=memory,
        memswap_limit=memory,
        nano_cpus=None if shape.cpus is None else int(shape.cpus * 1e9),
        network_mode="none",
        pids_limit=shape.pids,
        read_only=True,
        security_opt=security,
        tmpfs=dict.fromkeys(("/work", "/tmp", "/dev/shm"), scratch),
        runtime=shape.runtime,
    )
    if namespaces:
        # A session may mount a /proc of its own only where the container's is not covered anywhere.
        host["MaskedPaths"] = ["/sys", "/dev/mqueue"]
        host["ReadonlyPaths"] = []
    config: dict[str, Any] = api.create_container_config(
        image=shape.image,
        command=bundle.command(),
        entrypoint=[],
        environment={},
        healthcheck={"test": ["NONE"]},
        host_config=host,
        hostname="sandbox",
        labels=owner.labels(),
        network_disabled=True,
        stdin_open=True,
        user=f"{_USER}:{_USER}" if namespaces else "0:0",
        working_dir="/",
    )
    return config

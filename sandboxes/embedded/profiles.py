"""What an interpreter has imported before a session starts."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agentrl.errors import SandboxError, unknown

# Not threading: what it does after a fork would slow every session's start.
_STANDARD = (
    "ast", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum",
    "fractions", "functools", "heapq", "itertools", "json", "linecache", "math", "operator",
    "random", "re", "statistics", "string", "traceback", "typing",
)  # fmt: skip


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # at the beginning of a requirement
_PACKAGE = re.compile(r"\w+|[\w.-]+\.(?:py|so|libs)")  # among what a distribution installs


@dataclass(frozen=True, slots=True)
class Profile:
    """A set of packages that sessions can import: `Profile("mine", packages=("pandas",))`.

    `packages` are top-level names found in the host's environment. They are made visible in the
    jail with what their installations require, and nothing else of the environment is. `imports`
    are modules imported once, before any session starts, so that sessions have them at once.
    """

    name: str
    packages: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()

    def paths(self) -> dict[str, str]:
        """File or directory name in the jail's package folder -> its path here.

        Raises SandboxError if a package is not installed.
        """
        found: dict[str, str] = {}
        todo: list[str] = []
        for package in self.packages:
            found |= self._package(package)
            todo += _distributions().get(package, ())
        seen: set[str] = set()
        while todo:
            name = _canonical(todo.pop())
            if name not in seen:
                seen.add(name)
                files, requires = _installed(name)
                found = files | found
                todo += requires
        return found

    def _package(self, package: str) -> dict[str, str]:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SandboxError(
                f"profile {self.name!r} needs the package {package!r}, which is not installed"
            )
        inside = bool(spec.submodule_search_locations)
        path = os.path.dirname(spec.origin) if inside else spec.origin
        return {os.path.basename(path): path}

    @property
    def preloaded(self) -> tuple[str, ...]:
        """All modules that the zygote imports."""
        return _STANDARD + self.imports


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Top-level package -> the distributions that install it."""
    return importlib.metadata.packages_distributions()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.cache
def _installed(name: str) -> tuple[dict[str, str], list[str]]:
    """What a distribution has in the package folder, and the names of those it requires; nothing
    where it is not installed, as what it needs on other systems is not."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return {}, []
    tops = {path.parts[0] for path in found.files or ()}
    names = [t for t in tops if _PACKAGE.fullmatch(t) and not t.startswith("__")]
    paths = {top: str(found.locate_file(top)) for top in names}
    requires = [r for r in found.requires or () if "extra ==" not in r]
    return paths, [match[0] for r in requires if (match := _NAME.match(r))]


PROFILES: Mapping[str, Profile] = {
    p.name: p
    for p in (
        Profile("bare"),
        Profile("numpy", ("numpy",), ("numpy", "numpy.random", "numpy.linalg")),
        Profile(
            "sympy",
            ("numpy", "mpmath", "sympy"),
            ("numpy", "numpy.random", "numpy.linalg", "mpmath", "sympy"),
        ),
        Profile(
            "plot",
            ("numpy", "matplotlib"),
            ("numpy", "numpy.random", "numpy.linalg", "matplotlib.pyplot"),
        ),
    )
}


def find(profile: str | Profile) -> Profile:
    """The profile of that name. Raises ConfigError on an unknown name."""
    if isinstance(profile, Profile):
        return profile
    if profile not in PROFILES:
        raise unknown("sandbox profile", profile, PROFILES)
    return PROFILES[profile]

"""What runs inside the judge's sessions: standard library and `sandboxes.judge.codec` only.

`candidate` holds the judged program and `tests` the tests, each in a jail of its own; `whole` runs
both in one process. This file is read outside.
"""

from __future__ import annotations

import hashlib
import importlib.resources
from functools import cache

DRIVERS = ("candidate", "tests")
_JUDGE = importlib.resources.files("sandboxes.judge")  # also where that is in an archive


@cache
def sources(driver: str) -> tuple[tuple[str, str], ...]:
    """The modules that a driver is made of, in the order of their imports, and their sources."""
    return tuple(
        (f"sandboxes.judge.{name}", (_JUDGE / f"{name.replace('.', '/')}.py").read_text("utf-8"))
        for name in ("codec", "inside.driver", f"inside.{driver}")
    )


@cache
def archive() -> dict[str, str]:
    """Path -> source of all drivers as a package, and a module `digest` that tells versions apart:
    a sandbox may import them before its sessions start."""
    modules = {name: source for driver in DRIVERS for name, source in sources(driver)}
    files = {f"{name.replace('.', '/')}.py": source for name, source in modules.items()}
    for package in ("sandboxes", "sandboxes/judge", "sandboxes/judge/inside"):
        files[f"{package}/__init__.py"] = ""
    return files | {"sandboxes/judge/digest.py": f"VALUE = {digest()!r}\n"}


@cache
def digest() -> str:
    """What tells this version of the drivers from others."""
    text = "\0".join(source for driver in DRIVERS for _, source in sources(driver))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


MODULES = ("sandboxes.judge.digest", *(f"sandboxes.judge.inside.{name}" for name in DRIVERS))
"""What to import of `archive`."""

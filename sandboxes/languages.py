"""How to run a program of each language: a file name and a command, where its tools exist."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass

from agentrl.errors import unknown
from agentrl.types import ExecError, ExecResult

COMPILE_S = 30.0
"""Wall time that a compiler has; the program's own limit begins after it."""

_PATH = "/usr/local/bin:/usr/bin:/bin"  # as sessions see it


@dataclass(frozen=True, slots=True)
class Language:
    """`command` runs the program stored as `file`; `tools` must exist. `compiler`, a command, comes
    first if it is not empty; where it fails the program is not run."""

    name: str
    file: str
    command: tuple[str, ...]
    tools: tuple[str, ...]
    compiler: tuple[str, ...] = ()

    @property
    def available(self) -> bool:
        """True if its tools are where sessions look for them."""
        folders = _PATH.split(":")
        return all(
            any(os.access(f"{folder}/{tool}", os.X_OK) for folder in folders) for tool in self.tools
        )


LANGUAGES: Mapping[str, Language] = {
    one.name: one
    for one in (
        Language("python", "main.py", ("python3", "main.py"), ()),
        Language("bash", "main.sh", ("bash", "main.sh"), ("bash",)),
        Language("sh", "main.sh", ("sh", "main.sh"), ("sh",)),
        Language("perl", "main.pl", ("perl", "main.pl"), ("perl",)),
        Language("ruby", "main.rb", ("ruby", "main.rb"), ("ruby",)),
        Language("lua", "main.lua", ("lua", "main.lua"), ("lua",)),
        Language("javascript", "main.js", ("node", "main.js"), ("node",)),
        Language("c", "main.c", ("./main",), ("cc",), ("cc", "-O2", "-o", "main", "main.c", "-lm")),
        Language(
            "cpp",
            "main.cpp",
            ("./main",),
            ("c++",),
            ("c++", "-O2", "-o", "main", "main.cpp"),
        ),
    )
}


def find(name: str) -> Language:
    """The language of that name. Raises ConfigError if it is unknown or its tools are missing."""
    language = LANGUAGES.get(name)
    if language is None or not language.available:
        raise unknown("or absent language", name, available())
    return language


def available() -> tuple[str, ...]:
    """The languages whose tools this machine has."""
    return tuple(one.name for one in LANGUAGES.values() if one.available)


def not_compiled(result: ExecResult) -> ExecResult:
    """The result of a program whose compiler ended so: status `error`, the error `CompileError`
    with what the compiler said. A compiler that was stopped by a limit leaves its status."""
    if result.status != "exit":
        return dataclasses.replace(result, detail=f"compiling: {result.detail}")
    said = result.stderr.strip() or result.stdout.strip()
    first = next((line for line in said.split("\n") if "error" in line), "")
    error = ExecError("CompileError", first, said)
    return dataclasses.replace(result, status="error", error=error)

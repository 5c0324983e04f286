"""Lines that a notebook takes and Python does not: `!command`, `%%bash`, `%matplotlib`."""

from __future__ import annotations

import builtins
import os
import re
import sys

NAME = "__shell__"  # of `run` among the names of the cells
_CELL = re.compile(r"\s*%%(?:bash|sh)[^\S\n]*\n")
_LINE = re.compile(r"([^\S\n]*)(?:([A-Za-z_]\w*)[^\S\n]*=[^\S\n]*)?!(.*\S.*)", re.DOTALL)
_PLOTS = re.compile(r"([^\S\n]*)%matplotlib\b.*", re.DOTALL)  # plots are shown anyway
_BASH = "/bin/bash"

globals()["__builtins__"] = dict(vars(builtins))  # for the functions below


def translate(source: str, lineno: int | None) -> str | None:
    """`source`, which is no Python, with line `lineno` (or the whole cell) made a call of `run`.

    None if it is no line of a notebook either.
    """
    cell = _CELL.match(source)
    if cell:
        return f"{NAME}({source[cell.end() :]!r}, check=True)"
    lines = source.split("\n")
    if lineno is None or not 0 < lineno <= len(lines):
        return None
    line = lines[lineno - 1]
    command, plots = _LINE.fullmatch(line), _PLOTS.fullmatch(line)
    if command:
        indent, name, text = command.groups()
        call = f"{NAME}({text.strip()!r}, lines={bool(name)})"
        lines[lineno - 1] = f"{indent}{f'{name} = ' if name else ''}{call}"
    elif plots:
        lines[lineno - 1] = f"{plots[1]}pass"
    else:
        return None
    return "\n".join(lines)


def run(command: str, *, check: bool = False, lines: bool = False) -> list[str] | None:
    """Run a shell command; with `lines` return what it writes to standard output, line by line.

    With `check` raises CalledProcessError if it fails.
    """
    import subprocess

    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    shell = _BASH if os.access(_BASH, os.X_OK) else "/bin/sh"
    done = subprocess.run(
        [shell, "-c", command],
        check=check,
        stdout=subprocess.PIPE if lines else None,
        encoding="utf-8",
        errors="backslashreplace",
    )
    return done.stdout.splitlines() if lines else None

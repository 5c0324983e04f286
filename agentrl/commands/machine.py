"""`agentrl sandbox`, `list` and `doctor`: what there is, and what works here."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from agentrl.commands.building import add_build
from agentrl.commands.common import chosen_sandbox, command_of, sandbox_options
from agentrl.commands.data import SELECTORS
from agentrl.commands.serving import add_serve
from agentrl.errors import DataError


def add_sandbox(commands: Any) -> None:
    c = command_of(
        commands, "sandbox", "the interpreter by hand", "echo 'print(6*7)' | agentrl sandbox run -"
    )
    parts = c.add_subparsers(required=True, metavar="COMMAND")
    r = command_of(parts, "run", "run a file in the sandbox", "agentrl sandbox run program.py")
    r.add_argument("file", help="a program, or - for standard input")
    r.add_argument("--language", default="python", help="of the program (default: %(default)s)")
    r.add_argument("--timeout", type=float, default=10.0, help="seconds (default: %(default)g)")
    r.add_argument("--profile", help="packages that it has: numpy (default: the sandbox's own)")
    r.add_argument("--json", action="store_true", help="print the result as JSON")
    sandbox_options(r)
    r.set_defaults(run=run_sandbox)
    add_serve(parts)
    add_build(parts)
    d = command_of(parts, "doctor", "what isolation works here", "agentrl sandbox doctor")
    d.set_defaults(run=run_sandbox_doctor)


def run_sandbox(options: argparse.Namespace) -> int:
    """`agentrl sandbox run`: exit status 0 if the program ran to its end, else 1."""
    import sandboxes

    try:
        program = sys.stdin.read() if options.file == "-" else Path(options.file).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{options.file} is not UTF-8; save the program as UTF-8") from error
    except OSError as error:
        raise DataError(f"cannot read {options.file}: {error.strerror}") from error
    backend, asked = chosen_sandbox(options)
    if options.profile is not None:
        asked["profile"] = options.profile
    result = sandboxes.run(
        program, language=options.language, backend=backend, wall_s=options.timeout, **asked
    )
    if options.json:
        fields = ("status", "stdout", "stderr", "exit_code", "signal", "duration", "isolation")
        print(json.dumps({name: getattr(result, name) for name in fields}))
    else:
        sys.stdout.write(result.stdout)
        sys.stderr.write(result.stderr)
        detail = f" ({result.detail})" if result.detail else ""
        print(
            f"[{result.status}{detail}, {result.duration:.3f} s, {result.isolation}]",
            file=sys.stderr,
        )
    return 0 if result.ok else 1


def run_sandbox_doctor(options: argparse.Namespace) -> int:
    """`agentrl sandbox doctor`: exit status 1 if the embedded sandbox cannot isolate here."""
    from agentrl import doctor

    return doctor.show(doctor.sandbox_checks())


def add_list(commands: Any) -> None:
    c = command_of(commands, "list", "what there is, a line each", "agentrl list envs")
    kinds = ["envs", "rollouts", "losses", "credit", "selectors", "recipes", "claims"]
    c.add_argument("what", choices=kinds)
    c.set_defaults(run=run_list)


def run_list(options: argparse.Namespace) -> int:
    """`agentrl list`."""
    from agentrl import doctor

    for name, about in doctor.catalogue(options.what).items():
        python = options.what == "selectors" and name not in SELECTORS
        print(f"{name:<16} {'(from Python) ' if python else ''}{about}")
    return 0


def add_doctor(commands: Any) -> None:
    c = command_of(commands, "doctor", "what this machine can do", "agentrl doctor")
    c.set_defaults(run=run_doctor)


def run_doctor(options: argparse.Namespace) -> int:
    """`agentrl doctor`: exit status 1 if something that the core needs is missing."""
    from agentrl import doctor

    return doctor.show(doctor.checks())

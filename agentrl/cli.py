"""The command line: `agentrl COMMAND`, also `python -m agentrl`. Every command has `--help`."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from agentrl.commands import COMMANDS
from agentrl.errors import AgentRLError, AgentRLWarning, missing_extra

TRAIN = frozenset({"torch", "transformers", "safetensors", "tokenizers"})
"""Packages of the extra `train` that commands import."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
SPINS = "1000"
"""How often torch's threads (libgomp) look for work before they sleep. By default they look for
about a millisecond: where another program has one of their cores, training then takes several times
as long as with threads that sleep; where none has, both take as long."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0, 1 (a check failed), 2 (error), 130 (Ctrl-C)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = _options(arguments)
    if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:  # read when torch is imported
        os.environ["GOMP_SPINCOUNT"] = SPINS
    warnings.formatwarning = _one_line
    try:
        return int(options.run(options) or 0)
    except AgentRLError as error:
        cause = str(error)
    except FloatingPointError as error:  # training that diverged; it says what to do
        cause = str(error)
    except ModuleNotFoundError as error:
        if error.name not in TRAIN:
            raise
        cause = str(missing_extra(error.name, "train"))
    except KeyboardInterrupt:
        print(f"agentrl: interrupted.{_how_to_go_on(options, arguments)}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in DISK_FULL:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        cause = f"{where}{error.strerror}"
        if error.errno in DISK_FULL:
            cause = f"the disk is full ({cause}). Free some space, then run again."
    print(f"agentrl: {cause}", file=sys.stderr)
    return 2


_formatwarning = warnings.formatwarning


def _one_line(message: Any, category: type[Warning], *where: Any, **more: Any) -> str:
    """Our own warnings without the place in the code that a user cannot act on."""
    if issubclass(category, AgentRLWarning):
        return f"agentrl: {message}\n"
    return _formatwarning(message, category, *where, **more)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line parsed. Settings may stand anywhere, also behind or between options, where
    argparse does not look for them."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    late = [word for word in rest if "=" in word and not word.startswith("-")]
    if late != rest or (rest and not hasattr(options, "settings")):
        parser.error(f"unrecognized arguments: {shlex.join(rest)}")
    if late:
        options.settings = [*options.settings, *late]
    return options


def _how_to_go_on(options: argparse.Namespace, arguments: Sequence[str]) -> str:
    """What an interrupted command has kept, and the command that goes on from there."""
    if not getattr(options, "out", None) or hasattr(options, "folder"):  # a report is made anew
        return ""
    again = shlex.join(["agentrl", *arguments])
    if getattr(options, "resume", True) is False:  # a command without the option always resumes
        again += " --resume"
    return f" Finished work is kept; go on with: {again}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="agentrl",
        description="Train language models to use tools and to correct themselves.",
        epilog="Example: agentrl run start --out runs/demo",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser

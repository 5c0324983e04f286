"""What the commands share."""

from __future__ import annotations

import argparse
from typing import Any


def command_of(commands: Any, name: str, about: str, example: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, epilog=f"Example: {example}"
    )
    return command


def sandbox_options(command: argparse.ArgumentParser) -> None:
    """Where the policy's code runs."""
    command.add_argument(
        "--sandbox",
        "--backend",
        metavar="NAME[:PLACE]",
        help="where code runs: embedded (default), docker, docker:IMAGE, remote:URL",
    )
    command.add_argument(
        "--isolation",
        choices=["auto", "namespaces", "uid", "none"],
        default="auto",
        help="none: run the policy's code WITHOUT isolation, where the machine allows no other way",
    )


def chosen_sandbox(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The backend and the options that `sandbox_options` name, for `sandboxes.open`."""
    asked = {} if options.isolation == "auto" else {"isolation": options.isolation}
    return options.sandbox or "embedded", asked

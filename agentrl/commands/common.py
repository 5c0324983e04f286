"""What the commands share."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from agentrl.errors import AgentRLError


def command_of(
    commands: Any,
    name: str,
    about: str,
    example: str,
    *,
    more: Callable[[argparse.Namespace], str] | None = None,
) -> argparse.ArgumentParser:
    """The parser of a command. `more` is what its help says of the options before `--help`, such as
    the settings of the recipe named there."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, epilog=f"Example: {example}", add_help=False
    )
    command.add_argument("-h", "--help", action=_Help, more=more, help="show this and exit")
    return command


class _Help(argparse.Action):
    """argparse's own help, and what `more` adds to it."""

    def __init__(
        self,
        option_strings: Sequence[str],
        dest: str,
        *,
        more: Callable[[argparse.Namespace], str] | None,
        help: str,
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self.more = more

    def __call__(
        self, parser: argparse.ArgumentParser, options: argparse.Namespace, *rest: Any
    ) -> None:
        """Print it and end."""
        try:
            added = self.more(options) if self.more else ""
        except AgentRLError as error:
            parser.error(str(error))
        parser.print_help()
        if added:
            print(f"\n{added}")
        parser.exit()


def listed_options(title: str, function: Callable[..., Any], prefix: str = "") -> str:
    """The options of a function, or the fields of a dataclass, with their defaults, a line each."""
    made: dict[str, Any] = {}
    if dataclasses.is_dataclass(function):
        made = {
            f.name: f.default_factory()
            for f in dataclasses.fields(function)
            if f.default_factory is not dataclasses.MISSING
        }
    lines = [title]
    for p in inspect.signature(function).parameters.values():
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
            value = made.get(p.name, p.default)
            lines.append(f"  {prefix}{p.name}={'...' if value is p.empty else _written(value)}")
    return "\n".join(lines)


def _written(value: Any) -> str:
    """A value as it is written on the command line; text where it is nothing that can be."""
    if callable(value):
        return "(from Python)"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def port(text: str) -> int:
    """The type of `--port`."""
    number = int(text)
    if not 0 <= number < 65536:
        raise argparse.ArgumentTypeError(f"there are ports 1 to 65535, and 0 for any, not {text}")
    return number


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

"""`agentrl reproduce`: a paper's claim on a tiny model, with intervals over seeds."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from agentrl.commands.common import command_of
from agentrl.commands.machine import run_list
from agentrl.errors import ConfigError


def add_reproduce(commands: Any) -> None:
    c = command_of(
        commands,
        "reproduce",
        "show a paper's claim on a tiny model, with intervals over seeds",
        "agentrl reproduce score --seeds 5",
    )
    c.add_argument("claim", nargs="?", help="a claim's name, or all")
    c.add_argument("--list", action="store_true", help="the claims there are, a line each")
    c.add_argument("--seeds", type=int, default=5, metavar="N", help="seeds 0 to N-1")
    c.add_argument("--jobs", type=int, default=1, metavar="J", help="seeds at once, a core each")
    c.add_argument("--out", type=Path, default=Path("runs/claims"), help="where results are kept")
    c.add_argument("--markdown", type=Path, metavar="FILE", help="write its section in FILE")
    c.add_argument("--json", action="store_true", help="print the result as JSON")
    c.set_defaults(run=run_reproduce)


def run_reproduce(options: argparse.Namespace) -> int:
    """`agentrl reproduce`."""
    from agentrl import claims
    from agentrl.config import update_section
    from agentrl.reproduce import markdown, reproduce, show

    if options.list:
        return run_list(argparse.Namespace(what="claims"))
    if options.claim is None:
        raise ConfigError("reproduce: name a claim (agentrl reproduce --list), or all")
    for name in claims.names() if options.claim == "all" else [options.claim]:
        made = reproduce(
            name,
            options.out,
            seeds=range(options.seeds),
            jobs=options.jobs,
            progress=not options.json,
        )
        if options.json:
            print(json.dumps(made.to_json()))
        else:
            show(made, Console())
        if options.markdown is not None:
            update_section(options.markdown, name, markdown(made))
    return 0

"""`agentrl sandbox build`: images for the Docker backend."""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from agentrl.commands.common import command_of


def add_build(parts: Any) -> None:
    c = command_of(
        parts,
        "build",
        "make an image for the Docker backend",
        "agentrl sandbox build --from-host --packages numpy,sympy",
    )
    c.add_argument(
        "--from-host",
        action="store_true",
        required=True,
        help="from this machine's files, without a registry (for others see sandboxes/images)",
    )
    c.add_argument("--tag", help="the image's name (default: what the Docker backend looks for)")
    c.add_argument(
        "--packages",
        type=_names,
        default=[],
        metavar="A,B",
        help="Python packages to take along from this environment, with what they require",
    )
    c.add_argument(
        "--with",
        dest="extras",
        type=_names,
        default=[],
        metavar="A,B",
        help="other languages to take along: c++, node, perl",
    )
    c.set_defaults(run=run_build)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def run_build(options: argparse.Namespace) -> int:
    """`agentrl sandbox build`."""
    from sandboxes.docker import IMAGE, image

    tag = options.tag or IMAGE
    size = asyncio.run(image.build(tag, options.packages, options.extras, _say))
    print(f"{tag}: {size / 1e6:.0f} MB")
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

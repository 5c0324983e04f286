"""`agentrl export` and `import`: data for TRL and others, and back."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from agentrl.commands.common import command_of
from agentrl.commands.data import chat_of

FORMATS = ("sft", "prompt_completion", "messages", "preference", "parquet")
MADE_TEXT = "the model whose tokenizer made (or is to make) the token ids; for text only"


def add_export(commands: Any) -> None:
    c = command_of(
        commands,
        "export",
        "rows or trees as a dataset that TRL reads",
        "agentrl export rows.jsonl runs/dataset --format sft",
    )
    c.add_argument("source", type=Path, metavar="IN", help="a folder of trees, or rows")
    c.add_argument("target", type=Path, metavar="OUT", help="a folder, or .parquet or .jsonl")
    c.add_argument("--format", choices=FORMATS, default="sft")
    c.add_argument("--policy", metavar="MODEL", help=MADE_TEXT)
    c.set_defaults(run=run_export)


def _no_bars() -> None:
    """No progress bars of `datasets`, unless they are asked for; before it is imported."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def run_export(options: argparse.Namespace) -> int:
    """`agentrl export`."""
    from agentrl import exchange

    _no_bars()
    chat = None if options.policy is None else chat_of(options.policy)
    columns = exchange.to_trl(exchange.read(options.source), options.format, chat)
    exchange.save(options.target, columns)
    print(f"{len(columns)} rows in {options.target}")
    return 0


def add_import(commands: Any) -> None:
    c = command_of(
        commands,
        "import",
        "a dataset in one of TRL's formats as rows or trees",
        "agentrl import runs/dataset rows.jsonl --policy smollm2",
    )
    c.add_argument("source", type=Path, metavar="IN", help="a dataset's folder, .parquet or .jsonl")
    c.add_argument("target", type=Path, metavar="OUT", help="JSON lines; for trees a folder")
    c.add_argument("--policy", metavar="MODEL", help=MADE_TEXT)
    c.set_defaults(run=run_import)


def run_import(options: argparse.Namespace) -> int:
    """`agentrl import`."""
    from agentrl import exchange

    _no_bars()
    chat = None if options.policy is None else chat_of(options.policy)
    records = [exchange.from_trl(row, chat) for row in exchange.load(options.source)]
    print(f"{exchange.write(options.target, records)} records in {options.target}")
    return 0

"""From a run's folder to its report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from agentrl.chat import HFTokenizer
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import DataError
from agentrl.record import Tree
from agentrl.report.page import render
from agentrl.report.results import HEADLINE
from agentrl.report.trajectories import Decode
from agentrl.store import load_all

NAME = "report.html"
T = TypeVar("T")


def write(
    run_dir: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    decode: Decode | None = None,
) -> Path:
    """Write the report of the run in `run_dir` to `out` (default: report.html in it). See `html`
    for what is in it, and for what is raised."""
    text = html(run_dir, decode=decode)
    path = Path(out) if out is not None else Path(run_dir) / NAME
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
    return path


def html(run_dir: str | os.PathLike[str], *, decode: Decode | None = None) -> str:
    """The report of the run in `run_dir`, or of the trees that lie there.

    `decode` is the tokenizer's; without it the tokenizer saved with the run's model is used, or the
    one that `config.yaml` names, if it is the one that the trees were made with. A part of the run
    that is missing is left out.

    Raises DataError if there is no such folder or a file in it cannot be read; StoreError if its
    trees are damaged.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; give the folder that the run wrote")
    summary = _mapping(folder / "summary.json")
    config = _mapping(folder / "config.yaml")
    order = _Order(summary)
    grown = folder / "trees"
    trees = dict(order.sorted(load_all(grown if grown.is_dir() else folder)))
    decode = decode or _find_decode(folder, config, trees)
    return render(summary, _metrics(folder, order), config, trees, decode)


class _Order:
    """Phases in the order in which they ran, as far as the summary's timings tell."""

    def __init__(self, summary: Mapping[str, Any]) -> None:
        timings = summary.get("timings")
        ran = [*(timings if isinstance(timings, Mapping) else ()), *HEADLINE]
        self.rank = {str(name): i for i, name in reversed(list(enumerate(ran)))}

    def sorted(self, found: Mapping[str, T]) -> list[tuple[str, T]]:
        """The items of `found`, those that ran at an unknown time last, by name."""
        last = len(self.rank) + len(HEADLINE)

        def place(name: str) -> tuple[int, str]:
            return self.rank.get(name, self.rank.get(f"train_{name}", last)), name

        return [("run" if n == "." else n, found[n]) for n in sorted(found, key=place)]


def _metrics(folder: Path, order: _Order) -> list[dict[str, Any]]:
    """The rows of every metrics.jsonl of the run; `stage` is the folder below checkpoints."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(
        [*folder.glob("metrics.jsonl"), *folder.glob("checkpoints/**/metrics.jsonl")]
    ):
        stage = str(path.parent.relative_to(folder)).removeprefix("checkpoints").strip("/.")
        found[stage] = [{"stage": stage, **row} if stage else row for row in _lines(path)]
    return [row for _, rows in order.sorted(found) for row in rows]


def _mapping(path: Path) -> dict[str, Any]:
    """A JSON or YAML file with a mapping; empty if there is none."""
    if not path.exists():
        return {}
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise DataError(f"{path} should hold a mapping, not a {type(data).__name__}")
    return data


def _lines(path: Path) -> list[dict[str, Any]]:
    """A JSON-lines file; a torn last line (the run is still going, or was killed) is left out."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise DataError(f"{path}, line {number}: not JSON: {error}") from error
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _find_decode(
    folder: Path, config: Mapping[str, Any], trees: Mapping[str, Sequence[Tree]]
) -> Decode | None:
    """The decoder of the tokenizer that made the trees: the saved model's, or the run's own."""
    wanted = {tree.meta.get("tokenizer") for grown in trees.values() for tree in grown}
    if wanted == {ByteTokenizer.fingerprint}:
        return ByteTokenizer().decode
    if len(wanted) != 1:
        return None
    places: list[str | Path] = [folder / "model"] if (folder / "model").is_dir() else []
    if isinstance(config.get("model"), str):
        places.append(config["model"])
    for place in places:
        try:
            from agentrl.engines.models import load_tokenizer

            tokenizer = HFTokenizer(load_tokenizer(str(place)))
        except Exception:  # absent, damaged or out of reach: the report does without it
            continue
        if tokenizer.fingerprint in wanted:
            return tokenizer.decode
    return None

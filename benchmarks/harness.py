"""What every benchmark shares: alternating measurement, the JSON, tables, the command line.

A benchmark is a function a case: it takes `Options` and returns rows. Each side of a comparison is
a function without arguments that does the work once and returns its figure. `alternate` warms every
side up, then runs them in turn, so that a busy moment of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

# Read when torch is imported, so they stand before every import that may do that.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from agentrl.config import update_section  # noqa: E402
from agentrl.errors import AgentRLError, MissingExtraError, unknown  # noqa: E402

Side = Callable[[], float]
Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of a case."""

    quick: bool = False

    def rounds(self, normal: int) -> int:
        """How often to measure: `normal` times, or less in a quick run."""
        return min(normal, 2) if self.quick else normal

    def scaled(self, normal: int, quick: int) -> int:
        """A size of the work."""
        return quick if self.quick else normal


@dataclass(frozen=True, slots=True)
class Row:
    """One case against one peer (or none). Figures are medians; `*_best` the best of the rounds.

    The ratio is of the medians; above 1 it always means that ours is better.
    """

    case: str
    unit: str
    ours: float
    ours_best: float
    peer_name: str | None = None
    peer: float | None = None
    peer_best: float | None = None
    better: Better = "lower"
    goal: float | None = None
    rounds: int = 1
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better ours is, by the medians."""
        return _ratio(self.ours, self.peer, self.better)

    @property
    def ratio_best(self) -> float | None:
        """The same by the best of the rounds."""
        return _ratio(self.ours_best, self.peer_best, self.better)

    @property
    def met(self) -> bool | None:
        """True if the best round meets the goal: the rest is the machine's other work."""
        if self.goal is None:
            return None
        below = self.ours_best <= self.goal
        return below if self.better == "lower" else self.ours_best >= self.goal

    def to_json(self) -> dict[str, Any]:
        """The row as checks read it."""
        return {
            "case": self.case,
            "unit": self.unit,
            "ours": self.ours,
            "peer": self.peer,
            "peer_name": self.peer_name,
            "ratio": self.ratio,
            "ours_best": self.ours_best,
            "peer_best": self.peer_best,
            "ratio_best": self.ratio_best,
            "better": self.better,
            "goal": self.goal,
            "rounds": self.rounds,
            "note": self.note,
        }


def _ratio(ours: float, peer: float | None, better: Better) -> float | None:
    if peer is None:
        return None
    above, below = (peer, ours) if better == "lower" else (ours, peer)
    return above / below if below else None


def alternate(
    what: str, unit: str, sides: Mapping[str, Side], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Measure every side `rounds` times, in turn; the order turns round from round to round.

    A warm-up round comes first and does not count. Progress goes to the error stream.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(0 if warm_up else 1, rounds + 1):
        order = list(sides) if number % 2 else list(sides)[::-1]
        figures = {}
        for name in order:
            gc.collect()
            figures[name] = sides[name]()
            if number:
                found[name].append(figures[name])
        step = f"round {number} of {rounds}" if number else "warm-up"
        shown = ", ".join(f"{name} {_number(figures[name])}" for name in sides)
        say(f"  {what}, {step}: {shown} {unit}")
    return found


def rows(
    case: str,
    unit: str,
    ours: Sequence[float],
    peers: Mapping[str, Sequence[float]] | None = None,
    *,
    better: Better = "lower",
    goal: float | None = None,
    note: str = "",
) -> list[Row]:
    """A row a peer (one without peers) from what `alternate` found."""
    best = min if better == "lower" else max
    figures = {"ours": statistics.median(ours), "ours_best": best(ours), "rounds": len(ours)}
    base = Row(case, unit, better=better, goal=goal, note=note, **figures)
    return [
        replace(base, peer_name=name, peer=statistics.median(found), peer_best=best(found))
        for name, found in (peers or {}).items()
    ] or [base]


Clock = Callable[[], float]
WALL: Clock = time.perf_counter
CPU: Clock = time.process_time
"""CPU time of this process: the fair clock for work that never waits, on a shared machine."""


def seconds(work: Callable[[], object], clock: Clock = WALL) -> float:
    """How long `work` takes once."""
    started = clock()
    work()
    return clock() - started


def async_seconds(work: Callable[[], Coroutine[Any, Any, object]], clock: Clock = WALL) -> float:
    """How long a coroutine takes once, in an event loop of its own (its start not counted)."""

    async def timed() -> float:
        started = clock()
        await work()
        return clock() - started

    return asyncio.run(timed())


def say(line: str) -> None:
    """Show progress."""
    print(line, file=sys.stderr, flush=True)


def require(*modules: str) -> None:
    """Raises MissingExtraError, naming the extra, if a module that is measured is missing."""
    missing = [m for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise MissingExtraError(
            f"this benchmark measures against {', '.join(missing)}, which is not installed. "
            "Install it with: pip install 'agentrl[bench]'"
        )


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of Python and of these packages, those that are not installed left out."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """How many cores this process may use, and the GPU (None without one)."""
    gpu = None
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            gpu = torch.cuda.get_device_name()
    return {"cores": len(os.sched_getaffinity(0)), "gpu": gpu}


def to_json(rows: Sequence[Row], packages: Sequence[str]) -> dict[str, Any]:
    """The whole result in the shape that checks read."""
    return {
        "versions": versions(packages),
        "machine": machine(),
        "rows": [row.to_json() for row in rows],
    }


HEAD = ("case", "unit", "agentrl", "best", "goal", "peer", "peer's", "best", "ratio", "of best")


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells, under `HEAD`."""
    goal = "" if row.goal is None else f"{_number(row.goal)} {'met' if row.met else 'missed'}"
    ours, theirs = (row.ours, row.ours_best), (row.peer, row.peer_best)
    ratios = ["" if r is None else f"{_number(r)}x" for r in (row.ratio, row.ratio_best)]
    figures = [goal, row.peer_name or "none", *map(_number, theirs), *ratios]
    return (row.case, row.unit, *map(_number, ours), *figures)


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [HEAD, *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(rows: Sequence[Row], packages: Sequence[str], command: str) -> str:
    """The section of a results file: the table, the versions and the command that remakes it."""
    lines = [HEAD, ("---",) * len(HEAD), *map(cells, rows)]
    found = machine()
    notes: dict[str, list[str]] = {}  # note -> the cases that it is of
    for row in rows:
        if row.note and row.case not in notes.setdefault(row.note, []):
            notes[row.note].append(row.case)
    return "\n".join(
        [
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            *(f"- {_of(cases)}: {note}" for note, cases in notes.items()),
            "",
            f"Made by `{command}` on {found['cores']} cores, GPU: {found['gpu'] or 'none'}, with "
            + ", ".join(f"{name} {version}" for name, version in versions(packages).items())
            + ".",
        ]
    )


def _of(cases: Sequence[str]) -> str:
    """What a note is of."""
    first = f"`{cases[0]}`"
    return first if len(cases) == 1 else f"{first} and {len(cases) - 1} more"


def _number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:#.3g}".rstrip(".")


Case = Callable[[Options], list[Row]]


def main(
    name: str,
    cases: Mapping[str, Case],
    packages: Sequence[str],
    needs: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """The command line of the benchmark `name`: run its cases and show what came out.

    `packages` are the distributions whose versions are reported, `needs` the modules that must be
    there. Returns the exit status.
    """
    command = f"python benchmarks/{name}.py"
    parser = argparse.ArgumentParser(
        prog=command,
        description=f"The benchmark {name!r}: ours beside the peers, alternating, in one run.",
        epilog=f"Example: {command} --only {next(iter(cases))} --json runs/bench-{name}.json",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the rows here")
    shown = "print the table as Markdown, or put it into its section of a results file"
    stdout = Path("-")
    parser.add_argument(
        "--markdown", metavar="FILE", type=Path, nargs="?", const=stdout, help=shown
    )
    parser.add_argument("--only", metavar="CASE", action="append", help=f"of {', '.join(cases)}")
    parser.add_argument("--quick", action="store_true", help="less work: figures are rough")
    given = parser.parse_args(argv)
    try:
        chosen = given.only or list(cases)
        for case in chosen:
            if case not in cases:
                raise unknown("case", case, cases)
        require(*needs)
        found, failed = _run({case: cases[case] for case in chosen}, Options(given.quick))
        _write(given, name, found, packages, command)
    except AgentRLError as error:
        failed = [str(error)]
    for reason in failed:
        print(f"{command}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _run(cases: Mapping[str, Case], options: Options) -> tuple[list[Row], list[str]]:
    """The rows of all cases, and why those failed that did: the others are kept."""
    found: list[Row] = []
    failed: list[str] = []
    for number, (name, case) in enumerate(cases.items(), 1):
        say(f"[{number}/{len(cases)}] {name}")
        try:
            found += case(options)
        except AgentRLError as error:
            failed.append(f"{name}: {error}")
    return found, failed


def _write(
    given: argparse.Namespace, name: str, rows: list[Row], packages: Sequence[str], command: str
) -> None:
    if given.json is not None:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(to_json(rows, packages), indent=1) + "\n", "utf-8")
    options = [f"--only {case}" for case in given.only or ()] + ["--quick"] * given.quick
    text = markdown(rows, packages, " ".join([command, *options]))
    if given.markdown == Path("-"):
        print(text)
        return
    if given.markdown is not None:
        update_section(given.markdown, name, text)
    print(table(rows))

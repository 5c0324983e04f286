"""What a collection shows while it runs: how many rollouts, how many failed, tokens a second."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from agentrl.record import Tree, tokens_said


class Report:
    """The progress bar: how many, how many failed or were cut, tokens a second."""

    def __init__(self, bar: Progress | None, label: str, total: int | None, done: int) -> None:
        self.bar, self.tokens, self.failed, self.cut = bar, 0, 0, 0
        self.started = time.perf_counter()
        self.task = bar.add_task(label, total=total, completed=done, note="") if bar else None

    def finished(self, tree: Tree) -> None:
        """Count one tree in."""
        self.tokens += sum(map(tokens_said, tree.nodes))
        self.failed += any(a.error for a in tree.attempts)
        self.cut += any(a.truncated for a in tree.attempts)
        if self.bar is None or self.task is None:
            return
        rate = self.tokens / max(time.perf_counter() - self.started, 1e-9)
        note = f"{rate:.0f} tokens/s"
        note += f", {self.cut} cut off" if self.cut else ""
        note += f", {self.failed} failed" if self.failed else ""
        self.bar.update(self.task, advance=1, note=note)


@contextlib.contextmanager
def progress(label: str, total: int | None, done: int, shown: bool) -> Iterator[Report]:
    """A bar on stderr for `total` rollouts (None: not known how many), if it is to be shown."""
    if not shown:
        yield Report(None, label, total, done)
        return
    with Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    ) as bar:
        yield Report(bar, label, total, done)

"""Run a claim over seeds, and say what came out: `agentrl reproduce NAME --seeds 5`.

Each finished seed is on disk before the next one starts, so an interrupted run goes on where it
stopped; a seed made by another version of the claim's code is made again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import multiprocessing
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agentrl import claims
from agentrl.claims import Claim, Effect, Estimate, Metrics, Verdict
from agentrl.config import write_atomic
from agentrl.errors import ConfigError

PACKAGES = ("agentrl", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Reproduced:
    """The claim's runs, one a seed, and what they took (seconds a seed)."""

    claim: Claim
    seeds: list[int]
    runs: list[Metrics]
    seconds: list[float]

    @property
    def verdicts(self) -> list[tuple[Effect, Estimate, Verdict]]:
        """Each effect with its paired difference and what that shows."""
        return [(e, *claims.verdict(e, self.runs)) for e in self.claim.effects]

    def to_json(self) -> dict[str, Any]:
        """The whole result."""
        return {
            "claim": self.claim.name,
            "paper": self.claim.paper,
            "seeds": self.seeds,
            "seconds": self.seconds,
            "runs": [{arm: dict(values) for arm, values in run.items()} for run in self.runs],
            "effects": [
                {
                    "says": effect.says,
                    "left": effect.left,
                    "right": effect.right or None,
                    "sign": effect.sign,
                    "margin": effect.margin,
                    "difference": found.mean,
                    "half": found.half,
                    "verdict": verdict,
                }
                for effect, found, verdict in self.verdicts
            ],
        }


def reproduce(
    name: str, out: Path, *, seeds: Sequence[int], jobs: int = 1, progress: bool = True
) -> Reproduced:
    """Run the claim `name` for each of `seeds`, up to `jobs` at once, each on one thread.

    Results are kept in `out/NAME`. Raises ConfigError for an unknown claim, no seeds or no jobs.
    """
    claim = claims.get(name)
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError("reproduce needs at least one seed, each once")
    if jobs < 1:
        raise ConfigError(f"jobs={jobs}: at least 1")
    folder, console = out / name, Console(stderr=True, quiet=not progress)
    folder.mkdir(parents=True, exist_ok=True)
    todo = [seed for seed in seeds if _done(folder, name, seed) is None]
    console.print(f"{name}: {claim.says}\n{len(seeds) - len(todo)} of {len(seeds)} seeds are done")
    for seed, took in _run_all(name, todo, folder, jobs):
        console.print(f"seed {seed}: {took:.0f} s")
    rows = [row for seed in seeds if (row := _done(folder, name, seed)) is not None]
    return Reproduced(
        claim, list(seeds), [r["metrics"] for r in rows], [r["seconds"] for r in rows]
    )


def _run_all(
    name: str, seeds: Sequence[int], folder: Path, jobs: int
) -> Iterator[tuple[int, float]]:
    """Run the seeds; gives each one's seconds as it ends."""
    if jobs == 1 or len(seeds) < 2:
        yield from ((seed, _run_seed(name, seed, folder)) for seed in seeds)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(seeds)), mp_context=context) as pool:
        started = {pool.submit(_run_seed, name, seed, folder): seed for seed in seeds}
        try:
            for future in as_completed(started):
                yield started[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_seed(name: str, seed: int, folder: Path) -> float:
    """One seed, on one thread; its result is written whole or not at all."""
    import torch

    torch.set_num_threads(1)
    work, began = folder / f"work_{seed}", time.perf_counter()
    shutil.rmtree(work, ignore_errors=True)  # of a seed that was interrupted
    work.mkdir()
    metrics = claims.get(name).run(seed, work)
    took = round(time.perf_counter() - began, 1)
    row = {"claim": name, "code": _code(name), "seed": seed, "seconds": took, "metrics": metrics}
    write_atomic(_file(folder, seed), json.dumps(row, indent=1) + "\n")
    shutil.rmtree(work)
    return took


def _file(folder: Path, seed: int) -> Path:
    return folder / f"seed_{seed}.json"


def _done(folder: Path, name: str, seed: int) -> dict[str, Any] | None:
    """The result of a seed, if this version of the claim has made it."""
    try:
        row: dict[str, Any] = json.loads(_file(folder, seed).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return row if row.get("code") == _code(name) else None


def _code(name: str) -> str:
    source = Path(inspect.getfile(claims.get(name).run))
    return hashlib.blake2b(source.read_bytes(), digest_size=8).hexdigest()


def _arms(made: Reproduced) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The metrics, and for each arm their estimates over the seeds."""
    names = list(dict.fromkeys(m for run in made.runs for arm in run.values() for m in arm))
    rows = []
    for arm in made.runs[0]:
        values = [[run[arm][m] for run in made.runs if m in run[arm]] for m in names]
        rows.append((arm, [str(claims.estimate(v)) if v else "" for v in values]))
    return names, rows


def show(made: Reproduced, console: Console) -> None:
    """Two tables: the arms, and what their differences show."""
    names, rows = _arms(made)
    arms = Table(title=f"{made.claim.name} ({made.claim.paper}), {len(made.seeds)} seeds, ± 95 %")
    arms.add_column("arm")
    for name in names:
        arms.add_column(name, justify="right")
    for arm, values in rows:
        arms.add_row(arm, *values)
    effects = Table("effect", "difference", "verdict")
    for effect, found, verdict in made.verdicts:
        effects.add_row(effect.says, str(found), verdict)
    console.print(arms)
    console.print(effects)


def markdown(made: Reproduced) -> str:
    """The same as a section of `benchmarks/CLAIMS.md`."""
    claim, (names, rows) = made.claim, _arms(made)
    lines = [f"**{claim.says}** ({claim.paper})", "", claim.task, ""]
    lines += [_row(["arm", *names]), _row(["---"] * (len(names) + 1))]
    lines += [_row([arm, *values]) for arm, values in rows]
    lines += ["", _row(["effect", "compared", "difference", "verdict"]), _row(["---"] * 4)]
    for effect, found, verdict in made.verdicts:
        compared = f"`{effect.left}`" + (f" - `{effect.right}`" if effect.right else "")
        compared += f", at most {effect.margin:g} worse" if effect.margin else ""
        compared += ", below 0" if effect.sign < 0 else ""
        lines.append(_row([effect.says, compared, str(found), f"**{verdict}**"]))
    seeds = ", ".join(map(str, made.seeds))
    command = f"agentrl reproduce {claim.name} --seeds {len(made.seeds)}"
    lines += ["", f"Seeds {seeds}; made by `{command}` with {_versions()}."]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _versions() -> str:
    found = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return ", ".join([f"python {platform.python_version()}", *found])

"""A thousand searches in which everything fails that can, and what came of them.

    python benchmarks/soak_search.py                 # 1,000 searches, 20 kills
    python benchmarks/soak_search.py --searches 40 --kills 2

The searches run in a child process. There the engine fails now and then and stays away for a few
calls, processes of the sandbox are killed (sessions, spares, the zygote), and the child itself is
killed by SIGKILL and started again, until all searches are finished. Then they are compared with
the same searches without any of that. Exit status 1 if a search is lost or stored twice, if
anything is left of the stopped ones, or if one differs: in its steps, its tokens or its visits.
Half of the searches run four iterations at once, so that their order is the machine's: of these,
the sums are checked. One in ten runs python blocks in the sandbox; the others are one turn each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

import sandboxes
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import EngineError, InfraError
from agentrl.rollouts import make
from agentrl.search import Table
from agentrl.search.evaluators import ByValue
from agentrl.store import FILE, key, load
from agentrl.tree import Tree
from agentrl.types import Completion, Message, SamplingParams, Task
from envs.base import PYTHON, QuestionEpisode
from envs.grading import Grade

MODES: dict[str, dict[str, Any]] = {
    "alone": {"at_once": 1},
    "together": {"at_once": 4},
    "alone-tools": {"at_once": 1, "tools": "blocks", "unit": "call"},
    "together-tools": {"at_once": 4, "tools": "blocks", "unit": "call"},
}
SEARCH = {"b1": 3, "iterations": 4, "first": 2}
TOOLS = 10
"""One search in so many has tools."""
FAILS, AWAY = 0.004, 3
"""How often a call of the engine fails, and how many after it."""
KILL_S = (3.0, 9.0)
"""Seconds between two kills of the sandbox's processes."""
PARTS = 2


def number_of(mode: str, searches: int) -> int:
    """How many of the searches a mode has."""
    with_tools = searches // TOOLS // 2
    return with_tools if "tools" in mode else searches // 2 - with_tools


class Sums:
    """Tasks whose answer is right if it is even."""

    name, tools = "sums", (PYTHON,)

    def __init__(self, n: int, mode: str) -> None:
        prompt = (Message("user", "Say an even number. Try others first."),)
        self._tasks = [Task(f"{mode}-{i}", prompt, self.name) for i in range(n)]

    def tasks(self, n: int | None = None) -> list[Task]:
        """The tasks."""
        return self._tasks[:n]

    def open(self, task: Task, box: Any) -> QuestionEpisode:
        """An episode whose calls run in the sandbox."""
        return QuestionEpisode(task, _grade, box)


def _grade(task: Task, answer: str) -> Grade:
    return Grade(answer.strip()[-1:] in "02468", answer.strip(), "even?")


@dataclass(slots=True)
class Faults:
    """What is done to the searches, at random, and a file that says what was done."""

    dice: random.Random
    log: Path

    def note(self, what: str) -> None:
        """Write one down."""
        with self.log.open("a") as file:
            file.write(f"{what}\n")


class Speaker(ScriptedPolicy):
    """Twice a line (with `tools`: a python block) with a number by the call's seed, and another
    number."""

    def __init__(self, tools: bool, faults: Faults | None = None) -> None:
        super().__init__([])
        self.tools, self.faults, self.away = tools, faults, 0

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """The next line or block, or the answer. With `faults`, it fails now and then."""
        if self.faults is not None and self.away == 0 and self.faults.dice.random() < FAILS:
            self.away = 1 + AWAY
        if self.faults is not None and self.away:
            self.away -= 1
            self.faults.note("calls of the engine failed")
            raise EngineError("the engine is away")
        number = random.Random(params.seed).randrange(4)

        def say(text: str) -> str:
            turn = text.rpartition("assistant\n")[2]
            if turn.count("```output" if self.tools else "\n") == PARTS:
                return str(number)
            return f"```python\nx = {number}\nprint(x * 7)\n```\n" if self.tools else f"{number}\n"

        return await ScriptedPolicy(say).sample(prompt_ids, params)


async def longer(task: Task, text: str) -> float:
    """A judge that tells texts apart."""
    return sum(map(ord, text)) % 11 / 10


async def search(
    n: int, mode: str, box: Any, folder: Path | None, faults: Faults | None = None
) -> list[Tree]:
    """`n` searches; with a folder, those that it holds are finished or gone on with."""
    stopped = None if folder is None else str(folder / "stopped")
    judge = ByValue(longer)
    rollout = make("mcts", judge=judge, folder=stopped, **SEARCH, **MODES[mode])
    out = None if folder is None else folder / "trees"
    return await collect(
        Sums(n, mode),
        rollout,
        Speaker("tools" in MODES[mode], faults),
        box=box,
        out=out,
        params=SamplingParams(400),
        concurrency=16,
        retries=5,
        progress=False,
    )


async def _killing(faults: Faults) -> None:
    """Kill the sandbox with all its sessions, again and again.

    (One session's process alone could have killed itself, and is taken at its word.)
    """
    while True:
        await asyncio.sleep(faults.dice.uniform(*KILL_S))
        if there := psutil.Process().children():
            try:
                faults.dice.choice(there).kill()
            except psutil.NoSuchProcess:
                continue
            faults.note("sandboxes killed")


async def faulty(n: int, folder: Path, seed: int) -> None:
    """All searches, with faults."""
    faults = Faults(random.Random(seed), folder / "faults")
    async with sandboxes.open("embedded") as box:
        for mode in MODES:
            killing = asyncio.create_task(_killing(faults))
            try:
                await search(number_of(mode, n), mode, box, folder / mode, faults)
            except InfraError:
                faults.note("collections given up, as most had failed")
            finally:
                killing.cancel()


async def calm(n: int) -> dict[str, list[Tree]]:
    """The same searches, and nothing fails."""
    async with sandboxes.open("embedded") as box:
        return {mode: await search(number_of(mode, n), mode, box, None) for mode in MODES}


def records(folder: Path) -> list[Tree]:
    """All that was ever stored in a folder and is no failure, however often."""
    lines = (folder / FILE).read_text("utf-8").splitlines()
    trees = (Tree.from_json(json.loads(line)["tree"]) for line in lines)
    return [t for t in trees if not failed(t)]


def failed(tree: Tree) -> bool:
    """True for a record that says that something of ours failed: it is run again."""
    return any(a.error for a in tree.attempts)


def done(folder: Path) -> int:
    """How many searches are finished."""
    found = load(folder) if (folder / FILE).exists() else []
    return sum(not failed(t) for t in found)


def steps(tree: Tree) -> Any:
    """What a search found as JSON, places in the record apart."""
    return json.loads(json.dumps([{**s, "node": 0, "said": 0} for s in _table(tree)["states"]]))


def _table(tree: Tree) -> Any:
    return tree.meta["search"]


def said(tree: Tree) -> list[tuple[int, ...]]:
    """The paths' ids, attempt by attempt."""
    return [tuple(tree.ids(a.leaf)) for a in tree.attempts]


def faults(mode: str, made: Sequence[Tree], wanted: Sequence[Tree], folder: Path) -> Iterator[str]:
    """What is wrong with the searches of a mode."""
    times, expected = Counter(map(key, made)), {key(t): t for t in wanted}
    yield from (f"{mode}: {k} is lost" for k in expected if not times[k])
    yield from (f"{mode}: {k} is stored {n} times" for k, n in times.items() if n != 1)
    yield from (f"{mode}: {path.name} is left" for path in folder.glob("stopped/*"))
    for tree in made:
        table, name = Table.from_json(_table(tree)), f"{mode}: {tree.task.id}"
        inside = sum(len(n.token_ids) for n in tree.nodes if n.source == "policy")
        if table.tokens != inside:
            yield f"{name} has {inside} tokens and counts {table.tokens}"
        visits = SEARCH["iterations"] * SEARCH["first"]
        if table.states[0].full != visits:
            yield f"{name} has {table.states[0].full} visits at its root, not {visits}"
        for state in table.states:
            if sum(s.full for s in table.children(state)) > table.iterations:
                yield f"{name}: more visits below state {state.id} than iterations"
        if MODES[mode]["at_once"] == 1:
            same = expected[key(tree)]
            if steps(tree) != steps(same) or said(tree) != said(same):
                yield f"{name} is not what it is without faults"


def lives(options: argparse.Namespace, folder: Path) -> Counter[str]:
    """Run children until all searches are there; kill the first `options.kills` of them."""
    dice, begun, kills = random.Random(options.seed), 0, 0
    size = ["--searches", str(options.searches), "--child", str(folder)]
    total = sum(number_of(mode, options.searches) for mode in MODES)
    while sum(done(folder / mode / "trees") for mode in MODES) < total:
        if begun > 3 * options.kills + 20:
            raise SystemExit(f"after {begun} lives not all searches are finished")
        command = [sys.executable, __file__, *size, "--seed", str(options.seed + begun)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        begun += 1
        assert process.stdout is not None
        process.stdout.readline()  # it is at work
        if kills < options.kills:
            time.sleep(dice.uniform(1, options.life))
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
        process.wait()
    told = Counter((folder / "faults").read_text().splitlines())
    return told + Counter({"processes that searched": begun, "of these killed": kills})


def main() -> None:
    """The searches, and what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--searches", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--life", type=float, default=8.0, metavar="S", help="longest of a child")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print("at work", flush=True)
        return asyncio.run(faulty(options.searches, options.child, options.seed))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        told = lives(options, folder)
        wanted, wrong = asyncio.run(calm(options.searches)), []
        for mode, trees in wanted.items():
            made = records(folder / mode / "trees")
            wrong += faults(mode, made, trees, folder / mode)
    total = sum(map(len, wanted.values()))
    print(f"{total} searches, {len(wrong)} wrong", *wrong[:20], sep="\n")
    print(*(f"{n} {what}" for what, n in told.items()), sep="\n")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()

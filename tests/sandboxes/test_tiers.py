# ruff: noqa: E501
"""The tiers where this process has less than root on a whole machine: as in containers and pods."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandboxes.embedded import uids

ROOT = Path(__file__).parents[2]
PLAIN_UID = 64_322
FEW = "chown,dac_override,kill,setgid,setuid"

# As the Docker backend has it: the standard library, our own files, and nothing else of agentrl.
PROGRAM = """
import asyncio, json, sys, types
package = types.ModuleType("agentrl"); package.__path__ = ["agentrl"]
sys.modules["agentrl"] = package
sys.path.insert(0, ".")
from sandboxes.embedded.backend import EmbeddedSandbox

CELLS = [
    "6 * 7",
    "import os; (os.getpid() == 2, os.getuid(), os.getpid() == 2 and os.listdir('/sys'))",
    "import os\\nfor n in range(99):\\n    if os.fork() == 0:\\n        os.setsid(); import time; time.sleep(60)",
    "status = dict(l.split(':', 1) for l in open('/proc/self/status'))\\n"
    "[int(status[n], 16) for n in ('CapEff', 'CapPrm')] + [int(status['NoNewPrivs'])]",
    "import socket\\ntry: socket.create_connection(('1.1.1.1', 80), 0.2)\\n"
    "except OSError: unreachable = True\\nunreachable",
    "import os\\nwhile True: pass",
]

async def main(options):
    async with EmbeddedSandbox(spares=0, wall_s=1, pids=16, memory_mb=128, **options) as box:
        async with box.session() as session:
            results = [await session.run(cell) for cell in CELLS]
            await session.write_file("d/f", b"data")
            commands = [await session.exec(["cat", "d/f"]), await session.exec(["python3", "-c", "print(7)"])]
            shown = [(r.status, r.value or r.stdout, r.isolation) for r in (*results, *commands)]
        program = await box.run("print(input())", stdin=b"line\\n")
        return {"tier": box.capabilities.isolation, "shown": shown, "program": program.stdout}

print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
"""


def interpreter() -> str:
    """A Python of this version or newer that every user can reach."""
    for path in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        if os.path.exists(path) and uids.reachable(path):
            probe = [path, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if subprocess.run(probe).returncode == 0:
                return path
    pytest.skip("no Python that every user can reach")


def play(*drop: str, **options: str) -> dict[str, Any]:
    """What the program prints, run by setpriv with these options."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        pytest.skip("needs root and setpriv to drop privileges")
    done = subprocess.run(
        [setpriv, *drop, "env", "-i", "PATH=/usr/bin:/bin", interpreter(), "-I", "-c", PROGRAM,
         json.dumps(options)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check(answer: dict[str, Any], tier: str) -> None:
    assert answer["tier"] == tier
    assert {isolation for _, _, isolation in answer["shown"]} == {tier}
    assert [status for status, _, _ in answer["shown"]] == [
        "ok", "ok", "error", "ok", "ok", "timeout", "ok", "ok"
    ]  # fmt: skip
    values = [value for _, value, _ in answer["shown"]]
    assert values[0] == "42"
    assert values[3:5] == ["[0, 0, 1]", "True"]
    assert values[6:] == ["data", "7\n"]
    assert answer["program"] == "line\n"


def left() -> set[Path]:
    """The files of sessions that are users of their own, by anybody on this machine."""
    return set(Path("/tmp/agentrl-sessions").glob("*/*"))


@pytest.mark.parametrize("jail", ["bubblewrap", "container"])
def test_uid_with_few_capabilities(jail: str) -> None:
    drop = (f"--bounding-set=-all,+{',+'.join(FEW.split(','))}", "--inh-caps=-all")
    before = left()
    answer = play(*drop, isolation="uid", jail=jail)
    check(answer, "uid")
    user = answer["shown"][1][1].split()[1].rstrip(",")
    assert not {path for path in left() - before if path.name.startswith(user)}


@pytest.mark.skipif(not os.path.isdir("/work"), reason="there is no /work, which containers have")
def test_namespaces_without_bubblewrap_as_a_plain_user() -> None:
    drop = (f"--reuid={PLAIN_UID}", f"--regid={PLAIN_UID}", "--clear-groups")
    answer = play(*drop, isolation="namespaces", jail="container")
    check(answer, "namespaces")
    assert answer["shown"][1][1] == "(True, 1000, [])"

"""Run a hundred thousand hostile and friendly executions, and look for anything they left.

    python benchmarks/soak.py                                   # embedded, as this user
    python benchmarks/soak.py --user plain --executions 20000
    python benchmarks/soak.py --backend docker --json FILE

Two parts. The first runs everything in this process and compares what there is before and after:
processes, mounts, control groups, file descriptors, temporary files, containers and the memory of
this process. The second runs in a child that is killed by SIGKILL in the middle, again and again,
and compares the machine before and after. The hostile cells are the abuse suite's. Exit status 1
if anything is left, if a cell ends with a status that the suite does not allow, or if a friendly
cell gets a wrong answer.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402
from rich.progress import Progress  # noqa: E402

import sandboxes  # noqa: E402
from agentrl.errors import SessionDead  # noqa: E402

_LIMITS: dict[str, Any] = {
    "wall_s": 2.0,
    "cpu_s": 20,
    "memory_mb": 192,
    "pids": 24,
    "files": 64,
    "disk_mb": 4,
    "inodes": 256,
    "output_bytes": 20_000,
    "output_kill_bytes": 4 << 20,
}
_SLOW_WALL_S = 0.15  # of cells whose end is the time limit
_TOGETHER = 8
_SETTLE_S = 20.0
_PLAIN_USER = 1000


def hostile_cells() -> Mapping[str, tuple[str, tuple[str, ...], bool | None]]:
    """The abuse suite's cells."""
    path = ROOT / "tests" / "sandboxes" / "abuse_cells.py"
    spec = importlib.util.spec_from_file_location("abuse_cells", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return dict(module.CELLS)


def weight(statuses: tuple[str, ...]) -> float:
    """How often a hostile cell is chosen: those that cost seconds of CPU or much memory, seldom."""
    return 0.1 if {"timeout", "oom", "output_limit"} & set(statuses) else 1.0


class Soak:
    """The executions, and what they gave."""

    def __init__(self, box: Any, executions: int, seed: int) -> None:
        self.box = box
        self.left = executions
        self.dice = random.Random(seed)
        self.cells = hostile_cells()
        self.names = list(self.cells)
        self.weights = [weight(self.cells[n][1]) for n in self.names]
        self.statuses: Counter[str] = Counter()
        self.hostile = 0
        self.wrong: list[str] = []

    async def run(self, progress: Progress) -> None:
        """Run them all, some sessions at a time."""
        task = progress.add_task("executions", total=self.left)
        step = progress.advance
        await asyncio.gather(*(self._sessions(lambda: step(task)) for _ in range(_TOGETHER)))

    async def _sessions(self, step: Any) -> None:
        while self.left > 0:
            try:
                async with self.box.session() as session:
                    await self._one_session(session, step)
            except SessionDead:
                pass

    async def _one_session(self, session: Any, step: Any) -> None:
        """Friendly cells that count, now and then a hostile one, until it is dead or old."""
        total = 0
        for turn in range(self.dice.randint(1, 40)):
            if self.left <= 0:
                return
            self.left -= 1
            step()
            if self.dice.random() < 0.15:
                await self._hostile(session)
                return
            number = self.dice.randrange(1000)
            code = f"total = {number}" if turn == 0 else f"total += {number}"
            result = await session.run(f"{code}\nprint('x' * total)\ntotal")
            total = number if turn == 0 else total + number
            self.statuses[result.status] += 1
            if result.value != str(total) or result.stdout_bytes != total + 1:
                self.wrong.append(f"friendly: {result.status} {result.value} {result.detail}")

    async def _hostile(self, session: Any) -> None:
        self.hostile += 1
        (name,) = self.dice.choices(self.names, self.weights)
        source, statuses, _ = self.cells[name]
        wall = _SLOW_WALL_S if statuses == ("timeout",) else None
        result = await session.run(textwrap.dedent(source), timeout=wall)
        self.statuses[result.status] += 1
        if result.status not in (*statuses, "timeout"):  # a busy machine may be slow
            self.wrong.append(f"{name}: {result.status} {result.detail}")


def _groups() -> int:
    """Control groups whose maker is gone; a group's name holds its maker's process id."""
    found = 0
    for base in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        for _, folders, _ in os.walk(base):
            makers = (n.split("-")[1] for n in folders if n.startswith("agentrl-"))
            found += sum(not psutil.pid_exists(int(maker)) for maker in makers)
    return found


def _containers() -> int:
    if not importlib.util.find_spec("docker"):
        return 0
    import docker

    try:
        return len(docker.from_env().containers.list(all=True))
    except docker.errors.DockerException:
        return 0


def _orphans() -> int:
    """Processes of sandboxes that no living process started."""
    alive = {p.pid: p for p in psutil.process_iter(["cmdline", "ppid"])}
    found = 0
    for process in alive.values():
        if _is_sandbox(process):
            parent = process
            while _is_sandbox(parent) and parent.info["ppid"] in alive:
                parent = alive[parent.info["ppid"]]
            found += parent.pid == 1
    return found


def _is_sandbox(process: psutil.Process) -> bool:
    line = " ".join(process.info["cmdline"] or ())
    return "from inside import" in line or "bwrap" in line


def machine() -> dict[str, int]:
    """What there is on this machine that a sandbox could leave behind."""
    with open("/proc/self/mountinfo") as file:
        mounts = len(file.readlines())
    temporary = sum("agentrl" in name for name in os.listdir(tempfile.gettempdir()))
    return {
        "processes": _orphans(),
        "mounts": mounts,
        "cgroups": _groups(),
        "temporary files": temporary,
        "containers": _containers(),
    }


def own() -> dict[str, int]:
    """What this process holds."""
    me = psutil.Process()
    return {"descriptors": me.num_fds(), "children": len(me.children(recursive=True))}


def settle(before: Mapping[str, int]) -> dict[str, int]:
    """What the machine has more than before, once that has come down or `_SETTLE_S` have passed."""
    end = time.monotonic() + _SETTLE_S
    while True:
        after = machine()
        more = {name: after[name] - n for name, n in before.items() if after[name] > n}
        if not more or time.monotonic() > end:
            return more
        time.sleep(0.1)


async def in_process(options: argparse.Namespace) -> dict[str, Any]:
    """All executions here; what they left."""
    async with sandboxes.open(options.backend, **_LIMITS) as box, box.session() as session:
        await session.run("1")  # what is made once is made
    before, mine = machine(), own()
    started = time.monotonic()
    async with sandboxes.open(options.backend, **_LIMITS) as box:
        soak = Soak(box, options.executions // 20, options.seed)
        with Progress(disable=not sys.stderr.isatty()) as progress:
            await soak.run(progress)  # fills what memory holds at any time
            gc.collect()
            memory = psutil.Process().memory_info().rss
            soak.left = options.executions - options.executions // 20
            await soak.run(progress)
        ran = sum(soak.statuses.values())
        gc.collect()
        growth = psutil.Process().memory_info().rss - memory
        isolation = box.capabilities.isolation
    left = settle(before)
    left |= {name: n - mine[name] for name, n in own().items() if n > mine[name]}
    if growth > 32 << 20:
        left["MiB of memory"] = growth >> 20
    return {
        "part": "in process",
        "isolation": isolation,
        "executions": ran,
        "hostile": soak.hostile,
        "statuses": dict(soak.statuses),
        "wrong": soak.wrong[:20],
        "left": left,
        "memory growth MiB": round(growth / (1 << 20), 1),
        "executions a second": round(ran / (time.monotonic() - started)),
    }


def killed(options: argparse.Namespace) -> dict[str, Any]:
    """Children that run the soak and are killed by SIGKILL; what that left."""
    before = machine()
    dice = random.Random(options.seed)
    command = [sys.executable, __file__, "--backend", options.backend, "--child"]
    for number in range(options.kills):
        child = subprocess.Popen([*command, "--seed", str(number)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()  # it is at work
        time.sleep(dice.uniform(0.2, 2.0))
        child.send_signal(signal.SIGKILL)
        child.wait()
    return {"part": "killed by SIGKILL", "times": options.kills, "left": settle(before)}


async def child(options: argparse.Namespace) -> None:
    """Run until somebody kills this process."""
    async with sandboxes.open(options.backend, **_LIMITS) as box:
        print("at work", flush=True)
        await Soak(box, 10**9, options.seed).run(Progress(disable=True))


def become(user: str) -> None:
    """Go on as a plain user, who needs a home and nothing else."""
    if user == "plain":
        if os.geteuid() != 0:
            raise SystemExit("--user plain is for root, who becomes a plain user")
        os.setgroups([])
        os.setgid(_PLAIN_USER)
        os.setuid(_PLAIN_USER)
        os.environ["HOME"] = tempfile.gettempdir()


def main() -> None:
    """Both parts, printed and, if asked, written as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="embedded")
    parser.add_argument("--executions", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--user", choices=["same", "plain"], default="same")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    become(options.user)
    if options.child:
        asyncio.run(child(options))
    parts = [asyncio.run(in_process(options)), killed(options)]
    for part in parts:
        for name, value in part.items():
            print(f"{name:<20} {value}")
        print()
    if options.json:
        options.json.write_text(json.dumps(parts, indent=1))
    if any(part["left"] or part.get("wrong") for part in parts):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

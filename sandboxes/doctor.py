"""What sandboxes can do on this machine, found out by trying."""

from __future__ import annotations

import asyncio
import os
import platform
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

from agentrl.errors import AgentRLError, SnapshotRefused
from sandboxes import languages
from sandboxes.embedded import EmbeddedSandbox, EmbeddedSession, cgroups, jail, uids
from sandboxes.embedded.inside import landlock


@dataclass(frozen=True, slots=True)
class Report:
    """`tier` is the isolation that a sandbox here really gets: `namespaces`, `uid`, or `none` where
    it refuses to start without the override. `tiers` are all that are possible here, tried.
    `reasons` say what is missing and why."""

    tier: str
    reasons: tuple[str, ...]
    cgroup: str
    languages: tuple[str, ...]
    tiers: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """True if code can be isolated here."""
        return self.tier != "none"

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def doctor() -> Report:
    """Start a sandbox of each isolated tier, run a cell in it, and report. Takes about a second."""
    outcome: list[Report] = []
    thread = threading.Thread(target=lambda: outcome.append(asyncio.run(_examine())))
    thread.start()
    thread.join()
    return outcome[0]


async def _examine() -> Report:
    details = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "user": "root" if os.geteuid() == 0 else "unprivileged",
        "landlock": str(landlock.abi()) if platform.system() == "Linux" else "none",
    }
    reasons: list[str] = []
    place, why = cgroups.detect() if platform.system() == "Linux" else (None, "not Linux")
    if place is None:
        reasons.append(f"no control groups ({why}): memory is limited by process and by watching")
    try:
        details["bwrap"] = jail.find_bwrap()
    except AgentRLError:  # a reason why the tier is not possible: see below
        pass
    problems = {tier: await _problem(tier, details) for tier in ("namespaces", "uid")}
    tiers = tuple(tier for tier, problem in problems.items() if problem is None)
    reasons += [f"no {tier}: {problem}" for tier, problem in problems.items() if problem]
    return Report(
        tier=tiers[0] if tiers else "none",
        reasons=tuple(reasons),
        cgroup=f"v{place.version} below {place.path}" if place else "none",
        languages=languages.available(),
        tiers=tiers,
        details=details,
    )


async def _problem(tier: str, details: dict[str, str]) -> str | None:
    """Why sessions cannot be isolated so; None if one was, and worked. Whether its state could be
    put into another is a detail."""
    if tier == "uid" and (reason := uids.why_not()):
        return reason
    try:
        async with EmbeddedSandbox(spares=0, isolation=tier) as box, box.session() as session:
            result = await session.run("x = 6 * 7\nx")
            if tier == "namespaces":
                details["snapshots"] = await _snapshots(session)
    except AgentRLError as error:
        return str(error)
    return None if result.value == "42" else f"a trial cell failed: {result.status} {result.detail}"


async def _snapshots(session: EmbeddedSession) -> str:
    """Whether a state can be taken from a session and put into another, by doing it."""
    try:
        async with (await session.snapshot()).session() as other:
            result = await other.run("x")
    except SnapshotRefused as error:
        return f"no: {error}"
    return "yes" if result.value == "42" else f"no: a trial cell failed: {result.status}"

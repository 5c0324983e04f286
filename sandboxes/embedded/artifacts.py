"""The host's side of displays: what the interpreter claims to have, and how its bytes are taken.

The interpreter writes them into a memory file of the host's making, whose size it cannot raise. The
host reads bytes, and never looks at what they are.
"""

from __future__ import annotations

import fcntl
import os
from typing import Any

from agentrl.types import Limits
from sandboxes.embedded.inside.displays import MOST
from sandboxes.embedded.plan import display_bytes

ENDINGS = frozenset({"png", "jpg", "svg", "html", "md", "tex", "json", "pdf"})


def check(claim: dict[str, Any], limits: Limits) -> str | None:
    """Why the displays of a claim cannot be; None if they can."""
    shown, left_out = claim.get("displays", []), claim.get("left_out", 0)
    if type(left_out) is not int or left_out < 0:
        return "a count of displays that is none"
    if not isinstance(shown, list) or len(shown) > MOST:
        return "displays that are no list, or too many"
    for one in shown:
        if not (isinstance(one, list) and len(one) == 3 and type(one[0]) is int):
            return "a display of the wrong shape"
        number, ending, size = one
        if not (0 < number < 1 << 20 and isinstance(ending, str) and ending in ENDINGS):
            return "a display of an unknown kind"
        if type(size) is not int or size < 0:
            return "a display without size"
    if sum(one[2] for one in shown) > display_bytes(limits):
        return "displays that are too large"
    return None


def hold(claim: dict[str, Any]) -> list[int]:
    """A descriptor of an empty file with room for the claim's displays, if it has any."""
    shown = claim.get("displays")
    if not shown:
        return []
    fd = os.memfd_create("displays", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, sum(size for _, _, size in shown))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return [fd]


def take(claim: dict[str, Any], fds: list[int]) -> dict[str, bytes] | None:
    """Name -> bytes of the claim's displays, None if they were not delivered; frees the file."""
    found: dict[str, bytes] = {}
    for fd in fds:
        data = os.pread(fd, sum(size for _, _, size in claim["displays"]), 0)
        os.ftruncate(fd, 0)  # the code may keep the file open, but no memory in it
        at = 0
        for number, ending, size in claim["displays"]:
            found[f"display-{number}.{ending}"] = data[at : at + size]
            at += size
        if len(data) < at:
            return None
    return found

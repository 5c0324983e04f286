"""From how an execution ended to its ExecResult: facts decide, claims fill in."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agentrl.types import ExecError, ExecResult, ExecStatus, Limits
from sandboxes.embedded import artifacts
from sandboxes.embedded.call import Call
from sandboxes.metrics import Meter
from sandboxes.pool import QueueFull

_CLAIM_KEYS = {"id", "status", "value", "cut", "error", "code", "displays", "left_out"}
_TEXT_CHARS = 20_000  # the most that the interpreter sends of an error's parts


@dataclass(slots=True)
class Ending:
    """How an execution ended.

    `claim` is what the interpreter said, `ended` what the kernel said of its process, `tampered`
    why the claim cannot be. All None: the session is gone. `late`: it came after the deadline.
    """

    claim: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    tampered: str | None = None
    late: bool = False
    artifacts: Mapping[str, bytes] | None = field(default_factory=dict)  # None: not delivered


def of_full_queue(error: QueueFull, meter: Meter) -> ExecResult:
    """The result of an execution that had no place in the queue: not the code's fault."""
    meter.statuses["infra"] += 1
    return ExecResult("infra", detail=str(error))


def refused(size: int, limits: Limits, isolation: str) -> ExecResult:
    """The result of source code that is too long to be sent."""
    message = f"source of {size} bytes; at most {limits.source_bytes}"
    error = ExecError("SourceTooLong", message, "")
    return ExecResult("error", error=error, isolation=isolation, detail=message)


def check_claim(claim: dict[str, Any] | None, number: int, limits: Limits) -> str | None:
    """Why this is no answer to call `number`; None if it is one."""
    if claim is None:
        return "a message that is not of the protocol"
    if not claim.keys() <= _CLAIM_KEYS or type(claim.get("id")) is not int:
        return "a message with unknown parts"
    if claim["id"] != number:
        return "an answer to no call"
    if claim.get("status") not in ("ok", "error", "exit"):
        return "an unknown status"
    value, error, code = claim.get("value"), claim.get("error"), claim.get("code", 0)
    if not (value is None or (isinstance(value, str) and len(value) <= limits.value_chars)):
        return "a value that is not text or too long"
    if (claim["status"] == "error") != isinstance(error, list):
        return "an error without description"
    if isinstance(error, list) and not (
        len(error) == 3 and all(isinstance(t, str) and len(t) <= _TEXT_CHARS for t in error)
    ):
        return "an error description of the wrong shape"
    if (
        type(code) is not int
        or not 0 <= code <= 255
        or not isinstance(claim.get("cut", False), bool)
    ):
        return "an exit code that is none"
    return artifacts.check(claim, limits)


def of_call(call: Call, ending: Ending, isolation: str) -> ExecResult:
    """The result of an execution that ended so."""
    status, detail = _status(call, ending)
    claim = ending.claim or {}
    missing = _missing(ending, claim)
    exit_code, number = _exit(ending)
    error = claim.get("error")
    group = call.handle.group
    peak = group.peak_mb() if group else None
    if peak is None and ending.ended:
        peak = ending.ended["peak_kb"] / 1024
    return ExecResult(
        status=status,
        stdout=call.out.text(),
        stderr=call.err.text(),
        value=_clean(claim.get("value")) if status in ("ok", "oom", "timeout") else None,
        error=ExecError(*(_clean(t) or "" for t in error)) if error else None,
        exit_code=exit_code,
        signal=number,
        duration=call.duration,
        cpu=_cpu(call, ending),
        peak_memory_mb=peak,
        truncated=call.out.truncated or call.err.truncated or bool(claim.get("cut") or missing),
        stdout_bytes=call.out.total,
        stderr_bytes=call.err.total,
        artifacts=ending.artifacts or {},
        isolation=isolation,
        detail="; ".join(part for part in (detail, missing) if part),
    )


def _missing(ending: Ending, claim: dict[str, Any]) -> str:
    """What is to be said of displays that the result does not have."""
    left_out = claim.get("left_out", 0)
    if ending.artifacts is None:
        left_out += len(claim["displays"])
    return f"{left_out} displays left out: too many or too large" if left_out else ""


def _clean(text: str | None) -> str | None:
    """Text that can be encoded, whatever the code made of it."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def _exit(ending: Ending) -> tuple[int | None, int | None]:
    if ending.ended is not None:
        code = os.waitstatus_to_exitcode(ending.ended["status"])
        return (code, None) if code >= 0 else (None, -code)
    if ending.claim is not None and ending.claim["status"] == "exit":
        return ending.claim.get("code", 0), None
    return None, None


def _cpu(call: Call, ending: Ending) -> float | None:
    if ending.ended is not None:
        return float(ending.ended["cpu"])
    return call.cpu if call.cpu >= 0 else None


def _status(call: Call, ending: Ending) -> tuple[ExecStatus, str]:
    if ending.tampered:
        return "tampered", f"the code spoke for the interpreter: {ending.tampered}"
    if call.flooded:
        return "output_limit", f"more than {call.limits.output_kill_bytes} bytes of output"
    if call.handle.over:
        return "output_limit", call.handle.over
    if call.out_of_memory or call.oom_kills > 0:
        return "oom", f"more than {call.limits.memory_mb} MiB of memory"
    if call.out_of_cpu:
        return "timeout", call.handle.dead or ""
    if call.interrupted:
        return "timeout", "interrupted"
    if ending.late or (call.timed_out and ending.claim is None):
        return "timeout", f"more than {call.wall_s:g} s"
    if ending.ended is not None:
        return _of_process(call, ending)
    if ending.claim is not None:
        return ending.claim["status"], ""
    return "infra", call.handle.dead or "the session's processes are gone"


def _of_process(call: Call, ending: Ending) -> tuple[ExecStatus, str]:
    """By the wait status of the interpreter, the program or the command."""
    code, number = _exit(ending)
    if number is not None:
        spent = (_cpu(call, ending) or 0.0) >= call.limits.cpu_s
        if number == signal.SIGXCPU or (number == signal.SIGKILL and spent):
            return "timeout", f"more than {call.limits.cpu_s:g} s of CPU"
        return "crashed", f"ended by signal {number}"
    claimed = ending.claim["status"] if ending.claim else None
    if claimed == "ok" and code == 0:
        return "ok", ""
    if claimed == "error" and code == 1:
        return "error", ""
    return "exit", "" if claimed else "the process ended without a word"

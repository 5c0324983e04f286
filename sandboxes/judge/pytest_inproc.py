"""Mode `pytest_inproc`: tests and program in one process, for tests that cannot be split from it.

The verdict's integrity is "weak": a program that shares a process with its tests can change them.
What can be kept from it is: the session is fresh, only listed files are in it, nothing that pytest
or Python reads of its own accord is, and each required test must report that it passed.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from agentrl.errors import ConfigError, SandboxError, SessionDead
from agentrl.interfaces import Session
from agentrl.types import CaseResult, CaseStatus, ExecResult, Verdict
from sandboxes.judge import sources
from sandboxes.judge.setting import Setting, verdict

_TESTS = "test_required.py"
_RUNNER = (Path(__file__).parent / "inside" / "whole.py").read_text("utf-8")
_READ_BY_ITSELF = {
    *("conftest.py", "pytest.ini", ".pytest.ini", "tox.ini", "setup.cfg", "pyproject.toml"),
    *("sitecustomize.py", "usercustomize.py", ".coveragerc", "pyvenv.cfg"),
}
_REPORTED: tuple[CaseStatus, ...] = ("passed", "wrong", "error", "skipped")


async def judge_in_process(
    setting: Setting,
    program: str,
    tests: str,
    *,
    required: Sequence[str] | None = None,
    file: str = "solution.py",
) -> Verdict:
    """Judge by the source of a test file, which imports the program from `file`.

    Runs pytest where the profile has it (packages pytest, _pytest, py, pluggy, iniconfig, packaging
    and pygments), else the tests as plain functions and methods. `required` are the ids that must
    pass, as `test_a` or `TestB::test_c` (all of the file by default).

    `files` named like what pytest or Python reads by itself (conftest.py, *.ini, *.pth ...), or
    like a module of the standard library, are left out; `Verdict.detail` names them. Raises
    ConfigError for tests that cannot be.
    """
    tree = sources.parse(tests, "the tests")
    ids = tuple(required or sources.test_ids(tree, plain=False))
    if not ids:
        raise ConfigError("no test is required")
    report = f"report-{secrets.token_hex(8)}.json"
    order = {"tests": _TESTS, "ids": list(ids), "report": report}
    kept = {name: data for name, data in setting.files.items() if not _dropped(name)}
    async with setting.box.session(setting.limits, profile=setting.profile) as session:
        for name, data in {**kept, file: program.encode(), _TESTS: tests.encode()}.items():
            await session.write_file(name, data)
        result = await session.exec(
            ["python3", "-I", "-P", "-c", _RUNNER],
            stdin=json.dumps(order).encode(),
            timeout=setting.timeout,
        )
        if result.status == "infra":
            raise SandboxError(f"the sandbox failed: {result.detail}")
        found = await _report(session, report) if result.status == "ok" else {}
    cases = [_case(name, found.get(name), result) for name in ids]
    left_out = sorted(setting.files.keys() - kept.keys())
    return _with_note(verdict(cases, setting, "weak"), left_out)


def _dropped(name: str) -> bool:
    path = PurePosixPath(name)
    top = path.parts[0].partition(".")[0] if path.parts else ""
    return path.name in _READ_BY_ITSELF or path.suffix == ".pth" or top in sys.stdlib_module_names


async def _report(session: Session, name: str) -> Mapping[str, Any]:
    """What the tests' process wrote at its end: a claim, like all that happened in there."""
    try:
        found = json.loads(await session.read_file(name))
    except SessionDead:
        return {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _case(name: str, reported: Any, result: ExecResult) -> CaseResult:
    seconds = result.duration
    if result.status != "ok":
        detail = result.detail or f"the tests ended by exit status {result.exit_code}"
        return CaseResult(name, False, result.status, detail, seconds)
    match reported:
        case [str() as status, str() as detail] if status in _REPORTED:
            return CaseResult(name, status == "passed", status, detail[:1000], seconds)
    return CaseResult(name, False, "missing", "the test did not report", seconds)


def _with_note(made: Verdict, left_out: Sequence[str]) -> Verdict:
    if not left_out:
        return made
    return replace(made, detail=f"{made.detail}\nleft out: {', '.join(left_out)}".strip())

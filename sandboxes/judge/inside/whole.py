"""Runs tests and program in one process: `python3 -I -P -c SOURCE`, the order on standard input.

With pytest where there is one, else functions and classes without fixtures. Each test's outcome
goes into a report file at the end; a process that ends before has no report.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Run the tests, write the report."""
    order = json.loads(sys.stdin.read())
    write, replace = os.write, os.replace
    sys.path += os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path = [p for p in sys.path if p not in ("", os.getcwd())] + [os.getcwd()]
    try:
        import pytest
    except ImportError:
        found = _plain(order["tests"], order["ids"])
    else:
        found = _with_pytest(pytest, order["tests"])
    data = json.dumps(found).encode()
    descriptor = os.open("report.part", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    while data:
        data = data[write(descriptor, data) :]
    replace("report.part", order["report"])


def _with_pytest(pytest: Any, file: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}

    class Recorder:
        """Notes the worst outcome of each test's phases."""

        def pytest_runtest_logreport(self, report: Any) -> None:
            name = report.nodeid.partition("::")[2].partition("[")[0]
            text = str(report.longrepr or "")[-1000:]
            if report.passed and not hasattr(report, "wasxfail"):
                if report.when == "call":
                    found.setdefault(name, ["passed", ""])
            elif report.skipped or hasattr(report, "wasxfail"):
                found[name] = ["skipped", text]
            else:
                found[name] = ["wrong" if report.when == "call" else "error", text]

    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-c", os.devnull]
    options += ["--rootdir", os.getcwd(), "--confcutdir", os.getcwd()]
    options += ["--import-mode=importlib", "-o", "addopts="]
    pytest.main([*options, file], plugins=[Recorder()])
    return found


def _plain(file: str, names: list[str]) -> dict[str, list[str]]:
    with open(file, encoding="utf-8") as source:
        code = compile(source.read(), file, "exec", dont_inherit=True)
    space: dict[str, Any] = {"__name__": "tests", "__file__": file}
    try:
        exec(code, space)
    except Exception as error:
        return {name: _problem(error) for name in names}
    found = {}
    for name in names:
        if name != "module" and name.partition("::")[0] not in space:
            continue
        try:
            _run(space, name)
            found[name] = ["passed", ""]
        except Exception as error:
            found[name] = _problem(error)
    return found


def _run(space: dict[str, Any], name: str) -> None:
    first, _, method = name.partition("::")
    if not method:
        if first != "module":
            space[first]()
        return
    instance = space[first](method) if hasattr(space[first], "assertEqual") else space[first]()
    for before in ("setup_method", "setUp"):
        getattr(instance, before, lambda: None)()
    try:
        getattr(instance, method)()
    finally:
        for after in ("teardown_method", "tearDown"):
            getattr(instance, after, lambda: None)()


def _problem(error: Exception) -> list[str]:
    kind = type(error).__name__
    status = "skipped" if kind in ("SkipTest", "Skipped") else "error"
    return ["wrong" if isinstance(error, AssertionError) else status, f"{kind}: {error}"[:1000]]


if __name__ == "__main__":
    main()

"""The single-turn sets of the Berkeley Function Calling Leaderboard, version 4, from local files.

`gorilla/berkeley-function-call-leaderboard`, Apache-2.0: one description a line, the accepted calls
in a file beside it. The irrelevance set has none: there no call is the right answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, DataError
from agentrl.types import Message, Task
from envs.files import VARIABLE, read_jsonl

SETS = {
    "simple": "simple_python",
    "multiple": "multiple",
    "parallel": "parallel",
    "irrelevance": "irrelevance",
}
"""The kinds of task, and what the leaderboard calls their files."""


def folder(path: str | os.PathLike[str] | None) -> Path:
    """The folder of the files: `path`, or `bfcl` in the one that AGENTRL_DATA names."""
    if path is not None:
        return Path(path)
    data = os.environ.get(VARIABLE)
    if not data:
        raise ConfigError(
            f"functions: no data. Set {VARIABLE} to the folder that holds bfcl/, give the option "
            "path=FOLDER, or use source='generated', which needs no file."
        )
    return Path(data) / "bfcl"


def read(path: Path, kind: str, *, dots: bool = True) -> list[Task]:
    """The tasks of one kind. Without `dots` those in names are underscores, as endpoints want
    them, and as the leaderboard grades these.

    Raises DataError for a file or line that cannot be read.
    """
    file = path / f"BFCL_v4_{SETS[kind]}.json"
    answers = path / f"BFCL_v4_{SETS[kind]}.answers.json"
    wanted: dict[str, Any] = {}
    if kind != "irrelevance":
        for where, record in _lines(answers):
            wanted[_field(where, record, "id", str)] = _field(where, record, "ground_truth", list)
    tasks = []
    for where, record in _lines(file):
        name = _field(where, record, "id", str)
        if kind != "irrelevance" and name not in wanted:
            raise DataError(f"{where}: {answers.name} has no answer for {name!r}; add it")
        tasks.append(_task(where, record, kind, wanted.get(name, []), dots))
    return tasks


def _lines(file: Path) -> list[tuple[str, Any]]:
    if not file.is_file():
        raise DataError(
            f"functions: there is no file {file}; check {VARIABLE} or the option path, which "
            "names the folder with the leaderboard's files"
        )
    return list(read_jsonl(file))


def _field(where: str, record: Any, name: str, kind: type) -> Any:
    if not isinstance(record, Mapping) or not isinstance(record.get(name), kind):
        raise DataError(f"{where}: the field {name!r} is missing or no {kind.__name__}; mend it")
    return record[name]


def _task(where: str, record: Any, kind: str, wanted: list[Any], dots: bool) -> Task:
    name = _field(where, record, "id", str)
    functions = _field(where, record, "function", list)
    turns = _field(where, record, "question", list)
    if len(turns) != 1:
        raise DataError(f"{where}: {len(turns)} turns; only single-turn sets can be read")
    if not dots:
        functions = [{**f, "name": f["name"].replace(".", "_")} for f in functions]
        wanted = [{k.replace(".", "_"): v for k, v in one.items()} for one in wanted]
    prompt = tuple(Message(m["role"], m["content"]) for m in turns[0])
    data = {"functions": functions, "steps": [wanted]}
    return Task(f"bfcl-{name}", prompt, "functions", kind, "test", data)

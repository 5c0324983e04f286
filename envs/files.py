"""Data sets in local files: where they are, and their lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, DataError

VARIABLE = "AGENTRL_DATA"


def data_file(
    env: str, name: str, path: str | os.PathLike[str] | None = None, *, otherwise: str = ""
) -> Path:
    """The file `path`, or `name` in the folder that the environment variable AGENTRL_DATA names.

    `otherwise` is what else one can do, for the errors. Raises ConfigError if there is no folder,
    DataError if there is no file.
    """
    cures = ["give path=FILE.jsonl", *([otherwise] if otherwise else [])]
    if path is not None:
        found, cures = Path(path), ["check the option path", *cures]
    else:
        folder = os.environ.get(VARIABLE)
        if not folder:
            raise ConfigError(
                f"{env}: no data. Set {VARIABLE} to the folder that holds {name}, {_or(cures)}."
            )
        found = Path(folder) / name
        cures.insert(0, f"check the environment variable {VARIABLE} (now {folder!r})")
    if not found.is_file():
        raise DataError(f"{env}: there is no file {found}; {_or(cures)}.")
    return found


def _or(cures: list[str]) -> str:
    return cures[0] if len(cures) == 1 else f"{', '.join(cures[:-1])}, or {cures[-1]}"


def read_jsonl(path: Path) -> Iterable[tuple[str, Any]]:
    """The JSON values of a file, one a line, each with the words that name its place.

    Raises DataError, naming file and line, for a line that is not JSON or not UTF-8.
    """
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if not raw.strip():
                continue
            try:
                yield where, json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8; save the file as UTF-8") from error
            except ValueError as error:
                raise DataError(
                    f"{where}: not valid JSON ({error}); mend or delete this line"
                ) from error

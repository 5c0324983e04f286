"""Settings: a recipe's dataclass filled from `key=value` pairs or YAML, and a run's folder."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from agentrl.errors import ConfigError, DataError, unknown
from agentrl.options import typed

T = TypeVar("T")


def pairs(arguments: Iterable[str]) -> dict[str, Any]:
    """`["n=64", "kinds=[a,b]"]` to `{"n": 64, "kinds": ["a", "b"]}`; values are YAML.

    Raises ConfigError for one without `=`.
    """
    values: dict[str, Any] = {}
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if not sign or not name:
            raise ConfigError(f"{argument!r} is not a setting; write key=value, such as n=64")
        try:
            values[name] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{argument!r}: the value is not YAML: {_one_line(error)}") from error
    return values


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """An instance of the dataclass `cls` with `values` set, their types checked.

    Raises ConfigError for an unknown name (suggesting the nearest) or a value of another type.
    """
    hints = typing.get_type_hints(cls)
    for name in values:
        if name not in hints:
            raise unknown("setting", name, hints)
    return cls(**{name: typed(name, value, hints[name]) for name, value in values.items()})


def _one_line(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and where."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return where + str(getattr(error, "problem", None) or " ".join(str(error).split()))


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A YAML file with a mapping. Raises DataError naming the file (and line) if it is not one."""
    try:
        data = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8; save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path}: a mapping of settings is expected")
    return data


MADE = ("summary.json", "trees/**/*.jsonl", "checkpoints/**/*.*")
"""What a run leaves in its folder beside its settings."""


FREE = frozenset({"concurrency", "deadline_s", "device", "keep_checkpoints"})
"""Settings that a resumed run may change: they change how it runs, not what comes out."""


def require_same(
    folder: Path, config: Mapping[str, Any], free: Callable[[str], bool] = FREE.__contains__
) -> None:
    """Raise ConfigError if `config.yaml` in `folder` has other settings than `config`, those apart
    that are `free` to change."""
    old = read_yaml(folder / "config.yaml")
    changed = sorted(k for k in {*old, *config} if old.get(k) != config.get(k) and not free(k))
    if changed:
        listed = ", ".join(f"{k}: {old.get(k)!r} then, {config.get(k)!r} now" for k in changed)
        raise ConfigError(
            f"{folder} holds a run with other settings ({listed}). "
            "Give the same ones to resume it, or another --out."
        )


class RunFolder:
    """A run's folder: `config.yaml`, `trees/`, `metrics.jsonl`, `summary.json`, `checkpoints/`.

    A run that failed before its first tree or checkpoint has left nothing to protect: it is
    started anew. Raises ConfigError if the folder holds a run already and `resume` is False, or was
    made with other settings; DataError if it cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], config: Mapping[str, Any], *, resume: bool
    ) -> None:
        self.path = Path(path)
        self.resumed = (self.path / "config.yaml").exists() and self._begun()
        self.timings: dict[str, float] = {}
        if self.resumed:
            self._check(config, resume)
        else:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise DataError(f"{self.path} is a file; give a folder as --out") from error
            write_atomic(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def _begun(self) -> bool:
        """True if there is something in the folder that a run has made."""
        files = (f for part in MADE for f in self.path.glob(part))
        return any(f.stat().st_size for f in files)

    def _check(self, config: Mapping[str, Any], resume: bool) -> None:
        require_same(self.path, config)
        if not resume:
            raise ConfigError(
                f"{self.path} holds a run already. Add --resume to go on with it, or give "
                "another --out."
            )

    def trees(self, phase: str) -> Path:
        """The folder for the trees of a phase."""
        return self.path / "trees" / phase

    def phase(self, name: str) -> _Phase:
        """Times a phase: `with folder.phase("train"): ...`."""
        return _Phase(self.timings, name)

    def summary(self) -> dict[str, Any] | None:
        """The summary, if the run is finished."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        data: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return data

    def drop_checkpoints(self) -> None:
        """Delete what only a resumed training would read (gigabytes); the metrics stay."""
        for checkpoints in self.path.glob("checkpoints/*/checkpoints"):
            shutil.rmtree(checkpoints)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json` whole or not at all."""
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        write_atomic(self.path / "summary.json", text + "\n")


class _Phase:
    def __init__(self, timings: dict[str, float], name: str) -> None:
        self.timings, self.name = timings, name

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        self.timings[self.name] = round(time.perf_counter() - self.started, 2)


def write_atomic(path: Path, text: str) -> None:
    """Write a file whole or not at all, and flush it to the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def update_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the marks `<!-- NAME -->` and `<!-- /NAME -->` of a results file.

    Raises ConfigError if the file lacks the marks.
    """
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    old = path.read_text("utf-8") if path.exists() else ""
    if start not in old or end not in old:
        raise ConfigError(f"{path} lacks the lines {start.strip()} and {end}: add them")
    before, after = old.split(start)[0], old.split(end, 1)[1]
    write_atomic(path, f"{before}{start}{text}\n{end}{after}")


def settings(config: Any) -> dict[str, Any]:
    """A config dataclass as plain data, as `config.yaml` holds it."""
    data: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return data

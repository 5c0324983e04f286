"""Checkpoints, the metrics log and the export: everything that training writes to disk.

A checkpoint is a folder `step-00000012` with `model.safetensors` (what training changes: all
trainable parameters and the buffers; under LoRA that is the adapter only), `training.pt` (optimizer
and every process's random number generators) and `state.json` (step, fingerprint, file sizes). It
is written under another name, flushed to the disk, and renamed: a folder of that name is whole, or
was damaged by others, which the sizes show. The learning rate and the data order are functions of
the step. Tensors are whole in it, also where each process holds a part of them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from agentrl.errors import ConfigError, StoreError, StoreFullError
from agentrl.ranks import Ranks

log = logging.getLogger(__name__)

FORMAT = 2
ALONE = Ranks()


def full_disk(error: BaseException) -> bool:
    """True if `error`, or what it came from, is that the disk (or quota) is full.

    torch and safetensors raise their own errors, with the system's text in them.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    told = any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))
    return told or (error.__context__ is not None and full_disk(error.__context__))


@contextmanager
def disk_full_means(path: Path, cure: str) -> Iterator[None]:
    """Turn "disk full" inside the block into a StoreFullError that says what to do."""
    try:
        yield
    except Exception as error:
        if not full_disk(error):
            raise
        free = shutil.disk_usage(path if path.exists() else path.parent).free
        raise StoreFullError(
            f"the disk is full: could not write {path} ({free / 2**20:.0f} MiB free). {cure}"
        ) from error


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path`, whole and flushed, when the block ends.

    If the block fails nothing is left, and what was at `path` before stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.tmp-{os.getpid()}"
    replaced = path.parent / f".{path.name}.old-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in (*temporary.rglob("*"), temporary):
            _fsync(file)
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
        _fsync(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def changing_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: trainable parameters (tied ones once) and persistent buffers."""
    tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    state = model.state_dict(keep_vars=True)
    buffers = {n: t for n, t in state.items() if n not in parameters and isinstance(t, Tensor)}
    return tensors | buffers


def frozen_digest(model: nn.Module) -> str:
    """A hash of the parameters that training leaves alone: names, shapes and up to 64 values each.

    A checkpoint does not hold them, so resuming on another base model has to be noticed.
    """
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            values = p.detach().flatten()[:: max(1, p.numel() // 64)].float().cpu().numpy()
            digest.update(f"{name}{tuple(p.shape)}".encode() + values.tobytes())
    return digest.hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one run, in `folder`; the `keep` newest stay. One trainer at a time.

    `with Checkpoints(...)` holds a lock that the system releases when the process ends, however it
    does. Raises StoreError if another trainer holds it. Where several processes train together all
    of them make, save and load at the same time; the main one writes, and all can read `folder`.
    """

    def __init__(self, folder: Path, keep: int, ranks: Ranks = ALONE) -> None:
        self.folder, self.keep, self.ranks = folder, keep, ranks
        self._lock: int | None = None

    def __enter__(self) -> Checkpoints:
        self.ranks.on_main(self._take)
        return self

    def _take(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StoreError(
                f"another process is training into {self.folder.parent}; wait for it, end it, or "
                "choose another folder"
            ) from error
        self._lock = lock
        for rest in self.folder.glob(".step-*"):
            shutil.rmtree(rest, ignore_errors=True)

    def __exit__(self, *exc: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending. A damaged one is named in a warning."""
        found = []
        for path in sorted(self.folder.glob("step-*")):
            try:
                state = json.loads((path / "state.json").read_text())
                whole = all((path / f).stat().st_size == n for f, n in state["files"].items())
            except (OSError, ValueError, KeyError, TypeError):
                whole = False
            if whole:
                found.append(int(state["step"]))
            else:
                log.warning("ignoring the damaged checkpoint %s", path)
        return sorted(found)

    def path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        fingerprint: Mapping[str, Any],
        position: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the state after `step` steps. On StoreFullError the older checkpoints stay.

        `position` is what else the caller needs to go on from there, as JSON.
        """
        keep = self.ranks.main
        tensors = _whole(changing_tensors(model), keep)
        training = {
            "optimizer": _whole(optimizer.state_dict(), keep),
            "rng": self.ranks.gather(rng_state()),
        }
        about = {"step": step, "fingerprint": dict(fingerprint), "position": dict(position or {})}
        return self.ranks.on_main(lambda: self._write(about, tensors, training))

    def _write(
        self, about: dict[str, Any], tensors: dict[str, Tensor], training: dict[str, Any]
    ) -> Path:
        path = self.path(about["step"])
        have = self.steps()
        cure = (
            "Free some space or choose a folder on another disk, then run again with resume=True: "
            + (f"checkpoint {self.path(have[-1])} is whole." if have else "it starts at step 0.")
        )
        with disk_full_means(path, cure), atomic_dir(path) as temporary:
            safetensors.torch.save_file(tensors, temporary / "model.safetensors")
            with open(temporary / "training.pt", "wb") as file:
                torch.save(training, file)
            state = {
                "format": FORMAT,
                **about,
                "files": {f.name: f.stat().st_size for f in temporary.iterdir()},
            }
            (temporary / "state.json").write_text(json.dumps(state, indent=1, default=_plain))
        for old in self.steps()[: -self.keep]:
            leaving = self.folder / f".{self.path(old).name}.old"  # no half of it if we are killed
            shutil.rmtree(self.path(old).rename(leaving))
        return path

    def load(
        self,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        fingerprint: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Put model, optimizer and random number generators into the state after `step` steps.

        Returns the position that was saved with them. Raises ConfigError if the checkpoint was made
        with other data, settings or weights.
        """
        path = self.path(step)
        saved = json.loads((path / "state.json").read_text())
        theirs, ours = (
            saved["fingerprint"],
            json.loads(json.dumps(dict(fingerprint), default=_plain)),
        )
        other = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k))
        if saved["format"] != FORMAT or other:
            details = "; ".join(f"{k}: was {theirs.get(k)!r}, is {ours.get(k)!r}" for k in other)
            raise ConfigError(
                f"cannot resume from {path}: it was made with other settings "
                f"({details or 'format'}). Use the same ones, or train into another folder"
            )
        loaded = safetensors.torch.load_file(path / "model.safetensors")
        tensors = changing_tensors(model)
        if loaded.keys() != tensors.keys():
            odd = sorted(loaded.keys() ^ tensors.keys())[:5]
            raise ConfigError(f"cannot resume from {path}: it is of another model ({odd} differ)")
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(_part_like(loaded[name], tensor))
        training = torch.load(path / "training.pt", map_location="cpu", weights_only=True)
        _load_optimizer(optimizer, training["optimizer"])
        set_rng_state(training["rng"][self.ranks.rank])
        return dict(saved.get("position", {}))


def _whole(value: Any, keep: bool) -> Any:
    """`value` with every tensor in it in one piece. What was gathered stays only with `keep`: all
    processes take part in gathering, and one of them writes."""
    if isinstance(value, dict):
        return {name: _whole(part, keep) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if hasattr(value, "full_tensor"):  # a DTensor
        value = value.full_tensor()
        value = value.cpu() if keep else value.new_empty(0)
    return value.contiguous()


def _part_like(whole: Tensor, like: Any) -> Tensor:
    """`whole`, or this process's part of it where `like` is sharded."""
    if not hasattr(like, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements
    return distribute_tensor(whole.to(like.device), mesh, placements, src_data_rank=None)


def _load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put the optimizer into a saved state: the moments of a parameter lie as it does."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        i: {
            name: _part_like(value, parameters[i])
            if isinstance(value, Tensor) and value.shape == parameters[i].shape
            else value
            for name, value in part.items()
        }
        for i, part in saved["state"].items()
    }
    optimizer.load_state_dict(saved | {"state": state})


def _plain(value: Any) -> Any:
    """Settings that JSON does not know: sets as sorted lists, all else by its text."""
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def rng_state() -> dict[str, Any]:
    """The state of every random number generator that training may draw from."""
    kind, keys, at, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), at, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """The inverse of `rng_state`."""
    random.setstate(state["python"])
    kind, keys, at, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), at, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


class MetricsLog:
    """`metrics.jsonl`: one JSON object a step, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, float]]:
        """The rows so far. A last line that a crash tore is left out."""
        rows = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                log.warning("%s: leaving out a torn line", self.path)
        return rows

    def truncate(self, step: int) -> list[dict[str, float]]:
        """Forget rows after `step` (their steps are about to be done again); returns the rest."""
        rows = [row for row in self.read() if row["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        with disk_full_means(self.path, "Free some space, then run again."):
            if self.path.exists():
                temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
                _fsync(temporary)
                temporary.replace(self.path)
        return rows

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row. Raises StoreFullError if the disk is full."""
        cure = "Free some space, then run again with resume=True; checkpoints are as they were."
        with disk_full_means(self.path, cure), open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")

    def flush(self) -> None:
        """Make sure that the rows survive a power cut."""
        if self.path.exists():
            _fsync(self.path)

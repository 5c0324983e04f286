"""Weights from the trainer's process to the engine's workers: what both ends need.

    file        one tensor behind the other, in memory or on a disk that both see
    gloo, nccl  a group of the trainer, rank 0, and the workers: tensor by tensor
    ipc         handles to the trainer's memory on a GPU of the same machine: nothing is copied

Imports nothing of agentrl, which imports it. vLLM's own transfer for NCCL and CUDA IPC is not used:
its trainer's side needs vllm beside the trainer, its broadcasts wait without a deadline for a peer
that is gone, and its handles come over HTTP as pickles.
"""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import inspect
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import IO, Any, TypeVar

T = TypeVar("T")
Weights = Iterable[tuple[str, Any]]
Spec = tuple[str, str, list[int]]
"""Name, dtype, shape."""
ALIGNED = 64
"""bytes"""
POLL_S = 0.005


def receive(source: dict[str, Any], rank: int, device: Any, seconds: float) -> Weights:
    """The weights of `source`, for the worker `rank` of the engine on `device`.

    All of them are within reach when this returns, or it raises: ValueError if they cannot come
    this way, TimeoutError, or what the transport says. Only those of nccl come while one goes over
    them.
    """
    kind = source["kind"]
    if kind == "file":
        return list(_mapped(source["path"], source["tensors"]))
    if kind == "ipc":
        return [(name, imported(handle, _index_of(gpu))) for name, handle, gpu in source["tensors"]]
    if kind not in ("gloo", "nccl"):
        raise ValueError(f"no way of sending weights is called {kind!r}")
    if kind == "nccl" and source["gpu"] == uuid_of(device.index):
        raise ValueError("NCCL needs a GPU for the engine alone; on the trainer's: via='ipc'")
    place = device if kind == "nccl" else "cpu"
    until = time.monotonic() + seconds
    group = meet(kind, source["address"], rank + 1, source["size"], place, seconds)
    arriving = _received(group, source["tensors"], place, until)
    return arriving if kind == "nccl" else list(arriving)


# --- a file


def write(file: IO[bytes], weights: Mapping[str, Any]) -> None:
    """Write the tensors' bytes, each from a multiple of `ALIGNED` on."""
    import torch

    for tensor in weights.values():
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        file.write(memoryview(raw.numpy()))
        file.write(bytes(-raw.numel() % ALIGNED))
    file.flush()


def _mapped(path: str, tensors: list[Spec]) -> Iterator[tuple[str, Any]]:
    """What `write` wrote, mapped: the file may be deleted from here on."""
    import torch

    try:
        data, at = torch.from_file(path, size=os.path.getsize(path), dtype=torch.uint8), 0
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"the engine cannot read the trainer's file of weights ({error}). The ways memory and "
            "disk are for one machine, one user and one container; elsewhere use via='gloo'"
        ) from error
    for name, dtype, shape in tensors:
        kind = getattr(torch, dtype)
        end = at + kind.itemsize * math.prod(shape)
        if end > len(data):
            raise ValueError(f"{path} ends before {name}: {len(data)} bytes")
        yield name, data[at:end].view(kind).reshape(shape)
        at = end + -end % ALIGNED


# --- a group of processes


def meet(kind: str, address: str, rank: int, size: int, device: Any, seconds: float) -> Any:
    """Join the group whose store is at `address` (HOST:PORT); every member has answered when this
    returns. Raises TimeoutError after `seconds`."""
    from torch import distributed

    dist: Any = distributed  # some of its names are not declared

    def work() -> Any:
        host, _, port = address.rpartition(":")
        limit = timedelta(seconds=seconds)
        return join(kind, dist.TCPStore(host, int(port), timeout=limit), rank, size, device, limit)

    return within(seconds, f"meeting {size} processes at {address}", work)


def join(
    kind: str,
    store: Any,
    rank: int,
    size: int,
    device: Any,
    limit: timedelta,
    given_up: Callable[[], bool] = lambda: False,
) -> Any:
    """The group, after a first round in which every member counts itself.

    Rank 0 waits until the others have said in the store that they come, or it is `given_up`: a wait
    inside of torch could not be ended.
    """
    import torch

    if rank:
        store.set(_here(rank), "")
    else:
        _await_others(store, size, limit.total_seconds(), given_up)
    group = _group(kind, store, rank, size, limit)
    count = torch.ones(1, device=device)
    group.allreduce([count]).wait(limit)
    if int(count) != size:
        raise RuntimeError(f"{int(count)} processes answered, {size} were expected")
    return group


def _here(rank: int) -> str:
    return f"agentrl/here/{rank}"


def _await_others(store: Any, size: int, seconds: float, given_up: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    waiting = [_here(rank) for rank in range(1, size)]
    while waiting := [key for key in waiting if not store.check([key])]:
        if given_up():
            raise RuntimeError("given up")
        if time.monotonic() > until:
            raise TimeoutError(f"{size - 1 - len(waiting)} of {size - 1} workers came")
        time.sleep(POLL_S)


def _group(kind: str, store: Any, rank: int, size: int, limit: timedelta) -> Any:
    from torch import distributed

    dist: Any = distributed
    if kind == "gloo":
        return dist.ProcessGroupGloo(store, rank, size, limit)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    with _set(
        "TORCH_NCCL_BLOCKING_WAIT", "1"
    ):  # a wait that is too long raises, and ends no process
        return dist.ProcessGroupNCCL(store, rank, size, options)


@contextlib.contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    """An environment variable, for as long as the block runs."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def broadcast(group: Any, tensor: Any, until: float) -> None:
    """Send `tensor`, as rank 0, or receive it; over before `until` (of `time.monotonic`)."""
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for the weights is over")
    group.broadcast(tensor, 0).wait(timedelta(seconds=left))


def _received(
    group: Any, tensors: list[Spec], device: Any, until: float
) -> Iterator[tuple[str, Any]]:
    import torch

    for name, dtype, shape in tensors:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        broadcast(group, tensor, until)
        yield name, tensor


def within(seconds: float, what: str, work: Callable[[], T]) -> T:
    """`work()`, or TimeoutError after `seconds`: its thread is then left alone, for NCCL may wait
    for ever for a peer that is gone."""
    made: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            made.set_result(work())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=run, name="agentrl-weights", daemon=True).start()
    try:
        return made.result(seconds)
    except concurrent.futures.TimeoutError as error:
        if made.done():
            raise
        raise TimeoutError(f"{what} took over {seconds:g} s") from error


# --- memory on one GPU


def uuid_of(index: int) -> str:
    """What a GPU is called in every process, whatever number it has there."""
    import torch

    return str(torch.cuda.get_device_properties(index).uuid)


def _index_of(uuid: str) -> int:
    import torch

    seen = [uuid_of(i) for i in range(torch.cuda.device_count())]
    if uuid not in seen:
        raise ValueError(
            f"the trainer's GPU {uuid} is not one that the engine sees ({', '.join(seen)}): CUDA "
            "IPC is for one machine, with the same CUDA_VISIBLE_DEVICES; elsewhere use via='nccl'"
        )
    return seen.index(uuid)


CLASSES = ("tensor_cls", "storage_cls")
"""What a handle leaves out: always a plain tensor."""


def exported(tensor: Any) -> dict[str, Any]:
    """A tensor on a GPU as plain data: how another process gets at its memory. It must stay alive
    until that has let go of it."""
    from torch.multiprocessing import reductions

    how: Any = reductions  # not typed
    _, values = how.reduce_tensor(tensor)
    names = inspect.signature(how.rebuild_cuda_tensor).parameters
    given = dict(zip(names, values, strict=True))
    return {name: _plain(value) for name, value in given.items() if name not in CLASSES}


def imported(handle: dict[str, Any], index: int) -> Any:
    """The tensor of a handle, on the GPU that has this index here."""
    import torch
    from torch.multiprocessing import reductions

    how: Any = reductions  # not typed
    given = {name: _unplain(value) for name, value in handle.items()}
    given |= {"tensor_cls": torch.Tensor, "storage_cls": torch.UntypedStorage}
    return how.rebuild_cuda_tensor(**given | {"storage_device": index})


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    return list(value) if isinstance(value, tuple) else value


def _unplain(value: Any) -> Any:
    import torch

    if isinstance(value, dict):
        return (
            base64.b64decode(value["bytes"]) if "bytes" in value else getattr(torch, value["dtype"])
        )
    return tuple(value) if isinstance(value, list) else value

"""Weights from the trainer to the engine.

    memory   a file without a name, in memory, that the engine maps: one machine, one user; it goes
             with the trainer, however that ends
    disk     a file in the temporary folder, or in that of an engine started here, which removes it
    gloo     from process to process, tensor by tensor, over TCP
    nccl     the same from GPU to GPU
    ipc      the engine reads the trainer's memory on a GPU that both use (CUDA IPC)

Every way has a deadline for the whole of it, and the engine's own error in the exception. What both
ends need is in `inside.vllm_transport`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import IO, Any, Literal, get_args

from agentrl.engines.vllm.inside import vllm_transport as transport
from agentrl.errors import ConfigError, EngineError

Via = Literal["memory", "disk", "gloo", "nccl", "ipc"]
LAST_WORD_S = 5.0
"""How long the engine has to say what went wrong when sending failed here."""


def weights_of(model: Any) -> dict[str, Any]:
    """The weights of a transformers model by their names in its checkpoint, tied ones once.

    Raises ConfigError for a peft model: merge it, or send its adapter.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError(
            "the model has an adapter: send that alone (policy.update_adapter), or merge it"
        )
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    if not getattr(model.config, "tie_word_embeddings", False):
        tied = set()
    return {name: w.detach() for name, w in model.state_dict().items() if name not in tied}


async def send(engine: Any, weights: Mapping[str, Any], *, via: Via, seconds: float) -> int:
    """Give `engine` the weights; returns its new version.

    Raises EngineError after `seconds`, or with what the engine says; ConfigError for an unknown
    way, or one that needs a GPU where there is none.
    """
    if via not in get_args(Via):
        raise ConfigError(f"via={via!r}: one of {', '.join(get_args(Via))}")
    if not weights:
        return int(await engine.update({"kind": "none"}, seconds))
    if via in ("nccl", "ipc") and not all(w.is_cuda for w in weights.values()):
        raise ConfigError(
            f"via={via!r}: the weights are not all on a GPU; use memory, disk or gloo"
        )
    if via in ("gloo", "nccl"):
        return await _by_group(engine, weights, via, seconds)
    if via == "ipc":
        return await _by_handles(engine, weights, seconds)
    return await _by_file(engine, weights, via, seconds)


async def _by_file(engine: Any, weights: Mapping[str, Any], via: Via, seconds: float) -> int:
    until = time.monotonic() + seconds
    with _file(via, getattr(engine, "folder", None)) as (file, path):
        try:
            async with asyncio.timeout(seconds):
                await asyncio.to_thread(transport.write, file, weights)
        except TimeoutError as error:
            raise EngineError(f"writing the weights took over {seconds:g} s") from error
        except OSError as error:
            where = "memory" if via == "memory" else os.path.dirname(path)
            raise EngineError(f"the weights do not fit into {where}: {error.strerror}") from error
        source = {"kind": "file", "path": path, "tensors": _specs(weights)}
        return int(await engine.update(source, until - time.monotonic()))


@contextlib.contextmanager
def _file(via: Via, folder: str | None) -> Iterator[tuple[IO[bytes], str]]:
    """A file to write to and where others find it, gone at the end of the block. A trainer that is
    killed leaves one on a disk: in `folder`, for whoever removes that."""
    if via == "memory":
        with os.fdopen(os.memfd_create("agentrl-weights"), "wb") as file:
            yield file, f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile(prefix="agentrl-weights-", dir=folder) as named:
            yield named.file, named.name


def _specs(weights: Mapping[str, Any]) -> list[tuple[str, str, list[int]]]:
    """Name, dtype and shape of each."""
    return [(n, str(w.dtype).removeprefix("torch."), list(w.shape)) for n, w in weights.items()]


async def _by_handles(engine: Any, weights: Mapping[str, Any], seconds: float) -> int:
    """The engine gets handles to the weights, which stay as they are until it has copied them."""
    import torch

    cuda: Any = torch.cuda  # not all of it is typed
    kept = {n: w.detach().contiguous() for n, w in weights.items()}
    cuda.synchronize()
    tensors = [
        (n, transport.exported(w), transport.uuid_of(w.device.index)) for n, w in kept.items()
    ]
    try:
        return int(await engine.update({"kind": "ipc", "tensors": tensors}, seconds))
    finally:
        cuda.ipc_collect()


async def _by_group(engine: Any, weights: Mapping[str, Any], via: Via, seconds: float) -> int:
    """The engine's workers meet this process in a group and receive every tensor; both sides have
    the deadline."""
    from torch import distributed

    dist: Any = distributed  # some of its names are not declared

    limit, until = timedelta(seconds=seconds), time.monotonic() + seconds
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    size = 1 + int(engine.facts()["workers"])
    place: Any = next(iter(weights.values())).device if via == "nccl" else "cpu"

    given_up = threading.Event()

    def send() -> None:
        group = transport.join(via, store, 0, size, place, limit, given_up.is_set)
        for tensor in weights.values():
            transport.broadcast(group, tensor.detach().to(place).contiguous(), until)

    host = own_address(getattr(engine, "url", ""))
    source = {
        "kind": via,
        "address": f"{host}:{store.port}",
        "size": size,
        "tensors": _specs(weights),
    }
    if via == "nccl":
        source["gpu"] = transport.uuid_of(place.index)
    sending = _on_a_thread(send)
    taking = asyncio.ensure_future(engine.update(source, seconds))
    try:
        await asyncio.wait({sending, taking}, return_when=asyncio.FIRST_EXCEPTION)
        # the engine's error says what went wrong, the sender's only that nobody listens
        await asyncio.wait({taking}, timeout=LAST_WORD_S)
        if taking.done():
            return int(taking.result())
    finally:
        given_up.set()
        taking.cancel()
        if not sending.cancel():
            sending.exception()  # seen
    failed = sending.exception()
    raise EngineError(f"the weights could not be sent: {failed}") from failed


def own_address(url: str) -> str:
    """The address under which the machine at `url` reaches this one."""
    host = urllib.parse.urlsplit(url).hostname
    if host is None:  # a socket in the file system, or no server at all
        return "127.0.0.1"
    family, kind, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # sends nothing
        return str(probe.getsockname()[0])


def _on_a_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """`work`'s outcome. Its thread is a daemon: a peer that is gone holds up neither the event loop
    nor the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def tell(error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def run() -> None:
        failed: Exception | None = None
        try:
            work()
        except Exception as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, nobody waits any more
            loop.call_soon_threadsafe(tell, failed)

    threading.Thread(target=run, name="agentrl-weights", daemon=True).start()
    return future

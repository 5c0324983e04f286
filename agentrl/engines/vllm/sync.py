"""Weights from the trainer to the engine.

    memory   a file in shared memory: the engine reads what the trainer wrote, on one machine
    disk     the same in a folder that both see
    gloo     from process to process, tensor by tensor, over TCP

Every way has a deadline for the whole of it, and the engine's own error in the exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import threading
import urllib.parse
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from agentrl.errors import ConfigError, EngineError

Via = Literal["memory", "disk", "gloo"]
SHARED = Path("/dev/shm")


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


def shared() -> Path | None:
    """The folder in shared memory; None where there is none: the usual temporary one."""
    return SHARED if SHARED.is_dir() else None


async def send(engine: Any, weights: Mapping[str, Any], *, via: Via, seconds: float) -> int:
    """Give `engine` the weights; returns its new version.

    Raises EngineError after `seconds`, or with what the engine says; ConfigError for an unknown
    way, or weights that are too large for shared memory.
    """
    if not weights:
        return int(await engine.update({"kind": "none"}, seconds))
    if via == "gloo":
        return await _by_gloo(engine, weights, seconds)
    if via not in ("memory", "disk"):
        raise ConfigError(f"via={via!r}: memory, disk or gloo")
    return await _by_file(engine, weights, shared() if via == "memory" else None, seconds)


async def _by_file(
    engine: Any, weights: Mapping[str, Any], where: Path | None, seconds: float
) -> int:
    from safetensors.torch import save_file

    size = sum(w.numel() * w.element_size() for w in weights.values())
    if where is not None and shutil.disk_usage(where).free < size:
        raise ConfigError(
            f"{where} has no room for {size >> 20} MiB of weights: enlarge it, or use via='disk'"
        )
    folder = tempfile.mkdtemp(prefix="agentrl-weights-", dir=where)
    try:
        path = os.path.join(folder, "weights.safetensors")
        plain = {n: w.detach().cpu().contiguous() for n, w in weights.items()}
        await asyncio.to_thread(save_file, plain, path)
        return int(await engine.update({"kind": "file", "path": path}, seconds))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _by_gloo(engine: Any, weights: Mapping[str, Any], seconds: float) -> int:
    """The engine joins a group of two and receives every tensor; both sides have the deadline."""
    from torch import distributed

    dist: Any = distributed  # some of its names are not declared

    limit = timedelta(seconds=seconds)
    store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False, timeout=limit)
    plain = {n: w.detach().cpu().contiguous() for n, w in weights.items()}
    specs = [(n, str(w.dtype).removeprefix("torch."), list(w.shape)) for n, w in plain.items()]

    def broadcast() -> None:
        group = dist.ProcessGroupGloo(store, 0, 2, limit)
        for tensor in plain.values():
            group.broadcast(tensor, 0).wait(limit)

    host = own_address(getattr(engine, "url", ""))
    source = {"kind": "gloo", "address": f"tcp://{host}:{store.port}", "tensors": specs}
    sending = _on_a_thread(broadcast)
    taking = asyncio.ensure_future(engine.update(source, seconds))
    try:
        done, _ = await asyncio.wait({sending, taking}, return_when=asyncio.FIRST_EXCEPTION)
        if taking in done:  # its error says what went wrong; the sender's only that nobody listens
            return int(taking.result())
    finally:
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

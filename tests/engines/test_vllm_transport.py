"""How weights get from the trainer to the engine's workers: both ends, in this process, on a CPU.

NCCL and CUDA IPC are tested up to what only a GPU can do: a gloo group stands in for NCCL's, a
record of the handle for the memory behind it.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import distributed  # noqa: E402
from torch.multiprocessing import reductions  # noqa: E402

from agentrl.engines.vllm import sync  # noqa: E402
from agentrl.engines.vllm.inside import vllm_transport as transport  # noqa: E402
from agentrl.errors import ConfigError, EngineError  # noqa: E402

CPU = torch.device("cpu")
WEIGHTS = {
    "a": torch.arange(6.0).reshape(2, 3).T,
    "b": torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
    "c": torch.tensor(3.0),
}


class Workers:
    """An engine of some workers that only receive. `dies`: they leave when they have met the
    trainer; `stops`: they come, and take nothing."""

    def __init__(self, count: int = 1, **how: Any) -> None:
        self.count, self.how = count, how
        self.got: list[dict[str, Any]] = []

    def facts(self) -> dict[str, Any]:
        return {"workers": self.count}

    async def update(self, source: dict[str, Any], seconds: float) -> int:
        source = json.loads(json.dumps(source))  # as it comes over HTTP

        def worker(rank: int) -> dict[str, Any]:
            if self.how.get("leaves"):
                transport.meet("gloo", source["address"], rank + 1, source["size"], "cpu", seconds)
                raise RuntimeError("the worker has no memory left")
            return dict(transport.receive(source, rank, CPU, seconds))

        calls = [asyncio.to_thread(worker, rank) for rank in range(self.count)]
        self.got = await asyncio.gather(*calls)
        return 5


def same(got: dict[str, Any]) -> bool:
    return got.keys() == WEIGHTS.keys() and all(
        got[n].dtype == w.dtype and torch.equal(got[n], w) for n, w in WEIGHTS.items()
    )


@pytest.mark.parametrize("count", [1, 2])
def test_gloo_gives_every_worker_every_tensor_as_it_is(count):
    engine = Workers(count)
    assert asyncio.run(sync.send(engine, WEIGHTS, via="gloo", seconds=30)) == 5
    assert len(engine.got) == count
    assert all(same(got) for got in engine.got)


@pytest.mark.parametrize("via", ["memory", "disk"])
def test_a_file_that_is_deleted_once_it_was_opened(via):
    class Late(Workers):
        async def update(self, source: dict[str, Any], seconds: float) -> int:
            self.arriving = transport.receive(source, 0, CPU, seconds)
            return 5

    engine = Late()
    assert asyncio.run(sync.send(engine, WEIGHTS, via=via, seconds=30)) == 5
    assert same(dict(engine.arriving))


def test_a_file_that_is_cut_off(tmp_path):
    path = tmp_path / "weights"
    with path.open("wb") as file:
        transport.write(file, WEIGHTS)
    assert path.stat().st_size == 3 * transport.ALIGNED
    source = {"kind": "file", "path": str(path), "tensors": sync._specs(WEIGHTS)}
    assert same(dict(transport.receive(source, 0, CPU, 1.0)))
    os.truncate(path, 130)
    with pytest.raises(ValueError, match="ends before c: 130 bytes"):
        transport.receive(source, 0, CPU, 1.0)


def test_a_file_that_the_engine_does_not_see():
    """It runs on another machine, or in a container."""
    source = {"kind": "file", "path": "/proc/0/fd/9", "tensors": sync._specs(WEIGHTS)}
    with pytest.raises(ValueError, match=r"No such file.*elsewhere use via='gloo'"):
        transport.receive(source, 0, CPU, 1.0)


def test_a_full_disk_is_said_and_nothing_is_left(monkeypatch, tmp_path):
    def full(file: Any, weights: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transport, "write", full)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(EngineError, match=rf"do not fit into {tmp_path}: No space left"):
        asyncio.run(sync.send(Workers(), WEIGHTS, via="disk", seconds=5))
    assert list(tmp_path.iterdir()) == []


def test_writing_has_the_deadline_too(monkeypatch):
    monkeypatch.setattr(transport, "write", lambda file, weights: time.sleep(0.3))
    with pytest.raises(EngineError, match=r"writing the weights took over 0\.1 s"):
        asyncio.run(sync.send(Workers(), WEIGHTS, via="memory", seconds=0.1))


def test_a_worker_that_fails_has_the_last_word():
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="the worker has no memory left"):
        asyncio.run(sync.send(Workers(leaves=True), WEIGHTS, via="gloo", seconds=60))
    assert time.monotonic() - began < 30  # it does not wait out its deadline


def test_a_trainer_that_is_gone_is_noticed_by_who_receives():
    """Its end of the connection closes, as the system closes it when the process is killed."""
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    specs = [("a", "float32", [4]), ("b", "float32", [4])]
    source = {"kind": "gloo", "address": f"127.0.0.1:{store.port}", "size": 2, "tensors": specs}

    async def go() -> Any:
        receiving = asyncio.create_task(asyncio.to_thread(transport.receive, source, 0, CPU, 30.0))
        limit = timedelta(seconds=30)
        group = await asyncio.to_thread(transport.join, "gloo", store, 0, 2, "cpu", limit)
        transport.broadcast(group, torch.ones(4), time.monotonic() + 30)
        del group
        return await receiving

    with pytest.raises(RuntimeError, match=r"closed|reset"):
        asyncio.run(go())


def test_an_engine_that_refuses_ends_the_senders_wait():
    """Its thread would otherwise hold a port until the deadline."""

    class Refusing(Workers):
        async def update(self, source: dict[str, Any], seconds: float) -> int:
            raise RuntimeError("no such weight")

    with pytest.raises(RuntimeError, match="no such weight"):
        asyncio.run(sync.send(Refusing(), WEIGHTS, via="gloo", seconds=60))
    until = time.monotonic() + 20
    while any(t.name == "agentrl-weights" for t in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_how_many_came_is_said():
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    store.set("agentrl/here/2", "")
    with pytest.raises(TimeoutError, match="1 of 2 workers came"):
        transport.join("gloo", store, 0, 3, "cpu", timedelta(seconds=0.05))


def test_nobody_to_meet_ends_at_the_deadline():
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
    )
    with pytest.raises((TimeoutError, RuntimeError)):  # whichever of the two clocks is first
        transport.meet("gloo", f"127.0.0.1:{store.port}", 1, 2, "cpu", 0.3)


def test_a_step_that_never_ends_is_left_alone():
    with pytest.raises(TimeoutError, match=r"meeting took over 0\.1 s"):
        transport.within(0.1, "meeting", lambda: time.sleep(1))
    with pytest.raises(ZeroDivisionError):
        transport.within(1.0, "dividing", lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="of its own"):
        transport.within(1.0, "failing", functools.partial(raises, TimeoutError("of its own")))
    with pytest.raises(TimeoutError, match="is over"):
        transport.broadcast(None, torch.ones(1), time.monotonic() - 1)


def raises(error: Exception) -> None:
    raise error


def test_a_way_that_there_is_not():
    with pytest.raises(ConfigError, match="one of memory, disk, gloo, nccl, ipc"):
        asyncio.run(sync.send(Workers(), WEIGHTS, via="rdma", seconds=1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'rdma'"):
        transport.receive({"kind": "rdma"}, 0, CPU, 1.0)


# --- GPUs


@pytest.mark.parametrize("via", ["nccl", "ipc"])
def test_weights_that_are_on_no_gpu(via):
    with pytest.raises(ConfigError, match="not all on a GPU; use memory, disk or gloo"):
        asyncio.run(sync.send(Workers(), WEIGHTS, via=via, seconds=1))


@pytest.fixture
def nccl(monkeypatch) -> Any:
    """NCCL's group is one of gloo; the trainer has the GPU that is asked for first."""
    make, seen = transport._group, iter(["GPU-a", "GPU-b", "GPU-c"])
    monkeypatch.setattr(transport, "_group", lambda kind, *how: make("gloo", *how))
    monkeypatch.setattr(transport, "uuid_of", lambda index: next(seen))
    return functools.partial(sync._by_group, weights=WEIGHTS, via="nccl", seconds=30)


def test_nccl_sends_every_tensor_while_the_model_takes_them(nccl):
    engine = Workers(2)
    assert asyncio.run(nccl(engine)) == 5
    assert all(same(got) for got in engine.got)


def test_nccl_on_the_trainers_own_gpu_is_refused(nccl, monkeypatch):
    monkeypatch.setattr(transport, "uuid_of", lambda index: "GPU-a")
    with pytest.raises(ValueError, match="on the trainer's: via='ipc'"):
        asyncio.run(nccl(Workers()))


def test_nccl_asks_torch_for_waits_that_raise(monkeypatch):
    """Otherwise its watchdog ends the process at the deadline."""
    made: dict[str, Any] = {}

    class Group:
        class Options:
            pass

        def __init__(self, store: Any, rank: int, size: int, options: Any) -> None:
            made.update(rank=rank, size=size, limit=options._timeout)
            made["waits"] = os.environ["TORCH_NCCL_BLOCKING_WAIT"]

    monkeypatch.setattr(distributed, "ProcessGroupNCCL", Group, raising=False)
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    limit = timedelta(seconds=7)
    assert isinstance(transport._group("nccl", None, 1, 3, limit), Group)
    assert made == {"rank": 1, "size": 3, "limit": limit, "waits": "1"}
    assert "TORCH_NCCL_BLOCKING_WAIT" not in os.environ


HANDLE = (
    torch.Tensor,
    torch.Size([2, 3]),
    (3, 1),
    6,
    torch.UntypedStorage,
    torch.bfloat16,
    1,
    b"\x00memory\xff",
    4096,
    512,
    False,
    b"counter",
    2,
    b"event",
    True,
)
"""What torch makes of a tensor on the GPU that is number 1 there."""


def test_a_handle_is_plain_data_and_whole_again_on_the_other_side(monkeypatch):
    got: dict[str, Any] = {}

    @functools.wraps(reductions.rebuild_cuda_tensor)
    def rebuild(**given: Any) -> str:
        got.update(given)
        return "the tensor"

    seen = ["GPU-x", "GPU-y", "GPU-z"]
    monkeypatch.setattr(reductions, "reduce_tensor", lambda tensor: (rebuild, HANDLE))
    monkeypatch.setattr(reductions, "rebuild_cuda_tensor", rebuild)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(seen))
    monkeypatch.setattr(transport, "uuid_of", lambda index: seen[index])
    sent = [("w", transport.exported(torch.ones(2, 3)), "GPU-z")]
    source = json.loads(json.dumps({"kind": "ipc", "tensors": sent}))
    assert transport.receive(source, 0, CPU, 1.0) == [("w", "the tensor")]
    names = list(transport.inspect.signature(rebuild).parameters)
    expected = dict(zip(names, HANDLE, strict=True)) | {"storage_device": 2}
    assert got == expected | {"tensor_size": (2, 3)}
    assert [type(v) for v in got.values()].count(bytes) == 3

    source["tensors"][0][2] = "GPU-elsewhere"
    with pytest.raises(ValueError, match=r"GPU-elsewhere is not one that the engine sees"):
        transport.receive(source, 0, CPU, 1.0)


def test_handles_are_let_go_when_the_engine_has_failed(monkeypatch):
    done: list[str] = []
    for name in ("synchronize", "ipc_collect"):
        monkeypatch.setattr(torch.cuda, name, functools.partial(done.append, name))
    monkeypatch.setattr(transport, "exported", lambda tensor: {"of": tensor.shape[0]})
    monkeypatch.setattr(transport, "uuid_of", lambda index: "GPU-x")

    class Fails:
        async def update(self, source: dict[str, Any], seconds: float) -> int:
            assert source == {"kind": "ipc", "tensors": [("b", {"of": 2}, "GPU-x")]}
            raise EngineError("no memory")

    with pytest.raises(EngineError, match="no memory"):
        asyncio.run(sync._by_handles(Fails(), {"b": WEIGHTS["b"]}, 1.0))
    assert done == ["synchronize", "ipc_collect"]

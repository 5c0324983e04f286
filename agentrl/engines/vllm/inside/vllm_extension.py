"""What vLLM's worker processes run to take new weights. Imports nothing of agentrl.

vLLM mixes the class into its workers (`worker_extension_cls`), by the name of this module.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class Extension:
    """Methods called by `collective_rpc`."""

    def agentrl_update(self, source: dict[str, Any], seconds: float) -> int:
        """Load every weight from `source`; returns how many tensors came."""
        count = 0

        def counted() -> Iterator[tuple[str, Any]]:
            nonlocal count
            for name, tensor in _weights(source, seconds):
                count += 1
                yield name, tensor

        worker: Any = self
        worker.reload_weights(weights_iterator=counted())
        if getattr(worker.model_config.hf_text_config, "tie_word_embeddings", False):
            _tie(worker.get_model())
        return count


def _tie(model: Any) -> None:
    """Give a head that is tied to the embedding its new weights: what vLLM 0.32 packed for a CPU
    stays the old ones over a reload, as no weight of the head's own name arrives."""
    from vllm.model_executor.layers import vocab_parallel_embedding as layers

    embeddings = [m for m in model.modules() if type(m) is layers.VocabParallelEmbedding]
    for head in model.modules():
        if isinstance(head, layers.ParallelLMHead):
            head.tie_weights(embeddings[0])
            head.quant_method.process_weights_after_loading(head)


def _weights(source: dict[str, Any], seconds: float) -> Iterator[tuple[str, Any]]:
    if source["kind"] == "file":
        from safetensors import safe_open

        with safe_open(source["path"], framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
        return
    yield from _broadcast(source, seconds)


def _broadcast(source: dict[str, Any], seconds: float) -> Iterator[tuple[str, Any]]:
    """Receive tensors that the trainer, rank 0 of a group of two, broadcasts one by one.

    `source`: `address` (tcp://host:port), `backend`, and `tensors`, a list of (name, dtype, shape).
    """
    from datetime import timedelta

    import torch
    from torch import distributed

    dist: Any = distributed  # some of its names are not declared

    host, _, port = source["address"].removeprefix("tcp://").rpartition(":")
    limit = timedelta(seconds=seconds)
    store = dist.TCPStore(host, int(port), 2, is_master=False, timeout=limit)
    group = dist.ProcessGroupGloo(store, 1, 2, limit)
    for name, dtype, shape in source["tensors"]:
        tensor = torch.empty(shape, dtype=getattr(torch, dtype))
        group.broadcast(tensor, 0).wait(limit)
        yield name, tensor

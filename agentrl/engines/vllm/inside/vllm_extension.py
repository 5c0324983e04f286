"""What vLLM's worker processes run to take new weights. Imports nothing of agentrl.

vLLM mixes the class into its workers (`worker_extension_cls`), by the name of this module.
"""

from __future__ import annotations

from typing import Any

import vllm_transport  # beside this file


class Extension:
    """Methods called by `collective_rpc`, one after the other."""

    def agentrl_receive(self, source: dict[str, Any], seconds: float) -> None:
        """Get hold of the weights of `source` (see `vllm_transport`). The model keeps its own:
        what goes wrong here changes nothing."""
        worker: Any = self
        worker.agentrl_arrived = None  # of an update that broke off
        parallel = worker.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + worker.rank
        worker.agentrl_arrived = vllm_transport.receive(source, rank, worker.device, seconds)

    def agentrl_load(self) -> None:
        """Give the model what has arrived. If this fails it has some old and some new weights."""
        worker: Any = self
        weights, worker.agentrl_arrived = worker.agentrl_arrived, None
        worker.reload_weights(weights_iterator=weights)
        if getattr(worker.model_config.hf_text_config, "tie_word_embeddings", False):
            _tie(worker.get_model())


def _tie(model: Any) -> None:
    """Give a head that is tied to the embedding its new weights: what vLLM 0.32 packed for a CPU
    stays the old ones over a reload, as no weight of the head's own name arrives."""
    from vllm.model_executor.layers import vocab_parallel_embedding as layers

    embeddings = [m for m in model.modules() if type(m) is layers.VocabParallelEmbedding]
    for head in model.modules():
        if isinstance(head, layers.ParallelLMHead):
            head.tie_weights(embeddings[0])
            head.quant_method.process_weights_after_loading(head)

"""The engine: vLLM's AsyncLLM behind four coroutines with plain data in and out.

Runs in the environment that has vLLM and imports nothing of agentrl. What is sampled from is
reported as it was: `logprobs_mode` is vLLM's `processed_logprobs`, of the distribution after
temperature, top-p and top-k; where these change it, the log-probabilities at temperature 1 take a
second forward pass over the sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXTENSION = "vllm_extension.Extension"
CPU_CACHE = 2 << 30
"""bytes"""
SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
"""By what of a model's configuration a client tells that it is another one than it asked for."""
ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""What adapters may change. With the head among them, vLLM 0.32 dies on a CPU when it is asked for
the log-probabilities of a prompt: it takes the rows of the prompt for those of the batch."""


class Core:
    """One engine. `options` are vLLM's engine arguments. On a CPU it is eager unless they say
    otherwise, as compiling takes minutes there, and takes `CPU_CACHE` for keys and values instead
    of nine tenths of the memory."""

    def __init__(self, model: str, **options: Any) -> None:
        # the engine's own processes import the extension by this path
        path = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(p for p in path if p)
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        arguments: dict[str, Any] = {
            "logprobs_mode": "processed_logprobs",
            "worker_extension_cls": EXTENSION,
            "enable_prefix_caching": True,
            "disable_log_stats": True,
        }
        if options.get("enable_lora"):
            arguments["lora_target_modules"] = ADAPTED
        if current_platform.is_cpu():
            arguments["enforce_eager"] = True
            # on the last part of a prompt vLLM 0.32 sets a seeded generator back, which torch's for
            # CPUs cannot do: the engine would die of it
            arguments["enable_chunked_prefill"] = False
            if "gpu_memory_utilization" not in options:
                arguments["kv_cache_memory_bytes"] = CPU_CACHE
        self.model = model
        self.engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model, **arguments | options))
        config = self.engine.model_config
        self.max_context = int(config.max_model_len) - 1  # scoring samples a token, too
        self.vocab_size = int(config.get_vocab_size())
        self.version = 0
        self.broken = ""
        """Why the weights are part old, part new; empty where they are not."""
        self.lora: Any = None
        self._ids, self._adapters = itertools.count(), itertools.count(1)
        self._updating, self._ready, self._idle = asyncio.Lock(), asyncio.Event(), asyncio.Event()
        self._ready.set()
        self._idle.set()
        self._in_flight = 0
        self._doing = ""

    async def check(self) -> None:
        """Raise if the engine is dead."""
        await self.engine.check_health()

    def facts(self) -> dict[str, Any]:
        """What a client needs to know of the engine."""
        import vllm

        text = getattr(self.engine.model_config, "hf_text_config", None)
        return {
            "model": self.model,
            "shape": {n: getattr(text, n) for n in SHAPE if hasattr(text, n)},
            "max_context": self.max_context,
            "vocab_size": self.vocab_size,
            "version": self.version,
            "broken": self.broken,
            "workers": int(self.engine.vllm_config.parallel_config.world_size_across_dp),
            "lora": self.engine.vllm_config.lora_config is not None,
            "vllm": vllm.__version__,
        }

    async def sample(self, ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
        """One completion. `params`: `max_tokens`, `temperature`, `top_p`, `top_k`, `stop`, `seed`,
        `eos_ids`. Cancelling the call ends the request in the engine.

        The result has `ids`, `logprobs` (temperature 1), `sampled` (of the distribution drawn from,
        None where that is the same; 0 at temperature 0), `finish` (eos, stop, length), `stop`,
        `version`.
        """
        from vllm import SamplingParams

        greedy = params["temperature"] == 0
        asked = SamplingParams(
            max_tokens=params["max_tokens"],
            temperature=params["temperature"],
            top_p=1.0 if greedy else params["top_p"],
            top_k=0 if greedy else params["top_k"],
            seed=params["seed"],
            stop=list(params["stop"]),
            # the tokenizer's own ends, and not what the checkpoint's generation config adds
            stop_token_ids=list(params["eos_ids"]),
            ignore_eos=True,
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            detokenize=bool(params["stop"]),
            logprobs=0,
        )
        plain = greedy or (
            params["temperature"] == 1 and params["top_p"] >= 1 and params["top_k"] <= 0
        )
        async with self._weights() as (version, lora):
            one = (await self._ask(ids, asked, lora)).outputs[0]
            tokens = list(one.token_ids)
            drawn = [row[i].logprob for i, row in zip(tokens, one.logprobs, strict=True)]
            own = drawn if plain else (await self._score([*ids, *tokens], lora))[len(ids) - 1 :]
            if greedy:  # what vLLM gives are those at temperature 1, of tokens that were certain
                drawn = [0.0] * len(tokens)
        finish, stop = _ending(one, tokens, params["eos_ids"])
        return {
            "ids": tokens,
            "logprobs": own,
            "sampled": None if plain and not greedy else drawn,
            "finish": finish,
            "stop": stop,
            "version": version,
        }

    async def score(self, ids: list[int]) -> list[float]:
        """Log-probabilities of `ids[1:]` at temperature 1."""
        if len(ids) < 2:
            return []
        async with self._weights() as (_, lora):
            return await self._score(ids, lora)

    async def _score(self, ids: list[int], lora: Any) -> list[float]:
        from vllm import SamplingParams

        asked = SamplingParams(prompt_logprobs=0, max_tokens=1, detokenize=False)
        made = await self._ask(ids, asked, lora)
        return [row[i].logprob for i, row in zip(ids[1:], made.prompt_logprobs[1:], strict=True)]

    async def _ask(self, ids: list[int], params: Any, lora: Any) -> Any:
        """The engine's answer, once it is whole: what comes token by token costs it more."""
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        last, name, prompt = None, str(next(self._ids)), {"prompt_token_ids": ids}
        async for made in self.engine.generate(prompt, params, name, lora_request=lora):
            last = made
        return last

    @contextlib.asynccontextmanager
    async def _weights(self) -> AsyncIterator[tuple[int, Any]]:
        """The version and the adapter, which stay what they are while the block runs. Raises
        RuntimeError where the weights are not whole."""
        while not self._ready.is_set():
            await self._ready.wait()
        if self.broken:
            raise RuntimeError(self.broken)
        self._in_flight += 1
        self._idle.clear()
        try:
            yield self.version, self.lora
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set()

    async def update(self, source: dict[str, Any], seconds: float) -> int:
        """Take new weights from `source`: `{"kind": "file" | "gloo" | "nccl" | "ipc", ...}` (see
        `vllm_transport`; every weight by its name in the model's checkpoint), `{"kind": "adapter",
        "path"}` (a LoRA folder), or `{"kind": "none"}`.

        Requests in flight end with the weights that they began with, later ones wait; every cache
        that the old weights made is dropped. Whole weights end the use of an adapter. Returns the
        new version.

        Raises TimeoutError after `seconds`. An update that fails, or whose trainer hangs up, before
        all weights have arrived changes nothing. If the engine had begun to load them, it samples
        no more until it has got whole weights.
        """
        async with self._updating:
            self._ready.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._take(source, seconds)
                self.version += 1
            except TimeoutError as error:
                raise TimeoutError(f"{self._doing} took over {seconds:g} s") from error
            finally:
                self._ready.set()
        return self.version

    async def _take(self, source: dict[str, Any], seconds: float) -> None:
        self._doing = "waiting for the requests in flight"
        await self._idle.wait()
        if source["kind"] == "adapter":
            await self._adapt(source["path"])
            return
        try:
            await self.engine.pause_generation(mode="wait")  # drops the caches, too
            if source["kind"] != "none":
                await self._replace(source, seconds)
        finally:
            await self.engine.resume_generation()

    async def _adapt(self, path: str) -> None:
        """Sample with the adapter in the folder `path`, which is read here and now.

        Its number is part of the keys of cached blocks, and never used again: what vLLM holds under
        a number it does not read another time. It has room for one adapter, and would look for the
        former one's folder if requests still needed that.
        """
        from vllm.lora.request import LoRARequest

        self._doing = "loading the adapter"
        number = next(self._adapters)
        lora = LoRARequest(f"adapter-{number}", number, path)
        await self.engine.add_lora(lora)
        self.lora = lora

    async def _replace(self, source: dict[str, Any], seconds: float) -> None:
        self._doing = "receiving the weights"
        await self.engine.collective_rpc("agentrl_receive", args=(source, seconds))
        self._doing = "loading the weights"
        self.broken = "weights are being loaded"
        try:
            await self.engine.collective_rpc("agentrl_load")
        except BaseException as error:
            why = "the trainer hung up or the time was over" if not str(error) else str(error)
            self.broken = (
                f"the engine has part old, part new weights since version {self.version}, as an "
                f"update broke off while they were loaded ({type(error).__name__}: {why}): send "
                "whole weights again"
            )
            raise
        self.broken = ""
        self.lora = None

    async def close(self) -> None:
        """End the engine's processes."""
        self.engine.shutdown()


def _ending(one: Any, tokens: list[int], eos_ids: list[int]) -> tuple[str, str | None]:
    if tokens and tokens[-1] in set(eos_ids):
        return "eos", None
    if one.finish_reason == "stop" and isinstance(one.stop_reason, str):
        return "stop", one.stop_reason
    return "length", None

"""HFPolicy: sampling and scoring on a transformers causal LM, batched continuously.

What this engine does:

- Any number of concurrent `sample` and `score` calls share each forward; a request joins at the
  next step and leaves as soon as it is done. The torch work runs in one thread of the policy's own.
- Tokens of all requests are packed into one row without padding; keys and values live in
  preallocated slots that are written in place (`hf_slots`, `hf_attention`).
- A finished request's slot is kept. A prompt that continues it computes only what is new, one that
  shares a prefix with any slot (busy or not) copies those rows, and equal prompts that come at the
  same time (a group) are computed once. So are the log-probabilities of what is scored.
- The model's module tree is viewed, not changed (`hf_view`): the policy and a trainer can share one
  model object in one process.

Exactness. `Completion.logprobs` are the log-softmax in fp32 at temperature 1 of the logits that the
token was drawn from. A request's `seed` starts a stream of uniform numbers, one a token, mapped
through the inverse distribution function, so the draw does not depend on what else is in the batch;
the logits themselves do, by rounding (about 1e-6 relative in fp32), as with any batched engine. In
fp32, `score`, `sample` and a plain forward agree to 1e-4 nats; in bf16 to about 0.05.

Stop strings are matched on the text that the tokenizer's `decode` shows for the sampled tokens,
special tokens included; the prompt's text does not count. The token that completes a stop string is
kept whole, even if characters follow in it.

An `update` waits for the requests that came before it and holds back those that come after it, so
every completion is of one version, which it reports.

What it does on which device, and why, is in `hf_device`. Why not transformers' own continuous
batching (5.19): it gives log-probabilities, runs on a CPU, and a persistent manager keeps full
blocks of keys and values for later prompts. But it has one seed for all requests, so that a draw
depends on what else is in the batch, and no stop strings. Speed alone would not decide: for 16
unrelated prompts of 121 tokens and 24 new ones each (SmolLM2-135M, fp32, one thread, one process on
a shared machine) it gave 28 tokens per CPU second, start-up included, `generate` 34 to 38, this
engine 65 (without packed weights, then).
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from agentrl.engines import hf_attention, hf_view
from agentrl.engines.hf_engine import Engine, HFStats
from agentrl.engines.hf_probe import probe
from agentrl.engines.hf_requests import Barrier, Outcome, Request
from agentrl.engines.hf_sampling import StopFinder
from agentrl.engines.hf_slots import SlotCache
from agentrl.errors import ConfigError, EngineError, unknown
from agentrl.interfaces import Tokenizer
from agentrl.types import Completion, SamplingParams

log = logging.getLogger(__name__)


class HFPolicy:
    """A policy on a transformers causal LM. See the module's docstring for what it promises.

    `model` is a transformers or peft model on one device; `tokenizer` an agentrl tokenizer.
    `max_batch` bounds the requests of one forward, `cache_slots` (at least `max_batch`) the
    sequences whose keys and values are kept. `max_context` counts prompt and completion together
    and defaults to the model's own. `step_tokens` bounds the prompt tokens of one forward: less
    means shorter waits for the others. `kv_memory_gb` (GiB) bounds keys and values, by default half
    of the memory now free. `threads` sets torch's thread count inside the worker thread (None
    leaves it). `onednn` uses oneDNN for large linear layers on CPUs, on packed copies of their
    weights where there is memory: up to 3 times as fast as torch's default, and other by rounding.
    Weights that are changed in place are sampled from after `refresh`. Without `prefix_cache` every
    prompt is computed whole, which shows what the cache saves. `check` compares the engine with the
    model's plain forward once, on a few random tokens.

    Raises ConfigError for a model that the engine cannot serve exactly.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str = "hf",
        max_batch: int = 64,
        cache_slots: int | None = None,
        max_context: int | None = None,
        step_tokens: int = 512,
        kv_memory_gb: float | None = None,
        threads: int | None = None,
        onednn: bool = True,
        prefix_cache: bool = True,
        check: bool = True,
    ) -> None:
        self._options: dict[str, Any] = {
            "max_batch": max_batch,
            "cache_slots": cache_slots,
            "max_context": max_context,
            "step_tokens": step_tokens,
            "kv_memory_gb": kv_memory_gb,
            "threads": threads,
            "onednn": onednn,
            "prefix_cache": prefix_cache,
            "check": check,
        }
        if max_batch < 1 or step_tokens < 1:
            raise ConfigError(f"max_batch={max_batch}, step_tokens={step_tokens}: at least 1 each")
        config = getattr(model, "config", None)
        if config is None:
            raise ConfigError(f"{type(model).__name__} has no config; use a transformers model")
        hf_view.check_config(config)
        text = hf_view.text_config(config)
        own = int(getattr(text, "max_position_embeddings", 0) or 0)
        if max_context is not None and own and max_context > own:
            raise ConfigError(f"max_context={max_context}, but the model has {own} positions")
        self.name = name
        self.tokenizer = tokenizer
        self.model = model
        self.max_context = max_context or own or 2048
        self._onednn = onednn
        self._threads = threads
        device = next(model.parameters()).device
        hf_attention.register()
        view = hf_view.make_view(model, onednn=onednn)
        cache = SlotCache(
            max_slots=max(max_batch, cache_slots or 0),
            max_context=self.max_context,
            budget_bytes=_budget(kv_memory_gb, device),
        )
        self._engine = Engine(
            view,
            device=device,
            vocab_size=int(text.vocab_size),
            eos_ids=frozenset(tokenizer.eos_ids),
            max_context=self.max_context,
            max_batch=max_batch,
            cache=cache,
            step_tokens=step_tokens,
            prefix_cache=prefix_cache,
        )
        probe(model, self._engine, compare=check)
        self._wake = threading.Condition()
        self._inbox: deque[Request | Barrier] = deque()
        self._thread: threading.Thread | None = None
        self._in_flight = 0
        self._idle = True
        self._closed = False

    # --- the Policy protocol --------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Counts weight updates."""
        return self._engine.version

    @property
    def stats(self) -> HFStats:
        """A copy of the counts so far."""
        return dataclasses.replace(self._engine.stats)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """See `agentrl.interfaces.Policy.sample`. Cancelling the call frees its row.

        Raises ValueError for an empty or too long prompt or senseless parameters, ConfigError (a
        ValueError) for ids outside the vocabulary, EngineError if the engine fails (it stays
        usable) or is closed.
        """
        ids = self._check_ids(prompt_ids, "prompt")
        _check_params(params)
        if params.max_tokens == 0 or len(ids) == self.max_context:
            return Completion((), (), "length", self.version)
        finder = None
        if any(params.stop):
            finder = StopFinder(self.tokenizer.decode, params.stop, ids)
        outcome = await self._ask(lambda done: Request(ids, params, done, finder))
        assert isinstance(outcome, Completion)
        return outcome

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """Log-probabilities (nats) of `token_ids[1:]`, length T-1, in fp32 at temperature 1.

        Raises as `sample` does.
        """
        ids = self._check_ids(token_ids, "sequence")
        if len(ids) == 1:
            return []
        outcome = await self._ask(lambda done: Request(ids, None, done))
        assert isinstance(outcome, list)
        return outcome

    async def top(self, token_ids: Sequence[int], k: int) -> list[tuple[int, float]]:
        """The `k` likeliest tokens after `token_ids`; see `agentrl.interfaces.Ranks`.

        Raises as `sample` does.
        """
        ids = self._check_ids(token_ids, "prompt")
        if k < 1:
            raise ValueError(f"the {k} likeliest tokens: ask for 1 at least")
        outcome = await self._ask(lambda done: Request(ids, SamplingParams(1), done, top=k))
        assert isinstance(outcome, list)
        return outcome

    async def update(self, weights: Mapping[str, Any]) -> None:
        """Copy `weights` (names of `model.state_dict()`, some or all) into the model in place.

        Waits for the requests made before it; those made after it see the new weights. Raises
        ConfigError for unknown names or wrong shapes, before anything is changed.
        """
        own = dict(self.model.state_dict(keep_vars=True))
        for key, value in weights.items():
            if key not in own:
                raise unknown("weight", key, own)
            if tuple(own[key].shape) != tuple(value.shape):
                raise ConfigError(
                    f"weight {key!r} has shape {tuple(value.shape)}, not {tuple(own[key].shape)}"
                )

        def work() -> None:
            with torch.no_grad():
                for key, value in weights.items():
                    own[key].copy_(torch.as_tensor(value))
            if weights:
                self._look_again()
            self._new_version()

        await self._ask(lambda done: Barrier(work, done))

    def refresh(self, version: int | None = None) -> None:
        """The weights of `model` were changed in place (trained): drop all caches, count up.

        `version` is the new count instead: a resumed run goes on with the one it had.

        Also takes up changes of the module tree, such as adapters added, merged or switched.
        Raises EngineError while requests are in flight: they would mix two versions.
        """
        with self._wake:
            if self._in_flight:
                raise EngineError(
                    f"refresh() with {self._in_flight} requests in flight: await them first"
                )
            while not self._idle:  # the worker's last step is ending, or drops cancelled requests
                self._wake.wait()
            self._look_again()
            self._new_version()
            if version is not None:
                self._engine.version = version

    async def over(self, model: nn.Module) -> HFPolicy:
        """Close this policy; one over another model (trained, or with an adapter), a version on and
        with the same options."""
        version = self.version
        await self.close()
        policy = HFPolicy(model, self.tokenizer, name=self.name, **self._options)
        policy.refresh(version=version + 1)
        return policy

    async def close(self) -> None:
        """End the worker thread; requests in flight get EngineError. Calling it twice is fine."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
            thread = self._thread
        if thread is not None:
            await asyncio.to_thread(thread.join)
        self._engine.cache.flush()

    # --- between the event loop and the worker thread -------------------------------------------

    async def _ask(self, make: Callable[[Callable[[Any], None]], Request | Barrier]) -> Any:
        """Hand a job to the worker and wait for its outcome."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def deliver(outcome: Outcome | None) -> None:
            if future.done():
                return
            if isinstance(outcome, BaseException):
                future.set_exception(_as_engine_error(outcome))
            else:
                future.set_result(outcome)

        def done(outcome: Outcome | None) -> None:
            try:
                loop.call_soon_threadsafe(deliver, outcome)
            except RuntimeError:
                pass  # the loop was closed while we worked: nobody waits any more

        job = make(done)
        with self._wake:
            if self._closed:
                raise EngineError(f"policy {self.name!r} is closed; make a new one")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"agentrl-{self.name}", daemon=True
                )
                self._thread.start()
            self._in_flight += 1
            self._idle = False
            self._inbox.append(job)
            self._wake.notify_all()
        try:
            return await future
        finally:
            if isinstance(job, Request) and (future.cancelled() or not future.done()):
                job.cancelled = True
            with self._wake:
                self._in_flight -= 1

    def _work(self) -> None:
        """The worker thread: steps while there is work, sleeps otherwise."""
        engine = self._engine
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while True:
            with self._wake:
                while not (self._inbox or engine.busy or self._closed):
                    self._idle = True
                    self._wake.notify_all()
                    self._wake.wait()
                self._idle = False
                engine.waiting.extend(self._inbox)
                self._inbox.clear()
                closed = self._closed
            if closed:
                engine.fail(EngineError(f"policy {self.name!r} was closed"))
                with self._wake:
                    self._idle = True
                    self._wake.notify_all()
                return
            try:
                engine.step()
            except Exception as error:
                log.exception("step failed; every request gets an EngineError")
                engine.fail(error)

    def _look_again(self) -> None:
        """A new view: of the model's weights and modules as they are now."""
        self._engine.view = hf_view.make_view(self.model, onednn=self._onednn)

    def _new_version(self) -> None:
        self._engine.flush()
        self._engine.version += 1

    def _check_ids(self, ids: Sequence[int], what: str) -> list[int]:
        ids = [int(i) for i in ids]
        if not ids:
            raise ValueError(f"empty {what}: give at least one token")
        if len(ids) > self.max_context:
            raise ValueError(
                f"the {what} has {len(ids)} tokens, but max_context is {self.max_context}. Shorten "
                "it, or make the policy with a larger max_context if the model has the positions."
            )
        if min(ids) < 0 or max(ids) >= self._engine.vocab_size:
            raise ConfigError(
                f"the {what} has token {max(ids) if min(ids) >= 0 else min(ids)}, but the "
                f"vocabulary of {self.name!r} has {self._engine.vocab_size} tokens: the ids are of "
                "another tokenizer. Use the one that belongs to the model."
            )
        return ids


def _check_params(params: SamplingParams) -> None:
    if params.max_tokens < 0 or params.temperature < 0 or params.top_k < 0:
        raise ValueError(f"max_tokens, temperature and top_k must not be negative: {params}")
    if not 0 < params.top_p <= 1:
        raise ValueError(f"top_p={params.top_p}: it must be above 0 and at most 1")


def _as_engine_error(error: BaseException) -> Exception:
    if isinstance(error, (EngineError, ConfigError)):
        return error
    wrapped = EngineError(
        f"{type(error).__name__} in the model: {error}. The engine dropped its caches and can be "
        "used again."
    )
    wrapped.__cause__ = error
    return wrapped


def _budget(kv_memory_gb: float | None, device: torch.device) -> int:
    """Bytes for keys and values."""
    if kv_memory_gb is not None:
        return int(kv_memory_gb * 2**30)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    import psutil

    return int(psutil.virtual_memory().available) // 2

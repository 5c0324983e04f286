"""A policy whose model is trained here, while an engine elsewhere samples from the same weights."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentrl.engines.vllm import sync
from agentrl.engines.vllm.policy import VLLMPolicy, difference, self_test
from agentrl.errors import AgentRLWarning, ConfigError, EngineError, unknown
from agentrl.interfaces import Tokenizer
from agentrl.types import Completion, SamplingParams

TOLERANCE = {"torch.float32": 0.01}
"""By how much (nats) the engine's log-probabilities may differ from the trainer's, by its dtype."""
TOLERANCE_HALF = 0.3
"""The same in 16 bits."""


class MirroredPolicy:
    """What recipes take for an `HFPolicy`: they train `model`, and call `refresh` when it changed.

    The next sample then sends the weights to the engine of `sampler` first; if that fails, so does
    every sample until the next `refresh`. An engine with
    `enable_lora` gets a LoRA adapter alone, every other one whole weights, adapters merged into a
    copy. The first time it is tested that they arrive (`self_test`). `load` makes the model when it
    is first asked for: who only samples never has it, unless the engine's weights are not its own
    (an earlier client's, or those of what it `serves` instead).

    Versions are counted here; a completion has that of the weights it was sampled from.
    """

    def __init__(self, sampler: VLLMPolicy, load: Callable[[], Any], serves: str = "") -> None:
        self.sampler, self._load = sampler, load
        self.name = sampler.name
        self.tokenizer: Tokenizer = sampler.tokenizer
        self.max_context = sampler.max_context
        self._model: Any = None
        self._version = 0
        self._versions = {sampler.version: 0}
        self._tested, self._failed = False, ""
        facts = sampler.engine.facts()
        self._stale = bool(facts["version"] or facts.get("broken"))
        has = f"weights that an earlier client sent (version {facts['version']})"
        if serves and not self._stale:
            self._stale, has = True, f"the weights of {serves}"
        if self._stale:
            warnings.warn(
                f"the engine has {has}: those of the model that was asked for are sent first",
                category=AgentRLWarning,
                stacklevel=3,
            )
        self._syncing: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    @property
    def version(self) -> int:
        """Counts weight updates."""
        return self._version

    @property
    def model(self) -> Any:
        """The model that is trained."""
        if self._model is None:
            self._model = self._load()
        return self._model

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """See `VLLMPolicy.sample`."""
        await self._sync()
        made = await self.sampler.sample(prompt_ids, params)
        if made.policy_version not in self._versions:
            raise EngineError(
                f"the engine has weights of a version {made.policy_version} that did not come from "
                "here: one engine serves one trainer"
            )
        return dataclasses.replace(made, policy_version=self._versions[made.policy_version])

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """See `VLLMPolicy.score`."""
        await self._sync()
        return await self.sampler.score(token_ids)

    async def update(self, weights: Mapping[str, Any]) -> None:
        """Copy `weights` (names of `model.state_dict()`, some or all) into the model, and send all
        of it with the next sample. Raises ConfigError for a name or shape that it does not have."""
        if weights:
            import torch

            own = dict(self.model.state_dict(keep_vars=True))
            for name, value in weights.items():
                if name not in own:
                    raise unknown("weight", name, own)
                if tuple(own[name].shape) != tuple(value.shape):
                    raise ConfigError(f"weight {name!r} has another shape than the model's")
            with torch.no_grad():
                for name, value in weights.items():
                    own[name].copy_(value)
            self.refresh()
        else:
            await self.sampler.update({})
            self._version += 1
            self._versions[self.sampler.version] = self._version

    def refresh(self, version: int | None = None) -> None:
        """The weights of `model` were changed in place (trained): count up, send them with the next
        sample. `version` is the new count instead."""
        self._version = self._version + 1 if version is None else version
        self._stale, self._failed = True, ""

    async def over(self, model: Any) -> MirroredPolicy:
        """The same over another model with the same base (trained, or with an adapter)."""
        self._model = model
        self.refresh()
        return self

    async def close(self) -> None:
        """End the engine, if it is ours; `model` stays. Calling it twice is fine."""
        await self.sampler.close()

    async def _sync(self) -> None:
        loop = asyncio.get_running_loop()
        if self._syncing is None or self._syncing[0] is not loop:
            self._syncing = (loop, asyncio.Lock())
        async with self._syncing[1]:
            if not self._stale:
                return
            if self._failed:  # for all who wait: an update takes long, and each would try again
                raise EngineError(self._failed)
            version = self._version
            try:
                await self._send()
            except (EngineError, ConfigError) as error:
                self._failed = str(error)
                raise
            self._versions[self.sampler.version] = version
            self._stale = self._version != version

    async def _send(self) -> None:
        model, sampler = self.model, self.sampler
        limit = TOLERANCE.get(str(model.dtype), TOLERANCE_HALF)
        if hasattr(model, "peft_config"):
            if sampler.engine.facts().get("lora"):
                await self._send_adapter(model)
                return
            model = copy.deepcopy(model).merge_and_unload()
        tested, self._tested = self._tested, False  # again, after one that failed
        if tested:
            await sampler.update(sync.weights_of(model))
        else:
            await self_test(sampler, model, tolerance=limit)
        self._tested = True

    async def _send_adapter(self, model: Any) -> None:
        if hasattr(model, "initial_adapter"):
            raise ConfigError(
                "this adapter began as part of the base model (PiSSA and its like), which the "
                "engine's is not: leave enable_lora out, so that merged weights are sent"
            )
        engines = getattr(self.sampler.engine, "folder", None)  # goes, too, if we are killed
        with tempfile.TemporaryDirectory(prefix="agentrl-adapter-", dir=engines) as folder:
            model.save_pretrained(folder)
            await self.sampler.update_adapter(folder)
        if self._tested:
            return
        off = await difference(self.sampler, model)
        limit = TOLERANCE.get(str(model.dtype), TOLERANCE_HALF)
        if off > limit:
            raise EngineError(
                f"the adapter does not work in the engine as here: log-probabilities differ by "
                f"{off:.2g} nats (at most {limit:g} expected)"
            )
        self._tested = True

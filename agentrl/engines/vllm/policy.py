"""The policy over an engine, wherever that runs, and the ways to reach one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

from agentrl.engines.vllm import sync
from agentrl.errors import ConfigError, EngineError
from agentrl.interfaces import Tokenizer
from agentrl.types import Completion, FinishReason, SamplingParams

TEXT = """\
Once upon a time a small model learned to use tools. What is 17 * 24? It wrote:

def product(a, b):
    return a * b

and the answer was 408. The quick brown fox jumps over the lazy dog, again and again."""
"""What engine and trainer are compared on. Tokens that no text has would not do: their
log-probabilities are badly conditioned, up to 0.013 nats apart in fp32 after a little training."""


class Engine(Protocol):
    """What `inside.vllm_core.Core` does, here or over HTTP."""

    def facts(self) -> dict[str, Any]: ...

    async def sample(self, ids: list[int], params: dict[str, Any]) -> dict[str, Any]: ...

    async def score(self, ids: list[int]) -> list[float]: ...

    async def update(self, source: dict[str, Any], seconds: float) -> int: ...

    async def close(self) -> None: ...


class VLLMPolicy:
    """A policy on vLLM.

    `engine` is a `Server`'s client or a `Core` in this process. `max_context` may be less than the
    engine's own. `sync_s` bounds an update of the weights in seconds; `via` is how they go
    there (`agentrl.engines.vllm.sync`).

    Every request has its own seed, cancelling a call frees its place in the engine. Log-
    probabilities at another temperature than 1, or with top-p or top-k, take a second pass.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        name: str = "vllm",
        max_context: int | None = None,
        via: sync.Via = "memory",
        sync_s: float = 300.0,
    ) -> None:
        facts = engine.facts()
        own = int(facts["max_context"])
        if max_context is not None and max_context > own:
            raise ConfigError(f"max_context={max_context}, but the engine was made for {own}")
        if tokenizer.vocab_size > int(facts["vocab_size"]):
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the engine's model only "
                f"{facts['vocab_size']}: they do not belong together"
            )
        self.name, self.tokenizer, self.engine = name, tokenizer, engine
        self.max_context = max_context or own
        self.version = int(facts["version"])
        self.via, self.sync_s = via, sync_s
        self._names: frozenset[str] | None = None
        self._closed = False

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """See `agentrl.interfaces.Policy.sample`.

        Raises ValueError for an empty or too long prompt or senseless parameters, EngineError if
        the engine fails or is closed.
        """
        ids = self._checked(prompt_ids)
        if params.max_tokens < 0 or params.temperature < 0 or params.top_k < 0:
            raise ValueError(f"max_tokens, temperature and top_k must not be negative: {params}")
        if not 0 < params.top_p <= 1:
            raise ValueError(f"top_p={params.top_p}: it must be above 0 and at most 1")
        room = min(params.max_tokens, self.max_context - len(ids))
        if room == 0:
            return Completion((), (), "length", self.version)
        asked = {
            "max_tokens": room,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "top_k": params.top_k,
            "stop": [s for s in params.stop if s],
            "seed": params.seed,
            "eos_ids": sorted(self.tokenizer.eos_ids),
        }
        made = await self._asked(self.engine.sample(ids, asked))
        return _completion(made, self.tokenizer.vocab_size)

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """See `agentrl.interfaces.Policy.score`."""
        ids = self._checked(token_ids)
        made = await self._asked(self.engine.score(ids))
        if not _numbers(made, len(ids) - 1):
            raise EngineError(f"{len(ids) - 1} log-probabilities were expected: {_shown(made)}")
        return [float(x) for x in made]

    async def update(self, weights: Mapping[str, Any]) -> None:
        """Give the engine new weights: all of the model's, by their names in its checkpoint
        (`agentrl.engines.vllm.sync.weights_of`); none at all drops its caches and counts up.

        Requests made before end with the weights they began with. Raises EngineError if the engine
        refuses them or is not done in time; its own error is in the message. Raises ConfigError
        for other weights than those of an earlier update: what is left out would stay old.
        """
        names = frozenset(weights)
        if weights and self._names not in (None, names):
            odd = sorted(names ^ (self._names or names))
            raise ConfigError(
                f"an update sends every weight, the earlier one had others: {', '.join(odd[:5])}"
            )
        self._names = names or self._names
        self.version = await self._asked(
            sync.send(self.engine, weights, via=self.via, seconds=self.sync_s)
        )

    async def update_adapter(self, folder: str | Path) -> None:
        """Switch to the LoRA adapter in `folder` (peft's), for an engine with `enable_lora`."""
        source = {"kind": "adapter", "path": str(Path(folder).resolve())}
        self.version = await self._asked(self.engine.update(source, self.sync_s))

    async def close(self) -> None:
        """End the engine, if it is ours. Calling it twice is fine."""
        if not self._closed:
            self._closed = True
            await self.engine.close()

    def _checked(self, token_ids: Sequence[int]) -> list[int]:
        if self._closed:
            raise EngineError(f"policy {self.name!r} is closed; make a new one")
        ids = [int(i) for i in token_ids]
        if not ids:
            raise ValueError("no tokens: give at least one")
        if len(ids) > self.max_context:
            raise ValueError(f"{len(ids)} tokens, but max_context is {self.max_context}")
        if not 0 <= min(ids) <= max(ids) < self.tokenizer.vocab_size:
            raise ConfigError(
                f"an id outside the vocabulary of {self.tokenizer.vocab_size}: was it made by "
                "another tokenizer?"
            )
        return ids

    async def _asked(self, work: Any) -> Any:
        """The engine's answer; whatever it raises becomes an EngineError."""
        try:
            return await work
        except (EngineError, ConfigError, asyncio.CancelledError):
            raise
        except TimeoutError as error:
            raise EngineError(f"the engine did not answer in time ({error})") from error
        except Exception as error:
            raise EngineError(f"{type(error).__name__} in vLLM: {error}") from error


def _completion(made: Any, vocab_size: int) -> Completion:
    """The engine's answer. Raises EngineError if it is none."""
    try:
        ids, drawn = tuple(made["ids"]), made["sampled"]
        good = (
            all(type(i) is int and 0 <= i < vocab_size for i in ids)
            and _numbers(made["logprobs"], len(ids))
            and (drawn is None or _numbers(drawn, len(ids)))
            and made["finish"] in get_args(FinishReason)
            and type(made["version"]) is int
        )
        if not good:
            raise ValueError("its parts do not fit")
        return Completion(
            ids,
            tuple(made["logprobs"]),
            made["finish"],
            made["version"],
            made["stop"],
            None if drawn is None else tuple(drawn),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise EngineError(f"no completion ({error!r}): {_shown(made)}") from error


def _numbers(values: Any, count: int) -> bool:
    """Whether they are `count` log-probabilities: finite, and at most 0 but for rounding."""
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(isinstance(x, int | float) and -math.inf < x < 1e-3 for x in values)
    )


def _shown(answer: Any) -> str:
    return f"the engine's answer was {str(answer)[:200]}"


async def difference(policy: VLLMPolicy, model: Any) -> float:
    """The largest difference (nats) of a log-probability in the engine and in `model`, over the
    tokens of `TEXT`."""
    import torch

    place = next(model.parameters()).device
    ids = policy.tokenizer.encode(TEXT)[: policy.max_context]
    training = model.training
    with torch.no_grad():
        logits_TV = model.eval()(torch.tensor([ids], device=place)).logits[0]
    model.train(training)
    logprobs_TV = logits_TV.float().log_softmax(-1)
    expected = [float(logprobs_TV[t, i]) for t, i in enumerate(ids[1:])]
    return max(abs(a - b) for a, b in zip(expected, await policy.score(ids), strict=True))


async def self_test(policy: VLLMPolicy, model: Any, *, tolerance: float) -> None:
    """Check that weights arrive, all of them: after an update with the weights of `model`, with
    changed ones, and with its own again, the engine's log-probabilities are those of `model` with
    the same weights, to `tolerance` nats (in bf16 about 0.1).

    `model` has its weights again afterwards. Raises EngineError if the engine has others.
    """
    import torch

    kept = {n: w.clone() for n, w in sync.weights_of(model).items()}
    own = dict(model.named_parameters())
    found = []
    try:
        for factor in (1.0, 1.1, 1.0):
            with torch.no_grad():
                for name, parameter in own.items():
                    if name in kept:
                        parameter.copy_(kept[name] * factor)
            await policy.update(sync.weights_of(model))
            found.append(await difference(policy, model))
    finally:
        with torch.no_grad():
            for name, parameter in own.items():
                if name in kept:
                    parameter.copy_(kept[name])
    if max(found) > tolerance:
        shown = ", ".join(f"{x:.2g}" for x in found)
        raise EngineError(
            "weights do not arrive in the engine as they should: its log-probabilities differ from "
            f"the trainer's by {shown} nats with the same, changed and the same weights again (at "
            f"most {tolerance:g} expected)"
        )

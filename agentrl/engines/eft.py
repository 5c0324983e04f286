"""Emulated fine-tuning (arXiv 2310.12962): a large model moved as fine-tuning moved a small one.

`EFT` is a causal LM made of others: at each token `log p = log p_base + beta (log p_tuned -
log p_untuned)`, normalised. A base larger than the tuned model is up-scaling; a smaller one
emulates fine-tuning at scale. `HFPolicy(EFT(...), tokenizer)` serves it as any model, with keys and
values of all of them in its cache; by name it is `load_policy("eft:BASE", tuned=..., untuned=...)`.

Axes in names: V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from agentrl.engines import hf_view
from agentrl.engines.models import load_model, load_tokenizer
from agentrl.errors import ConfigError

EXCLUDED = -1e4
"""The log-probability of what is left out: no chance, but a number."""


def emulated(
    base_V: Tensor,
    tuned_V: Sequence[Tensor],
    untuned_V: Tensor,
    *,
    beta: float = 1.0,
    weights: Sequence[float] = (1.0,),
    top_p: float = 1.0,
) -> Tensor:
    """Log-probabilities (nats, fp32) of the emulated model, from logits of the others `[..., V]`.

    `log p_base + beta * (sum of weights * log p_tuned - log p_untuned)`, the weights with a sum of
    1, over the fewest tokens that have `top_p` of the base's probability (the others could be
    raised by a ratio of two tiny numbers); those left out have -1e4. A token that the untuned model
    excludes (-inf: filled up columns) keeps the base's odds.
    """
    base_V, untuned_V = (x.float().log_softmax(-1) for x in (base_V, untuned_V))
    both = zip(weights, tuned_V, strict=True)
    tuned = sum(w * x.float().log_softmax(-1) for w, x in both if w)
    delta_V = torch.where(untuned_V.isfinite(), tuned - untuned_V, 0.0)
    sum_V = base_V + (beta * delta_V if beta else 0.0)
    if top_p < 1.0:
        sorted_V, order_V = base_V.exp().sort(dim=-1, descending=True)
        before_V = sorted_V.cumsum(-1) - sorted_V
        out_V = torch.zeros_like(base_V, dtype=torch.bool)
        out_V = out_V.scatter(-1, order_V, before_V >= top_p)
        sum_V = sum_V.masked_fill(out_V, -torch.inf)
    return sum_V.log_softmax(-1).clamp(min=EXCLUDED)


class EFT(nn.Module):
    """A causal LM of a `base`, one `tuned` model or several, and the `untuned` one they come from.

    Several tuned models are blended by `weights` (with a sum of 1; equal by default): helpful so
    far, harmless for the rest. `beta` is the strength, `top_p` the share of the base's probability
    that is moved at all. Temperature and the like are applied afterwards, to the emulated
    distribution. Raises ConfigError for models that do not go together.
    """

    def __init__(
        self,
        base: nn.Module,
        tuned: nn.Module | Sequence[nn.Module],
        untuned: nn.Module,
        *,
        beta: float = 1.0,
        weights: Sequence[float] | None = None,
        top_p: float = 0.95,
    ) -> None:
        super().__init__()
        several = [tuned] if isinstance(tuned, nn.Module) else list(tuned)
        share = [1 / len(several)] * len(several) if weights is None else list(weights)
        if len(share) != len(several) or abs(sum(share) - 1) > 1e-6:
            raise ConfigError(
                f"EFT: {len(several)} tuned models and weights {share}; their sum is 1"
            )
        if not 0 < top_p <= 1:
            raise ConfigError(f"EFT: top_p is above 0 and at most 1, not {top_p}")
        self.models = nn.ModuleList([base, *several, untuned])
        self.beta, self.weights, self.top_p = beta, tuple(share), top_p
        texts = [hf_view.text_config(model.config) for model in self.models]
        for config in texts:
            hf_view.check_config(config)
        if len({(p.device, p.dtype) for model in self.models for p in model.parameters()}) > 1:
            raise ConfigError("EFT: load all models with one dtype, on one device")
        self.config: Any = copy.deepcopy(base.config)
        own = hf_view.text_config(self.config)
        own.vocab_size = min(config.vocab_size for config in texts)
        own.max_position_embeddings = min(config.max_position_embeddings for config in texts)

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, **inputs: Any
    ) -> SimpleNamespace:
        """`logits` (log-probabilities, `[B, T, V]`) of the emulated model for `[B, T]` ids.

        `inputs` go to every model; a cache is shared by all, each in layers of its own.
        """
        found, first = [], 0
        for model in self.models:
            cache = None if past_key_values is None else _Layers(past_key_values, first)
            made = model(input_ids=input_ids, past_key_values=cache, **inputs)
            found.append(made.logits[..., : hf_view.text_config(self.config).vocab_size])
            first += hf_view.text_config(model.config).num_hidden_layers
        base, *tuned, untuned = found
        options = {"beta": self.beta, "weights": self.weights, "top_p": self.top_p}
        return SimpleNamespace(logits=emulated(base, tuned, untuned, **options))  # type: ignore[arg-type]


def load_eft(
    base: str,
    *,
    tuned: str | Sequence[str],
    untuned: str,
    beta: float = 1.0,
    top_p: float = 0.95,
    dtype: Any = "auto",
    device: str = "auto",
) -> tuple[EFT, Any]:
    """The models of these names as one, and the transformers tokenizer of the (first) tuned one,
    whose chat template is what it was tuned on. Raises ConfigError if their vocabularies differ."""
    several = [tuned] if isinstance(tuned, str) else list(tuned)
    tokenizer = load_tokenizer(several[0])
    for name in {base, *several[1:], untuned} - {several[0]}:
        if load_tokenizer(name, chat=False).get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"EFT: {name!r} has another vocabulary than {several[0]!r}; its token ids mean "
                "something else. Take models of one family."
            )
    loaded = {name: load_model(name, dtype, device) for name in {base, *several, untuned}}
    models = loaded[base], [loaded[name] for name in several], loaded[untuned]
    return EFT(*models, beta=beta, top_p=top_p), tokenizer


class _Layers(Cache):  # type: ignore[misc]
    """The layers of another cache from number `first` on."""

    def __init__(self, cache: Any, first: int) -> None:
        super().__init__(layers=[])
        self.cache, self.first = cache, first

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        """As the other cache's, of the layer that this one is there."""
        return self.cache.update(key_states, value_states, self.first + layer_idx, *args, **kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """As the other cache's."""
        return int(self.cache.get_seq_length(self.first + layer_idx))

    @property
    def is_compileable(self) -> bool:
        """False, as of the cache behind it."""
        return False

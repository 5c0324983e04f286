"""New special tokens for a model: in its tokenizer, and in its embedding matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from agentrl.chat import HFTokenizer
from agentrl.engines.hf import HFPolicy
from agentrl.errors import ConfigError
from agentrl.interfaces import TrainedPolicy


def missing_tokens(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Those of `texts` that are not one token each of an agentrl tokenizer."""
    return [text for text in texts if len(tokenizer.encode(text)) != 1]


async def with_tokens(
    policy: TrainedPolicy, texts: Sequence[str], *, seed: int = 0
) -> TrainedPolicy:
    """The policy with each of `texts` as one special token; itself, if it has them all.

    The embedding matrix is resized (in place; tied heads follow), its new rows are drawn, by
    `seed`, around the mean of the old ones: nothing is likelier to begin with than an average
    token. The old policy is closed. Raises ConfigError for a tokenizer or a policy that cannot take
    tokens.
    """
    missing = missing_tokens(policy.tokenizer, texts)
    if not missing:
        return policy
    if not isinstance(policy.tokenizer, HFTokenizer):
        raise ConfigError(
            f"{type(policy.tokenizer).__name__} cannot take new tokens ({', '.join(missing)}); "
            "make it with them"
        )
    if not isinstance(policy, HFPolicy):
        raise ConfigError(
            f"policy {policy.name!r} cannot take new tokens ({', '.join(missing)}): its engine has "
            "the model as it was. Add them to the model's folder first, or sample with transformers"
        )
    await policy.close()
    hf = policy.tokenizer.hf
    model: Any = policy.model
    hf.add_tokens(missing, special_tokens=True)
    if len(hf) > model.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model.resize_token_embeddings(len(hf), mean_resizing=True)
    return HFPolicy(model, HFTokenizer(hf), name=policy.name)

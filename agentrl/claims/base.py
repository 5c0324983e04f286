"""What claims share: tiny models from scratch that have imitated something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentrl.chat import Chat
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.hf import HFPolicy
from agentrl.engines.models import tiny_model
from agentrl.select.rows import conversation_sample
from agentrl.train import TrainConfig, train
from agentrl.types import Message, Sample

Conversation = Sequence[tuple[str, str]]
"""Messages as (role, text)."""


def fresh(
    tokenizer: CharTokenizer,
    seed: int,
    *,
    hidden: int = 64,
    layers: int = 2,
    max_positions: int = 256,
) -> Any:
    """A random model for `tokenizer`: the same seed gives the same weights."""
    return tiny_model(
        tokenizer.vocab_size,
        hidden=hidden,
        layers=layers,
        heads=4,
        kv_heads=4,
        max_positions=max_positions,
        init_std=0.05,
        seed=seed,
    )


def rows(tokenizer: CharTokenizer, conversations: Sequence[Conversation]) -> list[Sample]:
    """Each conversation as a row with loss on the assistant's turns, end marks included."""
    chat = Chat(tokenizer)
    return [
        conversation_sample(chat, [Message(role, text) for role, text in conversation])  # type: ignore[arg-type]
        for conversation in conversations
    ]


def imitate(
    model: Any,
    samples: Sequence[Sample],
    *,
    steps: int,
    batch: int = 32,
    lr: float = 3e-3,
    seed: int = 0,
) -> Any:
    """Fine-tune `model` on `samples` for `steps` steps (cosine, fp32), in place."""
    config = TrainConfig(
        lr=lr,
        max_steps=steps,
        batch_size=batch,
        schedule="cosine",
        save_every=0,
        dtype="fp32",
        seed=seed,
    )
    train(model, samples, "sft", config, progress=False)
    return model


def policy(model: Any, tokenizer: CharTokenizer, *, name: str = "tiny") -> HFPolicy:
    """The policy that samples from `model`, many rollouts at once."""
    return HFPolicy(model, tokenizer, name=name, max_batch=256)

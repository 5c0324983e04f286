"""One comparison of the engine with the model's plain forward, when a policy is made."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn

from agentrl.engines import hf_view
from agentrl.engines.hf_engine import Engine, HFStats
from agentrl.engines.hf_requests import Outcome, Request
from agentrl.errors import ConfigError

_LENGTHS = (9, 23)


def probe(model: nn.Module, engine: Engine, *, compare: bool) -> None:
    """Score random sequences in small pieces; they must agree with the plain forward.

    Leaves the engine empty, its memory use per token measured. Raises ConfigError if the model does
    not work with the engine or gives other log-probabilities (in fp32: 1e-3 nats; else 0.25).
    """
    chooser = random.Random(0)
    lengths = [min(n, engine.max_context) for n in _LENGTHS]
    rows = [[chooser.randrange(engine.vocab_size) for _ in range(n)] for n in lengths]
    outcomes: list[Outcome] = []
    step_tokens, engine.step_tokens = engine.step_tokens, 17
    try:
        for row in rows:
            engine.waiting.append(Request(row, None, outcomes.append))
            while engine.busy:
                engine.step()
    except Exception as error:
        raise ConfigError(
            f"HFPolicy cannot serve {type(model).__name__}: {type(error).__name__}: {error}. It "
            "needs a transformers causal LM whose attention goes through transformers' attention "
            "interface; for others use vllm:MODEL."
        ) from error
    finally:
        engine.step_tokens = step_tokens
    engine.cache.measure()
    if not engine.cache.bytes_per_token:
        raise ConfigError(
            f"HFPolicy cannot serve {type(model).__name__}: it keeps no key/value cache"
        )
    if compare:
        _compare(model, rows, outcomes)
    engine.flush()
    engine.stats = HFStats()


def _compare(model: nn.Module, rows: list[list[int]], outcomes: list[Outcome]) -> None:
    config = hf_view.text_config(model.config)
    view = hf_view.make_view(model, onednn=False, attention=config._attn_implementation)
    dtype = next(model.parameters()).dtype
    tolerance = 1e-3 if dtype == torch.float32 else 0.25
    for row, scored in zip(rows, outcomes, strict=True):
        if isinstance(scored, BaseException):
            raise ConfigError(f"HFPolicy cannot serve {type(model).__name__}: {scored}") from scored
        assert isinstance(scored, list)
        with torch.inference_mode():
            ids_1T = torch.tensor([row], device=next(model.parameters()).device)
            logits_TV: Tensor = view(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
            plain = logits_TV.log_softmax(-1).gather(1, ids_1T[0, 1:, None])[:, 0].cpu()
        gap = float((plain - torch.tensor(scored)).abs().max()) if len(row) > 1 else 0.0
        if not gap <= tolerance:
            raise ConfigError(
                f"HFPolicy cannot serve {type(model).__name__} exactly: its log-probabilities "
                f"differ from the plain forward's by {gap:.2g} (at most {tolerance:g} allowed). "
                "Use vllm:MODEL, or check=False to accept the difference."
            )

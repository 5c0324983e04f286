"""Trained models for others: a folder that transformers, peft and vLLM load."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from agentrl.checkpoint import atomic_dir, disk_full_means
from agentrl.engines.smollm2 import no_bars
from agentrl.errors import ConfigError
from agentrl.train.adapter import routes_rows


def export(
    model: nn.Module,
    out_dir: str | Path,
    tokenizer: Any = None,
    merge: bool = True,
    card: Mapping[str, Any] | None = None,
) -> Path:
    """Write `model` to `out_dir`, for `from_pretrained`; returns the folder.

    An adapter is merged into a copy of the weights (so this needs the model's memory twice); with
    `merge=False` only the adapter is written, for peft and vLLM to put on the base model as it was
    (so one that began as part of the base, such as PiSSA's, is written as a LoRA of twice its rank:
    the difference). `tokenizer` is agentrl's `HFTokenizer` or transformers' own; without it the
    folder has none. `card` are lines for the README (`TrainResult.facts` makes some). The folder
    appears whole or not at all, and replaces an older one.

    Raises ConfigError if the model or the tokenizer cannot be saved so; StoreFullError.
    """
    adapted = hasattr(model, "peft_config")
    bare: Any = merged(model) if merge else model
    writer = getattr(tokenizer, "hf", tokenizer)
    for what, kind in ((bare, model), (writer, tokenizer)):
        if what is not None and not hasattr(what, "save_pretrained"):
            raise ConfigError(
                f"{type(kind).__name__} cannot be exported: it has no save_pretrained"
            )
    out = Path(out_dir)
    cure = "Free some space or choose a folder on another disk, then export again."
    with disk_full_means(out, cure), atomic_dir(out) as temporary, no_bars():
        if hasattr(bare, "initial_adapter") and not merge:
            _save_difference(bare, temporary)
        else:
            bare.save_pretrained(temporary)
        if writer is not None:
            writer.save_pretrained(temporary)
        (temporary / "README.md").write_text(_card(bare, adapted and not merge, card or {}))
    return out


def merged(model: nn.Module) -> Any:
    """A copy of `model` with its adapter merged into the weights; `model` itself if it has none.

    Raises ConfigError if the adapter cannot be merged.
    """
    bare: Any = model
    if not hasattr(model, "peft_config"):
        return bare
    if routes_rows(model):
        raise ConfigError(
            "an adapter with tasks (Poly, MHR) has other weights for each, and cannot be "
            "merged: export it with merge=False"
        )
    if getattr(bare.get_base_model(), "is_quantized", False):
        raise ConfigError(
            "the base model's weights are quantised: an adapter merged into them is rounded "
            "away. Export with merge=False, and merge into the base model as it was published"
        )
    return copy.deepcopy(bare).merge_and_unload()


def _save_difference(model: Any, folder: Path) -> None:
    """Write what training changed as a plain LoRA: s (B A - B0 A0) = s [B, -B0] [A; A0].

    Its rank is doubled, and alpha with it, so that the scale s stays what it was.
    """
    import peft

    config = copy.deepcopy(model.peft_config[model.active_adapter])
    if config.use_dora:
        raise ConfigError(
            "an adapter with DoRA that began as part of the base model is no LoRA of it: export "
            "it with merge=True"
        )
    state = {}
    for name, now in peft.get_peft_model_state_dict(model).items():
        first, now = model.initial_adapter[name].to(now), now.detach()
        if "lora_A" in name:
            now = torch.cat([now, first])
        elif "lora_B" in name:
            now = torch.cat([now, -first], dim=1)
        state[name] = now.contiguous().cpu()
    grown = math.sqrt(2) if config.use_rslora else 2
    config.r, config.lora_alpha = 2 * config.r, grown * config.lora_alpha
    config.rank_pattern = {name: 2 * r for name, r in config.rank_pattern.items()}
    config.alpha_pattern = {name: grown * a for name, a in config.alpha_pattern.items()}
    config.init_lora_weights, config.inference_mode = True, True
    if hasattr(config, "corda_config"):
        config.corda_config = None
    safetensors.torch.save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)


def _card(model: Any, adapter: bool, lines: Mapping[str, Any]) -> str:
    """A short model card, with the front matter that the hub reads; its licence is left open."""
    config = model.get_base_model().config if adapter else model.config
    base = getattr(config, "name_or_path", "") or ""
    front = [f"library_name: {'peft' if adapter else 'transformers'}", "tags: [agentrl]"]
    if base and not Path(base).exists():
        front.append(f"base_model: {base}")
    scores = type(model).__name__.endswith("ForSequenceClassification")
    task = "text-classification" if scores else "text-generation"
    front += [f"pipeline_tag: {task}", "# license: yours to name; the base model's binds"]
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad or not adapter)
    kind = "A reward model" if scores else "A causal language model"
    auto = "AutoModelForSequenceClassification" if scores else "AutoModelForCausalLM"
    load = f"from transformers import {auto} as Auto"
    if adapter:
        kind = f"A peft adapter for {base or 'its base model'}"
        load = "from peft import AutoPeftModelForCausalLM as Auto"
    facts = {"Base model": base or "none (trained from random weights)"} | dict(lines)
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            f"# {kind}, trained with agentrl",
            "",
            f"Architecture {config.model_type}, {parameters / 1e6:.1f} million "
            f"{'trained ' if adapter else ''}parameters.",
            "",
            *(f"- {key}: {value}" for key, value in facts.items()),
            "",
            "```python",
            load,
            "",
            'model = Auto.from_pretrained("this folder")',
            "```",
            "",
        ]
    )

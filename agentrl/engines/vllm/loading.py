"""`vllm:MODEL` and `vllm:MODEL@URL`: an engine found or started, and the policy over it."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from agentrl.chat import HFTokenizer
from agentrl.engines import models
from agentrl.engines.smollm2 import SMOLLM2, smollm2_folder
from agentrl.engines.vllm import PYTHON, sync
from agentrl.engines.vllm.mirrored import MirroredPolicy
from agentrl.engines.vllm.policy import Engine, VLLMPolicy
from agentrl.engines.vllm.server import Client, Server
from agentrl.errors import ConfigError

SCHEMES = ("http://", "https://", "unix:")


def vllm_policy(
    name: str,
    *,
    python: str | None = None,
    dtype: models.DType = "auto",
    device: str = "auto",
    max_context: int | None = None,
    via: sync.Via = "memory",
    sync_s: float = 300.0,
    start_s: float = 900.0,
    **options: Any,
) -> MirroredPolicy:
    """The policy of `MODEL`, on an engine started here, or of `MODEL@URL`, on one that runs there.

    Started here: in a process of its own with the Python that `python` or `AGENTRL_VLLM_PYTHON`
    names; in this process where neither does and vLLM can be imported. `dtype` is that of the
    trainer and of the engine, `device` the trainer's, `options` are vLLM's engine arguments.
    `max_context`, `via` and `sync_s` are those of `VLLMPolicy`, `start_s` bounds the start.

    Raises ConfigError if there is no such model or no vLLM, or the engine serves another model;
    EngineError if it does not start.
    """
    model, url = split(name)
    other = ""
    tokenizer = HFTokenizer(models.load_tokenizer(model))
    if url:
        given = {k: v for k, v in {"python": python, **options}.items() if v is not None}
        if given:
            raise ConfigError(
                f"policy 'vllm:{name}': the engine at {url} runs already, it cannot be given "
                f"{', '.join(given)}"
            )
        engine: Engine = _connected(url)
        other = _other(model, engine.facts())
    else:
        kind = models.resolved_dtype(model, dtype, device)
        if max_context is not None:
            options.setdefault("max_model_len", max_context + 1)  # scoring samples one more
        engine = _started(source(model), python, {"dtype": kind, **options}, start_s)
    sampler = VLLMPolicy(
        engine, tokenizer, name=f"vllm:{name}", max_context=max_context, via=via, sync_s=sync_s
    )
    return MirroredPolicy(
        sampler, functools.partial(models.load_model, model, dtype=dtype, device=device), other
    )


def split(name: str) -> tuple[str, str]:
    """`MODEL` or `MODEL@URL` in its parts."""
    model, _, url = name.partition("@")
    if not model or (url and not url.startswith(SCHEMES)) or ("@" in name and not url):
        raise ConfigError(
            f"policy 'vllm:{name}': write vllm:MODEL, or vllm:MODEL@http://HOST:PORT for an engine "
            "that runs already (agentrl serve MODEL)"
        )
    return model, url


def source(model: str) -> str:
    """The folder or hub id that vLLM loads."""
    return str(smollm2_folder()) if model == SMOLLM2 else model


def _other(model: str, facts: Mapping[str, Any]) -> str:
    """What an engine serves instead of `model`, empty where that is it. Raises ConfigError for a
    model of another shape."""
    own = models.text_config(model)
    shape = {n: (theirs, getattr(own, n, None)) for n, theirs in facts.get("shape", {}).items()}
    differs = [f"{n} {theirs}, not {ours}" for n, (theirs, ours) in shape.items() if theirs != ours]
    served = str(facts.get("model", ""))
    if differs:
        raise ConfigError(
            f"the engine serves another model than {model!r}: {served} ({'; '.join(differs)}). "
            "Name that one, or start a server for this one"
        )
    return "" if Path(served).name == Path(source(model)).name else served


def found() -> str:
    """Where vLLM is: the Python of its environment, `here`, or nothing."""
    if os.environ.get(PYTHON):
        return os.environ[PYTHON]
    return "here" if importlib.util.find_spec("vllm") is not None else ""


def check_found(python: str | None) -> None:
    """Raise ConfigError where no vLLM is known."""
    if not (python or found()):
        raise ConfigError(
            f"no vLLM here. Set {PYTHON} to the Python of an environment that has it (make vllm "
            "makes one in .venv-vllm), or: pip install 'agentrl[vllm]'"
        )


def _started(model: str, python: str | None, options: dict[str, Any], seconds: float) -> Engine:
    check_found(python)
    if python is None and found() == "here":
        from agentrl.engines.vllm.inprocess import InProcess

        return InProcess(model, **options)
    server = Server(model, python=python, **options)
    _apart(lambda: server.start(seconds))
    return server


def _connected(url: str) -> Client:
    client = Client(url)
    _apart(client.connect)
    return client


def _apart(work: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Run it on an event loop of its own, also from within a running one; raises what it does."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            failed.append(error)

    # a daemon: Ctrl-C while it waits ends this process, and so the server
    thread = threading.Thread(target=run, name="agentrl-vllm-start", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

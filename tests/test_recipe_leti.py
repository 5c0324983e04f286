"""The LeTI recipe end to end, with a tiny model on postfix programs."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

import envs
from agentrl.claims.base import fresh, policy
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.errors import ConfigError, DataError
from agentrl.recipes.leti import Config, check, documents, learn, regulariser
from agentrl.store import load_all
from sandboxes.feedback import GOOD, LETI_TOKENS

TOKENIZER = CharTokenizer(LETI_TOKENS)
CONFIG = Config(
    env="postfix",
    iterations=3,
    n=3,
    samples=4,
    max_tokens=12,
    epochs=1,
    batch_size=4,
    eval_n=2,
    eval_samples=2,
    lr=1e-3,
    train_dtype="fp32",
    keep_checkpoints=True,
)
WARNING = "ignore:.*cut off by a token limit"


def run(folder: Path, config: Config = CONFIG, **options: Any) -> dict[str, Any]:
    made = [envs.make("postfix", split=split, terms=2) for split in ("train", "test")]
    sampler = policy(fresh(TOKENIZER, 0, hidden=32), TOKENIZER)
    kept = RunFolder(folder, settings(config), resume=True)
    return asyncio.run(learn(config, sampler, *made, kept, progress=False, **options))


@pytest.mark.filterwarnings(WARNING)
def test_iterations_and_what_is_sampled_in_them(tmp_path: Path) -> None:
    others = list(regulariser(iter(["print(1)\n" * 40]), TOKENIZER, 40))
    summary = run(tmp_path, others=others)
    assert [row["iteration"] for row in summary["curve"]] == [0, 1, 2, 3]
    assert [row["steps"] for row in summary["curve"]] == [0, 3, 6, 9]
    assert summary["training"] | {"good_last": 0} == {
        "steps": 9,
        "rows": 36,
        "good_first": 0.0,
        "good_last": 0,
    }
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["loss_regulariser"] > 0 for row in rows)
    trees = load_all(tmp_path / "trees")
    first = {name: TOKENIZER.decode(made[0].nodes[0].token_ids) for name, made in trees.items()}
    assert not any(GOOD in first[name] for name in ("before", "iteration_001"))
    assert all(first[name].startswith(GOOD) for name in ("after_001", "iteration_002", "after_003"))


@pytest.mark.filterwarnings(WARNING)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = run(tmp_path)
    (tmp_path / "summary.json").unlink()
    shutil.rmtree(tmp_path / "trees" / "iteration_003")
    shutil.rmtree(tmp_path / "trees" / "after_003")
    shutil.rmtree(tmp_path / "checkpoints/policy/checkpoints/step-00000003")
    again = run(tmp_path)
    assert again["curve"] == whole["curve"]
    assert again["training"] == whole["training"]
    assert again["resumed"]


def test_settings_that_cannot_be_are_said_at_once() -> None:
    for changes in ({"iterations": 0}, {"temperature": 0.0}, {"max_feedback": -1}, {"lr": -1.0}):
        with pytest.raises(ConfigError):
            check(replace(CONFIG, **changes))


def test_sources_of_the_regulariser(tmp_path: Path) -> None:
    assert list(documents("", 0)) == []
    first = next(documents("stdlib", 0))
    assert "def " in first or "import" in first or "class" in first
    assert next(documents("stdlib", 0)) == first
    (tmp_path / "a.py").write_text("x = 1\n")
    assert list(documents(str(tmp_path), 0)) == ["x = 1\n"]
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "y"}\n{"txt": 1}\n')
    made = documents(str(file), 0)
    assert next(made) == "y"
    with pytest.raises(DataError, match=r"texts\.jsonl, line 2"):
        next(made)
    with pytest.raises(DataError, match="give stdlib"):
        next(documents("nowhere", 0))

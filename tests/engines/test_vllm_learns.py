"""GRPO with vLLM sampling learns as it does with transformers sampling: a tiny model from scratch.

Runs where AGENTRL_VLLM_PYTHON names a Python that has vLLM.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
if not os.environ.get("AGENTRL_VLLM_PYTHON"):
    pytest.skip("AGENTRL_VLLM_PYTHON is not set (make vllm)", allow_module_level=True)

for folder in (Path(__file__).parent.parent, Path(__file__).parent.parent / "train"):
    sys.path.insert(0, str(folder))
from ranks_tokenizer import hf_bytes  # noqa: E402
from rl_toys import LETTERS, NextLetter, policy  # noqa: E402

from agentrl.chat import HFTokenizer  # noqa: E402
from agentrl.config import RunFolder, settings  # noqa: E402
from agentrl.engines import load_policy  # noqa: E402
from agentrl.engines.vllm.mirrored import MirroredPolicy  # noqa: E402
from agentrl.recipes import grpo  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # a start takes minutes where cores are shared
CHANCE = 1 / len(LETTERS)
HIDDEN = 128
"""vLLM's attention on a CPU has no heads of fewer than 32 dimensions."""


class Lasting:
    """A policy that the end of a run does not close."""

    def __init__(self, policy: MirroredPolicy) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer() -> HFTokenizer:
    return HFTokenizer(hf_bytes())


@pytest.fixture(scope="module")
def engine(tokenizer, tmp_path_factory) -> Iterator[MirroredPolicy]:
    folder = tmp_path_factory.mktemp("tiny")
    policy(0, tokenizer, HIDDEN).model.save_pretrained(folder)
    tokenizer.hf.save_pretrained(folder)
    made = load_policy(
        f"vllm:{folder}", dtype="float32", device="cpu", kv_cache_memory_bytes=1 << 28
    )
    yield made
    asyncio.run(made.close())


def learnt(sampler: Any, seed: int, folder: Path) -> tuple[list[dict[str, Any]], float]:
    """The steps of a run, and its accuracy in the end."""
    config = grpo.Config(
        seed=seed,
        n=4,
        prompts=4,
        group=16,
        eval_n=4,
        max_tokens=4,
        steps=50,
        lr=1e-3,
        save_every=0,
        train_dtype="fp32",
        mismatch="token",
    )
    run = RunFolder(folder, settings(config), resume=False)
    env = NextLetter()
    summary = asyncio.run(grpo.learn(config, sampler, env, env, run, progress=False))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return rows, summary["tuned"]["accuracy"]


def rewards(rows: list[dict[str, Any]], part: slice) -> float:
    found = [row["reward"] for row in rows[part]]
    return sum(found) / len(found)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grpo_learns_the_same_through_vllm(engine, tokenizer, seed, tmp_path):
    plain = policy(seed, tokenizer, HIDDEN)
    assert 200_000 < plain.model.num_parameters() < 3_000_000
    asyncio.run(engine.over(policy(seed, tokenizer, HIDDEN).model))
    found = {
        "vllm": learnt(Lasting(engine), seed, tmp_path / "vllm"),
        "hf": learnt(plain, seed, tmp_path / "hf"),
    }
    for name, (rows, accuracy) in found.items():
        first, last = rewards(rows, slice(0, 3)), rewards(rows, slice(-5, None))
        trained = [row for row in rows if row["groups_dropped"] < row["groups"]]
        off = max(row["logprob_diff_max"] for row in trained)
        mean = sum(row["logprob_diff"] for row in trained) / len(trained)
        spent = sum(row["seconds"] for row in rows)
        print(
            f"\n{name} seed {seed}: reward {first:.2f} to {last:.2f}, accuracy {accuracy:.2f}, "
            f"logprob_diff {mean:.1e}, at most {off:.1e}, {spent:.0f} s"
        )
        assert first < CHANCE + 0.15
        assert last > 0.65
        assert accuracy >= 0.75
        assert off < 1e-3

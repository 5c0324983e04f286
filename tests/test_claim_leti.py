"""LeTI's claim as small as it goes: its arms, its metrics, and what they are compared by."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl import claims
from agentrl.claims import leti as claim


def test_steps_are_those_to_the_aim() -> None:
    curve = [{"steps": 10, "accuracy": 0.2}, {"steps": 20, "accuracy": 0.5}]
    assert claim.shown(curve, 0.2) == {"accuracy": 0.5, "mean": 0.35, "steps": 10.0}
    assert claim.shown(curve, 0.5)["steps"] == 20.0
    assert claim.shown(curve, 0.6)["steps"] == 30.0, "it was not reached"


def test_the_base_model_reads_every_token() -> None:
    (row, *_) = claim.pretraining(0, 3)
    assert list(row.weights) == [0.0] + [1.0] * (len(row.token_ids) - 1)


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_every_effect_has_its_metrics(tmp_path: Path) -> None:
    small = claim.Size(corpus=8, base_steps=3, n=3, samples=2, iterations=2, eval_n=4)
    metrics = claim.run(100, tmp_path, small)
    assert metrics.keys() == {"base", "corpus", "text", "binary"}
    for effect in claims.get("leti").effects:
        effect.difference(metrics)

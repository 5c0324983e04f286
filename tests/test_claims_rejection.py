"""The claims about ReFT and DART run through, in little, and have what their effects compare."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import dart, reft


def test_reft_measures_its_arms(tmp_path):
    size = reft.Size(
        base_rows=64, base_steps=4, n=16, eval_n=8, warmup_epochs=1, sft_epochs=1, steps=1
    )
    found = reft.run(0, tmp_path, size)
    assert set(found) == {"base", "warmup", "reft", "sft"}
    for effect in reft.CLAIM.effects:
        effect.difference(found)


def test_dart_measures_its_arms_at_about_equal_size(tmp_path):
    size = dart.Size(
        base_rows=48,
        base_steps=4,
        n=6,
        eval_n=6,
        k=2,
        probe=4,
        cap=60,
        epochs=1,
    )
    found = dart.run(0, tmp_path, size)
    assert set(found) == {"base", "uniform", "prop2diff", "plain"}
    for effect in dart.CLAIM.effects:
        effect.difference(found)
    for name in ("uniform", "prop2diff"):
        assert found[name]["rows"] <= 12

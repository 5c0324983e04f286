"""The claim of TL-Training runs, as small as it goes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import tl_training

SMALL = {"n": 12, "eval_n": 5, "epochs": 1, "rl_steps": 1, "rl_prompts": 4}


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_a_seed_gives_every_number_that_the_effects_compare(tmp_path):
    found = tl_training.run(0, tmp_path, **SMALL)
    assert set(found) == {"sft", "mae", "mae_pkt", "all"}
    assert all(abs(e.difference(found)) <= 3 for e in tl_training.CLAIM.effects)
    assert all(0 <= arm["accuracy"] <= 1 for arm in found.values())

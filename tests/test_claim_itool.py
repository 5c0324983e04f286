"""The claim of iTool runs, as small as it goes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import itool

SMALL = {"n": 6, "eval_n": 4, "rounds": 1, "iterations": 5, "depth": 3, "levels": 1}


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_a_seed_gives_every_number_that_the_effects_compare(tmp_path, monkeypatch):
    monkeypatch.setattr("agentrl.recipes._phases.give_memory_back", lambda: None)  # takes longest
    found = itool.run(0, tmp_path, base_steps=2, **SMALL)
    assert set(found) == {"base", "warmup", "itool", "sft_warmup", "sft", "sft_tokens"}
    assert all(abs(e.difference(found)) <= 1 for e in itool.CLAIM.effects)
    assert found["sft"]["rows"] == found["itool"]["rows"] == 2 * found["itool"]["pairs"]


def test_the_tokenizer_writes_a_decision_as_one_token():
    text = "<|tool_call_start|>[max(a=3, b=4), sub(x=1, y=2)]<|tool_call_end|>"
    ids = itool.TOKENIZER.encode(text)
    assert itool.TOKENIZER.decode(ids) == text
    assert len(ids) == 15

"""The claims about preferences run, as small as they go, and have what their effects compare."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import displacement, mcts_dpo
from envs.chains import results


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_mcts_dpo_measures_its_arms(tmp_path):
    size = mcts_dpo.Size(
        kind="2+-",
        base_rows=32,
        base_steps=2,
        n=4,
        eval_n=2,
        iterations=1,
        prompts=2,
        equal=1,
        max_tokens=4,
    )
    found = mcts_dpo.run(0, tmp_path, size)
    assert set(found) == {"start", "mcts_dpo", "off_policy", "steps", "answers"}
    assert all(abs(e.difference(found)) <= 1 for e in mcts_dpo.CLAIM.effects)
    assert max(found["steps"]["pairs"], found["answers"]["pairs"]) <= 1


def test_half_of_the_differences_are_shown_one_too_high():
    size = mcts_dpo.Size(base_rows=200)
    wrong = {"+": 0, "-": 0}
    signs = {"+": 0, "-": 0}
    for (_, prompt), (_, said) in mcts_dpo.demonstrations(0, size):
        chain = prompt.split("=")[0]
        value = int(chain[0])
        shown = [int(x) for x in said[1:].split(",")]
        assert len(shown) == len(results(chain))
        for sign, digit, new in zip(chain[1::2], chain[2::2], shown, strict=True):
            right = value + int(digit) * (1 if sign == "+" else -1)
            wrong[sign] += (new - right) % 10
            signs[sign] += 1
            value = new
    assert wrong["+"] == 0
    assert wrong["-"] / signs["-"] == pytest.approx(0.5, abs=0.05)


def test_displacement_measures_its_arms(tmp_path):
    size = displacement.Size(base_rows=16, base_steps=2, n=12, share=0.25, steps=1)
    found = displacement.run(0, tmp_path, size)
    assert {name: arm["pairs"] for name, arm in found.items()} == {
        "dpo": 12, "ches": 3, "random": 3, "rpo": 12
    }  # fmt: skip
    for effect in displacement.CLAIM.effects:
        effect.difference(found)


def test_rejected_answers_differ_in_the_last_digit_or_are_random():
    same = []
    for pair in displacement.preferences(0, displacement.Size(n=200)):
        digits, chosen, rejected = (
            displacement.TOKENIZER.decode(ids).replace("<|end|>", "")
            for ids in (
                pair.chosen.token_ids[1:7],
                pair.chosen.token_ids[9:15],
                pair.rejected.token_ids[9:15],
            )
        )
        assert chosen in {displacement.passes(digits, n) for n in range(4)}
        assert chosen != rejected
        same.append(sum(a == b for a, b in zip(chosen, rejected, strict=True)))
    near = [n for n in same if n == 5]
    assert len(near) / len(same) == pytest.approx(0.5, abs=0.1)
    assert sum(same) - sum(near) < 0.2 * 6 * (len(same) - len(near))

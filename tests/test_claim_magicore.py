"""The claim of MAgICoRe runs, as small as it goes; and what its model and its judges learn from."""

from __future__ import annotations

from random import Random

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import magicore
from tests.fakes import task

SMALL = magicore.Size(
    kinds=("3+-",),
    base_rows=32,
    clean_steps=2,
    base_steps=2,
    judge_n=8,
    judge_samples=2,
    judge_steps=2,
    eval_n=4,
    candidates=2,
    votes=3,
)


@pytest.mark.filterwarnings("ignore:.*cut off by a token limit")
def test_a_seed_gives_every_number_that_the_effects_compare(tmp_path):
    found = magicore.run(0, tmp_path, SMALL)
    assert set(found) == {"greedy", "single", *magicore.WAYS, "unrefined", "magicore"}
    for effect in magicore.CLAIM.effects:
        effect.difference(found)
    assert 2 <= found["magicore"]["samples"] <= 2 + 2 * 2 * SMALL.rounds


def test_the_roles_err_alike_and_the_refiner_keeps_what_is_right():
    size = magicore.Size(base_rows=8)
    errors = magicore.errors(0, size)
    made = magicore.demonstrations(0, size, errors, errors)
    assert len(made) == 8 + 2 * 4
    (_, (_, solved)), (asked, (_, first)), (_, (_, refined)) = made[3:6]
    assert len(solved.splitlines()) == len(refined.splitlines()) == 5
    shown = [line.partition(" (Score")[0] for line in asked[1].splitlines()[1:-1]]
    assert refined.splitlines()[: int(first) - 1] == shown[: int(first) - 1]


def test_some_sums_are_mostly_wrong_in_one_way_the_others_seldom_in_two():
    errors, draw = magicore.errors(0, magicore.Size()), Random(0)
    found = [
        [errors(draw, value, "+", digit) for _ in range(200)]
        for value in range(10)
        for digit in range(1, 10)
    ]
    odd = [offs for offs in found if sum(map(bool, offs)) > 70]
    assert 0.1 < len(odd) / len(found) < 0.4
    assert all(len(set(offs)) == 2 for offs in odd)
    assert sum(bool(x) for offs in odd for x in offs) / (200 * len(odd)) == pytest.approx(
        0.6, abs=0.05
    )
    rest = [x for offs in found if offs not in odd for x in offs]
    assert sum(map(bool, rest)) / len(rest) == pytest.approx(0.1, abs=0.02)


def test_steps_are_right_by_what_stands_before_them():
    of = task(id="chain", answer="3")
    of.data["chain"] = "7-5+3-2"
    assert magicore.verdicts(of, "7-5=2\n2+3=5\n5-2=3") == [True] * 3
    assert magicore.verdicts(of, "7-5=1\n1+3=4\n4-2=3") == [False, True, False]
    assert magicore.verdicts(of, "7-5=2\n3+3=6") == [True, False]
    assert magicore.verdicts(of, "7-5=2\n2+3=5\n5-2=3\n3+1=4")[3:] == [False]

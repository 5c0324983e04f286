"""Metrics over turns and samples, with the values of the SCoRe and RISE specifications."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl import evaluate
from agentrl.errors import DataError
from agentrl.evaluate.votes import voted_right
from agentrl.record import Tree
from agentrl.types import Attempt
from tests.fakes import task


def tree(id, *turns, stop="final_answer", **attempt):
    """A tree whose attempt gave these (answer, reward) turns; a third entry is the text."""
    made = Tree(task(id))
    node = made.add(None, "user", "template", [1])
    rows = [
        {"answer": a, "reward": r, "truncated": "cut" in rest, "text": rest[0] if rest else a}
        for a, r, *rest in turns
    ]
    last = turns[-1] if turns else ("", None)
    metrics = {"turns": rows} if turns else {}
    made.attempts.append(
        Attempt(node.id, stop, reward=last[1], answer=last[0], metrics=metrics, **attempt)
    )
    return made


def pairs(firsts, seconds):
    return [
        tree(f"t{i}", (f"a{a}", float(a)), (f"a{b}", float(b)))
        for i, (a, b) in enumerate(zip(firsts, seconds, strict=True))
    ]


def measured(trees):
    return evaluate.values(evaluate.turn_metrics(trees, resamples=50))


def test_score_section_6_9():
    found = measured(pairs((0, 0, 1, 1, 0), (1, 0, 1, 0, 1)))
    names = ("acc@t1", "acc@t2", "delta", "i2c", "c2i", "change_rate")
    assert [found[n] for n in names] == [0.4, 0.6, 0.2, 0.4, 0.2, 0.6]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=12))
def test_delta_is_what_was_corrected_less_what_was_spoilt(rows):
    found = measured(pairs(*zip(*rows, strict=True)))
    assert found["delta"] == pytest.approx(found["i2c"] - found["c2i"], abs=2e-4)
    assert found["delta"] == pytest.approx(found["acc@t2"] - found["acc@t1"], abs=2e-4)


def test_differences_are_tested_in_pairs():
    rows = evaluate.turn_metrics(pairs([0] * 6 + [1], [1] * 6 + [0]), resamples=50)["metrics"]
    assert rows["delta"]["p"] == pytest.approx(evaluate.mcnemar(6, 1))
    assert rows["gain@t2"]["p"] == rows["delta"]["p"]  # a tie goes to the second answer
    assert "p" not in rows["i2c"]


def test_corrections_are_counted_over_all_problems():
    found = measured(pairs((1, 1, 1, 0), (1, 1, 1, 1)))
    assert found["i2c"] == 0.25  # not 1.0, the share of the wrong ones


def test_rise_section_7_13_the_vote():
    assert evaluate.vote(["7", "3", "3", "7", "3"]) == 4
    assert evaluate.vote(["7", "3"]) == 1  # a tie: the later turn
    assert evaluate.vote(["3", "3", "7", "7"]) == 3
    assert evaluate.vote(["7", "7", "3", "3", "7", "3"]) == 5
    assert evaluate.vote(["", "", "7"]) == 2  # what could not be read does not vote
    assert evaluate.vote(["", ""]) is None
    assert evaluate.vote([]) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1,000", "1000.0", True),
        ("+7", "7.", True),
        (" 3  apples", "3 apples", True),
        ("0.50", "0.5", True),
        ("1,00", "100", False),
        ("-7", "7", False),
        ("007", "7", False),  # may be digits, not a number
        ("50%", "50", False),
        ("1/2", "0.5", False),
    ],
)
def test_numbers_vote_by_their_value(one, other, same):
    turns = evaluate.turns_of(tree("t", (one, 0.0), (other, 0.0)).attempts[0])
    assert (turns[0].answer == turns[1].answer) is same


def test_nothing_read_is_never_right():
    turns = evaluate.turns_of(tree("t", ("", 0.0), ("", 0.0)).attempts[0])
    assert not voted_right(turns)


def test_rise_section_7_14_the_oracle():
    rows = [("7", 0.0), ("3", 1.0), ("5", 0.0)], [("3", 1.0), ("4", 0.0), ("4", 0.0)]
    found = measured([tree(f"t{i}", *r) for i, r in enumerate(rows)])
    assert found["p1@t1"] == found["m1@t1"] == found["acc@t1"] == 0.5
    assert found["p1@t3"] == 1.0
    assert found["m1@t3"] == 0.0
    assert found["gain@t3"] == -0.5
    assert all(found["p1@t3"] >= found[f"acc@t{t}"] for t in (1, 2, 3))


def test_an_oracle_that_stops_attempts_says_nothing_of_the_model_alone():
    """Right in any turn must not be reported as m1@t5."""
    stopped = [tree("a", ("7", 0.0), ("3", 1.0)), tree("b", *[("7", 0.0)] * 5)]
    result = evaluate.turn_metrics(stopped, resamples=50)
    found = evaluate.values(result)
    assert result["oracle"]
    assert result["shorter"] == 1
    assert found["p1@t5"] == 0.5
    assert not [n for n in found if n.startswith(("m1@", "acc@", "delta", "gain"))]
    for made in stopped:  # the context was full, say
        made.attempts[0].metrics["oracle"] = False
    assert measured(stopped)["acc@t5"] == 0.5


def test_an_attempt_that_was_cut_short_keeps_its_last_answer():
    short = [tree("a", ("7", 0.0)), tree("b", ("7", 0.0), ("3", 1.0))]
    result = evaluate.turn_metrics(short, resamples=50)
    assert not result["oracle"]
    assert result["shorter"] == 1
    assert evaluate.values(result)["acc@t2"] == 0.5


def test_failed_and_unscored_attempts_are_no_wrong_answers():
    trees = [
        tree("a", ("3", 1.0), ("3", 1.0)),
        tree("b", ("3", 1.0), ("3", None)),
        tree("c", error="SandboxError: gone"),
    ]
    result = evaluate.turn_metrics(trees, resamples=50)
    assert (result["problems"], result["failed"], result["unscored"]) == (1, 1, 1)
    assert evaluate.values(result)["acc@t1"] == 1.0
    empty = evaluate.turn_metrics(trees[2:])
    assert empty["problems"] == 0
    assert empty["metrics"] == {}


def test_truncated_answers_are_counted_by_turn():
    result = evaluate.turn_metrics([tree("a", ("3", 1.0), ("", 0.0, "cut"))], resamples=50)
    assert [row["truncated"] for row in result["turns"]] == [0, 1]


def test_parallel_and_sequential_at_equal_samples():
    """Three samples of one problem, three turns each."""
    runs = ("733", "373", "777")
    trees = [tree("a", *[(c, float(c == "3")) for c in run]) for run in runs]
    for i, made in enumerate(trees):
        made.meta["attempt"] = i
    result = evaluate.turn_metrics(trees, resamples=50)
    found = evaluate.values(result)
    assert found["m3@t1"] == 0.0  # 7, 3, 7
    assert found["m1@t3"] == pytest.approx(2 / 3, abs=1e-4)  # 3, 3, 7
    assert found["sequential_gain@t3"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["m2@t1"] == 1.0  # one group of two: 7, 3, a tie
    assert found["mixed@4"] == 0.0  # second answers 3, 7
    rows = {row["samples"]: row for row in result["equal_samples"]}
    assert rows[3]["parallel"]["accuracy"] == 0.0
    assert rows[3]["sequential"]["accuracy"] == pytest.approx(2 / 3, abs=1e-4)


def test_groups_of_samples_do_not_overlap():
    """m2@t1 of four samples is over two groups of two."""
    trees = [tree("a", (c, float(c == "3"))) for c in "3377"]
    assert measured(trees)["m2@t1"] == 0.5


def test_samples_of_the_last_answer():
    trees = [tree("a", (c, float(c == "3"))) for c in "3377"]
    found = measured(trees)
    assert found["average@4"] == found["pass@1"] == 0.5
    assert found["pass@2"] == pytest.approx(5 / 6, abs=1e-4)
    assert found["pass@4"] == 1.0
    assert found["majority@4"] == 0.0  # a tie: the later one


def test_a_plain_attempt_is_one_turn():
    made = Tree(task("a"))
    made.add(None, "user", "template", [1])
    made.attempts.append(Attempt(0, "final_answer", reward=1.0, answer="42"))
    found = measured([made])
    assert found["acc@t1"] == found["m1@t1"] == 1.0
    made.attempts[0].reward = None
    assert evaluate.turn_metrics([made])["unscored"] == 1


def test_a_list_of_turns_of_another_form_is_refused():
    made = tree("a", ("3", 1.0))
    made.attempts[0].metrics["turns"] = [{"reward": 1.0}]
    with pytest.raises(DataError, match="'answer'"):
        evaluate.turn_metrics([made])


def test_the_edit_ratio_is_of_the_texts():
    made = [tree("a", ("3", 0.0, "kitten"), ("3", 0.0, "sitting"))]
    assert measured(made)["edit_ratio"] == pytest.approx(3 / 13, abs=1e-4)
    assert measured(made)["change_rate"] == 0.0
    assert evaluate.edit_ratio("", "") == 0.0
    assert evaluate.edit_ratio("abc", "xyz") == 0.5


@given(st.text("abc", max_size=12), st.text("abcd\U0001f600", max_size=12))
def test_the_edit_distance_is_levenshteins(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
    assert evaluate.edit_distance(a, b) == row[-1]


def test_compare_pairs_problems():
    before = [*pairs((0, 0, 1, 1), (0, 1, 1, 0)), tree("only", ("a1", 1.0), ("a1", 1.0))]
    after = pairs((0, 1, 1, 1), (1, 1, 1, 1))
    result = evaluate.compare(before, after, resamples=200)
    assert (result["problems"], result["only_in_a"], result["only_in_b"]) == (4, 1, 0)
    second = result["metrics"]["acc@t2"]
    assert (second["a"], second["b"], second["difference"], second["n"]) == (0.5, 1.0, 0.5, 4)
    assert (second["only_a"], second["only_b"], second["mcnemar"]) == (0, 2, 0.5)
    assert second["p"] == 0.5
    assert second["ci95"][0] <= 0.5 <= second["ci95"][1]
    assert "mcnemar" not in result["metrics"]["delta"]
    with pytest.raises(DataError, match="share no problem"):
        evaluate.compare(before, [tree("other", ("a", 1.0))])


def test_pairing_finds_what_two_separate_intervals_hide():
    """A small gain on every hard problem, beside a large spread between problems."""
    random = np.random.default_rng(0)
    easy = random.random(200) < 0.5
    better = easy | (random.random(200) < 0.1)
    result = evaluate.compare(pairs(easy, easy), pairs(better, better))
    assert result["metrics"]["acc@t1"]["ci95"][0] > 0
    assert result["metrics"]["acc@t1"]["p"] < 0.01

"""MAgICoRe: the tests of its specification, section 7, and the mistakes it names."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl import evaluate
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.evaluate import masses, vote
from agentrl.rewards.steps import steps_of
from agentrl.rollouts import chains, magicore, make
from agentrl.rollouts.chains import Chain, Difficulty, confidence, difficulty
from agentrl.rollouts.magicore import first_scores
from agentrl.search.evaluators import ByModel, ByValue
from agentrl.types import SamplingParams
from tests.fakes import FakeEnv, run, task

SOLVED, REVIEWED, REFINED = "Step 1: a\nStep 2: 41", "step 2 is wrong", "Step 1: b\nStep 2: 42"


def chain(answer, outcome=0.5, steps=(0.5,), text="t"):
    return Chain(text, answer, outcome, steps)


# The gate


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ((1, 1, 1), 0.5),
        ((1, 1, 1, 1), 0.4),
        ((5,), 1.0),
        ((2, 0, 0), 1.0),
        ((30, 5, 5), 0.6479),
        ((), 0.0),
        ((0.0,), 0.0),
    ],
)
def test_confidence(votes, expected):
    assert confidence(votes) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(
    ("quality", "outcome", "process", "hard"),
    [
        (-0.1, 0.5, 0.5, False),  # both confidences are high enough
        (-0.1, confidence((1, 1, 1)), 1.0, False),  # 0.5 is not low
        (-0.1, 0.4, 1.0, True),
        (-0.1, 1.0, 0.4, True),
        (0.1, 0.4, 0.4, False),  # the quality is high
        (0.0, 0.4, 0.4, False),  # 0 is not low
        (None, 1.0, 1.0, True),  # nothing to compare: not a nan that counts as easy
    ],
)
def test_hard_is_low_quality_and_either_confidence_low(quality, outcome, process, hard):
    assert Difficulty(quality, outcome, process).hard is hard


def test_quality_is_of_the_chains_that_agree_with_the_first_majority():
    found = difficulty(
        [chain("A", 0.9, (1, 0.5)), chain("A", 0.2, (0.4,)), chain("B", 1.0, (1.0,)), chain("")],
        "A",
        (1.0, 0.5),
    )
    assert found.quality == pytest.approx((0.8 - 0.8) / 2)
    assert found.outcome == pytest.approx(confidence((1.1, 1.0)))
    assert found.process == pytest.approx(confidence((0.9, 1.0)))
    assert difficulty([chain("B")], "A", (1.0, 0.5)).quality is None
    assert difficulty([chain("")], "", (1.0, 0.5)).hard, "no chain has an answer"


def test_the_standard_is_of_all_problems():
    assert chains.standard([1.0, 2.0]) == (1.5, 0.5)
    for scores in ([], [1.0], [1.0, 1.0], [math.nan, 1.0]):
        with pytest.raises(DataError, match="no standard"):
            chains.standard(scores)


# Chains


def test_the_score_of_a_chain():
    assert chain("", 0.9, (1, 0.5)).score == pytest.approx(1.4)
    assert Chain("", "", 0.9, (1, 0.5), "min").score == pytest.approx(1.4)
    assert Chain("", "", 0.9, (1, 0.5), "mean").score == pytest.approx(1.65)
    assert chain("", 0.9, ()).score == 0.9, "an empty product is no perfect process"


def test_steps_are_numbered_blocks_or_lines():
    assert steps_of("So:\nStep 1: a\nb\n\nStep 2: c") == ["So:\nStep 1: a\nb\n\n", "Step 2: c"]
    assert steps_of("\na\n\n b\n") == ["\na\n\n", " b\n"]
    assert steps_of(" \n") == []


@settings(max_examples=50)
@given(st.text(alphabet="ab \n\tStep 12:"))
def test_steps_are_the_whole_text(text):
    made = steps_of(text)
    assert "".join(made) == (text if text.strip() else "")
    assert all(step.strip() for step in made)


def test_scores_are_shown_of_ten():
    made = chains.annotated(chain("", steps=(0.04, 0.29, 0.57), text="x\ny\n\nz"))
    assert made == "x (Score: 0/10)\ny (Score: 3/10)\nz (Score: 6/10)"


def test_what_reviewer_and_refiner_are_asked():
    one = chain("41", steps=(0.9, 0.2), text="6\n{question}")
    asked = chains.review_of("What is 6*7?", one, threshold=5)
    assert "below 5/10" in asked
    assert asked.endswith(
        "Question: What is 6*7?\nSolution:\n6 (Score: 9/10)\n{question} (Score: 2/10)\nReview:"
    )
    asked = chains.refinement_of("What is 6*7?", one, " no\n")
    assert asked.startswith("What is 6*7?\n")
    assert asked.endswith("Review: no")


def test_the_weighted_vote():
    pool = [chain("A", 0.9, (0.5,)), chain("B", 0.5, (0.3,)), chain("B", 0.5, (0.2,)), chain("")]
    answers, scores = [c.answer for c in pool], [c.score for c in pool]
    assert masses(answers, scores) == pytest.approx({"A": 1.4, "B": 1.5})
    assert vote(answers, scores) == chains.chosen(pool) == 1
    assert chains.chosen([chain("", 0.1), chain("", 0.9), chain("", 0.2)]) == 1


# The rollout


def judged(values):
    """A judge that knows how good each text is, by its end; 0.1 for the others."""

    async def value(task, text):
        return next((v for end, v in values.items() if text.rstrip().endswith(end)), 0.1)

    return ByValue(value)


def team(solutions, refined=(REFINED,)):
    """A policy for all three roles, and how often each was asked."""
    calls = {"solver": 0, "reviewer": 0, "refiner": 0}

    def say(text):
        role = "solver"
        if "Do not write a new" in text:
            role = "reviewer"
        elif "Write the solution anew" in text:
            role = "refiner"
        said = {"solver": solutions, "reviewer": [REVIEWED], "refiner": refined}[role]
        calls[role] += 1
        return said[(calls[role] - 1) % len(said)]

    return ScriptedPolicy(say), calls


GOOD, BAD = judged({"42": 0.95, "a": 0.9, "b": 0.9}), judged({"42": 0.95, "b": 0.9})


def test_easy_problems_call_neither_reviewer_nor_refiner():
    policy, calls = team([REFINED, REFINED, SOLVED, REFINED])
    tree, _, _ = run(magicore(candidates=4, outcome=GOOD, process=GOOD, lead=""), policy)
    assert calls == {"solver": 4, "reviewer": 0, "refiner": 0}
    last = tree.attempts[-1]
    assert (last.answer, last.reward, last.metrics["hard"]) == ("42", 1.0, False)
    assert (last.metrics["replies"], last.metrics["reviews"], last.metrics["rounds"]) == (4, 0, 0)
    assert len(tree.attempts) == 4
    assert {n.info.get("agent") for n in tree.nodes if n.source == "policy"} == {"solver"}


def hard(**options):
    return magicore(candidates=4, outcome=BAD, process=BAD, lead="", **options)


FOUR = [f"Step 1: a\nStep 2: {n}" for n in (38, 39, 40, 41)]


def test_hard_problems_are_reviewed_refined_and_voted_on():
    policy, calls = team(FOUR)
    tree, _, _ = run(hard(), policy)
    assert calls == {"solver": 4, "reviewer": 4, "refiner": 4}
    last, metrics = tree.attempts[-1], tree.attempts[-1].metrics
    assert (last.answer, last.reward, metrics["rounds"], metrics["reviews"]) == ("42", 1.0, 1, 4)
    assert metrics["hard"]
    assert metrics["confidences"] == pytest.approx([0.4, 0.4])
    assert metrics["steps"] == [0.9, 0.95]
    assert metrics["score"] == pytest.approx(0.95 + 0.9 * 0.95)
    assert len(tree.attempts) == 8
    assert [a.metrics["round"] for a in tree.attempts[:4]] == [0] * 4
    (review,) = last.branches
    assert tree.nodes[review].info["agent"] == "reviewer"
    shown = policy.tokenizer.decode(tree.ids(last.leaf))
    assert "Step 2: 38 (Score: 1/10)" in policy.tokenizer.decode(tree.ids(tree.attempts[4].leaf))
    assert f"Review: {REVIEWED}" in shown


def test_rounds_go_on_while_it_is_hard_and_the_pool_keeps_the_best():
    worse = [f"Step 1: c\nStep 2: {n}" for n in (30, 31, 32, 33)]
    policy, calls = team(FOUR, worse)
    judge = judged({"41": 0.3, "a": 0.3})
    rollout = magicore(candidates=4, rounds=3, outcome=judge, process=judge, lead="")
    tree, _, _ = run(rollout, policy)
    assert calls == {"solver": 4, "reviewer": 12, "refiner": 12}
    assert tree.attempts[-1].answer == "41", "the first round's best is still in the pool"
    assert tree.attempts[-1].metrics["rounds"] == 3


def test_the_gate_does_not_see_what_is_right():
    trees = [run(hard(), team(FOUR)[0], of=task(answer=answer))[0] for answer in ("42", "38", "x")]
    assert trees[0].nodes == trees[1].nodes == trees[2].nodes
    assert {t.attempts[-1].answer for t in trees} == {"42"}
    assert [t.attempts[-1].reward for t in trees] == [1.0, 0.0, 0.0]


def test_the_standard_is_measured_once_and_frozen(tmp_path):
    tasks = [task(f"t{n}") for n in range(2)]
    judge = judged({"38": 0.2, "39": 0.6})
    votes = magicore(candidates=1, rounds=0, outcome=judge, process=judge, lead="")
    policy = ScriptedPolicy(["38", "39"])
    trees = asyncio.run(
        collect(FakeEnv(tasks), votes, policy, out=tmp_path, concurrency=1, progress=False)
    )
    assert first_scores(trees) == pytest.approx([0.4, 1.2])
    # both below the middle or not: the measured mean is 0.8
    for measured, quality in ((tmp_path, 1.0), ((2.0, 0.5), -1.6)):
        rollout = magicore(candidates=1, outcome=judge, process=judge, lead="", measured=measured)
        tree, _, _ = run(rollout, ["39", "n", "n"])
        assert tree.attempts[-1].metrics["quality"] == pytest.approx(quality)
    assert not tree.attempts[-1].metrics["hard"], "one answer alone is sure"


def test_evaluation_takes_it_and_its_last_attempt():
    policy, _ = team(FOUR)
    params = SamplingParams(max_tokens=400)
    trees = asyncio.run(collect(FakeEnv(), hard(), policy, params=params, progress=False))
    assert evaluate.summarize(evaluate.final(trees))["accuracy"] == 1.0


def test_judges_that_see_the_reference_are_for_collecting():
    assert magicore(outcome="grades").sees_reference
    assert not make("magicore").sees_reference


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"outcome": "none"}, "give judges"),
        ({"candidates": 0}, "1 candidate or more"),
        ({"measured": (1.0, 0.0)}, "sd above 0"),
        ({"process": "nobody"}, "unknown judge"),
        ({"combine": "sum"}, "unknown way to combine"),
    ],
)
def test_wrong_options(options, error):
    with pytest.raises(ConfigError, match=error):
        magicore(**options)


def test_a_judge_stays_in_its_range():
    judge = judged({"41": 1.5})
    with pytest.raises(ConfigError, match=r"says 1\.5 of a solution"):
        run(magicore(candidates=1, outcome=judge, process=judge, lead=""), ["41"])


def test_equal_candidates_are_refused():
    env, params = FakeEnv(), SamplingParams(temperature=0)
    with pytest.raises(ConfigError, match="temperature 0 are all the same"):
        asyncio.run(collect(env, magicore(), team(FOUR)[0], params=params, progress=False))


class Reads:
    """A model of outcomes and steps that keeps what it is shown."""

    def __init__(self):
        self.seen = []

    async def reward(self, ids):
        self.seen.append(list(ids))
        return 0.0

    async def steps(self, ids, ends):
        self.seen.append([list(ids[: end + 1]) for end in ends])
        return [math.log(3.0) for _ in ends]


def test_a_model_of_steps_reads_them_at_once():
    model = Reads()
    policy = ScriptedPolicy(["6*7\n42"])
    judge = ByModel(model)
    tree, _, _ = run(magicore(candidates=1, outcome=judge, process=judge, lead=""), policy)
    metrics = tree.attempts[-1].metrics
    assert (metrics["outcome"], metrics["steps"]) == (0.5, pytest.approx([0.75, 0.75]))
    whole, beginnings = model.seen
    assert whole == tree.ids(tree.attempts[-1].leaf), "with the end of the turn, as it was sampled"
    shown = [policy.tokenizer.decode(ids).rsplit("assistant\n")[-1] for ids in beginnings]
    assert shown == ["6*7\n", "6*7\n42"]

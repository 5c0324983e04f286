"""RAFT, SuperHF, DART, GRAPE, CLEAR and S3FT: the values and mistakes of their specifications."""

from __future__ import annotations

import asyncio
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.chat import Chat
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.rollouts import single_turn
from agentrl.select import clear, dart, grape, raft, s3ft, superhf
from agentrl.types import Message, Sample, Task
from tests.fakes import attempt_at, run, task

CHAT = Chat(ByteTokenizer())


def table(rewards):
    """`rewards[i][j]` is that of answer j to prompt i."""
    return [
        attempt_at(f"p{i + 1}", j, r, f"{i} {j}")
        for i, row in enumerate(rewards)
        for j, r in enumerate(row)
    ]


def rewards_of(selection):
    return sorted((t.task.id, a.reward) for t, a in selection.kept)


# RAFT

PAPER = [[1.0, 3.0, 2.0], [5.0, 4.0, 0.0]]


def test_local_keeps_the_winner_of_each_prompt_and_global_the_best_of_all():
    assert rewards_of(raft.select(table(PAPER))) == [("p1", 3.0), ("p2", 5.0)]
    best = raft.select(table(PAPER), ranking="global")
    assert rewards_of(best) == [("p2", 4.0), ("p2", 5.0)]
    assert best.dropped["prompts without a row"] == 1, "what the global ranking loses is counted"
    assert raft.select(table(PAPER)).dropped["prompts without a row"] == 0


@pytest.mark.parametrize("ranking", ["local", "global"])
def test_one_answer_a_prompt_is_plain_self_training(ranking):
    graded = table([[0.0], [1.0], [0.5]])
    kept = raft.select(graded, ranking=ranking).kept
    assert {t.task.id for t, _ in kept} == {"p1", "p2", "p3"}


def test_best_of_k_of_uniform_rewards_is_k_over_k_plus_1():
    rng = random.Random(0)
    for k in (1, 2, 4, 8):
        graded = table([[rng.random() for _ in range(k)] for _ in range(500)])
        kept = raft.select(graded).kept
        mean = sum(a.reward for _, a in kept) / len(kept)
        assert mean == pytest.approx(k / (k + 1), abs=0.04)


def test_equal_rewards_do_not_favour_a_place_in_the_batch():
    graded = table([[1.0] * 4] * 400)
    winners = [t.meta["attempt"] for t, _ in raft.select(graded).kept]
    assert all(60 < winners.count(place) < 140 for place in range(4))
    mixed = graded[:]
    random.Random(1).shuffle(mixed)

    def names(selection):
        return {(t.task.id, t.meta["attempt"]) for t, _ in selection.kept}

    assert names(raft.select(mixed)) == names(raft.select(graded)), "nor the order of arrival"
    assert names(raft.select(graded, seed=1)) != names(raft.select(graded))


def test_what_failed_or_was_cut_off_takes_no_part():
    graded = [
        attempt_at("a", 0, 9.0, error="sandbox died"),
        attempt_at("a", 1, 8.0, stop="max_tokens"),
        attempt_at("a", 2, None),
        attempt_at("a", 3, 0.0),
        attempt_at("b", 0, 1.0),
    ]
    selection = raft.select(graded, least=1.0)
    assert rewards_of(selection) == [("b", 1.0)]
    assert dict(selection.dropped) == {
        "failed in our hands": 1,
        "truncated": 1,
        "not scored": 1,
        "reward too low": 1,
        "prompts without a row": 1,
    }
    assert raft.select(graded).kept[0][1].reward == 0.0, "without `least` the best of a bad lot"


def test_a_score_of_ones_own_ranks_but_does_not_excuse_a_low_reward():
    graded = table([[1.0, 1.0], [0.0, 0.0]])
    first = raft.select(graded, score=lambda g: -g[0].meta["attempt"], least=1.0)
    assert [(t.task.id, t.meta["attempt"]) for t, _ in first.kept] == [("p1", 0)]
    assert raft.shaped(1.0, -4.0, -6.0, 0.1) == pytest.approx(0.8)
    assert raft.shaped(1.0, -4.0, -6.0, 0.0) == 1.0


def test_another_ranking_is_refused():
    with pytest.raises(ConfigError, match="global, local"):
        raft.select([], ranking="best")


# SuperHF


def test_a_superbatch_keeps_its_best_over_all_prompts():
    graded = table([[1.0], [5.0], [3.0]])
    assert rewards_of(superhf.select(graded, 1)) == [("p2", 5.0)]
    assert len(superhf.select(graded, 3).kept) == 3, "all of them: plain self-training"


def test_similarity_rises_where_answers_become_one():
    assert superhf.similarity(["a b", "c d"]) == 0.0
    assert superhf.similarity(["yes it is", "yes, it is!", "Yes it is"]) == 1.0
    assert superhf.similarity(["a b", "b c"]) == 0.5
    assert superhf.similarity(["only one"]) == 0.0


# DART


def test_quotas_in_proportion_to_difficulty():
    d = {"a": 1.0, "b": 0.5, "c": 0.1, "d": 0.0}
    assert dart.prop2diff(d, 192) == {"a": 192, "b": 96, "c": 20, "d": 1}
    assert dart.uniform(list(d), 40) == dict.fromkeys("abcd", 40)
    halved = {name: x / 2 for name, x in d.items()}
    assert dart.prop2diff(halved, 192) == dart.prop2diff(d, 192), "the hardest gets k"
    twice = d | {name * 2: x for name, x in d.items()}
    assert dart.prop2diff(twice, 192)["b"] == 96, "however many there are"
    assert dart.prop2diff({"a": 0.0}, 8) == {"a": 1}
    with pytest.raises(ConfigError, match="at least 1"):
        dart.uniform(["a"], 0)


@given(st.dictionaries(st.text(), st.floats(0, 1), min_size=1), st.integers(1, 300))
def test_two_allocations_of_equal_size(d, rows):
    k = dart.matched(d, rows)
    assert sum(dart.quotas(d, k=k).values()) <= max(rows, len(d))
    assert k == max(rows, 1) or sum(dart.quotas(d, k=k + 1).values()) > rows
    with pytest.raises(ConfigError, match="quota"):
        dart.quotas(d, "even")  # type: ignore[arg-type]


@given(st.dictionaries(st.text(), st.floats(0, 1), min_size=1), st.integers(1, 300))
def test_quotas_are_between_one_and_k_and_ordered_by_difficulty(d, k):
    quota = dart.prop2diff(d, k)
    assert all(1 <= q <= k for q in quota.values())
    ranked = sorted(d, key=d.__getitem__)
    assert all(quota[a] <= quota[b] for a, b in itertools.pairwise(ranked))


@pytest.mark.parametrize(
    ("trials", "corrects", "max_trials", "min_corrects", "done"),
    [
        (5, 0, 5, 3, True),
        (4, 3, 5, 3, True),
        (4, 2, 5, 3, False),
        (9999, 2, 0, 3, False),
        (9999, 2, -1, 3, False),
        (4, 9999, 5, 0, False),
        (0, 0, 0, 0, False),
    ],
)
def test_the_stop_rule(trials, corrects, max_trials, min_corrects, done):
    assert dart.finished(trials, corrects, max_trials, min_corrects) is done


def trials(rate: float, quota: int, cap: int, rng: random.Random) -> tuple[int, int]:
    """Trials and rows of one task that is solved with probability `rate`."""
    enough, graded = dart.until({"t": quota}, CHAT), []
    for n in range(cap):
        graded.append(attempt_at("t", n, float(rng.random() < rate)))
        if enough(graded[-1][0]):
            break
    return len(graded), len(dart.select(graded, {"t": quota}, CHAT).kept)


@settings(deadline=None, max_examples=4)
@given(st.sampled_from([(0.5, 4), (0.2, 3), (0.9, 8)]))
def test_a_quota_of_k_at_rate_p_takes_k_over_p_trials(case):
    (rate, quota), rng = case, random.Random(0)
    found = [trials(rate, quota, 10_000, rng) for _ in range(300)]
    assert {rows for _, rows in found} == {quota}
    mean = sum(n for n, _ in found) / len(found)
    sigma = math.sqrt(quota * (1 - rate)) / rate / math.sqrt(len(found))
    assert abs(mean - quota / rate) < 4 * sigma


def test_a_task_never_solved_stops_at_the_cap_with_nothing():
    assert trials(0.0, 4, 50, random.Random(0)) == (50, 0)


def test_the_same_text_counts_once():
    enough = dart.until({"t": 2}, CHAT)
    texts = ["42", "42", " 42", "42 .", "it is 42"]
    graded = [attempt_at("t", n, 1.0, text) for n, text in enumerate(texts)]
    assert [enough(tree) for tree, _ in graded[:4]] == [False, False, False, True]
    selection = dart.select(graded, {"t": 3}, CHAT)
    assert [t.meta["attempt"] for t, _ in selection.kept] == [0, 3, 4]
    assert dict(selection.dropped) == {"duplicate": 2}
    assert dict(dart.select(graded, {"t": 1}, CHAT).dropped) == {
        "duplicate": 2,
        "over the quota": 2,
    }


def test_our_failures_make_no_task_hard():
    graded = [
        attempt_at("a", 0, 1.0),
        attempt_at("a", 1, 0.0),
        attempt_at("a", 2, None, error="deadline"),
        attempt_at("a", 3, None),
        attempt_at("b", 0, None, error="deadline"),
        attempt_at("c", 0, 0.1),
    ]
    assert dart.difficulty(graded) == {"a": 0.5, "c": 1.0}, "partial credit is not right"


# GRAPE


class Told(ScriptedPolicy):
    """Scores that were told: by the first token."""

    def __init__(self, table):
        super().__init__([])
        self.table = table

    async def score(self, token_ids):
        return self.table[token_ids[-1]]


def test_raw_picks_the_short_answer_and_mean_the_likelier_tokens():
    prompt = 3
    a = Sample([0] * prompt + [0] * 4 + [1], [0.0] * prompt + [1.0] * 5)
    b = Sample([0] * prompt + [0] * 11 + [2], [0.0] * prompt + [1.0] * 12)
    noise = [-99.0] * (prompt - 1)  # of the instruction: must not count
    model = Told({1: [*noise, *[-2.0] * 5], 2: [*noise, *[-1.0] * 12]})
    raw, mean = (asyncio.run(grape.scores([a, b], model, norm)) for norm in ("raw", "mean"))
    assert (raw, mean) == ([-10.0, -12.0], [-2.0, -1.0])
    assert grape.choose(["x", "x"], raw) == [0]
    assert grape.choose(["x", "x"], mean) == [1]


def test_observations_are_not_scored():
    row = Sample([0, 0, 0, 1], [0.0, 1.0, 0.0, 1.0])
    model = Told({1: [-1.0, -50.0, -3.0]})
    assert asyncio.run(grape.scores([row], model)) == [-2.0]
    with pytest.raises(DataError, match="sample 0"):
        asyncio.run(grape.scores([Sample([0, 1], [1.0, 0.0])], Told({1: [-1.0]})))
    with pytest.raises(ConfigError, match="raw"):
        asyncio.run(grape.scores([row], model, "median"))


def test_ties_keep_the_lowest_index_and_groups_stand_apart():
    assert grape.choose("xxyy", [-1.0, -1.0, -3.0, -2.0]) == [0, 3]
    assert grape.choose("xxyy", [-1.0, -1.0, -3.0, -2.0], top=2) == [0, 1, 2, 3]


# CLEAR


def test_confidence_of_a_row():
    assert clear.confidence(0.8, 0.5) == pytest.approx(0.71)
    assert clear.observed([True, False], [0.1, 0.9]) == pytest.approx(
        ((0.8 * 0.9 + 0.2) + 0.8 * 0.1) / 2
    )
    assert clear.observed([True, True, False, True]) == pytest.approx(0.75)
    assert clear.reflected(["Correct", "unsure", "incorrect", "maybe"]) == 0.5
    with pytest.raises(DataError, match="at least one"):
        clear.observed([])


@given(st.sets(st.floats(0, 1), min_size=1))
def test_the_median_keeps_half_rounded_up(scores):
    kept = clear.confident(list(scores))
    assert len(kept) == math.ceil(len(scores) / 2)
    assert clear.confident([]) == []


def test_corrections_need_more_than_eta_in_both_orders():
    assert clear.corrected("old", "new", (0.8, 0.8)) == "old", "exactly eta is not more"
    assert clear.corrected("old", "new", (0.9, 0.8)) == "new"
    assert clear.corrected("old", "new", (1.0, 0.2)) == "old", "the judge likes a place"
    assert clear.corrected("same", "same", (1.0, 1.0)) == "same"


# S3FT


def said(id: str, text: str, of: Task | None = None, **kw):
    tree, _, _ = run(single_turn(), [text], of=of or task(id), **kw)
    return tree, tree.attempts[-1]


def test_each_row_comes_from_the_first_source_that_is_right():
    tasks = {id: task(id) for id in ("own", "para", "gold", "none")}
    again = {id: s3ft.paraphrase_task(t, "6*7 is 42") for id, t in tasks.items()}
    own = [said("own", "42 "), *(said(id, "41") for id in ("para", "gold", "none"))]
    paraphrases = [
        said("para", "that is 42", again["para"]),
        said("gold", "that is 40", again["gold"]),
    ]
    gold = [said(id, "6*7 is 42") for id in ("own", "para", "gold")]
    rows, counts = s3ft.targets(tasks, own, paraphrases, gold, CHAT)
    assert [r.meta["origin"] for r in rows] == ["own", "paraphrase", "gold"]
    assert counts == {"own": 1, "paraphrase": 1, "gold": 1, "no right answer": 1}
    prompt = CHAT.prompt(tasks["para"].prompt)
    assert rows[1].token_ids[: len(prompt)] == prompt, "trained on without the solution in sight"
    assert CHAT.decode(rows[1].token_ids[len(prompt) :]) == "that is 42<|im_end|>"
    assert rows[1].weights == [0.0] * len(prompt) + [1.0] * len(CHAT.encode("that is 42")) + [1.0]


def test_what_was_cut_off_or_failed_falls_through_to_gold():
    tasks = {"t": task("t")}
    cut = said("t", "42" + ScriptedPolicy.CUT)
    assert cut[1].reward == 1.0
    assert cut[1].truncated
    failed = attempt_at("t", 0, 1.0, error="the judge raised")
    for own in ([cut], [failed]):
        rows, counts = s3ft.targets(tasks, own, [], [said("t", "6*7 is 42")], CHAT)
        assert dict(counts) == {"gold": 1}
        assert rows[0].meta["origin"] == "gold"


def test_the_paraphrase_is_asked_for_with_the_problem_and_its_solution():
    made = s3ft.paraphrase_task(
        Task("t", (Message("system", "Be brief."), Message("user", "6*7?")), "fake"), "It is 42."
    )
    assert made.id == "t"
    assert made.prompt[0] == Message("system", "Be brief.")
    assert "6*7?" in made.prompt[1].content
    assert "It is 42." in made.prompt[1].content

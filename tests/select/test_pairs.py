"""Preference pairs: from a search's siblings, from leaves, across attempts; and CHES."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.chat import Chat
from agentrl.cli import main
from agentrl.engines.models import tiny_model
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import ConfigError, DataError
from agentrl.exchange import from_trl, to_trl
from agentrl.pairing import FLIP, shared_prefix, visit_flip
from agentrl.search.table import Table
from agentrl.select import rows
from agentrl.select.pairs import NEGATIVES, ORIGINS, Filters, choose, lowest, max_min, select
from agentrl.store import TreeStore
from agentrl.train import TrainConfig, ches, train
from agentrl.tree import Tree
from agentrl.types import Attempt, Message, Pair, Sample, Task
from tests.fakes import attempt_at

CHAT = Chat(ByteTokenizer())
TASK = Task("t0", (Message("user", "q"),), "fake", data={"answer": "1"})


def tree_of(steps, *, strategy="mcts", reward=1.0, task=TASK):
    """A searched tree: `steps` are (parent state, text, q, visits); the last one is chosen."""
    tree, table = Tree(task), Table(strategy=strategy)
    prompt = tree.add(None, "user", "template", CHAT.prompt(task.prompt))
    root = table.add(prompt.id, None, judged=True, full=9, visits=9.0)
    states = [root]
    for parent, text, q, visits in steps:
        ids = CHAT.encode(text, trusted=True)
        up = states[parent]
        node = tree.add(
            up.node, "assistant", "policy", ids, logprobs=[-1.0] * len(ids), policy_version=0
        )
        facts = {"q": q, "visits": float(visits), "full": visits, "judged": True}
        states.append(table.add(node.id, up, **facts))
    table.chosen = states[-1].id
    tree.meta |= {"search": table.to_json(), "tokenizer": ByteTokenizer.fingerprint}
    tree.attempts.append(Attempt(states[-1].node, "final_answer", reward, answer="1"))
    return tree


STEPS = [
    (0, "go left\n", 0.9, 6),
    (0, "go right\n", 0.1, 2),
    (0, "stay\n", 0.5, 1),
    (2, "deep\n", 0.7, 1),
    (2, "other\n", 0.2, 1),
    (1, "then up", 0.8, 4),
    (1, "then down", 0.3, 1),
    (1, "then on", 0.9, 1),
]


def step_text(sample):
    return CHAT.decode([i for i, w in zip(sample.token_ids, sample.weights, strict=True) if w])


def test_siblings_of_the_chosen_path_best_against_worst():
    made = select([tree_of(STEPS)], CHAT)
    assert [p.meta["texts"] for p in made.pairs] == [
        ("go left\n", "go right\n"),
        ("then on", "then down"),
    ]
    everywhere = select([tree_of(STEPS)], CHAT, levels="all")
    assert len(everywhere.pairs) == 3
    assert everywhere.statistics()["depths"] == {1: 1, 2: 2}


def test_the_shared_beginning_has_no_weight():
    for pair in select([tree_of(STEPS)], CHAT).pairs:
        a, b = pair.chosen, pair.rejected
        n = shared_prefix(pair)
        assert a.token_ids[:n] == b.token_ids[:n]
        assert not any([*a.weights[:n], *b.weights[:n]])
        assert all([*a.weights[n:], *b.weights[n:]])
    second = select([tree_of(STEPS)], CHAT).pairs[1]
    assert step_text(second.chosen) == "on"  # "then " is said by both
    assert step_text(second.rejected) == "down"


def test_visits_become_soft_labels():
    soft = select([tree_of(STEPS)], CHAT, soft=True).pairs[0]
    assert soft.meta[FLIP] == visit_flip(6, 2) == 0.25
    assert FLIP not in select([tree_of(STEPS)], CHAT).pairs[0].meta
    with pytest.raises(ConfigError, match="visits"):
        select([tree_of(STEPS)], CHAT, soft=True, origin="leaves")


def test_the_negative_is_the_worst_unless_asked_otherwise():
    """The reference's flag for the worst never takes effect: it always takes any other."""
    worst = {select([tree_of(STEPS)], CHAT, seed=s).pairs[0].meta["texts"][1] for s in range(20)}
    assert worst == {"go right\n"}
    random = {
        select([tree_of(STEPS)], CHAT, negative="random", seed=s).pairs[0].meta["texts"][1]
        for s in range(20)
    }
    assert random == {"go right\n", "stay\n"}


@pytest.mark.parametrize(
    ("values", "texts", "kept"),
    [
        ((0.5, 0.4), ("a", "b"), True),
        ((0.5, 0.4001), ("a", "b"), False),
        ((-0.3, -0.5), ("a", "b"), True),
        ((-0.31, -0.5), ("a", "b"), False),
        ((0.3, 0.3), ("a", "b"), False),
    ],
)
def test_itools_filters_keep_their_boundaries(values, texts, kept):
    filters = Filters(gap=0.1, overlap=0.95, floor=-0.3)
    steps = [(0, t, v, 1) for t, v in zip(texts, values, strict=True)]
    made = select([tree_of(steps)], CHAT, filters=filters)
    assert len(made.pairs) == kept
    assert made.dropped.total() == (not kept)


def test_a_fragments_first_value_counts_once_however_often_it_was_visited():
    """As a part of the sum over visits it would make a wrong fragment that was visited once
    (0.6 + 0.025) better than the right one that was visited five times (0.6 + 5 * 0.25)."""
    tree = tree_of(
        [(0, "3, ", 0.6 + 5 * 0.25, 5), (0, "4, ", 0.6 + 0.025, 1)],
        strategy="itool",
    )
    for state in tree.meta["search"]["states"][1:]:
        state["estimate"] = 0.6
    (pair,) = select([tree], CHAT, levels="all").pairs
    assert pair.meta["texts"] == ("3, ", "4, ")
    assert pair.meta["values"] == pytest.approx((0.85, 0.625))


def test_an_overlap_of_exactly_the_limit_is_kept():
    words = [f"w{i}" for i in range(20)]
    other = [*words[:19], "x"]
    assert Filters(overlap=0.95).reason(1, 0, " ".join(words), " ".join(other)) is None
    assert Filters(overlap=0.94).reason(1, 0, " ".join(words), " ".join(other)) is not None


def test_a_tree_gives_eight_pairs_at_most_and_none_twice():
    steps = [(0, "a", 1.0, 1), (0, "b", 0.0, 1)]
    for i in range(11):
        steps += [(2 * i + 1, f"a{i}", 1.0, 1), (2 * i + 1, f"b{i}", 0.0, 1)]
    made = select([tree_of(steps)], CHAT, levels="all")
    assert len(made.pairs) == 8
    assert made.dropped == {"over the cap": 4}
    twice = select([tree_of(STEPS), tree_of(STEPS)], CHAT)
    assert len(twice.pairs) == 2
    assert twice.dropped == {"a duplicate": 2}


def test_settings_of_another_origin_and_unknown_metrics_are_refused():
    trees = [tree_of(STEPS)]
    for options in ({"by": "rm"}, {"length_penalty": 0.1}):
        with pytest.raises(ConfigError, match="leaves and attempts"):
            select(trees, CHAT, **options)
    trees[0].attempts[0].metrics["rm"] = 0.5
    with pytest.raises(ConfigError, match="unknown metric 'rn'"):
        select(trees, CHAT, origin="leaves", by="rn")
    with pytest.raises(ConfigError, match="cap is 1 or more"):
        Filters(cap=0)


def test_wrong_trees_can_be_left_out_and_others_are_refused():
    made = select([tree_of(STEPS, reward=0.0)], CHAT, right_only=True)
    assert (made.pairs, made.dropped) == ([], {"trees without a right answer": 1})
    assert made.statistics() == {"pairs": 0, "dropped": {"trees without a right answer": 1}}
    plain = tree_of(STEPS)
    del plain.meta["search"]
    with pytest.raises(DataError, match="was not searched"):
        select([plain], CHAT)
    with pytest.raises(ConfigError, match="origin"):
        select([plain], CHAT, origin="leafs")


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("right_only", [True, False])
def test_a_search_that_failed_is_counted_and_the_others_make_their_pairs(origin, right_only):
    failed, empty = Tree(TASK), Tree(TASK)
    leaf = failed.add(None, "user", "template", CHAT.prompt(TASK.prompt)).id
    failed.attempts.append(Attempt(leaf, "engine_error", error="the engine is down"))
    stopped = tree_of(STEPS)  # what it had found is in its table, and it was never over
    stopped.attempts[:] = failed.attempts
    trees = [failed, stopped, empty]
    alone = select([tree_of(STEPS)], CHAT, origin=origin, right_only=right_only)
    made = select([*trees, tree_of(STEPS)], CHAT, origin=origin, right_only=right_only)
    assert made.pairs == alone.pairs
    each = origin == "siblings" or right_only
    assert made.dropped["failed in our hands"] == (3 if each else 2)  # trees, else attempts
    assert made.dropped["trees without a right answer"] == 0


def test_the_best_and_the_worst_reward_of_a_task():
    assert max_min([0.2, 0.9, -0.1, 0.9]) == (1, 2)
    assert max_min([0.5, 0.5]) is None
    assert max_min([None, 0.5]) is None
    assert max_min([None, 0.5, 0.1]) == (1, 2)
    with pytest.raises(DataError, match="nan"):
        max_min([0.1, math.nan])


def test_rlhf_workflow_the_selections():
    values = [0.2, 0.9, -0.1, 0.9]
    assert choose(values) == (1, 2)
    assert {choose(values, "random", lot) for lot in range(3)} == {(1, 0), (1, 2), (1, 3)}
    assert choose(values, "next") == (1, 3)  # as good: the filters leave it out
    assert choose([0.2, 0.9, -0.1, 0.5], "next") == (1, 3)
    drawn = {choose(values, "any", lot) for lot in range(60)}
    assert drawn == {(1, 0), (0, 2), (3, 0), (1, 2), (1, 3), (3, 2)}


@given(st.lists(st.none() | st.integers(-2, 2), max_size=5), st.sampled_from(NEGATIVES), st.data())
def test_no_selection_pairs_an_answer_with_itself(values, negative, data):
    known = [v for v in values if v is not None]
    found = choose(values, negative, data.draw(st.integers(0, 9)))
    if len(set(known)) < 2:
        assert found is None
    else:
        assert found is not None
        assert found[0] != found[1]
        assert values[found[0]] >= values[found[1]]


def test_answers_are_compared_by_what_a_reward_model_says():
    graded = [attempt_at("a", i, float(i), text=f"say {i}") for i in range(2)]
    for (_, attempt), score in zip(graded, (3.0, 1.0), strict=True):
        attempt.metrics["reward_score"] = score
    trees = [*(tree for tree, _ in graded), attempt_at("a", 2, 1.0)[0]]
    made = select(trees, CHAT, origin="attempts", by="reward_score")
    assert made.pairs[0].meta["texts"] == ("say 0", "say 1")
    assert made.pairs[0].meta["values"] == (3.0, 1.0)
    assert made.dropped["not scored"] == 1


def test_pairs_across_attempts_leave_out_what_is_no_answer():
    trees = [
        tree_of([(0, text, 0.0, 0)], reward=reward)
        for text, reward in (("right", 1.0), ("wrong", 0.0), ("unscored", None), ("worse", 0.0))
    ]
    trees[3].attempts[0].stop_reason = "max_tokens"
    made = select(trees, CHAT, origin="attempts")
    assert [p.meta["texts"] for p in made.pairs] == [("right", "wrong")]
    assert made.dropped == {"not scored": 1, "truncated": 1}


def test_a_reward_can_cost_characters():
    trees = [
        tree_of([(0, t, 0.0, 0)], reward=r) for t, r in (("right answer", 1.0), ("wrong", 0.0))
    ]
    made = select(trees, CHAT, origin="attempts", length_penalty=0.2)
    assert made.pairs[0].meta["texts"] == ("wrong", "right answer")
    assert made.pairs[0].meta["values"] == pytest.approx((-1.0, -1.4))


def test_pairs_go_to_trl_and_back_and_into_training():
    pairs = select([tree_of(STEPS)], CHAT).pairs
    columns = to_trl(pairs, "preference", CHAT)
    assert columns[1]["prompt"].endswith("go left\nthen ")
    assert (columns[1]["chosen"], columns[1]["rejected"]) == ("on", "down")
    assert rows.pair_row(from_trl(columns[1])) == rows.pair_row(
        rows.pair_of(json.loads(json.dumps(rows.pair_row(pairs[1]))))
    )
    model = tiny_model(ByteTokenizer.vocab_size, hidden=16, layers=1, heads=2, kv_heads=2)
    result = train(model, pairs, "dpo", TrainConfig(max_steps=8, epochs=8, batch_size=2, lr=1e-2))
    first, last = result.metrics[0], result.metrics[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the policy is its reference
    assert last["margin"] > first["margin"]


def test_the_command_writes_pairs_and_says_what_they_are(tmp_path, capsys):
    with TreeStore(tmp_path / "trees") as store:
        store.append(tree_of(STEPS))
    out = tmp_path / "pairs.jsonl"
    command = ["select", "pairs", str(tmp_path / "trees"), str(out), "--policy", "scripted"]
    assert main([*command, "gap=0.7", "soft=true"]) == 0
    (pair,) = rows.read_pairs(out)
    assert pair.meta[FLIP] == 0.25
    shown = capsys.readouterr().out
    assert "mean_gap: 0.8" in shown
    assert "dropped 1: too near in value" in shown
    assert main([*command, "gaps=1"]) != 0


def test_ches_by_hand():
    chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.25, 0.5], [0.25, 0.5]])
    assert ches.ches(chosen, rejected, normalised=False) == -0.5
    assert ches.ches(chosen, rejected) == -0.75
    assert ches.ches(rejected, rejected) == 0.0


def test_ches_reads_the_states_that_predict_the_answer():
    model = tiny_model(50, hidden=16, layers=1, heads=2, kv_heads=2)
    pair = Pair(Sample([1, 2, 3, 4], [0, 0, 1, 1]), Sample([1, 2, 7, 8, 9], [0, 0, 1, 1, 1]))
    with torch.inference_mode():
        states = [
            model.base_model(input_ids=torch.tensor([list(s.token_ids)]))[0][0, 1:-1]
            for s in (pair.chosen, pair.rejected)
        ]
    assert [len(s) for s in states] == [2, 3]
    assert ches.scores(model, [pair]) == [pytest.approx(ches.ches(*states))]
    same = Pair(pair.chosen, pair.chosen)
    assert ches.scores(model, [same], normalised=False) == [pytest.approx(0.0, abs=1e-9)]
    # what comes after the answer (padding, say) has no weight and changes nothing
    padded = Pair(Sample([1, 2, 3, 4, 0, 0], [0, 0, 1, 1, 0, 0]), pair.rejected)
    assert ches.scores(model, [padded]) == pytest.approx(ches.scores(model, [pair]))


def test_the_safest_share_is_kept_in_order():
    pairs = [Pair(Sample([1], [1]), Sample([2], [1]), meta={"n": n}) for n in range(4)]
    kept = lowest(pairs, [0.3, -1.0, 0.9, -2.0], 0.5)
    assert [(p.meta["n"], p.meta["ches"]) for p in kept] == [(1, -1.0), (3, -2.0)]
    assert len(lowest(pairs, [0.0] * 4, 0.05)) == 1
    with pytest.raises(ConfigError, match="share"):
        lowest(pairs, [0.0] * 4, 0)

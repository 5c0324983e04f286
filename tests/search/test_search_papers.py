"""What the papers' searches do beside their formulas: near-duplicates, the reference's steps, the
first value of a fragment; and the released code's errors, which are not made here."""

from __future__ import annotations

import asyncio
import math

import pytest

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import AgentRLWarning
from agentrl.rollouts import make
from agentrl.rollouts.searching import searching
from agentrl.search import rules
from agentrl.search.evaluators import ByValue
from agentrl.search.steps import next_step
from agentrl.search.strategies import itool_strategy, mcts_strategy, rain_strategy, tree_search
from agentrl.search.table import Table
from agentrl.search.units import lines
from agentrl.select import pairs
from agentrl.types import SamplingParams
from tests.search.test_search import JUDGED, Digits, Ones, ones, searched
from tests.search.tool_toys import Drawn, FakeEnv, tens
from tests.search.tool_toys import searched as searched_with

CHAT = Chat(ByteTokenizer())
SENTENCE = (
    "The train leaves the station at noon and arrives in the old town at three o'clock, "
    "which is why nobody who works there ever takes it in the morning"
)


def table_of(tree):
    return Table.from_json(tree.meta["search"])


def test_near_duplicates_are_one_step():
    other = SENTENCE.replace("The train", "A train")
    assert rules.cosine(SENTENCE, other) < rules.NEAR < rules.cosine(SENTENCE, SENTENCE + ".")
    said = [SENTENCE, SENTENCE + ".", other]

    def drawn(near):
        policy = Drawn(lambda turn, text: said)
        options = {
            "unit": "line",
            "iterations": 1,
            "first": 1,
            "b1": 12,
            "near": near,
            "step_tokens": 400,
        }
        (tree,) = searched_with("mcts", policy, FakeEnv(), judge=ByValue(tens), **options)
        table = table_of(tree)
        return sorted(s.times for s in table.children(table.states[0]))

    assert len(drawn(near=2.0)) == 3
    assert len(drawn(near=rules.NEAR)) == 2
    assert sum(drawn(near=2.0)) == sum(drawn(near=rules.NEAR)) == 12


@pytest.mark.parametrize(
    ("said", "stops", "step"),
    [
        ("", ("\n",), "x = 1\n"),
        ("x = 1\n", ("\n",), "so 2\n"),
        ("x = 1\n", ("2", "\n"), "so 2"),
        ("x = 1\nso 2\n", ("\n",), "end"),
        ("x = 1\nso 2\nend", ("\n",), ""),
        ("x = 2\n", ("\n",), ""),
    ],
)
def test_the_reference_goes_on_only_where_the_path_is_its_beginning(said, stops, step):
    assert next_step("x = 1\nso 2\nend", said, stops) == step


def test_the_references_steps_are_among_those_drawn_and_no_attempt_of_the_policy():
    options = {"judge": None, "outcome": True, "iterations": 2, "b1": 2, "b2": 2, "depth": 4}
    policy = Digits(right=0.0)
    (tree,), _ = searched("mcts", policy, gold=lambda of: "1\n1\n1\n", **options)
    table = table_of(tree)
    gold = [s for s in table.states if s.gold]
    assert [table.parent(s).gold or s.depth == 1 for s in gold] == [True] * len(gold)
    assert [s.depth for s in gold] == [1, 2, 3]
    assert gold[-1].terminal
    assert gold[-1].outcome == 1.0
    assert gold[0].logprob == pytest.approx(-0.7 * gold[0].tokens)
    nodes = [n for s in gold for n in tree.path(s.said) if "gold" in n.info]
    assert all(n.source == "hint" and n.logprobs is None for n in nodes)
    assert table.tokens == policy.tokens  # nothing of it was sampled
    sampled = {n.id for n in tree.nodes if n.source == "policy"}
    for attempt in tree.attempts[:-1]:
        assert sampled & {n.id for n in tree.path(attempt.leaf)}
    assert make("mcts", outcome=False, gold=str).sees_reference


def test_a_pair_prefers_the_references_step_by_its_tokens():
    options = {"judge": None, "outcome": True, "iterations": 3, "depth": 4}
    (tree,), _ = searched("mcts", Digits(right=0.0), gold=lambda of: "1\n1\n1\n", **options)
    made = pairs.select([tree], CHAT)
    first = made.pairs[0]
    assert first.meta["texts"] == ("1\n", "0\n")
    for side, text in ((first.chosen, "1\n"), (first.rejected, "0\n")):
        marked = [i for i, w in zip(side.token_ids, side.weights, strict=True) if w]
        assert CHAT.decode(marked) == text


def test_a_right_path_of_the_policys_own_is_worth_more_than_the_references_text():
    assert rules.outcome_value(1.0) == 1.0
    assert rules.outcome_value(1.0, novel=True) == 1.25
    assert [rules.outcome_value(x, novel=True) for x in (0.0, 0.5)] == [-1.0, 0.0]
    strategy = mcts_strategy(lines(), b1=2, b2=2, depth=3, gold="1")
    table = Table()
    root = table.add(0, None)
    reference = table.add(1, root, outcome=1.0, gold=True)
    own = table.add(2, root, outcome=1.0)
    for state in (reference, own):
        strategy.created(table, state)
    assert (reference.q, own.q) == (1.0, 1.25)


GOLD = '[book(city="Rome", day=3)]'


@pytest.mark.parametrize(
    ("fragment", "value"),
    [
        ("[book(", -0.1 + 1 - 0.5),
        ('[book(city="Oslo", ', -0.1 + 7 / 8 - 0.5),
        ("day=3)]", 0.1 + 1 - 0.5),
        ("[fly(to=", -0.1 + 3 / 5 - 0.5),
        ("", -0.1 - 0.5),  # the released code divides by zero
    ],
)
def test_itools_first_value_of_a_fragment(fragment, value):
    assert rules.fragment_value(fragment, GOLD) == pytest.approx(value)


def test_where_no_call_is_wanted_a_list_of_calls_costs():
    gold = "None of the tools can do that."
    assert rules.fragment_value("None of the", gold) == pytest.approx(0.1 + 1 - 0.5)
    assert rules.fragment_value("[book()]", gold) == pytest.approx(-0.1 + 0 - 0.5)
    for text in ('[{"name": "f"}]', '<tool_call>\n{"name": "f"}\n</tool_call>', "[f(a=1)] "):
        assert rules.ends_calls(text)
    assert not rules.ends_calls("[f(a=1), ")


def test_a_fragments_first_value_guides_the_first_choice():
    strategy = itool_strategy(first_value=lambda s: {1: 0.4, 2: 0.6}[s.id])
    table = Table()
    root = table.add(0, None)
    a, b = (table.add(i, root, prior=0.5) for i in (1, 2))
    for state in (a, b):
        strategy.created(table, state)
    assert strategy.score(table, b) > strategy.score(table, a)
    strategy.backup(table, [root, b], -0.5)
    assert (b.q, b.visits) == (pytest.approx(0.1), 1)  # values add up along the path
    assert strategy.score(table, b) < strategy.score(table, a)


def test_itool_takes_first_values_where_its_judge_sees_the_reference():
    def first(**options):
        (tree,), _ = searched("itool", iterations=1, width=8, **options)
        table = table_of(tree)
        return [s.q for s in table.children(table.states[0])]

    judge = ByValue(ones, reference=True)
    assert any(first(judge=judge))
    assert not any(first(judge=judge, values=False))
    assert not any(first(judge=ByValue(ones)))


# Errors of the released code


def test_a_second_iteration_of_itool_goes_a_step_further():
    """There, selection is entered only after two expansions of a state: its trees stay shallow."""
    calls = [f"[f(a={a}, b={b})]" for a in "12" for b in "12"]
    policy = Drawn(lambda turn, text: calls)
    for iterations in (1, 2, 3):
        options = {"iterations": iterations, "group": 1, "tools": "none", "values": False}
        (tree,) = searched_with("itool", policy, FakeEnv(), judge=ByValue(tens), **options)
        assert max(s.depth for s in table_of(tree).states if s.full) == iterations - 1


def test_an_iteration_of_mcts_is_one_visit_of_its_root():
    """There, it is two: one at the start and one at the back-up."""
    (tree,), _ = searched("mcts", iterations=3, first=2, outcome=True, **JUDGED)
    assert table_of(tree).states[0].visits == 6


def test_confidence_and_outcome_are_both_kept():
    """There, what is logged is their sum."""
    (tree,), _ = searched("mcts", env=Ones(), outcome=True, **JUDGED)
    ends = [s for s in table_of(tree).states if s.outcome is not None]
    assert ends
    assert all(s.confidence is not None for s in ends)


def test_rain_says_the_same_for_a_seed_and_trains_nothing():
    texts = []
    for seed in (0, 0, 1):
        (tree,), policy = searched("rain", seed=seed, judge=ByValue(ones), iterations=6, least=3)
        texts.append(tree.attempts[-1].answer)
        assert policy.version == 0
    assert texts[0] == texts[1]


class Ranked(Digits):
    """Tells its likeliest tokens: a, b, c, ... of falling probability; the fourth ends the turn."""

    def __init__(self):
        super().__init__()
        self.asked = []

    async def top(self, ids, k):
        self.asked.append((tuple(ids), k))
        tokens = [97, 98, 99, 257, *range(100, 120)]
        return [(token, -1.0 - i) for i, token in enumerate(tokens)][:k]


def test_rains_first_tokens_are_the_ten_likeliest_asked_for_once():
    policy = Ranked()
    (tree,), _ = searched("rain", policy, judge=ByValue(ones), iterations=6, least=3)
    table, prompt = table_of(tree), tree.nodes[0]
    first = table.children(table.states[0])
    assert policy.asked == [(prompt.token_ids, 10)]
    assert [tree.nodes[s.node].token_ids for s in first] == [
        (token,) for token in (97, 98, 99, 257, 100, 101, 102, 103, 104, 105)
    ]
    assert [s.logprob for s in first] == [-1.0 - i for i in range(10)]
    raw = [math.exp(-1.0 - i) for i in range(10)]
    assert [s.prior for s in first] == pytest.approx(rules.group_priors(raw))
    assert [s.terminal for s in first] == [i == 3 for i in range(10)]
    node = tree.nodes[first[0].node]
    assert (node.source, node.logprobs) == ("policy", (-1.0,))
    assert list(node.info["sampled_logprobs"]) == [0.0], "it was taken for certain"
    assert prompt.token_ids not in policy.trace, "none was sampled"
    assert table.tokens >= 10


def test_rain_commits_after_exactly_t_min_plus_one_visits(monkeypatch):
    """The spec's stub: a judge that always says +1."""

    async def good(task, text):
        return 1.0

    kept, move = [], Table.move
    monkeypatch.setattr(
        Table, "move", lambda table, state: (kept.append(state.full), move(table, state))
    )
    searched("rain", Ranked(), judge=ByValue(good), t_min=6, v_t=0.8)
    assert kept[0] == 7
    assert min(kept) >= 7


def test_rain_widens_by_the_next_likeliest():
    async def bad(task, text):
        return -1.0

    policy = Ranked()
    alike = rain_strategy(width=2, text=lambda s: "same")
    (tree,), _ = searched("rain", policy, judge=ByValue(bad), iterations=8, least=1, width=2)
    assert {k for _, k in policy.asked} == {2}, "what differs is not widened"

    async def run(search):
        return await tree_search(search, alike, wanted=lambda s: 0 if s.depth else 6)

    policy = Ranked()
    rollout = searching("rain", run, judge=ByValue(bad), outcome=False)
    (tree,) = asyncio.run(collect(Ones(), rollout, policy, params=SamplingParams(8, 1.0)))
    assert [k for _, k in policy.asked] == [2, *range(3, 3 + len(policy.asked) - 1)]
    first = table_of(tree).children(table_of(tree).states[0])
    assert [tree.nodes[s.node].token_ids[0] for s in first] == [97, 98, 99, 257, 100, 101][
        : len(first)
    ]
    assert len(first) > 2


def test_rain_says_so_where_a_policy_does_not_tell_its_likeliest_tokens():
    with pytest.warns(AgentRLWarning, match="does not tell its likeliest tokens"):
        searched("rain", judge=ByValue(ones), iterations=2, least=1)


def test_rains_first_tokens_in_transformers():
    pytest.importorskip("torch", reason="needs the extra 'train'")
    from agentrl.engines.hf import HFPolicy
    from agentrl.engines.models import tiny_model

    policy = HFPolicy(tiny_model(258, hidden=16, layers=1, init_std=0.2).eval(), ByteTokenizer())

    async def go():
        rollout = make("rain", judge=ByValue(ones), iterations=2, least=1, width=10)
        (tree,) = await collect(Ones(), rollout, policy, params=SamplingParams(4, 1.0))
        found = await policy.top(tree.nodes[0].token_ids, 10)
        sampled = await policy.score([*tree.nodes[0].token_ids, found[3][0]])
        await policy.close()
        return tree, found, sampled[-1]

    tree, found, scored = asyncio.run(go())
    first = table_of(tree).children(table_of(tree).states[0])
    assert [tree.nodes[s.node].token_ids[0] for s in first] == [token for token, _ in found]
    assert [s.logprob for s in first] == pytest.approx([logprob for _, logprob in found])
    assert found[3][1] == pytest.approx(scored, abs=1e-4)


def test_rains_extremes_are_carried_over_when_the_root_moves():
    strategy, table = rain_strategy(text=lambda s: str(s.id) * 8), Table()
    root = table.add(0, None)
    a, b = (table.add(i, root) for i in (1, 2))
    assert (table.low, table.high) == (-1.0, 1.0)
    strategy.backup(table, [root, a], 3.0)
    strategy.backup(table, [root, b], -2.0)
    table.move(a)
    assert (table.low, table.high) == (-2.0, 3.0)
    assert rules.scaled(0.5, 1, table.low, table.high) == pytest.approx(0.5, abs=1e-5)

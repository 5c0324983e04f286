"""Searched trees on the page, and what searches cost."""

from __future__ import annotations

import json
import re

from agentrl import report
from agentrl.engines.scripted import ByteTokenizer
from agentrl.report import page, searches
from agentrl.report.trajectories import payload
from agentrl.search import Table, statistics
from agentrl.search.counts import unique_tokens
from agentrl.store import TreeStore
from agentrl.tree import Tree
from agentrl.types import Attempt, Message, Task
from tests.search.test_search import JUDGED, Digits, searched
from tests.search.tool_toys import Drawn, FakeEnv, assign_and_print
from tests.search.tool_toys import searched as with_tools

DECODE = ByteTokenizer().decode


def test_statistics_count_every_token_once() -> None:
    tree = Tree(Task("t", (Message("user", "q"),), "fake"))
    tree.add(None, "user", "template", [1, 2])
    for ids in ([5, 6, 7], [5, 6, 8], [5, 6, 7]):  # the third was dropped as a duplicate
        tree.add(0, "assistant", "policy", ids, logprobs=[-1.0] * 3)
    tree.add(1, "tool", "environment", [9, 9])
    assert unique_tokens(tree) == 4
    table = Table(strategy="mcts", tokens=9, calls=1, replayed=2, iterations=3)
    root = table.add(0, None, visits=3.0)
    a = table.add(4, root, visits=2.0, said=1)
    table.add(2, root)
    table.chosen = a.id
    tree.meta["search"] = table.to_json()
    found = statistics([tree, Tree(tree.task)])
    assert found == {
        "searches": 1,
        "strategies": ["mcts"],
        "states": 2,
        "visited": 1,
        "finished": 0,
        "depth": 1.0,
        "deepest": 1,
        "visits": 3.0,
        "sampled_tokens": 9,
        "unique_tokens": 4,
        "iterations": 3,
        "calls": 1,
        "replayed": 2,
        "forked": 0,
        "lost": 0,
        "refused": {},
        "sampled_per_unique": 2.25,
        "seconds": 0,
    }
    assert statistics([Tree(tree.task)]) == {}


def test_the_picture_has_visits_values_the_way_and_what_was_never_taken() -> None:
    options = {"b1": 6, "b2": 4, "iterations": 3, "first": 1, "outcome": True, **JUDGED}
    (tree,), _ = searched("mcts", Digits(0.5), **options)
    table = Table.from_json(tree.meta["search"])
    view = searches.search_view(tree, DECODE)
    assert view is not None
    assert len(view["states"]) == len(table.states)
    way = [i for i, s in enumerate(view["states"]) if "way" in s]
    assert table.chosen is not None
    assert way == [s.id for s in table.path(table.states[table.chosen])]
    assert "".join(view["states"][i]["x"] for i in way).replace("<|im_end|>", "") == "1\n1\n1\n"
    off = [s for s in view["states"] if "off" in s]
    assert len(off) == sum(s.visits == 0 for s in table.states) > 0
    for state, shown in zip(table.states[1:], view["states"][1:], strict=True):
        assert (shown["n"], shown["q"]) == (state.visits, round(state.q, 3))
        assert shown["p"] == state.parent
        assert ("end" in shown) == (state.terminal and not state.truncated)
        assert shown.get("o") == state.outcome


def test_what_the_environment_said_stands_beside_the_step() -> None:
    options = {"tools": "blocks", "outcome": True, "unit": "call", "step_tokens": 200}
    (tree,) = with_tools("mcts", Drawn(assign_and_print), FakeEnv(), **options)
    view = searches.search_view(tree, DECODE)
    assert view is not None
    assert view["calls"] == sum("e" in s for s in view["states"])
    said = {s["x"]: s["e"] for s in view["states"] if "e" in s}
    assert said["```python\ny = x * 10; print(y)\n```\n"] in ("10", "20")


def test_a_wide_search_is_drawn_where_it_was_visited(monkeypatch) -> None:
    (tree,), _ = searched("mcts", Digits(0.5), b1=12, b2=6, outcome=True, **JUDGED)
    table = Table.from_json(tree.meta["search"])
    monkeypatch.setattr(searches, "MOST_STATES", 8)
    view = searches.search_view(tree, DECODE)
    assert view is not None
    assert len(view["states"]) + view["left"] == len(table.states)
    assert len(view["states"]) == 8
    assert sum("way" in s for s in view["states"]) == len(table.path(table.states[table.chosen]))
    assert all(s["p"] is None or s["p"] < i for i, s in enumerate(view["states"]))


def test_a_search_is_in_the_page_once_and_its_texts_are_no_markup(tmp_path) -> None:
    hostile = "</script><b>\n"
    (tree,) = with_tools("best_of_n", Drawn(lambda turn, text: [hostile + "1", "2"]), FakeEnv())
    tree.attempts.append(Attempt(tree.attempts[-1].leaf, "final_answer", reward=0.0))
    data = payload({"run": [tree, tree]}, DECODE)
    assert len(data["searches"]) == 1
    assert {item["search"] for item in data["items"]} == {0}
    html = page.render({}, [], {}, {"run": [tree]}, DECODE)
    assert hostile not in html
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert embedded is not None
    assert json.loads(embedded[1])["searches"][0]["strategy"] == "best_of_n"
    assert '<section class="band" id="search">' in html
    with TreeStore(tmp_path / "trees") as store:
        tree.meta["tokenizer"] = ByteTokenizer.fingerprint
        store.append(tree)
    assert "best_of_n" in report.write(tmp_path).read_text()
    plain = payload({"run": [Tree(tree.task, tree.nodes, tree.attempts)]}, DECODE)
    assert "searches" not in plain
    assert "search" not in plain["items"][0]

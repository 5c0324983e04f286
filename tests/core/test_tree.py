"""The tree: nodes, paths, forks, JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrl.errors import TreeError
from agentrl.tree import Tree
from agentrl.types import (
    Attempt,
    Message,
    Source,
    Task,
    ToolCall,
    TurnReward,
)

TASK = Task("t", (Message("user", "q"),), "fake", data={"answer": "4", "n": [1, {"x": None}]})


SOURCES: list[Source] = ["template", "policy", "hint", "environment"]


def grow(choices: list[tuple[int, int, int]]) -> Tree:
    """A tree from (parent, source, length) triples, with forks (length 0) in between."""
    tree = Tree(TASK, meta={"attempt": 1})
    tree.add(None, "user", "template", [1, 2, 3])
    for parent, source, length in choices:
        at = parent % len(tree.nodes)
        if not length:
            tree.fork(at, 1 + source % len(tree.ids(at)))
            continue
        kind = SOURCES[source % 4]
        logprobs = [-i / 4 for i in range(length)] if kind == "policy" else None
        info = {"sampled_logprobs": list(logprobs)} if logprobs else {"k": "ü"}
        ids = range(10 * at, 10 * at + length)
        tree.add(at, "assistant", kind, list(ids), logprobs=logprobs, info=info, policy_version=2)
    reward = TurnReward(0, 0.5)
    tree.attempts.append(Attempt(len(tree.nodes) - 1, "final_answer", 1.0, rewards=[reward]))
    tree.attempts.append(Attempt(0, "timeout", error="slow", branches=(0,), metrics={"a": [1]}))
    return tree


triples = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 4)), max_size=12
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(triples)
def test_json_round_trip(choices: list[tuple[int, int, int]]) -> None:
    tree = grow(choices)
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree
    assert Tree.from_json(tree.to_json()) == tree


@settings(max_examples=60, deadline=None, derandomize=True)
@given(triples, st.integers(0, 99), st.integers(0, 99))
def test_a_fork_keeps_exactly_a_beginning(
    choices: list[tuple[int, int, int]], leaf: int, cut: int
) -> None:
    tree = grow(choices)
    leaf %= len(tree.nodes)
    ids, size = tree.ids(leaf), len(tree.nodes)
    before = json.dumps(tree.to_json())
    tokens = 1 + cut % len(ids)
    node = tree.fork(leaf, tokens)
    assert tree.ids(node) == ids[:tokens]
    assert len(tree.nodes) - size <= 1
    for n in tree.path(node):
        assert (n.logprobs is not None) == (n.source == "policy")
        rows = (n.logprobs, n.info.get("sampled_logprobs"))
        assert all(row is None or len(row) == len(n.token_ids) for row in rows)
        original = tree.nodes[n.info.get("copy_of", n.id)]
        assert original.token_ids[: len(n.token_ids)] == n.token_ids
        assert "copy_of" not in original.info
    assert tree.fork(leaf, tokens) == node  # the same place is the same node
    del tree.nodes[size:]
    assert json.dumps(tree.to_json()) == before  # nothing else changed


def test_paths_children_and_leaves() -> None:
    tree = Tree(TASK)
    root = tree.add(None, "user", "template", [1, 2]).id
    a = tree.add(root, "assistant", "policy", [3], logprobs=[-0.5]).id
    b = tree.add(root, "assistant", "policy", [4], logprobs=[-0.5]).id
    c = tree.add(a, "tool", "environment", [5, 6]).id
    assert [n.id for n in tree.path(c)] == [root, a, c]
    assert tree.ids(c) == [1, 2, 3, 5, 6]
    assert [n.id for n in tree.children(root)] == [a, b]
    assert tree.leaves == [b, c]


@pytest.mark.parametrize(
    ("parent", "source", "ids", "logprobs", "message"),
    [
        (None, "template", [1], None, "one root"),
        (7, "template", [1], None, "no node 7"),
        (-1, "template", [1], None, "no node -1"),
        (0, "hint", [], None, "at least one token"),
        (0, "policy", [1], None, "one log-probability a token"),
        (0, "policy", [1, 2], [0.0], "one log-probability a token"),
        (0, "hint", [1], [0.0], "was not sampled"),
    ],
)
def test_a_node_that_breaks_the_rules(
    parent: int | None, source: Source, ids: list[int], logprobs: list[float] | None, message: str
) -> None:
    tree = Tree(TASK)
    tree.add(None, "user", "template", [1])
    with pytest.raises(TreeError, match=message):
        tree.add(parent, "user", source, ids, logprobs=logprobs)
    assert len(tree.nodes) == 1


def test_forks_and_paths_that_cannot_be() -> None:
    tree = Tree(TASK)
    tree.add(None, "user", "template", [1, 2])
    with pytest.raises(TreeError, match="fewer than 3"):
        tree.fork(0, 3)
    with pytest.raises(TreeError, match="at least one"):
        tree.fork(0, 0)
    with pytest.raises(TreeError, match="no node 4"):
        tree.path(4)
    assert len(tree.nodes) == 1


def test_calls_in_prompts_survive_json_and_rubbish_is_refused() -> None:
    calls = (ToolCall("f", {"a": 1}, "id"),)
    prompt = (Message("user", "q"), Message("assistant", "", calls), Message("tool", "x", name="f"))
    tree = Tree(Task("t", prompt, "e"))
    assert Tree.from_json(json.loads(json.dumps(tree.to_json()))) == tree
    for bad in ({}, {"task": {}}, {**tree.to_json(), "nodes": [{"id": 0}]}):
        with pytest.raises((KeyError, TypeError)):
            Tree.from_json(bad)


def test_info_is_not_shared_between_nodes() -> None:
    tree, info = Tree(TASK), {"a": 1}
    tree.add(None, "user", "template", [1], info=info)
    info["a"] = 2
    assert tree.nodes[0].info == {"a": 1}


def test_the_longest_beginning_in_common_shares_sampled_nodes_whole():
    tree = Tree(Task("t", (), "none"))
    tree.add(None, "user", "template", [1, 2, 3])
    said = tree.add(0, "assistant", "policy", [4, 5], logprobs=[-1.0, -1.0])
    tree.add(said.id, "user", "environment", [6])
    assert tree.common([1, 2, 9]) == (0, 2)  # inside of the prompt
    assert tree.common([1, 2, 3, 4, 9]) == (0, 3)  # not inside of what was sampled
    assert tree.common([1, 2, 3, 4, 5, 9]) == (said.id, 5)
    assert tree.common([9]) == (-1, 0)
    assert tree.add(None, "user", "template", [9], new_root=True).parent is None
    assert tree.common([9, 9]) == (3, 1)

"""From token trees to episodes and to training rows, token for token."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentrl.credit import assign, credited, episode_of, leave_one_out
from agentrl.errors import DataError
from agentrl.record import Tree
from agentrl.types import Attempt, Task, TurnReward


def grown() -> Tree:
    """prompt(2) -> policy(2) -> tool(2) -> policy(1) -> end token(1)."""
    tree = Tree(Task("t", (), "toy"), meta={"tokenizer": "x"})
    tree.add(None, "user", "template", [1, 2])
    tree.add(0, "assistant", "policy", [3, 4], logprobs=[-0.3, -0.4])
    tree.add(1, "tool", "environment", [5, 6])
    sampled = {"sampled_logprobs": [-0.07]}
    tree.add(2, "assistant", "policy", [7], logprobs=[-0.7], info=sampled)
    tree.add(3, "assistant", "policy", [8], logprobs=[-0.8])
    return tree


def test_an_attempt_as_an_episode() -> None:
    tree = grown()
    attempt = Attempt(4, "final_answer", 1.0, rewards=[TurnReward(1, 0.25, "step")])
    episode = episode_of(tree, attempt)
    assert list(episode.turns) == [-1, -1, 0, 0, -1, -1, 1, 1]
    assert [(s.token, s.value, s.source) for s in episode.rewards] == [
        (3, 0.25, "step"),
        (7, 1.0, "outcome"),
    ]
    assert episode.states == [(1, 2), (5, 6)]
    assert episode.valid
    assert episode_of(tree, attempt, outcome=False).turn_rewards() == [0.25, 0.0]
    cut = episode_of(tree, Attempt(4, "max_tokens", 0.0))
    assert cut.truncated
    assert cut.valid


def test_failed_and_unscored_attempts_are_not_valid() -> None:
    tree = grown()
    assert not episode_of(tree, Attempt(4, "sandbox_error", 1.0, error="gone")).valid
    assert not episode_of(tree, Attempt(4, "final_answer")).valid
    with pytest.raises(DataError, match="node 9"):
        episode_of(tree, Attempt(4, "final_answer", 1.0, rewards=[TurnReward(9, 1.0)]))


def test_rows_carry_what_a_loss_reads() -> None:
    tree = grown()
    attempt = Attempt(4, "final_answer", 1.0)
    advantages = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 2.0, 2.0]
    (row,) = credited(tree, attempt, advantages)
    assert list(row.token_ids) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert row.weights == [0, 0, 1, 1, 0, 0, 1, 1]
    assert row.advantages == advantages
    assert row.logprobs == [0, 0, -0.3, -0.4, 0, 0, -0.7, -0.8]
    (row,) = credited(tree, attempt, advantages, logprobs="sampled")
    assert row.logprobs == [0, 0, -0.3, -0.4, 0, 0, -0.07, -0.8]
    with pytest.raises(ValueError, match="7 advantages for 8 tokens"):
        credited(tree, attempt, advantages[1:])


def test_hints_are_never_credited() -> None:
    tree = Tree(Task("t", (), "toy"))
    tree.add(None, "user", "template", [1])
    tree.add(0, "assistant", "policy", [2], logprobs=[-1.0])
    tree.add(1, "assistant", "hint", [3, 4])
    tree.add(2, "assistant", "policy", [5], logprobs=[-1.0])
    episode = episode_of(tree, Attempt(3, "final_answer", 1.0))
    assert list(episode.turns) == [-1, 0, -1, -1, 1]
    (made,) = leave_one_out([episode])
    assert made == [0, 1.0, 0, 0, 1.0]
    (row,) = credited(tree, Attempt(3, "final_answer", 1.0), made)
    assert row.weights == [0, 1, 0, 0, 1]


def test_turns_that_the_template_rewrote_are_credited_once() -> None:
    """Thinking is taken out of the first turn, so it stands on a branch; the part of it that both
    paths have in common counts there alone."""
    tree = Tree(Task("t", (), "toy"))
    tree.add(None, "user", "template", [1])
    tree.add(0, "assistant", "policy", [2, 3, 4], logprobs=[-0.2, -0.3, -0.4])  # the branch
    copy = tree.fork(1, 2)  # its first token, then what the template made of the rest
    rewritten = tree.add(copy, "user", "environment", [9, 9]).id
    last = tree.add(rewritten, "assistant", "policy", [5], logprobs=[-0.5]).id
    rewards = [TurnReward(1, 0.5, "first")]
    attempt = Attempt(last, "final_answer", 1.0, rewards=rewards, branches=(1,))
    episode = episode_of(tree, attempt)
    assert list(episode.turns) == [-1, 0, 0, 0, -1, -1, -1, -1, 1]
    assert episode.turn_rewards() == [0.5, 1.0]
    at_the_copy = Attempt(last, "final_answer", 1.0, rewards=[TurnReward(copy, 0.5)], branches=(1,))
    assert episode_of(tree, at_the_copy).turn_rewards() == [0.5, 1.0]
    branch, main = credited(tree, attempt, [0, 7, 7, 7, 0, 0, 0, 0, 8])
    assert list(branch.token_ids) == [1, 2, 3, 4]
    assert branch.weights == [0, 1, 1, 1]
    assert branch.logprobs == [0, -0.2, -0.3, -0.4]
    assert list(main.token_ids) == [1, 2, 9, 9, 5]
    assert main.weights == [0, 0, 0, 0, 1]
    assert main.advantages == [0, 0, 0, 0, 8]


def test_an_answer_with_tools_in_it_can_be_one_turn() -> None:
    tree = grown()
    tree.add(4, "user", "environment", [9])
    tree.add(5, "assistant", "policy", [3], logprobs=[-1.0])
    rewards = [TurnReward(4, 0.5), TurnReward(6, 1.0)]
    attempt = Attempt(6, "final_answer", 1.0, rewards=rewards)
    assert list(episode_of(tree, attempt).turns) == [-1, -1, 0, 0, -1, -1, 1, 1, -1, 2]
    episode = episode_of(tree, attempt, outcome=False, answers=True)
    assert list(episode.turns) == [-1, -1, 0, 0, -1, -1, 0, 0, -1, 1]
    assert episode.turn_rewards() == [0.5, 1.0]
    assert episode.states == [(1, 2), (5, 6, 9)]


def test_an_answer_that_the_template_rewrote_in_the_middle_is_one_turn() -> None:
    """The call's thinking is taken out when its result comes: the answer goes on in another path.
    The next question begins another answer there."""
    tree = Tree(Task("t", (), "toy"))
    tree.add(None, "user", "template", [1])
    tree.add(0, "assistant", "policy", [2, 3], logprobs=[-1.0, -1.0])
    tree.add(0, "tool", "environment", [3, 4])
    tree.add(2, "assistant", "policy", [5], logprobs=[-1.0])
    tree.add(3, "user", "environment", [6])
    tree.add(4, "assistant", "policy", [7], logprobs=[-1.0])
    rewards = [TurnReward(3, 0.0), TurnReward(5, 1.0)]
    attempt = Attempt(5, "final_answer", 1.0, rewards=rewards, branches=(1,))
    episode = episode_of(tree, attempt, outcome=False, answers=True)
    assert list(episode.turns) == [-1, 0, 0, -1, -1, -1, 0, -1, 1]
    assert episode.turn_rewards() == [0.0, 1.0]


def test_masked_tokens_have_no_weight_and_masked_turns_no_advantage() -> None:
    tree = grown()
    attempt = Attempt(4, "final_answer", 1.0)
    masked = [False, False, True, True, False, False, False, False]
    (row,) = credited(tree, attempt, [1.0] * 8, masked=masked)
    assert row.weights == [0, 0, 0, 0, 0, 0, 1, 1]
    assert credited(tree, attempt, [1.0] * 8, masked=[True] * 8) == []
    group = [replace(episode_of(tree, attempt), masked=frozenset({0}))]
    group.append(episode_of(tree, Attempt(4, "final_answer", 0.0)))
    hidden, shown = assign([group], leave_one_out).advantages[0]
    assert hidden == [0, 0, 0, 0, 0, 0, 1, 1]
    assert shown == [0, 0, -1, -1, 0, 0, -1, -1], "it still counts in the others' baseline"

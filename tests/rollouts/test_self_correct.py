"""Two and more answers to a task: everyone gets another, nobody is told how the last one was."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from fakes import run, text

from agentrl.chat import Chat
from agentrl.credit import corrections, credited, episode_of
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError
from agentrl.rollouts import make, self_correct
from agentrl.rollouts.self_correct import INSTRUCTIONS
from agentrl.types import Attempt


def attempts(*answers: str, **options):
    tree, _, env = run(self_correct(**options), list(answers))
    return tree, tree.attempts[-1], env


def test_right_and_wrong_first_answers_are_asked_the_same():
    right, _, _ = attempts("42", "42")
    wrong, _, _ = attempts("41", "42")
    assert text(right).replace("42<|im_end|>", "41<|im_end|>", 1) == text(wrong)
    for tree in (right, wrong):
        (asked,) = [n for n in tree.nodes if n.role == "user" and n.parent is not None]
        assert INSTRUCTIONS["maths"] in Chat(ScriptedPolicy([]).tokenizer).decode(asked.token_ids)


@pytest.mark.parametrize(
    ("answers", "rewards"),
    [(["41", "42"], [0, 1]), (["42", "41"], [1, 0]), (["1", "2", "42"], [0, 0, 1])],
)
def test_every_answer_is_graded_by_an_episode_of_its_own(answers, rewards):
    tree, attempt, env = attempts(*answers, turns=len(answers))
    assert [r.value for r in attempt.rewards] == rewards
    assert attempt.reward == rewards[-1]
    assert len(env.episodes) == len(answers)
    episode = corrections(tree, attempt, answers=len(answers))
    assert episode.valid
    assert episode.turn_rewards() == rewards


def test_an_answer_with_code_in_it_is_one_turn():
    code = "```python\nprint(6*7)\n```\n"
    script = [code, "so 41", code, code, "so 42"]
    tree, attempt, _ = attempts(*script, max_calls=4)
    assert episode_of(tree, attempt, outcome=False).n_turns == 5
    episode = corrections(tree, attempt)
    assert episode.n_turns == 2
    assert episode.turn_rewards() == [0, 1]
    (row,) = credited(tree, attempt, [float(t) for t in episode.turns])
    sampled = [n for n in tree.path(attempt.leaf) if n.source == "policy"]
    assert sum(row.weights) == sum(len(n.token_ids) for n in sampled)
    assert "output" not in "".join(
        Chat(ScriptedPolicy([]).tokenizer).decode([i])
        for i, w in zip(row.token_ids, row.weights, strict=True)
        if w
    )


def test_masks():
    """Section 6.7: no loss on the problem, on the instruction, on the first answer's copy (there is
    none: it stands once); the end token has loss."""
    tree, attempt, _ = attempts("41", "42")
    (row,) = credited(tree, attempt, [0.0] * len(tree.ids(attempt.leaf)))
    chat = Chat(ScriptedPolicy([]).tokenizer)
    trained = chat.decode([i for i, w in zip(row.token_ids, row.weights, strict=True) if w])
    assert trained == "41<|im_end|>42<|im_end|>"


def test_a_first_answer_of_another_policy_is_never_trained_on():
    other = ScriptedPolicy(["40"])
    tree, attempt, _ = attempts("42", first=other, first_ratio=1.0)
    assert [t["answer"] for t in attempt.metrics["turns"]] == ["40", "42"]
    assert attempt.metrics["offline"] == [0]
    episode = corrections(tree, attempt)
    assert episode.masked == {0}
    masked = [turn in episode.masked for turn in episode.turns]
    (row,) = credited(tree, attempt, [1.0] * len(episode.turns), masked=masked)
    chat = Chat(other.tokenizer)
    trained = chat.decode([i for i, w in zip(row.token_ids, row.weights, strict=True) if w])
    assert trained == "42<|im_end|>"
    tree, attempt, _ = attempts("41", "42", first=other, first_ratio=0.0)
    assert "offline" not in attempt.metrics


def test_a_cut_answer_is_masked_and_one_that_is_missing_makes_the_attempt_void():
    tree, attempt, _ = attempts("4" * 30, "42", max_tokens=10)
    assert [t["truncated"] for t in attempt.metrics["turns"]] == [True, False]
    assert corrections(tree, attempt).masked == {0}
    tree, _, _ = run(self_correct(), ["41", "42"], max_context=len(tree.nodes[0].token_ids) + 20)
    attempt = tree.attempts[-1]
    assert attempt.truncated
    assert not corrections(tree, attempt).valid, "the second turn had no room: nothing sampled"


def test_an_answer_that_was_not_scored_is_not_wrong():
    tree, attempt, _ = attempts("41", "42")
    rest = Attempt(attempt.leaf, "final_answer", 1.0, rewards=attempt.rewards[1:])
    rest.metrics = attempt.metrics
    assert not corrections(tree, rest).valid


def test_the_papers_texts_and_ones_own():
    tree, _, _ = attempts("1", "2", kind="paper")
    assert "You are a math expert." in text(tree)
    assert text(tree).count("Final Answer: The final answer is") == 2
    tree, _, _ = attempts("1", "2", instruction="Look again.")
    assert "Look again." in text(tree)
    assert "There might be an error" not in text(tree)


@pytest.mark.parametrize("bad", [{"turns": 0}, {"first_ratio": 1.5}, {"kind": "poetry"}])
def test_senseless_options_are_refused(bad):
    with pytest.raises(ConfigError):
        make("self_correct", **bad)

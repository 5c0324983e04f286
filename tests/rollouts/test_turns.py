"""Several answers in one conversation: graded one by one, recorded as one attempt."""

from __future__ import annotations

import pytest

from agentrl.credit import episode_of
from agentrl.errors import ConfigError
from agentrl.rollouts.turns import Turns
from tests.fakes import run


def attempt(replies, *, answers=2, calls=0, max_tokens=None):
    """The cursor, the answers and the attempt of a conversation, and the episodes it opened."""
    kept = []

    async def rollout(cursor, open_env):
        turns = Turns(cursor, open_env, max_calls=calls, max_tokens=max_tokens)
        await turns.begin()
        for i in range(answers):
            if i:
                turns.ask("Try again.")
            await turns.answer()
        kept.append(turns)
        turns.finish(kind="test")

    tree, cursor, env = run(rollout, replies)
    return cursor, kept[0], tree.attempts[0], env.episodes


def test_every_answer_has_its_own_reward_and_the_last_one_counts():
    cursor, turns, made, opened = attempt(["It is 41", "It is 42"])
    assert [a.reward for a in turns.answers] == [0.0, 1.0]
    assert made.reward == 1.0
    assert made.answer == "42"
    assert made.stop_reason == "final_answer"
    assert [r.value for r in made.rewards] == [0.0, 1.0]
    assert [(t["answer"], t["reward"]) for t in made.metrics["turns"]] == [("41", 0.0), ("42", 1.0)]
    assert all(episode.closed for episode in opened)
    episode = episode_of(cursor.tree, made, outcome=False)
    assert episode.turn_rewards() == [0.0, 1.0]
    assert episode.total == 1.0


def test_the_second_answer_reads_the_first_one_and_the_request():
    cursor, turns, made, _ = attempt(["It is 41", "It is 42"])
    nodes = cursor.tree.path(made.leaf)
    assert [n.source for n in nodes if n.source in ("policy", "environment")].count("policy") >= 2
    text = cursor.chat.decode([i for n in nodes for i in n.token_ids])
    assert text.index("It is 41") < text.index("Try again.") < text.index("It is 42")
    assert turns.answers[0].node in {n.id for n in nodes}


def test_the_limit_is_of_each_answer():
    _, turns, made, _ = attempt(["12345678", "It is 42"], max_tokens=6)
    assert [a.text for a in turns.answers] == ["123456", "It is "]
    assert [a.truncated for a in turns.answers] == [True, True]
    assert made.stop_reason == "max_tokens"
    _, turns, made, _ = attempt(["12345678", "42"], max_tokens=6)
    assert [a.truncated for a in turns.answers] == [True, False]
    assert made.stop_reason == "final_answer"


def test_code_runs_inside_an_answer():
    reply = "```python\nprint(6*7)\n```\n"
    _, turns, made, opened = attempt([reply, "It is 42", "It is 42"], calls=1)
    assert turns.answers[0].reward == 1.0
    assert made.metrics["calls"] == 1
    assert opened[0].codes == ["print(6*7)\n"]


def test_nothing_to_record_is_an_error():
    with pytest.raises(ConfigError, match="no answer"):
        attempt([], answers=0)

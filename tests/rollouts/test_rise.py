"""RISE's rollouts: the tests of its specification, section 7, and its typical mistakes."""

from __future__ import annotations

import pytest

from agentrl.chat import Chat
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError
from agentrl.rollouts import make, rise, rise_collect
from agentrl.rollouts.rise import FEEDBACK, NEXT
from agentrl.testing import check_rollout
from tests.fakes import run, task, text

PROBLEM = "What is 6*7?"
AGAIN = FEEDBACK + PROBLEM


def said(attempt) -> list[str]:
    return [turn["text"] for turn in attempt.metrics["turns"]]


def rewards(attempt) -> list[float]:
    return [turn["reward"] for turn in attempt.metrics["turns"]]


def count(tree, of: str, leaf: int | None = None) -> int:
    return text(tree, leaf=leaf).count(of)


@pytest.mark.parametrize("rollout", [rise(turns=3), rise(oracle=True), rise(turns=4, window=2)])
def test_it_keeps_the_contract_of_rollouts(rollout):
    check_rollout(rollout)


@pytest.mark.parametrize("rollout", [rise_collect(candidates=3), rise_collect(turns=3)])
def test_collecting_keeps_the_contract_of_rollouts(rollout):
    check_rollout(rollout, script=lambda text: "It is 41")


def test_without_an_oracle_every_turn_is_taken_and_told_the_same():  # 13
    answers = ["41", "42", "42", "43", "42"]
    tree, _, _ = run(rise(), answers)
    attempt = tree.attempts[-1]
    assert said(attempt) == answers
    assert rewards(attempt) == [0, 1, 1, 0, 1]
    assert count(tree, AGAIN) == 4
    other, _, _ = run(rise(), answers, of=task(answer="7"))
    assert text(other) == text(tree), "what the policy sees does not depend on what is right"


def test_with_an_oracle_it_stops_at_the_first_right_answer():  # 14
    tree, _, _ = run(rise(oracle=True), ["41", "42", "43", "42", "42"])
    assert rewards(tree.attempts[-1]) == [0, 1]
    assert tree.attempts[-1].reward == 1
    assert count(tree, AGAIN) == 1


def test_the_window_shows_the_task_and_the_last_pairs():  # 12
    seen: list[str] = []

    def script(text: str) -> str:
        seen.append(text)
        return f"answer {len(seen)}"

    tree, _, _ = run(rise(window=2), script)
    shown = [[n for n in range(1, 6) if f"answer {n}" in prompt] for prompt in seen]
    assert shown == [[], [1], [2], [3], [4]]
    assert [prompt.count(AGAIN) for prompt in seen] == [0, 1, 1, 1, 1]
    assert all(prompt.startswith(seen[0]) for prompt in seen)
    attempt = tree.attempts[-1]
    assert len(attempt.branches) == 3, "the turns before, that the window cut off"
    recalled = [n for n in tree.nodes if n.role == "assistant" and n.source == "environment"]
    assert [n.logprobs for n in recalled] == [None] * 3, "what was not sampled here has no loss"

    seen.clear()
    run(rise(window=5), script)
    assert [n for n in range(1, 6) if f"answer {n}" in seen[4]] == [1, 2, 3, 4]


def test_a_turn_of_the_window_reads_as_the_same_turn_of_a_whole_history():
    a, _, _ = run(rise(turns=3, window=2), ["a", "same", "b"])
    b, _, _ = run(rise(turns=2), ["same", "b"])
    assert a.ids(a.attempts[-1].leaf) == b.ids(b.attempts[-1].leaf)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"window": 1}, "no earlier answer in sight"),  # the released code keeps everything
        ({"turns": 0}, "turns is 1 or more"),
        ({"example": ["a question"]}, "two texts"),
    ],
)
def test_what_cannot_be_is_refused(options, cause):
    with pytest.raises(ConfigError, match=cause):
        rise(**options)


def test_counts_are_whole_numbers():
    for option in ("turns", "window"):
        with pytest.raises(ConfigError, match="whole number"):
            make("rise", **{option: "2"})


@pytest.mark.parametrize("options", [{"turns": 1}, {"candidates": 0}])
def test_a_collection_without_a_turn_to_improve_is_refused(options):
    with pytest.raises(ConfigError, match="rise_collect"):
        rise_collect(**options)


def test_the_worked_example_stands_before_the_problem():
    tree, _, _ = run(make("rise", turns=2, example=["2+2?", "It is 4"]), ["41", "42"])
    shown = text(tree)
    order = ["2+2?", "It is 4", NEXT.strip(), PROBLEM, "41", AGAIN, "42"]
    places = [shown.index(part) for part in order]
    assert places == sorted(places)
    policy = [n for n in tree.nodes if n.source == "policy"]
    assert "It is 4<" not in Chat(ScriptedPolicy([]).tokenizer).decode(
        [i for n in policy for i in n.token_ids]
    )


def test_a_right_first_answer_ends_the_collection():  # 8
    tree, _, _ = run(rise_collect(), ["42"])
    assert rewards(tree.attempts[-1]) == [1]
    assert len(tree.attempts) == 1
    assert count(tree, FEEDBACK) == 0


def test_the_last_turn_is_the_best_of_the_candidates():  # 9
    replies = [f"{i}" for i in range(100, 116)]
    replies[11] = "42"
    tree, _, _ = run(rise_collect(), ["41", *replies])
    chosen = tree.attempts[-1]
    assert said(chosen) == ["41", "42"]
    assert chosen.metrics["candidate"] == 11
    assert chosen.metrics["candidates"] == [0] * 11 + [1] + [0] * 4
    assert len(tree.attempts) == 16
    states = {tree.nodes[a.rewards[0].node].id for a in tree.attempts}
    assert len(states) == 1, "all candidates answer in the same state"


def test_the_first_of_equals_is_chosen():  # 9
    tree, _, _ = run(rise_collect(candidates=3), ["41", "40", "39", "38"])
    assert said(tree.attempts[-1]) == ["41", "40"]
    tree, _, _ = run(rise_collect(candidates=3), ["41", "40", "42", "42"])
    assert tree.attempts[-1].metrics["candidate"] == 1


def test_a_teacher_relabels_the_last_turn():  # 7
    seen: list[str] = []

    def script(text: str) -> str:
        seen.append(text)
        return "It is 42"

    teacher = ScriptedPolicy(script, name="teacher")
    tree, _, _ = run(rise_collect(teacher=teacher), ["It is 41"])
    attempt = tree.attempts[-1]
    assert list(zip(said(attempt), rewards(attempt), strict=True)) == [
        ("It is 41", 0),
        ("It is 42", 1),
    ]
    assert "It is 41" in seen[0], "the teacher reads the student's attempt"
    assert AGAIN in seen[0]
    last = tree.path(attempt.leaf)[-1]
    assert (last.source, last.logprobs, last.info["by"]) == ("hint", None, "teacher")
    student = [n for n in tree.nodes if n.source == "policy"]
    assert Chat(teacher.tokenizer).decode(student[0].token_ids) == "It is 41"


def test_a_teacher_of_another_tokenizer_writes_in_the_students_tokens():
    seen: list[str] = []

    def script(text: str) -> str:
        seen.append(text)
        return "It is 42"

    teacher = ScriptedPolicy(script, name="teacher", tokenizer=CharTokenizer())
    tree, _, _ = run(rise_collect(teacher=teacher), ["It is 41"])
    assert seen == [
        f"<|user|>{PROBLEM}<|end|><|assistant|>It is 41<|end|><|user|>{AGAIN}<|end|><|assistant|>"
    ]
    same, _, _ = run(rise_collect(teacher=ScriptedPolicy(["It is 42"])), ["It is 41"])
    assert tree.ids(tree.attempts[-1].leaf) == same.ids(same.attempts[-1].leaf)
    forging = ScriptedPolicy(["42<|im_end|>\nmore"], tokenizer=CharTokenizer())
    tree, _, _ = run(rise_collect(teacher=forging), ["It is 41"])
    ids = tree.ids(tree.attempts[-1].leaf)
    ends = [i for i in ids if i == 257]
    assert len(ends) == 4, "the text of an end token in a teacher's answer does not end the turn"


def test_a_teacher_whose_context_is_full_says_nothing():
    teacher = ScriptedPolicy(["42"], tokenizer=CharTokenizer(), max_context=20)
    tree, _, _ = run(rise_collect(teacher=teacher), ["It is 41"])
    assert tree.attempts[-1].truncated
    assert rewards(tree.attempts[-1]) == [0, 0]


def test_the_limit_of_tokens_is_of_each_answer():
    tree, _, _ = run(rise(turns=2, max_tokens=4), ["123456", "42"])
    first, second = tree.attempts[-1].metrics["turns"]
    assert (first["text"], first["truncated"]) == ("1234", True)
    assert (second["text"], second["truncated"]) == ("42", False)

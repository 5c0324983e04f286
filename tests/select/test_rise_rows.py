"""RISE's rows: the tests of its specification, section 7, and its typical mistakes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.chat import Chat
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError, DataError
from agentrl.rollouts import rise, rise_collect
from agentrl.select.rise import Selection, repetitive, select
from tests.fakes import run, task

TOKENIZER = ByteTokenizer()
CHAT = Chat(TOKENIZER)


def collected(replies, *, of=None, max_tokens=4000, **options):
    options = {"candidates": 1} | options
    tree, _, _ = run(rise_collect(**options), replies, of=of, max_tokens=max_tokens)
    return tree


def learnt(row) -> str:
    return CHAT.decode([i for i, on in zip(row.token_ids, row.mask, strict=True) if on])


def context(row) -> str:
    return CHAT.decode(row.token_ids[: row.mask.index(True)])


def scored(*rewards: float):
    """A tree with a turn of each of these rewards."""
    tree = collected([f"answer {i}" for i in range(len(rewards))], turns=len(rewards))
    attempt = tree.attempts[-1]
    attempt.rewards = [
        type(site)(site.node, reward) for site, reward in zip(attempt.rewards, rewards, strict=True)
    ]
    return tree


def test_only_the_last_turn_of_a_row_is_learnt_with_its_stop_token():  # 5
    tree = collected(["first", "second one", "42"], turns=3)
    rows = select([tree]).rows
    assert [learnt(r) for r in rows] == [f"{t}<|im_end|>" for t in ("first", "second one", "42")]
    assert [sum(r.mask) for r in rows] == [len(t) + 1 for t in ("first", "second one", "42")]
    assert rows[2].token_ids == tree.ids(tree.attempts[-1].leaf), "the ids that were sampled"
    assert "first" in context(rows[2])
    assert "second one" in context(rows[2])
    assert [r.reward for r in rows] == [0, 0, 1]


def test_a_relabelled_pair():  # 7
    teacher = ScriptedPolicy(["It is 42"], name="teacher")
    rows = select([collected(["It is 41"], teacher=teacher)]).rows
    assert [(learnt(r), r.reward) for r in rows] == [
        ("It is 41<|im_end|>", 0),
        ("It is 42<|im_end|>", 1),
    ]
    assert "It is 41<|im_end|>" in context(rows[1])


@pytest.mark.parametrize("tokenizer", [TOKENIZER, CharTokenizer()])
def test_what_a_teachers_code_prints_is_not_learnt(tokenizer):
    said = ["```python\nprint(40 + 2)\n```\n", "It is 42"]
    teacher = ScriptedPolicy(said, name="teacher", tokenizer=tokenizer)
    last = select([collected(["It is 41"], teacher=teacher, max_calls=2)]).rows[-1]
    assert learnt(last) == "".join(said) + "<|im_end|>"
    assert "```output\n42\n```" in CHAT.decode(last.token_ids)
    assert last.reward == 1


def test_a_right_first_answer_makes_one_row():  # 8
    rows = select([collected(["42"])]).rows
    assert [(learnt(r), r.reward, r.turn) for r in rows] == [("42<|im_end|>", 1, 0)]


def test_only_the_chosen_candidate_is_learnt():
    rows = select([collected(["41", "40", "42", "39"], candidates=3)]).rows
    assert [learnt(r) for r in rows] == ["41<|im_end|>", "42<|im_end|>"]
    assert [r.state_mean for r in rows] == [0, pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("keep", "turns"),
    [("all", [0, 1, 2]), ("better", [0, 2]), ("best", [0, 1, 2]), ("success", [2])],
)
def test_keep_rules(keep, turns):  # 10
    found = select([scored(0, 0, 1)], keep=keep)
    assert [r.turn for r in found.rows] == turns
    assert sum(found.dropped.values()) == 3 - len(turns)


@pytest.mark.parametrize(
    ("keep", "turns"), [("better", [0, 2]), ("best", [0]), ("success", [0]), ("all", [0, 1, 2])]
)
def test_keep_rules_compare_with_the_turn_before_and_with_all(keep, turns):
    assert [r.turn for r in select([scored(1, 0, 0.5)], keep=keep).rows] == turns


def test_an_answer_given_before_is_taken_out_of_the_history():  # 11
    tree = collected(["a", "a ", "b", "42"], turns=4)
    found = select([tree])
    assert [learnt(r).removesuffix("<|im_end|>") for r in found.rows] == ["a", "b", "42"]
    assert [r.reward for r in found.rows] == [0, 0, 1]
    assert found.dropped == Counter(duplicate=1)
    shorter = collected(["a", "b", "42"], turns=3)
    assert [r.token_ids for r in found.rows] == [r.token_ids for r in select([shorter]).rows]


@given(st.lists(st.sampled_from(["", "a", "b ", " b", "c"]), min_size=2, max_size=6))
def test_rows_are_those_of_a_conversation_without_the_answers_that_are_taken_out(answers):  # 11
    distinct = [
        a
        for i, a in enumerate(answers)
        if a.strip() and a.strip() not in [b.strip() for b in answers[:i]]
    ]
    found = select([collected(answers, turns=len(answers))])
    assert sum(found.dropped.values()) == len(answers) - len(distinct)
    assert [r.turn for r in found.rows] == [answers.index(a) for a in distinct]
    ids = [list(r.token_ids) for r in found.rows]
    if len(distinct) > 1:
        alone = select([collected(distinct, turns=len(distinct))])
        assert ids == [list(r.token_ids) for r in alone.rows]
        assert [r.mask for r in found.rows] == [r.mask for r in alone.rows]


class ForgetsThoughts(ByteTokenizer):
    """A template that shows earlier answers without their thinking, as Qwen3's does."""

    def render(self, messages, **options):
        asked = max(i for i, m in enumerate(messages) if m.role == "user")
        shown = [
            replace(m, content=m.content.split("</think>")[-1]) if i < asked else m
            for i, m in enumerate(messages)
        ]
        return super().render(shown, **options)


def test_a_row_has_the_history_that_its_answer_was_sampled_after():
    said = ["<think>a</think>41", "<think>b</think>It is 42"]
    tree, _, _ = run(rise_collect(candidates=1), ScriptedPolicy(said, tokenizer=ForgetsThoughts()))
    first, second = select([tree]).rows
    assert [learnt(r) for r in (first, second)] == [f"{text}<|im_end|>" for text in said]
    assert "assistant\n41<|im_end|>" in context(second), "rewritten: the thought is gone"
    repeated, _, _ = run(
        rise_collect(turns=3, candidates=1),
        ScriptedPolicy([said[0], *said], tokenizer=ForgetsThoughts()),
    )
    found = select([repeated])
    assert len(found.rows) == 1
    assert sum(found.dropped.values()) == 2, "what cannot be taken out of a history is not guessed"


def test_an_empty_answer_is_taken_out_even_at_the_start():
    found = select([collected(["", "a", "42"], turns=3)])
    assert [learnt(r) for r in found.rows] == ["a<|im_end|>", "42<|im_end|>"]
    assert context(found.rows[0]).count("<|im_start|>") == 2, "the task and the answer's beginning"
    assert found.dropped == Counter(empty=1)


def test_what_follows_repetition_is_dropped_with_it():
    again = " ".join(["word"] * 151)
    found = select([collected([again, "42"])])
    assert (found.rows, found.dropped) == ([], Counter(repetition=1))
    assert not repetitive(" ".join(["Word"] * 150))
    assert repetitive("x" * 301)
    assert not repetitive("x" * 300)


def test_truncated_and_long_rows_are_dropped_whole():
    cut = collected(["12345678", "42"], max_tokens=4)
    found = select([cut])
    assert [learnt(r) for r in found.rows] == ["42<|im_end|>"]
    assert found.dropped == Counter(truncated=1)
    long = select([collected(["41", "42"])], max_length=100)
    assert [r.turn for r in long.rows] == [0]
    assert long.dropped == Counter({"too long": 1}), "cut on the right it would lose its target"


def test_the_best_of_wrong_candidates_stays_or_goes_as_told():
    tree = collected(["41", "40", "39"], candidates=2)
    assert len(select([tree]).rows) == 2
    assert select([tree], improved_only=True).dropped == Counter({"no candidate right": 1})
    right = collected(["42"])
    assert len(select([right], improved_only=True).rows) == 1


def test_a_failed_or_unscored_attempt_is_no_row():
    failed = collected(["41", "42"])
    failed.attempts[-1].error = "the sandbox died"
    unscored = collected(["41", "42"])
    unscored.attempts[-1].rewards.pop()
    found = select([failed, unscored])
    assert found.rows == []
    assert found.dropped == Counter({"failed in our hands": 1, "not scored": 1})


def test_a_teachers_earlier_turn_is_refused():
    tree = collected(["41", "42"], teacher=ScriptedPolicy(["40"], name="teacher"))
    first = next(n for n in tree.nodes if n.source == "policy")
    first.info["by"] = "teacher"
    with pytest.raises(DataError, match="states"):
        select([tree])


def test_attempts_without_improvement_make_rows_too():
    tree, _, _ = run(rise(turns=3), ["41", "40", "42"])
    assert [r.reward for r in select([tree]).rows] == [0, 0, 1]


def test_weights_centre_over_the_prompt_the_state_or_not():
    first, second = task("easy"), task("hard")
    trees = [collected(["42"], of=first), collected(["41", "42", "40"], of=second, candidates=2)]
    found = select(trees)
    plain = {"cap": None, "unit_mean": False, "agg": "token_sum"}

    def weights(baseline):
        return [s.meta["weight"] for s in found.samples(baseline=baseline, **plain)]

    assert weights("none") == pytest.approx([12.18249, 1, 12.18249], rel=1e-6)
    assert weights("prompt") == pytest.approx([1, 0.286505, 3.490343], rel=1e-6)
    assert weights("state") == pytest.approx([1, 1, 3.490343], rel=1e-6)
    unit = found.samples(baseline="prompt", agg="token_sum")
    assert sum(s.meta["weight"] for s in unit) == pytest.approx(3)


def test_a_row_weighs_its_mean_or_its_sum():
    found = select([collected(["41", "42"])])
    plain = {"baseline": "none", "cap": None, "unit_mean": False}
    for agg, total in (("row_mean", 12.18249), ("token_sum", 12.18249 * 3)):
        samples = found.samples(agg=agg, **plain)
        assert sum(samples[1].weights) == pytest.approx(total)
        assert sum(samples[0].weights) > 0, "reward 0 is not weight 0"
        on = [w > 0 for w in samples[1].weights]
        assert on == list(found.rows[1].mask)


@pytest.mark.parametrize("options", [{"agg": "sum"}, {"baseline": "batch"}])
def test_unknown_weights_are_refused(options):
    with pytest.raises(ConfigError, match="Known"):
        Selection().samples(**options)


def test_unknown_rules_are_refused():
    with pytest.raises(ConfigError, match="keep rule"):
        select([], keep="some")
    with pytest.raises(ConfigError, match="max_length"):
        select([], max_length=0)

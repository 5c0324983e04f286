"""Decontamination by 13 words in a row, whole problems where they are shorter; near duplicates."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

import envs
from agentrl.select.dedupe import clean, contaminated, distinct, folded, near_duplicate
from tests.fakes import task

LONG = "a b c d e f g h i j k l m n o p"


def test_shared_words_in_a_row_are_found():
    test = [task("t", LONG)]
    train = [
        task("same", LONG),
        task("overlap", "x y " + LONG[2:28]),
        task("twelve", "x y " + LONG[2:24]),
        task("other", "what is 3 plus 4"),
    ]
    kept, dropped = clean(train, test)
    assert [t.id for t in kept] == ["twelve", "other"]
    assert dropped == 2


def test_short_problems_are_compared_whole_and_by_words():
    test = [task("t", "What is 3 + 4?")]
    train = [task("same", "what is 3 + 4"), task("other", "What is 3 + 5?")]
    assert [t.id for t in clean(train, test)[0]] == ["other"]


def test_arithmetic_is_clean_by_construction():
    train = envs.make("arithmetic", split="train", seed=0).tasks(260)
    test = envs.make("arithmetic", split="test", seed=0).tasks(260)
    assert clean(train, test)[1] == 0


def test_what_a_model_wrote_is_checked_like_a_problem():
    test = [LONG, "What is 3 + 4?"]
    texts = ["so: " + LONG + " it is", LONG[:20], "what is 3+4", "what is 3 + 5", "what is 3*4"]
    assert contaminated(texts, test) == [True, False, True, False, False]


def test_copies_and_near_copies_are_found():
    words = " ".join(map(str, range(100)))
    texts = [
        "What  is 3?",
        "What is 3?",
        words,
        words.replace("50", "fifty"),
        words + " and more",
        "short",
        "short one",
        words.replace("7", "x"),
    ]
    assert distinct(texts) == [0, 2, 5, 6, 7]
    assert near_duplicate(words, words + " and more")
    assert not near_duplicate("a b c d e", "a b c d f")


WORD = st.sampled_from("abc")


@given(st.lists(st.lists(WORD, max_size=60).map(" ".join), max_size=12), st.data())
def test_the_shortcut_finds_what_comparing_every_pair_does(texts, data):
    for text in list(texts):  # near copies, which random texts are not
        words = text.split()
        if words and data.draw(st.booleans()):
            words[data.draw(st.integers(0, len(words) - 1))] = data.draw(WORD)
            texts.append(" ".join(words))
    kept: list[int] = []
    for i, text in enumerate(texts):
        if not any(near_duplicate(folded(text), folded(texts[j])) for j in kept):
            kept.append(i)
    assert distinct(texts) == kept

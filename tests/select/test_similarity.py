"""TF-IDF and cosines, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agentrl.select.similarity import TfIdf, mean_cosine, words


def test_words():
    assert words("The loop's end: i+1, not i_2.") == [
        "the", "loop", "'", "s", "end", ":", "i", "+", "1", ",", "not", "i_2", ".",
    ]  # fmt: skip


def test_rare_words_weigh_more():
    embed = TfIdf(["a b", "a c"])
    common, rare = math.log(3 / 3) + 1, math.log(3 / 2) + 1
    np.testing.assert_allclose(embed(["a b b"]), [[common, 2 * rare, 0, 0]])
    same = rare * rare / (common**2 + rare**2)
    assert mean_cosine("b", ["a b"], embed) == pytest.approx(math.sqrt(same))


def test_equal_texts_are_alike_whatever_their_case_and_strange_words_count_against():
    embed = TfIdf(["a b", "a c"])
    assert mean_cosine("A  b", ["a b"], embed) == pytest.approx(1.0)
    assert mean_cosine("c", ["b"], embed) == 0.0
    assert 0 < mean_cosine("a b z", ["a b"], embed) < 1
    assert mean_cosine("a b", ["a b", "z"], embed) == pytest.approx(0.5)
    assert mean_cosine("", ["a b"], embed) == 0.0


def test_any_function_from_texts_to_numbers_will_do():
    def embed(texts):
        return [[len(text), 1.0] for text in texts]

    assert mean_cosine("ab", ["cd"], embed) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="nothing"):
        mean_cosine("ab", [], embed)

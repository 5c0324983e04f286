"""CodeBLEU: its n-gram parts against the package `codebleu` 0.7.0, the others by hand."""

from __future__ import annotations

import ast

import pytest

from agentrl.errors import DataError
from agentrl.select.codebleu import (
    _flows,
    _subtrees,
    bleu,
    code_bleu,
    keyword_recall,
    matched,
    tokens,
)

RIGHT = """def total(xs):
    s = 0
    for x in xs:
        s += x
    return s
"""
RENAMED = """def f(values):
    acc = 0
    for y in values:
        acc += y
    return acc
"""
WRONG = RIGHT.replace("s += x", "s = x")

FLAT = "def total ( xs ) : s = 0 for x in xs : s += x return s"
PEER = {  # calc_codebleu([FLAT], [candidate], lang="python"): its first two parts
    "def total ( xs ) : s = 0 for x in xs : s = x return s": (
        0.8492326635760689,
        0.8545740127924681,
    ),
    "def total ( xs ) : return sum ( xs )": (0.23976096706776487, 0.2735838424624378),
    "def f ( values ) : acc = 0 for x in values : acc += x return acc": (
        0.29742953512013587,
        0.31201045215406426,
    ),
    "while True : pass": (0.0018894825370235533, 0.008740225478728656),
    FLAT: (1.0, 1.0),
}


def test_tokens_are_those_of_a_lexer():
    code = "def f(a): # comment\n    return a**2 != 'x y'  # more"
    assert tokens(code) == ["def", "f", "(", "a", ")", ":", "return", "a", "**", "2", "!=", "'x y'"]
    assert tokens("a<=b>>=1//c->d") == ["a", "<=", "b", ">>=", "1", "//", "c", "->", "d"]
    assert tokens('"# no comment" + """a\nb"""') == ['"# no comment"', "+", '"""a\nb"""']
    assert tokens("") == []


@pytest.mark.parametrize("candidate", PEER)
def test_the_n_gram_parts_are_the_peers(candidate):
    both = tokens(candidate), tokens(FLAT)
    assert (bleu(*both), keyword_recall(*both)) == pytest.approx(PEER[candidate], rel=1e-12)


@pytest.mark.parametrize("code", [RIGHT, "x", "f()", "pass", "lambda: 0", "a, b = b, a"])
def test_a_program_is_like_itself(code):
    assert code_bleu(code, code) == pytest.approx(1.0)


def test_nothing_shared_is_nothing():
    assert bleu([], tokens(RIGHT)) == 0.0
    assert keyword_recall([], tokens(RIGHT)) == 0.0
    assert code_bleu("", RIGHT) == 0.0


def test_syntax_counts_shapes_and_neither_names_nor_operators():
    shapes = _subtrees(ast.parse(RIGHT))
    assert sorted(shapes) == sorted(_subtrees(ast.parse(RENAMED)))
    assert sorted(shapes) == sorted(_subtrees(ast.parse(RIGHT.replace("+=", "-="))))
    assert len(shapes) == 7
    # of the seven, `s += x` itself and the three around it are gone: For, FunctionDef, Module
    assert matched(_subtrees(ast.parse(WRONG)), shapes, once=False) == pytest.approx(3 / 7)


def test_data_flow_numbers_names_in_their_order():
    assert _flows(ast.parse("def f(a):\n    b = a\n    return b")) == [
        ("v0", "comes from", ("v0",)),
        ("v1", "is computed from", ("v0",)),
        ("v1", "comes from", ("v1",)),
    ]
    assert _flows(ast.parse("a, b = b, a")) == [
        ("v1", "is computed from", ("v0",)),
        ("v0", "is computed from", ("v1",)),
    ]
    assert _flows(ast.parse(RIGHT)) == _flows(ast.parse(RENAMED))
    wrong = "def f(a, b):\n    return a"
    both = [_flows(ast.parse(code)) for code in (wrong, "def f(a, b):\n    return a + b")]
    assert matched(*both, once=True) == 0.5


def test_the_whole_is_the_mean_of_its_parts():
    both = tokens(WRONG), tokens(RIGHT)
    flows = matched(_flows(ast.parse(WRONG)), _flows(ast.parse(RIGHT)), once=True)
    want = (bleu(*both) + keyword_recall(*both) + 3 / 7 + flows) / 4
    assert code_bleu(WRONG, RIGHT) == pytest.approx(want)
    both = tokens("x = 1 +"), tokens("x = 1")
    want = (bleu(*both) + keyword_recall(*both) + 0 + 0) / 4
    assert code_bleu("x = 1 +", "x = 1") == pytest.approx(want), "it does not parse"
    both = tokens("f(1)"), tokens("g(1)")  # the reference has no data flow
    want = (bleu(*both) + keyword_recall(*both) + 1.0) / 3
    assert code_bleu("f(1)", "g(1)") == pytest.approx(want)


def test_other_languages_go_by_their_tokens():
    assert code_bleu("x2*3+", "x2*3+", python=False) == 1.0
    assert code_bleu("x 2 *", "x 2 +", python=False) == pytest.approx(
        (2 / 3 * 1 / 2 * 0.1) ** (1 / 3)
    )
    with pytest.raises(DataError, match="python=False"):
        code_bleu("x", "x 2 * 3 +")

"""CodeBLEU of a program against a reference: n-grams, keywords, syntax, data flow.

Ren et al., arXiv 2009.10297. Python's own parser does the work; the two n-gram parts give the
values of the package `codebleu` 0.7.0 on the same tokens. Deliberately different from that package:

- tokens are those of a lexer, not what stands between spaces;
- a reference of fewer than four tokens is compared by the n-grams that it has, so a program always
  scores 1 against itself;
- a part that the reference says nothing about (no data flow, no syntax) is left out and the others
  weigh more. The package counts a data flow of 0 as 1, matched or not;
- data flow follows names in the order of the text: branches are not merged, loops not run twice;
- the second part has no brevity penalty. (The package has one that takes 2 for every length.)
"""

from __future__ import annotations

import ast
import keyword
import math
import re
from collections import Counter
from collections.abc import Sequence

from agentrl.errors import DataError

ORDERS = 4
PLAIN = 0.2
"""What a unigram that is no keyword weighs in the second part; a keyword weighs 1."""
KEYWORDS = frozenset({*keyword.kwlist, "match", "case", "type"})
NOTHING = 0.1
"""Matches that an order without any is given, so that the geometric mean is not 0."""

_TOKEN = re.compile(
    r"\#[^\n]*|(?P<token>[^\W\d]\w*|\d[\w.]*|'''.*?'''|\"\"\".*?\"\"\"|'(?:\\.|[^'\\\n])*'"
    r'|"(?:\\.|[^"\\\n])*"|\*\*=?|//=?|<<=?|>>=?|[-+*/%@&|^=<>!:]=|->|\S)',
    re.DOTALL,
)
_LEAVES = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)

Flow = tuple[str, str, tuple[str, ...]]
"""A name, how it comes about, and what from."""


def code_bleu(candidate: str, reference: str, *, python: bool = True) -> float:
    """From 0 to 1, the four parts of equal weight; with `python=False` the first part alone.

    A candidate that does not parse scores 0 in syntax and data flow. Raises DataError if the
    reference does not parse as Python.
    """
    written, wanted = tokens(candidate), tokens(reference)
    if not python:
        return bleu(written, wanted)
    parsed = _parsed(reference)
    if parsed is None:
        raise DataError(
            "the reference of a CodeBLEU score is not Python; pass python=False to compare "
            "programs of another language by their tokens"
        )
    parts = [bleu(written, wanted), keyword_recall(written, wanted)]
    tree = _parsed(candidate)
    for shapes in (_subtrees, _flows):
        own = list(shapes(parsed))
        if own:
            parts.append(matched(list(shapes(tree)) if tree else [], own, once=shapes is _flows))
    return math.fsum(parts) / len(parts)


def tokens(code: str) -> list[str]:
    """The tokens of a program, without comments and white space."""
    return [found["token"] for found in _TOKEN.finditer(code) if found["token"]]


def bleu(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """BLEU-4 of one sentence: clipped precisions, smoothed by method 1 of Chen and Cherry."""
    rates = []
    for n in range(1, min(ORDERS, len(reference)) + 1):
        own, wanted = _grams(candidate, n), _grams(reference, n)
        rates.append((sum((own & wanted).values()), max(1, sum(own.values()))))
    brevity = min(1.0, math.exp(1 - len(reference) / max(1, len(candidate))))
    return brevity * _mean(rates)


def keyword_recall(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """The same over recalls, with unigrams that are no keywords weighted by `PLAIN`.

    Without a brevity penalty: what is missing lowers a recall by itself.
    """
    rates: list[tuple[float, float]] = []
    for n in range(1, min(ORDERS, len(reference)) + 1):
        wanted = _grams(reference, n)
        found = _grams(candidate, n) & wanted
        heavy = {g: PLAIN if n == 1 and g[0] not in KEYWORDS else 1.0 for g in wanted}
        total = math.fsum(count * heavy[g] for g, count in wanted.items())
        rates.append((math.fsum(count * heavy[g] for g, count in found.items()), total))
    return _mean(rates)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _mean(rates: Sequence[tuple[float, float]]) -> float:
    """The geometric mean; 0 where no token is shared."""
    if not rates or not rates[0][0]:
        return 0.0
    logs = math.fsum(math.log((hit or NOTHING) / total) for hit, total in rates) / len(rates)
    return math.exp(logs)


def matched(candidate: Sequence[object], reference: Sequence[object], *, once: bool) -> float:
    """The share of the reference's entries that the candidate has; `once`: each counts once."""
    if once:
        return sum((Counter(candidate) & Counter(reference)).values()) / len(reference)
    return sum(entry in set(candidate) for entry in reference) / len(reference)


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _subtrees(tree: ast.AST) -> list[str]:
    """The shapes of all subtrees with something under them: kinds of nodes, no names or values."""
    found: list[str] = []

    def shape(node: ast.AST) -> str:
        under = [c for c in ast.iter_child_nodes(node) if not isinstance(c, _LEAVES)]
        text = f"({' '.join([type(node).__name__, *map(shape, under)])})"
        if under:
            found.append(text)
        return text

    shape(tree)
    return found


def _flows(tree: ast.AST) -> list[Flow]:
    """Where each name's value comes from, names numbered in the order of the text."""
    flows: list[Flow] = []
    known: set[str] = set()

    def visit(node: ast.AST) -> None:
        pairs, children = _assigned(node), list(ast.iter_child_nodes(node))
        if isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in known:
            flows.append((node.id, "comes from", (node.id,)))
        elif isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            children.reverse()  # the loops come first
        first = [getattr(node, name, None) for name in ("value", "iter")] if pairs else []
        for child in children:
            if child in first:
                visit(child)
        for target, value in pairs:
            for name in _names(target):
                known.add(name)
                flows.append((name, "is computed from", tuple(_names(value))))
        for child in children:
            if child not in first:
                visit(child)

    visit(tree)
    numbers: dict[str, str] = {}
    for name, _, sources in flows:
        for one in (*sources, name):
            numbers.setdefault(one, f"v{len(numbers)}")
    return [(numbers[name], how, tuple(numbers[s] for s in own)) for name, how, own in flows]


def _assigned(node: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    """The targets of an assignment, each with what it gets."""
    if isinstance(node, ast.Assign):
        pairs: list[tuple[ast.AST, ast.AST]] = []
        for target in node.targets:
            both = (target, node.value)
            if all(isinstance(x, ast.Tuple | ast.List) for x in both):
                left, right = (list(ast.iter_child_nodes(x))[:-1] for x in both)
                if len(left) == len(right):
                    pairs += zip(left, right, strict=True)
                    continue
            pairs.append(both)
        return pairs
    if isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
        return [(node.target, node.value)]
    if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        return [(node.target, node.iter)]
    return []


def _names(node: ast.AST) -> list[str]:
    return [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]

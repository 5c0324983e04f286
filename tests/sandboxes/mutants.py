"""Wrong programs made of right ones: one small change each."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator

from sandboxes.judge.sources import quietly_parsed

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.FloorDiv,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip


def _changes(tree: ast.AST) -> Iterator[Callable[[], None]]:
    """Every single change that can be made to `tree`, in order."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield lambda n=node: n.ops.__setitem__(0, COMPARISONS[type(n.ops[0])]())
        elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
            yield lambda n=node: setattr(n, "op", OPERATORS[type(n.op)]())
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield lambda n=node: setattr(n, "value", n.value + 1)
        elif isinstance(node, ast.Constant) and type(node.value) is bool:
            yield lambda n=node: setattr(n, "value", not n.value)
        elif isinstance(node, ast.Return) and node.value is not None:
            yield lambda n=node: setattr(n, "value", ast.Constant(None))
        elif isinstance(node, ast.BoolOp):
            other = ast.Or if isinstance(node.op, ast.And) else ast.And
            yield lambda n=node, o=other: setattr(n, "op", o())


def mutant(source: str, seed: str, function: str | None = None) -> str:
    """`source` with one change, chosen by `seed`, in the function of that name if one is given."""
    tree = quietly_parsed(source)
    places = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function]
    random.Random(seed).choice(list(_changes(places[-1] if places else tree)))()
    return ast.unparse(ast.fix_missing_locations(tree))

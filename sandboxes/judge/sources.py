"""What is read from the source of tests, here and without running them. Tests are trusted."""

from __future__ import annotations

import ast
import builtins
import sys
import warnings
from collections.abc import Iterator

from agentrl.errors import ConfigError


def parse(source: str, what: str) -> ast.Module:
    """The syntax tree. Raises ConfigError for source that does not compile."""
    try:
        return quietly_parsed(source)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{what} do not compile: {error}") from error


def quietly_parsed(source: str) -> ast.Module:
    """The syntax tree, without what Python thinks of escapes such as "\\d"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)


def test_ids(tree: ast.Module, *, plain: bool) -> list[str]:
    """The tests of a file: `test_x`, `TestC::test_m`, and `check` where there is one.

    Where there are none, the file itself is the one test `module`. `plain`: raise ConfigError for
    tests that only pytest can run (with arguments, generators).
    """
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name == "check" or node.name.startswith("test"):
                found.append(node.name)
                _check_plain(node, 1 if node.name == "check" else 0, plain)
        elif isinstance(node, ast.ClassDef) and _is_test_class(node):
            for method in node.body:
                if isinstance(
                    method, ast.FunctionDef | ast.AsyncFunctionDef
                ) and method.name.startswith("test"):
                    found.append(f"{node.name}::{method.name}")
                    _check_plain(method, 1, plain)
    return found or ["module"]


def _is_test_class(node: ast.ClassDef) -> bool:
    return node.name.startswith("Test") or any("TestCase" in ast.unparse(b) for b in node.bases)


def _check_plain(node: ast.FunctionDef | ast.AsyncFunctionDef, most: int, plain: bool) -> None:
    wanted = len(node.args.posonlyargs + node.args.args) - len(node.args.defaults)
    if plain and wanted > most:
        raise ConfigError(
            f"the test {node.name} takes arguments, which only pytest gives: mode 'pytest_inproc'"
        )


def free_names(tree: ast.Module) -> list[str]:
    """The names that tests use and do not make: the program's.

    Built-in names never are (list them in `names` if they are). Raises ConfigError for modules of
    the standard library that are used but not imported.
    """
    made = {name for node in ast.walk(tree) for name in _made(node)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    free = used - made - vars(builtins).keys() - {"__name__", "__file__"}
    modules = sorted(free & sys.stdlib_module_names)
    if modules:
        raise ConfigError(f"the tests use {', '.join(modules)} without importing it")
    return sorted(free)


def _made(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Import | ast.ImportFrom):
        for alias in node.names:
            yield (alias.asname or alias.name).partition(".")[0]
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name


def imported_names(tree: ast.Module, module: str) -> list[str]:
    """The names that tests take from the program by `from MODULE import` or `MODULE.name`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == module and not node.level:
            if any(alias.name == "*" for alias in node.names):
                raise ConfigError(f"from {module} import *: name what the tests use")
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == module:
            found.add(node.attr)
    return sorted(found)

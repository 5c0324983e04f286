"""Imports point down, and nothing that runs rollouts imports torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each may import itself and what stands above it in this list.
LAYERS = [
    {"agentrl.types", "agentrl.errors"},
    {"agentrl.interfaces", "agentrl.options"},
    {"agentrl.record", "agentrl.pairing", "agentrl.toolcalls", "agentrl.callsyntax"},
    {"agentrl.chat", "sandboxes", "envs"},
    {"agentrl.tree", "agentrl.logprob", "agentrl.trie", "agentrl.ranks"},
    {"agentrl.store", "agentrl.batch", "agentrl.engines", "agentrl.evaluate"},
    {"agentrl.rewards"},
    {"agentrl.search"},
    {
        "agentrl.losses",
        "agentrl.credit",
        "agentrl.rollouts",
        "agentrl.proxy",
        "agentrl.collect",
        "agentrl.progress",
        "agentrl.checkpoint",
    },
    {"agentrl.select", "agentrl.train", "agentrl.config"},
    {"agentrl.exchange"},
    {"agentrl.report", "agentrl.testing"},
    {"agentrl.recipes"},
    {"agentrl.claims"},
    {"agentrl.reproduce", "agentrl.doctor"},
    {"agentrl.commands"},
    {"agentrl.cli", "agentrl.__main__", "agentrl"},
]
FOUNDATION = {"agentrl.types", "agentrl.errors", "agentrl.interfaces", "agentrl.options"}
TORCH = {"agentrl.batch", "agentrl.losses", "agentrl.train", "agentrl.engines"} | {
    "agentrl.logprob",
    "agentrl.trie",
    "agentrl.ranks",
    "agentrl.checkpoint",
    "agentrl.rewards.classifier",
}


def modules() -> dict[str, Path]:
    found = {}
    for package in ("agentrl", "sandboxes", "envs"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


def layer(name: str) -> int:
    for i, names in enumerate(LAYERS):
        if any(name == n or (n != "agentrl" and name.startswith(n + ".")) for n in names):
            return i
    raise AssertionError(f"{name} stands in no layer: add it to LAYERS")


def imports(path: Path, *, top_level: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if not top_level else _top(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def _top(tree: ast.Module):
    """Statements run on import; blocks under TYPE_CHECKING are not."""
    todo = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.Try):
            todo += node.body + node.orelse
        yield node


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name):
    known = modules()
    mine = layer(name)
    for target in imports(known[name], top_level=False):
        module = next((m for m in (target, target.rpartition(".")[0]) if m in known), None)
        if module is None or module == "agentrl":
            continue
        if name.split(".")[0] in ("sandboxes", "envs") and module.split(".")[0] == "agentrl":
            assert module in FOUNDATION, f"{name} may import types, errors, interfaces: {module}"
        if name in ("agentrl.interfaces", "agentrl.collect"):
            continue  # type-checking only; the default sandbox and environment, at call time
        assert layer(module) <= mine, f"{name} imports {module}, which stands above it"


@pytest.mark.parametrize("name", sorted(modules()))
def test_torch_stays_where_it_belongs(name):
    if any(name == t or name.startswith(t + ".") for t in TORCH) or "recipes" in name:
        return
    heavy = {i.split(".")[0] for i in imports(modules()[name], top_level=True)}
    assert not heavy & {"torch", "transformers", "peft", "accelerate", "datasets", "docker"}


def test_importing_the_core_does_not_import_torch():
    code = (
        "import sys, agentrl, agentrl.cli, envs, sandboxes, agentrl.select.pairs, agentrl.rewards; "
        "bad = {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Our function-call checker against the public one: do they give the same verdicts?

    python benchmarks/bfcl_agreement.py --peer PYTHON [--corruptions 200] [--markdown FILE]

PYTHON is an interpreter that has `bfcl-eval` (it pins old versions, so give it an environment of
its own: `python -m venv peer && peer/bin/pip install bfcl-eval`). Both check the leaderboard's own
reference answers and seeded corruptions of them; what is compared is valid or not. The data are
read from AGENTRL_DATA.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from agentrl.config import update_section
from agentrl.types import ToolCall
from envs.functions import bfcl, checker

KINDS = ("simple", "multiple", "parallel")
Call = dict[str, dict[str, Any]]
"""A call as the leaderboard has it: the name with the arguments."""

PEER = """
import json, sys
from importlib import metadata
from bfcl_eval.constants.enums import Language
from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
NAMES = {"simple": "simple_python"}
print(json.dumps("bfcl-eval " + metadata.version("bfcl-eval")))
for line in sys.stdin:
    row = json.loads(line)
    try:
        found = ast_checker(row["functions"], row["calls"], row["wanted"], Language.PYTHON,
                            NAMES.get(row["kind"], row["kind"]), "gorilla-openfunctions-v2")
        print(json.dumps(found["valid"]))
    except Exception as error:
        print(json.dumps(repr(error)))
"""


def reference(wanted: Sequence[checker.Wanted]) -> list[Call]:
    """The calls that the reference answers name first."""
    return [
        {name: {k: _first(v) for k, v in given.items() if _first(v) != ""}}
        for one in wanted
        for name, given in one.items()
    ]


def _first(accepted: Sequence[Any]) -> Any:
    value = next((a for a in accepted if a != ""), "")
    if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
        return [_object(v) if isinstance(v, Mapping) else v for v in value]
    return _object(value) if isinstance(value, Mapping) else value


def _object(value: Mapping[str, Any]) -> dict[str, Any]:
    firsts = {k: _first(v) if isinstance(v, list) else v for k, v in value.items()}
    return {k: v for k, v in firsts.items() if v != ""}


def _name(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    at = rng.randrange(len(calls))
    ((name, given),) = calls[at].items()
    others = [f["name"] for f in row["functions"] if f["name"] != name]
    names = [name.upper(), name + "_v2", name.split(".")[-1], name.replace("_", ""), *others]
    calls[at] = {rng.choice([n for n in names if n != name]): given}


def _missing(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    given = _arguments(rng, calls)
    if given:
        del given[rng.choice(list(given))]


def _extra(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    """A parameter that the tool has, but that was not given."""
    at = rng.randrange(len(calls))
    ((name, given),) = calls[at].items()
    own = next((f for f in row["functions"] if f["name"] == name), row["functions"][0])
    free = [p for p in own["parameters"]["properties"] if p not in given]
    if free:
        given[rng.choice(free)] = rng.choice(["", 0, True, "x", 1.0, [], None])


def _unknown(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    _arguments(rng, calls)[rng.choice(["verbose", "unit_", "limit", "x"])] = rng.choice([1, "a"])


def _type(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    _replace(rng, calls, lambda v: rng.choice([str(v), [v], {"value": v}, None, True, 1, 1.5]))


def _value(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    def other(value: Any) -> Any:
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + rng.choice([1, -1, 10])
        if isinstance(value, str):
            return value + rng.choice(["x", " Street", "0"])
        if isinstance(value, dict):
            return {**value, "other": 1}
        return value + value[:1] if isinstance(value, list) else "none"

    _replace(rng, calls, other)


def _order(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    rng.shuffle(calls)


def _count(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    at = rng.randrange(len(calls))
    if rng.random() < 0.5:
        del calls[at]
    else:
        calls.append(copy.deepcopy(calls[at]))
    if rng.random() < 0.3 and len(calls) > 1:
        calls[0] = copy.deepcopy(calls[-1])


def _nested(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    """Something within a list or an object; where a call has none, a value put into a list."""

    def other(value: Any) -> Any:
        if isinstance(value, list) and value:
            at = rng.randrange(len(value))
            made = [*value[:at], other(value[at]), *value[at + 1 :]]
            return rng.choice([made, value[::-1], [*value, value[at]], value[:at]])
        if isinstance(value, dict) and value:
            key = rng.choice(list(value))
            rest = {k: v for k, v in value.items() if k != key}
            return rng.choice([{**value, key: other(value[key])}, rest, {**value, "z": 1}])
        if isinstance(value, str):
            return rng.choice([value.upper(), value + "s", f" {value}.", 3])
        return rng.choice([str(value), float(value or 0), [value], None])

    given = _arguments(rng, calls)
    deep = [k for k, v in given.items() if isinstance(v, list | dict)]
    if deep:
        key = rng.choice(deep)
        given[key] = other(given[key])
    else:
        _replace(rng, calls, lambda v: [v])


def _number(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    def swapped(value: Any) -> Any:
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, int):
            return rng.choice([float(value), value + 0.5, bool(value)])
        if isinstance(value, float):
            return rng.choice([int(value), round(value), value + 1e-9, str(value)])
        return [swapped(v) for v in value] if isinstance(value, list) else value

    for call in calls:
        for given in call.values():
            given.update({k: swapped(v) for k, v in given.items()})


def _case(rng: Random, calls: list[Call], row: Mapping[str, Any]) -> None:
    form = rng.choice(SPELLINGS)

    def spelt(value: Any) -> Any:
        if isinstance(value, list):
            return [spelt(v) for v in value]
        if isinstance(value, dict):
            return {k: spelt(v) for k, v in value.items()}
        return form(value) if isinstance(value, str) else value

    for call in calls:
        for given in call.values():
            given.update({k: spelt(v) for k, v in given.items()})


SPELLINGS: tuple[Callable[[str], str], ...] = (
    str.upper,
    str.lower,
    lambda text: text.replace(" ", "_"),
    lambda text: f"-{text}.",
    lambda text: text[::-1],
    lambda text: text + "!",
    lambda text: text.replace(",", ";"),
    lambda text: text.replace("'", '"'),
)


def _arguments(rng: Random, calls: list[Call]) -> dict[str, Any]:
    return next(iter(rng.choice(calls).values()))


def _replace(rng: Random, calls: list[Call], change: Callable[[Any], Any]) -> None:
    given = _arguments(rng, calls)
    if given:
        key = rng.choice(list(given))
        given[key] = change(given[key])


CORRUPTIONS: dict[str, Callable[[Random, list[Call], Mapping[str, Any]], None]] = {
    "name": _name,
    "missing parameter": _missing,
    "extra parameter": _extra,
    "unknown parameter": _unknown,
    "wrong type": _type,
    "wrong value": _value,
    "order": _order,
    "call count": _count,
    "nested value": _nested,
    "int and float": _number,
    "spelling": _case,
}


def references(folder: Path) -> list[dict[str, Any]]:
    """A row a task of the leaderboard with the calls of its reference answer."""
    rows = []
    for kind in KINDS:
        for task in bfcl.read(folder, kind):
            wanted = task.data["steps"][0]
            row = {"id": task.id, "kind": kind, "functions": task.data["functions"]}
            rows.append({**row, "wanted": wanted, "calls": reference(wanted), "change": "none"})
    return rows


def corrupted(rows: Sequence[Mapping[str, Any]], n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` corruptions of reference answers, all kinds in turn, each of which changes something."""
    rng, names = Random(f"bfcl corruptions {seed}"), list(CORRUPTIONS)
    made: list[dict[str, Any]] = []
    while len(made) < n:
        change, row = names[len(made) % len(names)], rng.choice(rows)
        calls = copy.deepcopy(row["calls"])
        CORRUPTIONS[change](rng, calls, row)
        if json.dumps(calls) != json.dumps(row["calls"]):
            made.append({**row, "calls": calls, "change": change})
    return made


def ours(row: Mapping[str, Any]) -> bool:
    """Our verdict."""
    calls = [ToolCall(name, given) for call in row["calls"] for name, given in call.items()]
    return checker.check(calls, row["functions"], row["wanted"]).valid


def peers(python: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[bool | str]]:
    """The public checker's version and verdicts; a text where it failed with an exception."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run(
        [python, "-c", PEER], input=lines, capture_output=True, text=True, check=False
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line[:1] in 'tf"']
    if done.returncode or len(said) != len(rows) + 1:
        raise SystemExit(f"{python} cannot run bfcl-eval:\n{done.stderr[-2000:]}")
    return said[0], said[1:]


def table(rows: Sequence[Mapping[str, Any]], theirs: Sequence[bool | str]) -> str:
    """The agreement by kind of corruption, in Markdown."""
    counts: dict[str, Counter[str]] = {}
    for row, verdict in zip(rows, theirs, strict=True):
        count = counts.setdefault(row["change"], Counter())
        count["n"] += 1
        count["valid"] += verdict is True
        count["raised"] += isinstance(verdict, str)
        count["same"] += ours(row) == (verdict is True)
    lines = [
        "| answers | n | valid by bfcl-eval | it raised | same verdict |",
        "|---|---|---|---|---|",
    ]
    for name, c in counts.items():
        shown = "reference answers" if name == "none" else name
        lines.append(f"| {shown} | {c['n']} | {c['valid']} | {c['raised']} | {c['same']} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a verdict differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="an interpreter with bfcl-eval")
    parser.add_argument("--corruptions", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--freeze", type=Path, help="write the verdicts on the corruptions here")
    parser.add_argument("--markdown", type=Path, help="put the table into this file's section bfcl")
    options = parser.parse_args(argv)
    plain = references(bfcl.folder(None))
    rows = [*plain, *corrupted(plain, options.corruptions, options.seed)]
    version, theirs = peers(options.peer, rows)
    shown = table(rows, theirs)
    print(shown)
    wrong = [r for r, t in zip(rows, theirs, strict=True) if ours(r) != (t is True)]
    for row in wrong:
        print(f"differs: {row['id']} {row['change']}: {json.dumps(row['calls'])[:300]}")
    if options.markdown:
        made = "python benchmarks/bfcl_agreement.py --peer PYTHON"
        made += f" --corruptions {options.corruptions} --seed {options.seed}"
        update_section(options.markdown, "bfcl", f"{shown}\n\nMade by `{made}` with {version}.")
    if options.freeze:
        frozen = [
            {"id": r["id"], "change": r["change"], "calls": r["calls"], "valid": t is True}
            for r, t in zip(rows[len(plain) :], theirs[len(plain) :], strict=True)
        ]
        options.freeze.write_text("".join(json.dumps(f) + "\n" for f in frozen))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

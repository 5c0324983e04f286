"""`agentrl eval`: how well a policy answers, turn by turn; and is it better than another?"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agentrl.commands.collecting import (
    collected,
    keep_settings,
    named_options,
    print_result,
    sampling_options,
)
from agentrl.commands.common import command_of
from agentrl.errors import AgentRLWarning, ConfigError
from agentrl.evaluate.turns import SCORE, SCORED_BY
from agentrl.record import Tree

IN_TURNS = "rise"
"""The rollout of `--turns` where none is named: it asks anew whatever the answer was."""


def add_eval(commands: Any) -> None:
    c = command_of(
        commands,
        "eval",
        "accuracy with confidence intervals, turn by turn; or two evaluations compared",
        "agentrl eval --env arithmetic --policy runs/demo/model -n 64 --turns 5 --temperature 1 "
        "--json",
        more=named_options,
    )
    sampling_options(c, env_required=False)
    c.add_argument(
        "--turns",
        type=int,
        metavar="T",
        help=f"answers an attempt, asked for without saying which is right (rollout {IN_TURNS})",
    )
    c.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="two folders of --out: by how much B is better on the same problems",
    )
    c.add_argument(
        "--reward",
        metavar="NAME",
        help="a reward model's folder, or pairwise:POLICY: what it would choose of --samples K; "
        "its scores stay with the trees of --out",
    )
    c.set_defaults(run=run_eval, rollout=None)


def run_eval(options: argparse.Namespace) -> int:
    """`agentrl eval`."""
    from agentrl import evaluate
    from agentrl.rewards import load_reward

    if options.compare:
        found = evaluate.compare(*(_trees(folder) for folder in options.compare))
        print(json.dumps(found)) if options.json else _print_comparison(found)
        return 0
    _check(options)
    run = argparse.Namespace(**vars(options))
    run.out = options.out and options.out / "trees"
    if options.turns is not None:
        run.settings = [*options.settings, f"rollout.turns={options.turns}"]
    run.rollout = options.rollout or (IN_TURNS if options.turns is not None else "tool_loop")
    if options.out:
        keep_settings(options.out, "eval", run)
    # before the rollouts, which a name that means nothing would cost
    model = load_reward(options.reward) if options.reward else None
    trees = asyncio.run(collected(run, evaluating=True))
    if options.reward:
        asyncio.run(_score(trees, model, options.reward, options.policy, run.out))
    summary = evaluate.summarize(evaluate.final(trees))
    result = {**summary, **evaluate.turn_metrics(trees)}
    if options.reward:
        result["reward_model"] = options.reward
    if options.out:
        _write(options.out, summary, result)
    if options.json:
        print(json.dumps(result))
    else:
        print_result(result)
        print_turns(result)
        if options.out:
            print(f"Report: {options.out / 'report.html'}")
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.env is None:
        raise ConfigError(
            "eval: give --env NAME (agentrl list envs), or --compare with two folders"
        )
    if options.turns is not None and options.turns < 1:
        raise ConfigError(f"eval: --turns is 1 or more, not {options.turns}")
    if options.samples > 1 and options.temperature == 0:
        warnings.warn(
            f"{options.samples} samples at temperature 0 are {options.samples} times the same; "
            "add --temperature 1",
            category=AgentRLWarning,
            stacklevel=2,
        )


async def _score(
    trees: Sequence[Tree], model: Any, reward: str, policy: str, out: Path | None
) -> None:
    """Note at each attempt what `model`, called `reward`, says of it; in the folder `out`, too,
    where a tree of which it says something new takes the place of the old one."""
    from agentrl import evaluate
    from agentrl.commands.data import chat_of
    from agentrl.rewards import PairwiseJudge
    from agentrl.select.rewards import scores
    from agentrl.store import TreeStore

    graded = evaluate.final(trees)
    try:
        found = await scores(graded, model, chat_of(policy))
    finally:
        if isinstance(model, PairwiseJudge):
            await model.policy.close()
    with contextlib.ExitStack() as stack:
        store = None if out is None else stack.enter_context(TreeStore(out))
        for (tree, attempt), score in zip(graded, found, strict=True):
            said = {} if score is None else {SCORE: score, SCORED_BY: reward}
            new = any(attempt.metrics.get(name) != value for name, value in said.items())
            attempt.metrics |= said
            if store is not None and new:
                store.append(tree)


def _trees(folder: Path) -> list[Tree]:
    """The trees of an evaluation, or of the folder of trees itself."""
    from agentrl.store import load

    return load(folder / "trees" if (folder / "trees").is_dir() else folder)


def _write(out: Path, summary: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """`summary.json` and the report beside the trees."""
    from agentrl import report
    from agentrl.config import write_atomic

    own = {name: value for name, value in result.items() if name not in summary}
    text = json.dumps({"recipe": "eval", "measured": summary, **own}, indent=2)
    write_atomic(out / "summary.json", text + "\n")
    report.write(out)


CHANGED = ("delta", "i2c", "c2i", "change_rate", "edit_ratio")


def print_turns(result: Mapping[str, Any]) -> None:
    """What changed from turn to turn and between samples, as tables; nothing for single answers."""
    metrics = result["metrics"]
    turns, samples = len(result["turns"]), result["samples"]
    if turns > 1:
        lines = {"answer": "acc@t{}", "majority": "m1@t{}", "oracle": "p1@t{}"}
        _print_table("turn", range(1, turns + 1), lines, metrics)
        lines = {name: f"{name}@t{{}}" for name in CHANGED}
        first = {f"{name}@t2": metrics[name] for name in CHANGED if name in metrics}
        _print_table("from 1 to", range(2, turns + 1), lines, {**metrics, **first})
    lines = {"parallel": "m{}@t1", "sequential": "m1@t{}", "mixed": "mixed@{}"}
    if turns > 1 or samples > 1:
        names = ("pass", "majority", "rm", "weighted") if samples > 1 else ()
        more = {name: f"{name}@{{}}" for name in names}
        _print_table("samples", range(2, max(turns, samples) + 1), {**lines, **more}, metrics)
    if result["oracle"]:
        print("An oracle ended attempts at right answers: what the model does alone is not known.")
    if result["unscored"]:
        print(f"{result['unscored']} attempts were not scored and are left out")


def _print_table(
    of: str, numbers: Iterable[int], lines: Mapping[str, str], metrics: Mapping[str, Any]
) -> None:
    """A row a number, a column a line with the names of its metrics; empty ones are left out."""
    numbers = list(numbers)
    columns = [n for n, name in lines.items() if any(name.format(i) in metrics for i in numbers)]
    table = Table(of, *columns, box=None, pad_edge=False)
    for i in numbers:
        cells = [_cell(metrics.get(lines[name].format(i))) for name in columns]
        if any(cells):
            table.add_row(str(i), *cells)
    if table.rows:
        Console().print("", table)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    low, high = row["ci95"]
    return f"{row['value']:.3f}\n{low:.2f}..{high:.2f}"


def _print_comparison(found: Mapping[str, Any]) -> None:
    table = Table("", "A", "B", "B - A", "95 % interval", "p", "only A / only B", "McNemar")
    for name, row in found["metrics"].items():
        low, high = row["ci95"]
        single = "mcnemar" in row
        table.add_row(
            name,
            f"{row['a']:.3f}",
            f"{row['b']:.3f}",
            f"{row['difference']:+.3f}",
            f"{low:+.3f} to {high:+.3f}",
            f"{row['p']:.4f}",
            f"{row['only_a']} / {row['only_b']}" if single else "",
            f"{row['mcnemar']:.4f}" if single else "",
        )
    Console().print(table)
    for side, names in found.get("reward_models", {}).items():
        print(f"Scores of {side.upper()} are those of {' and '.join(names) or 'no reward model'}.")
    print(
        f"{found['problems']} problems in both, {found['only_in_a']} only in A, "
        f"{found['only_in_b']} only in B; p is the paired permutation test's, for one metric"
    )

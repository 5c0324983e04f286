"""`agentrl run` and `rollout`: what samples from a policy."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from agentrl import config as settings
from agentrl.commands.common import (
    chosen_sandbox,
    command_of,
    listed_options,
    sandbox_options,
)
from agentrl.errors import ConfigError, DataError, InfraError, unknown
from agentrl.interfaces import Sandbox
from agentrl.types import SamplingParams

YAML = (".yaml", ".yml")


@contextlib.asynccontextmanager
async def _box(options: argparse.Namespace) -> AsyncIterator[Sandbox | None]:
    """The sandbox that the options ask for; None leaves it to whoever needs one."""
    backend, asked = chosen_sandbox(options)
    if options.sandbox is None and not asked:
        yield None
        return
    import sandboxes

    async with sandboxes.open(backend, **asked) as box:
        yield box


def sampling_options(command: argparse.ArgumentParser, *, env_required: bool = True) -> None:
    """What to attempt, by which policy and how often."""
    command.add_argument(
        "--env", required=env_required, help="environment, such as arithmetic, or MODULE:NAME"
    )
    command.add_argument(
        "--policy",
        default="smollm2",
        help="smollm2, a hub id, a path, vllm:M, vllm:M@URL, openai:M@URL, eft:M, scripted:M:F",
    )
    command.add_argument(
        "--rollout", default="tool_loop", help="one of: agentrl list rollouts, or MODULE:NAME"
    )
    command.add_argument("--split", default="test")
    command.add_argument("-n", type=int, default=16, help="number of tasks")
    command.add_argument("--samples", type=int, default=1, metavar="K", help="attempts a task")
    command.add_argument("--temperature", type=float, default=0.0)
    command.add_argument("--max-tokens", type=int, default=256, help="sampled in one rollout")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--concurrency", type=int, default=64)
    command.add_argument(
        "--max-failed",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="give up where more of the rollouts fail in our hands (1: never)",
    )
    command.add_argument("--out", type=Path, help="folder for the trees; a second run resumes")
    sandbox_options(command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help="env.KEY=VALUE, rollout.KEY=VALUE, policy.KEY=VALUE (listed by: --env E --rollout R "
        "--help)",
    )


def named_options(options: argparse.Namespace) -> str:
    """The options of the environment and the rollout before `--help`."""
    import envs
    from agentrl import rollouts

    found = []
    if options.env is not None:
        title = f"options of the environment {options.env}:"
        found.append(listed_options(title, envs.factory(options.env), "env."))
    if options.rollout not in (None, "tool_loop"):
        title = f"options of the rollout {options.rollout}:"
        found.append(listed_options(title, rollouts.factory(options.rollout), "rollout."))
    return "\n\n".join(found)


def add_run(commands: Any) -> None:
    c = command_of(
        commands,
        "run",
        "run a whole recipe",
        "agentrl run start n=64 lr=2e-5 --out runs/start",
        more=_recipe_settings,
    )
    c.add_argument("recipe", help="a recipe's name (agentrl list recipes), or a YAML file with one")
    c.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help="the recipe's settings (listed by: agentrl run RECIPE --help)",
    )
    c.add_argument("--preset", help="a named set of settings, such as paper or smoke")
    c.add_argument("--out", type=Path, help="the run's folder (default: runs/RECIPE)")
    c.add_argument("--seed", type=int)
    c.add_argument("--resume", action="store_true", help="go on with the run in --out")
    sandbox_options(c)
    c.add_argument("--json", action="store_true", help="print the summary as JSON")
    c.set_defaults(run=run_recipe)


def _recipe_settings(options: argparse.Namespace) -> str:
    """Presets and settings of the recipe before `--help`."""
    from agentrl import recipes

    if options.recipe is None or options.recipe.endswith(YAML):
        return ""
    recipe = recipes.get(options.recipe)
    title = f"settings of {recipe.name} with their defaults (presets: {', '.join(recipe.presets)}):"
    return listed_options(title, recipe.config)


def run_recipe(options: argparse.Namespace) -> int:
    """`agentrl run`."""
    from agentrl import recipes

    values = settings.pairs(options.settings)
    name = options.recipe
    if name.endswith(YAML):
        file = settings.read_yaml(name)
        name = file.pop("recipe", None)
        if name is None:
            raise DataError(f"{options.recipe} does not say which recipe: add 'recipe: start'")
        values = {**file, **values}
    recipe = recipes.get(name)
    if options.preset is not None:
        if options.preset not in recipe.presets:
            raise unknown("preset", options.preset, recipe.presets)
        values = {**recipe.presets[options.preset], **values}
    if options.seed is not None:
        values["seed"] = options.seed
    values = recipes.sampled_by(values, recipe.config.model)
    config = settings.build(recipe.config, values)
    out = options.out = options.out or Path("runs") / name
    kept = {"recipe": name, **settings.settings(config)}
    folder = settings.RunFolder(out, kept, resume=options.resume)

    async def run() -> dict[str, Any]:
        async with _box(options) as box:
            return await recipe.run(config, folder, progress=not options.json, box=box)

    summary = asyncio.run(run())
    from agentrl import report

    path = report.write(out)
    if options.json:
        print(json.dumps(summary))
    else:
        report.print_summary(summary)
        print(f"\nReport: {path}")
    return 0


def keep_settings(folder: Path, recipe: str, options: argparse.Namespace) -> None:
    """Write `config.yaml`: what trees in `folder` are collected with. Raises ConfigError if trees
    lie there that were collected with something else."""
    names = ("env", "split", "rollout", "n", "samples", "temperature", "max_tokens", "seed")
    config = {"recipe": recipe, "model": options.policy, **{n: getattr(options, n) for n in names}}
    config |= settings.pairs(options.settings)
    file = folder / "config.yaml"
    if file.exists() and any(trees.stat().st_size for trees in folder.rglob("trees.jsonl")):
        settings.require_same(folder, config, _may_change)
    if folder.is_file():
        raise DataError(f"{folder} is a file; give a folder as --out")
    folder.mkdir(parents=True, exist_ok=True)
    settings.write_atomic(file, yaml.safe_dump(config, sort_keys=False))


def _may_change(name: str) -> bool:
    """Whether a collection may go on with another value of a setting. What of the policy changes
    the trees stands in its name, which is compared with theirs."""
    return name in ("n", "samples", "recipe", "rollout.folder") or name.startswith("policy.")


def _split_settings(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`env.kinds=[a]` and the like, by their first part."""
    groups: dict[str, dict[str, Any]] = {"env": {}, "rollout": {}, "policy": {}}
    for name, value in settings.pairs(pairs).items():
        group, dot, key = name.partition(".")
        if not dot or group not in groups:
            raise ConfigError(f"{name!r}: write env.KEY, rollout.KEY or policy.KEY")
        groups[group][key] = value
    return groups


async def collected(options: argparse.Namespace, *, evaluating: bool = False) -> list[Any]:
    """The trees that the options ask for. Raises InfraError if every rollout failed, ConfigError if
    they are to be evaluated and the rollout would see the reference answer."""
    import envs
    from agentrl import rollouts
    from agentrl.collect import collect
    from agentrl.engines import load_policy

    given = _split_settings(options.settings)
    env = envs.make(options.env, **{"split": options.split, "seed": options.seed, **given["env"]})
    rollout = rollouts.make(options.rollout, **given["rollout"])
    if evaluating and getattr(rollout, "sees_reference", False):
        raise ConfigError(
            f"rollout {options.rollout!r} searches with the reference answer in view, which is for "
            "collecting only; evaluate with rollout.outcome=false and a judge that is not shown it"
        )
    policy = load_policy(options.policy, **given["policy"])
    try:
        async with _box(options) as box:
            trees = await collect(
                env,
                rollout,
                policy,
                n=options.n,
                samples=options.samples,
                box=box,
                params=SamplingParams(options.max_tokens, options.temperature),
                seed=options.seed,
                concurrency=options.concurrency,
                max_failed=options.max_failed,
                out=options.out,
                progress=not options.json,
            )
    finally:
        await policy.close()
    reasons = {a.error for t in trees for a in t.attempts if a.error}
    if trees and all(a.error for t in trees for a in t.attempts):
        shown = "; ".join(sorted(map(str, reasons))[:3])
        raise InfraError(
            f"all {len(trees)} rollouts failed in our hands, not the policy's: {shown}"
        )
    return trees


def add_rollout(commands: Any) -> None:
    c = command_of(
        commands,
        "rollout",
        "collect trees only",
        "agentrl rollout --env arithmetic --rollout hint_infer rollout.position=start -n 8 "
        "--out runs/trees",
        more=named_options,
    )
    sampling_options(c)
    c.set_defaults(run=run_rollout)


def run_rollout(options: argparse.Namespace) -> int:
    """`agentrl rollout`."""
    from agentrl import evaluate
    from agentrl.search import statistics

    if options.out:
        keep_settings(options.out, "rollout", options)
    trees = asyncio.run(collected(options))
    if options.json:
        for tree in trees:
            print(json.dumps(tree.to_json()))
        return 0
    if any(a.metrics.get("saw_reference") for t in trees for a in t.attempts):
        print("searched with the reference answer in view: training data, without an accuracy")
    else:
        print_result(evaluate.summarize(evaluate.final(trees)))
    if found := statistics(trees):
        print(", ".join(f"{name} {value}" for name, value in found.items() if name != "strategies"))
    if options.out:
        print(f"{len(trees)} trees in {options.out}")
    return 0


def print_result(result: dict[str, Any]) -> None:
    """Accuracy by kind, tool calls, truncations and failures."""
    table = Table("", "accuracy", "95 % interval", "n")
    kinds = {} if list(result["by_kind"]) == [""] else result["by_kind"]  # tasks without kinds
    for name, row in {"all": result, **kinds}.items():
        low, high = row["ci95"]
        share = "" if row["accuracy"] is None else f"{row['accuracy']:.1%}"
        table.add_row(name, share, f"{low:.1%} to {high:.1%}", str(row["n"]))
    Console().print(table)
    print(
        f"tool-call rate {result['tool_call_rate']}, truncated {result['truncated']}, "
        f"failed in our hands {result['failed']}"
    )

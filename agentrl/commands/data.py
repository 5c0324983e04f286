"""`agentrl select`, `train` and `report`: what works on a run's data."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl import config as settings
from agentrl.commands.common import command_of, listed_options
from agentrl.errors import ConfigError, unknown
from agentrl.options import types_checked

if TYPE_CHECKING:
    from agentrl.chat import Chat
    from agentrl.evaluate import Graded
    from agentrl.record import Tree
    from agentrl.train import TrainConfig
    from agentrl.types import Pair, Sample


SELECTORS: dict[str, tuple[str, ...]] = {
    "hint_rft": ("cap", "max_tokens"),
    "leti": ("coarse_only", "max_feedback"),
    "ledex": ("mark", "explain", "cap"),
    "raft": ("ranking", "keep", "least", "seed"),
    "superhf": ("keep", "seed"),
    "dart": ("quota", "k"),
    "pairs": (
        "origin",
        "negative",
        "levels",
        "right_only",
        "soft",
        "length_penalty",
        "by",
        "seed",
        "gap",
        "overlap",
        "floor",
        "cap",
        "duplicates",
    ),
    "answers": (),
    "rise": ("keep", "improved_only", "max_length", "tau", "baseline", "agg", "cap", "unit_mean"),
}
"""The selectors that read trees alone, with their settings."""


def add_select(commands: Any) -> None:
    c = command_of(
        commands,
        "select",
        "trees to training rows, or to preference pairs",
        "agentrl select hint_rft runs/demo/trees/train_hinted rows.jsonl "
        "--greedy runs/demo/trees/train_greedy --policy smollm2",
    )
    c.add_argument("method", choices=list(SELECTORS))
    c.add_argument("source", type=Path, metavar="IN", help="a folder of trees")
    c.add_argument("target", type=Path, metavar="OUT", help="JSON lines of rows")
    c.add_argument(
        "settings", nargs="*", default=[], metavar="key=value", help=_selector_settings()
    )
    c.add_argument(
        "--greedy", type=Path, help="hint_rft: greedy trees; keep only what was wrong there"
    )
    c.add_argument("--policy", default="smollm2", help="the model whose tokenizer made the trees")
    c.set_defaults(run=run_select)


def run_select(options: argparse.Namespace) -> int:
    """`agentrl select`."""
    from agentrl import evaluate, store
    from agentrl.select import rows

    given: dict[str, Any] = settings.pairs(options.settings)
    for name in given:
        if name not in SELECTORS[options.method]:
            raise unknown(f"setting of {options.method}:", name, SELECTORS[options.method])
    chat = chat_of(options.policy)
    if options.greedy and options.method == "pairs":
        raise ConfigError("--greedy is for hint_rft, not for pairs")
    if options.greedy:
        graded = evaluate.final(store.load(options.greedy))
        given["greedy_right"] = {t.task.id: evaluate.right(a) for t, a in graded if a.error is None}
    given = _typed(options.method, given)
    trees = store.load(options.source)
    made: Any
    made_with = {t.meta.get("tokenizer") for t in trees}
    if options.method != "ledex":  # which encodes a teacher's text for its student
        what = f"the trees in {options.source}"
        _require_tokenizer(made_with, chat.tokenizer, what, options.policy)
    if options.method == "pairs":
        made, dropped = _paired(trees, chat, given)
    else:
        made, dropped = _selected(options.method, evaluate.final(trees), chat, given)
    rows.write(options.target, made)
    print(f"{len(made)} rows of {len(trees)} trees in {options.target}")
    for reason, count in dropped.most_common():
        print(f"dropped {count}: {reason}")
    return 0


def _typed(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a selector, each of the type that the function which takes it wants."""
    from agentrl.select import dart, hint_rft, ledex, leti, pairs, raft, rise, superhf

    takers: dict[str, list[Callable[..., Any]]] = {
        "hint_rft": [hint_rft.select],
        "leti": [leti.rows],
        "ledex": [ledex.pool, ledex.sft_rows],
        "raft": [raft.select],
        "superhf": [superhf.select],
        "dart": [dart.quotas],
        "pairs": [pairs.select, pairs.Filters],
        "rise": [rise.select, rise.Selection.samples],
    }
    for taker in takers.get(method, ()):
        given = types_checked(method, taker, given)
    return given


def _selected(
    method: str, graded: Sequence[Graded], chat: Chat, given: dict[str, Any]
) -> tuple[list[Sample], Counter[str]]:
    """The rows that a selector makes of attempts, and why it left others out."""
    from agentrl.select import dart, hint_rft, ledex, leti, raft, rewards, rise, superhf

    if method == "hint_rft":
        hinted = hint_rft.select(graded, chat, **given)
        return hinted.samples(chat), hinted.dropped
    if "greedy_right" in given:
        raise ConfigError(f"--greedy is for hint_rft, not for {method}")
    if method == "rise":
        rules = ("keep", "improved_only", "max_length")
        which = {name: given.pop(name) for name in rules if name in given}
        turns = rise.select([tree for tree, _ in graded], **which)
        return turns.samples(**given), turns.dropped
    if method == "answers":
        return rewards.answers(graded)
    if method == "leti":
        told = leti.rows(graded, chat, **given)
        return told.samples, told.dropped
    if method == "ledex":
        mark = {"mark": given.pop("mark")} if "mark" in given else {}
        repairs, refused = ledex.pool([tree for tree, _ in graded], **mark)
        kinds = ledex.sft_rows([], repairs.values(), chat, **given)
        return [row for rows in kinds.values() for row in rows], refused
    if method == "dart":
        quota = dart.quotas(dart.difficulty(graded), **given)
        chosen = dart.select([g for g in graded if g[0].task.id in quota], quota, chat)
    else:
        chosen = (raft.select if method == "raft" else superhf.select)(graded, **given)
    return chosen.rows(), chosen.dropped


def _paired(
    trees: Sequence[Tree], chat: Chat, given: dict[str, Any]
) -> tuple[list[Pair], Counter[str]]:
    """The preference pairs of trees; prints their statistics."""
    from agentrl.select import pairs

    rules = {f.name: given.pop(f.name) for f in fields(pairs.Filters) if f.name in given}
    made = pairs.select(trees, chat, filters=pairs.Filters(**rules), **given)
    for name, value in made.statistics().items():
        if name not in ("pairs", "dropped"):
            print(f"{name}: {value}")
    return made.pairs, made.dropped


def _selector_settings() -> str:
    return "; ".join(f"{name}: {', '.join(keys)}" for name, keys in SELECTORS.items() if keys)


def _require_tokenizer(made_with: set[Any], tokenizer: Any, what: str, model: str) -> None:
    """Raise ConfigError where token ids were made with another tokenizer than the model's."""
    ours = tokenizer.fingerprint
    others = sorted(str(theirs) for theirs in made_with - {None, ours})
    if others:
        raise ConfigError(
            f"{what} were made with another tokenizer ({', '.join(others)}) than that of {model!r} "
            f"({ours}): their token ids mean something else. Name the model they were made with."
        )


def chat_of(policy: str) -> Any:
    """The chat format of the model called `policy`."""
    from agentrl.chat import Chat, HFTokenizer
    from agentrl.engines import ScriptedPolicy

    if policy.startswith("scripted"):
        return Chat(ScriptedPolicy([]).tokenizer)
    from agentrl.engines.models import load_tokenizer

    return Chat(HFTokenizer(load_tokenizer(policy)))


def add_train(commands: Any) -> None:
    c = command_of(
        commands,
        "train",
        "train only, on rows of samples or of preference pairs",
        "agentrl train dpo --data pairs.jsonl --model smollm2 lr=1e-6 loss.beta=0.05 "
        "--out runs/dpo",
        more=_training_settings,
    )
    c.add_argument(
        "method",
        help="sft, dpo, or another loss (agentrl list losses); reward: a reward model, of pairs or "
        "of rows of select answers; preference: a judge of two answers, of pairs",
    )
    c.add_argument("--data", type=Path, required=True, help="JSON lines of rows")
    c.add_argument("--model", default="smollm2")
    c.add_argument("--out", type=Path, required=True, help="folder for what is made")
    c.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    c.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help="of training; loss.KEY=VALUE (listed by: agentrl train METHOD --help)",
    )
    c.set_defaults(run=run_train)


def _training_settings(options: argparse.Namespace) -> str:
    """The settings of training, and the options of the loss before `--help`."""
    if options.method is None:
        return ""
    from agentrl import losses
    from agentrl.train import TrainConfig

    found = [listed_options("settings of training:", TrainConfig)]
    if options.method not in ("reward", "preference"):
        own = losses.options_of(options.method).values()
        lines = [f"  loss.{p.name}={'...' if p.default is p.empty else p.default}" for p in own]
        found.append("\n".join([f"options of the loss {options.method}:", *lines]))
    return "\n\n".join(found)


def run_train(options: argparse.Namespace) -> int:
    """`agentrl train`."""
    from agentrl.engines.models import load_model
    from agentrl.select import rewards, rows
    from agentrl.train import TrainConfig, export, objective, train
    from agentrl.train.adapter import routes_rows
    from agentrl.train.distributed import joined

    given = settings.pairs(options.settings)
    own = {k.removeprefix("loss."): given.pop(k) for k in list(given) if k.startswith("loss.")}
    config, chat = settings.build(TrainConfig, given), chat_of(options.model)
    if options.method == "reward":
        if own:
            raise unknown("option of training a reward model:", f"loss.{next(iter(own))}", ())
        return _train_reward(options, config, chat.tokenizer)
    contests = options.method == "preference"
    goal = objective("sft" if contests else options.method, **own)
    paired = contests or goal.members > 1
    data: Any = rows.read_pairs(options.data) if paired else rows.read(options.data)
    tokenizer = chat.tokenizer
    _require_tokenizer(_makers(data), tokenizer, f"the rows in {options.data}", options.model)
    data = rewards.contests(data, chat) if contests else data
    goal.units(data)  # data of another kind are refused before the model is loaded
    method = str((config.lora or {}).get("method", "")).lower()
    with joined() as ranks:
        model = load_model(options.model, bits=4 if method == "qlora" else None)
        result = train(
            model,
            data,
            goal,
            config,
            out_dir=options.out,
            resume=options.resume,
            progress=True,
        )
        if ranks.main:
            card = result.facts(options.method, f"{len(data)} rows of {options.data.name}")
            merge = not (method == "qlora" or routes_rows(result.model))
            export(result.model, options.out / "model", tokenizer, merge, card)
            what = "model" if merge or config.lora is None else "adapter"
            print(f"{len(data)} rows; the {what} is in {options.out / 'model'}")
    return 0


def _train_reward(options: argparse.Namespace, config: TrainConfig, tokenizer: Any) -> int:
    """A reward model, of pairs or of the answers to each task that are right and wrong."""
    from agentrl.engines.models import load_model
    from agentrl.select import rows
    from agentrl.train.distributed import joined
    from agentrl.train.reward import export_reward, train_reward

    read: Any = rows.read_pairs if rows.are_pairs(options.data) else rows.read
    data = read(options.data)
    _require_tokenizer(_makers(data), tokenizer, f"the rows in {options.data}", options.model)
    with joined() as ranks:
        model = load_model(options.model, dtype="float32")
        result = train_reward(model, data, config, options.out, options.resume)
        if ranks.main:
            card = result.facts("reward model", f"{len(data)} rows of {options.data.name}")
            export_reward(result.model, options.out / "model", tokenizer, card)
            right = result.metrics[-1]["accuracy"]
            print(f"{len(data)} rows; {right:.1%} in the right order in the last step")
            print(f"the reward model is in {options.out / 'model'}")
    return 0


def _makers(data: Sequence[Sample] | Sequence[Pair]) -> set[Any]:
    """The fingerprints of the tokenizers that rows were made with."""
    from agentrl.types import Pair

    sides = ([one.chosen, one.rejected] if isinstance(one, Pair) else [one] for one in data)
    return {sample.meta.get("tokenizer") for samples in sides for sample in samples}


def add_report(commands: Any) -> None:
    c = command_of(commands, "report", "write a run's static HTML", "agentrl report runs/demo")
    c.add_argument("folder", type=Path, metavar="DIR")
    c.add_argument("--out", type=Path, help="the file (default: DIR/report.html)")
    c.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    """`agentrl report`."""
    from agentrl import report

    print(report.write(options.folder, options.out))
    return 0

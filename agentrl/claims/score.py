"""SCoRe on sorting: does RL in two stages make a model that gains by answering again?"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import envs
from agentrl import credit, evaluate
from agentrl.chat import Chat
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import fresh, imitate, policy, rows
from agentrl.collect import collect
from agentrl.config import RunFolder, settings
from agentrl.engines.characters import CharTokenizer
from agentrl.interfaces import Env
from agentrl.recipes import grpo, score
from agentrl.rollouts import self_correct
from agentrl.select.rows import conversation_sample
from agentrl.tree import Tree
from agentrl.types import Message, Sample, SamplingParams
from envs.sorting import passes

TOKENIZER = CharTokenizer()
ASK = "?"
"""What is said after an answer."""

SHOWN = ("acc@t1", "acc@t2", "delta", "i2c", "c2i", "change_rate")

ARMS: dict[str, dict[str, Any]] = {
    "no_stage1": {"stage1_steps": 0},
    "alpha_0": {"alpha": 0.0},
    "score": {},
}
"""The recipe with these settings, all for the same number of steps."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run: `length` digits; `stage1` and `stage2` steps of RL, of `prompts` tasks and
    `group` attempts at each; as many attempts of the base model to fine-tune it on."""

    length: int = 6
    base_steps: int = 400
    stage1: int = 30
    stage2: int = 40
    prompts: int = 12
    group: int = 8
    sft_steps: int = 100
    lr: float = 5e-4
    beta2: float = 0.3
    tasks: int = 4096
    eval_n: int = 500

    @property
    def steps(self) -> int:
        """Of both stages."""
        return self.stage1 + self.stage2


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a base model, and each arm from it."""
    return asyncio.run(_run(seed, folder, size or Size()))


async def _run(seed: int, folder: Path, size: Size) -> Metrics:
    base = base_model(seed, size)
    found = {"base": await measured(base, seed, size)}
    n = size.steps * size.prompts * size.group // 4
    trees = await attempts(base, "train", seed, size, n=n, samples=4, temperature=1.0)
    for name, data in (("star", own_corrections(trees)), ("pair_sft", pairs(trees))):
        model = copy.deepcopy(base)
        imitate(model, data, steps=size.sft_steps, batch=64, lr=size.lr, seed=seed)
        found[name] = await measured(model, seed, size)
    model = copy.deepcopy(base)
    await single_turn(model, seed, folder / "single_turn", size)
    found["single_turn"] = await measured(model, seed, size)
    for name, changes in ARMS.items():
        model = copy.deepcopy(base)
        await two_stages(model, seed, folder / name, size, changes)
        found[name] = await measured(model, seed, size)
    return found


def base_model(seed: int, size: Size) -> Any:
    """A model that has a notion of refining and no aim: its first answer is the digits after 0 to 2
    passes of bubble sort, its second that after 0 to 2 further ones; but half of the second answers
    have their first two digits exchanged, for no reason."""
    draw = Random(f"score {seed}")
    conversations = []
    for task in env("train", seed + 1_000_000, size).tasks():
        digits = task.data["digits"]
        first = passes(digits, draw.randint(0, 2))
        second = passes(first, draw.randint(0, 2))
        if draw.random() < 0.5:
            second = second[1] + second[0] + second[2:]
        said = [("user", digits), ("assistant", first), ("user", ASK), ("assistant", second)]
        conversations.append(said)
    model = fresh(TOKENIZER, seed, max_positions=64)
    shown = rows(TOKENIZER, conversations)
    return imitate(model, shown, steps=size.base_steps, batch=64, lr=6e-3, seed=seed)


def own_corrections(trees: Sequence[Tree]) -> list[Sample]:
    """STaR: attempts that were wrong at first and right then, with loss on the second answer."""
    made = []
    for tree, attempt in evaluate.final(trees):
        first, second = (reward.value for reward in attempt.rewards)
        if first < 1 <= second:
            turns = credit.corrections(tree, attempt).turns
            masked = [turn == 0 for turn in turns]
            made += credit.credited(tree, attempt, [1.0] * len(turns), masked=masked)
    return made


def pairs(trees: Sequence[Tree]) -> list[Sample]:
    """Pair-SFT: every wrong first answer with every right first answer to the same task as its
    correction, with loss on that."""
    answers: dict[str, tuple[set[str], set[str]]] = {}
    prompts = {tree.task.id: tree.task.prompt for tree in trees}
    for tree, attempt in evaluate.final(trees):
        first = attempt.metrics["turns"][0]
        answers.setdefault(tree.task.id, (set(), set()))[first["reward"] >= 1].add(first["text"])
    chat, made = Chat(TOKENIZER), []
    for task, (wrong, right) in answers.items():
        for one, other in product(sorted(wrong), sorted(right)):
            said = [Message("assistant", one), Message("user", ASK), Message("assistant", other)]
            index = len(prompts[task])
            made.append(conversation_sample(chat, [*prompts[task], *said], untrained={index}))
    return made


async def single_turn(model: Any, seed: int, folder: Path, size: Size) -> None:
    """The same policy gradient on first answers alone."""
    config = grpo.Config(
        method="reinforce",
        steps=size.steps,
        n=size.tasks,
        prompts=size.prompts,
        group=size.group,
        eval_n=0,
        seed=seed,
        max_tokens=size.length + 2,
        max_calls=0,
        lr=size.lr,
        kl=0.01,
        train_dtype="fp32",
        save_every=0,
        concurrency=256,
    )
    run_folder, train = RunFolder(folder, settings(config), resume=False), env("train", seed, size)
    own = policy(model, TOKENIZER)
    await grpo.learn(config, own, train, train, run_folder, progress=False)


async def two_stages(
    model: Any, seed: int, folder: Path, size: Size, changes: dict[str, Any]
) -> None:
    """The recipe `score`."""
    first = changes.get("stage1_steps", size.stage1)
    config = score.Config(
        instruction=ASK,
        stage1_steps=first,
        stage2_steps=size.steps - first,
        alpha=changes.get("alpha", 10.0),
        beta2=size.beta2,
        n=size.tasks,
        prompts=size.prompts,
        group=size.group,
        eval_n=0,
        seed=seed,
        max_tokens=size.length + 2,
        lr=size.lr,
        train_dtype="fp32",
        concurrency=256,
    )
    run_folder, train = RunFolder(folder, settings(config), resume=False), env("train", seed, size)
    own = policy(model, TOKENIZER)
    await score.learn(config, own, train, train, run_folder, progress=False)


async def measured(model: Any, seed: int, size: Size) -> dict[str, float]:
    """Greedy, on tasks that nothing was trained on."""
    trees = await attempts(model, "test", seed, size, n=size.eval_n)
    found = evaluate.values(evaluate.turn_metrics(trees, resamples=2))
    return {name: found[name] for name in SHOWN}


async def attempts(
    model: Any,
    split: str,
    seed: int,
    size: Size,
    *,
    n: int,
    samples: int = 1,
    temperature: float = 0,
) -> list[Tree]:
    """Two answers to each of `n` tasks."""
    own, limit = policy(model, TOKENIZER), size.length + 2
    try:
        return await collect(
            env(split, seed, size),
            self_correct(instruction=ASK, max_tokens=limit),
            own,
            n=n,
            samples=samples,
            params=SamplingParams(max_tokens=limit, temperature=temperature),
            seed=seed,
            concurrency=256,
            progress=False,
        )
    finally:
        await own.close()


def env(split: str, seed: int, size: Size) -> Env:
    """Unsorted digits, and nothing else in the prompt."""
    options = {"length": size.length, "prompt": "{}", "n": size.tasks}
    return envs.make("sorting", split=split, seed=seed, **options)


CLAIM = Claim(
    name="score",
    paper="arXiv 2409.12917",
    says="RL in two stages, with a bonus for progress, makes a model that gains by correcting "
    "itself: more than its base model, RL on single answers, or fine-tuning on corrections.",
    task="Sorting six digits in two answers, by a model of two layers (0.1 million parameters) "
    "that has seen bubble sort stopped early, and second answers of which half were spoilt. RL "
    "takes 70 steps of 96 attempts in every arm. `star` is fine-tuned on the base model's right "
    "corrections of wrong answers, `pair_sft` on its wrong and right first answers to the same "
    "task; both from as many attempts. Greedy, on 500 other tasks.",
    effects=(
        Effect("delta is above the base model's", "score.delta", "base.delta"),
        Effect("delta is above that of RL on single answers", "score.delta", "single_turn.delta"),
        Effect("delta is above that of Pair-SFT", "score.delta", "pair_sft.delta"),
        Effect("delta is above that of STaR", "score.delta", "star.delta"),
        Effect("without the bonus delta is smaller", "alpha_0.delta", "score.delta", sign=-1),
        Effect(
            "without stage I fewer answers change",
            "no_stage1.change_rate",
            "score.change_rate",
            sign=-1,
        ),
        Effect("without stage I delta is smaller", "no_stage1.delta", "score.delta", sign=-1),
        Effect("fewer right answers are spoilt", "score.c2i", "base.c2i", sign=-1),
        Effect("the first answer is right more often", "score.acc@t1", "base.acc@t1"),
        Effect("the second answer is right more often", "score.acc@t2", "base.acc@t2"),
    ),
    run=run,
)

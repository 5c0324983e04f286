"""MAgICoRe on chains of sums: does refining what looks hard beat a vote over more samples?"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import envs
from agentrl.chat import Chat
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import Conversation, fresh, imitate, policy, rows
from agentrl.collect import collect
from agentrl.engines.characters import CharTokenizer
from agentrl.engines.hf import HFPolicy
from agentrl.evaluate import best, vote
from agentrl.interfaces import Env, Rollout
from agentrl.rewards.classifier import SequenceClassifier
from agentrl.rewards.steps import steps_of
from agentrl.rollouts import single_turn
from agentrl.rollouts.chains import Chain, refinement_of, review_of, standard
from agentrl.rollouts.magicore import first_scores, magicore
from agentrl.search.evaluators import ByModel
from agentrl.tree import Tree
from agentrl.types import SamplingParams, Task
from envs.chains import OPERATIONS

Choose = Callable[[Sequence[str], Sequence[float]], int | None]
"""From answers and scores to the solution that is taken."""

WAYS: dict[str, Choose] = {
    "self_consistency": lambda answers, scores: vote(answers),
    "best_of_n": lambda answers, scores: best(scores),
    "weighted": vote,
}

Errors = Callable[[Random, int, str, int], int]
"""By how much a result is off, of a value, a sign and a digit; 0 if it is right."""

TOKENIZER = CharTokenizer()
REVIEW, REFINE = "{question}\n{solution}\n?", "{question}\n{solution}\n!{feedback}"
LOW = 6
"""A step that scores less of 10 is one to review."""


def never(draw: Random, value: int, sign: str, digit: int) -> int:
    """No errors."""
    return 0


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run. In what is imitated last, the share `odd` of all sums has a wrong result of
    its own in `wrong` of the steps that need it; the others slip by one in `slips` of theirs."""

    kinds: tuple[str, ...] = ("3+-", "5+-")
    odd: float = 0.25
    wrong: float = 0.6
    slips: float = 0.1
    base_rows: int = 4096
    clean_steps: int = 400
    base_steps: int = 150
    judge_n: int = 512
    judge_samples: int = 4
    judge_steps: int = 200
    eval_n: int = 160
    candidates: int = 8
    rounds: int = 2
    votes: int = 24
    temperature: float = 0.8

    @property
    def width(self) -> int:
        """Characters of the longest problem."""
        return 2 * max(int(kind[0]) for kind in self.kinds) + 2


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: the model for all roles, its judges, and each way to answer."""
    return asyncio.run(_run(seed, size or Size()))


async def _run(seed: int, size: Size) -> Metrics:
    base = fresh(TOKENIZER, seed, max_positions=1024)
    odd = errors(seed, size)
    for writes, steps in ((never, size.clean_steps), (odd, size.base_steps)):
        shown = rows(TOKENIZER, demonstrations(seed, size, odd, writes))
        imitate(base, shown, steps=steps, seed=seed)
    own = policy(base, TOKENIZER)
    try:
        return await _measured(own, await trained_judge(own, seed, size), seed, size)
    finally:
        await own.close()


def errors(seed: int, size: Size) -> Errors:
    """What goes wrong: sums that are remembered wrongly, each off by one in a way of its own, and
    now and then any other."""
    rng, wrong = Random(f"magicore errors {seed}"), dict[tuple[int, str, int], int]()
    for value, sign, digit in product(range(10), "+-", range(1, 10)):
        if rng.random() < size.odd:
            wrong[value, sign, digit] = rng.choice((1, 9))

    def error(draw: Random, value: int, sign: str, digit: int) -> int:
        off = wrong.get((value, sign, digit))
        if draw.random() >= (size.slips if off is None else size.wrong):
            return 0
        return draw.choice((1, 9)) if off is None else off

    return error


def demonstrations(
    seed: int, size: Size, shows: Errors, writes: Errors = never
) -> list[Conversation]:
    """Conversations of all three roles: a solver, and for every other problem a reviewer who names
    the first step that scores low, and a refiner who keeps what stands before that step and goes on
    from there. Solver and refiner make the same errors, those of `writes`; solutions that are
    reviewed have those of `shows`."""
    made: list[Conversation] = []
    rng = Random(f"magicore {seed}")
    for number, task in enumerate(_env("train", seed, size, size.base_rows).tasks()):
        problem, chain = task.prompt[-1].content, str(task.data["chain"])
        lines, _ = solution(rng, chain, writes)
        made.append([("user", problem), ("assistant", "\n".join(lines))])
        if number // len(size.kinds) % 2:
            continue
        lines, right = solution(rng, chain, shows)
        scores = tuple(rng.uniform(0.7, 1) if ok else rng.uniform(0, 0.5) for ok in right)
        marked = Chain("\n".join(lines), "", 0.0, scores)
        low = next((i for i, s in enumerate(scores) if round(10 * s) < LOW), len(lines))
        review = review_of(problem, marked, template=REVIEW)
        made.append([("user", review), ("assistant", str(low + 1))])
        again, _ = solution(rng, chain, writes, lines[:low])
        refine = refinement_of(problem, marked, str(low + 1), template=REFINE)
        made.append([("user", refine), ("assistant", "\n".join(again))])
    return made


def solution(
    rng: Random, chain: str, errors: Errors, begun: Sequence[str] = ()
) -> tuple[list[str], list[bool]]:
    """A step a line, `7-5=2`, after those that are there; and which are right. An error is gone on
    with; results are of one digit."""
    lines, right = list(begun), [True] * len(begun)
    value = int(lines[-1][-1]) if lines else int(chain[0])
    for sign, digit in list(zip(chain[1::2], chain[2::2], strict=True))[len(lines) :]:
        off = errors(rng, value, sign, int(digit))
        result = (OPERATIONS[sign](value, int(digit)) + off) % 10
        right.append(off == 0)
        lines.append(f"{value}{sign}{digit}={result}")
        value = result
    return lines, right


def verdicts(task: Task, text: str) -> list[bool]:
    """Of each step of a solution whether it is the problem's and right: what the process judge
    learns."""
    value, found = task.data["chain"][0], []
    signs = zip(task.data["chain"][1::2], task.data["chain"][2::2], strict=True)
    for line, (sign, digit) in zip(steps_of(text), signs, strict=False):
        result = OPERATIONS[sign](int(value), int(digit)) % 10
        found.append(line.strip() == f"{value}{sign}{digit}={result}")
        value = line.strip()[-1:] if line.strip()[-1:].isdigit() else "0"
    return found + [False] * (len(steps_of(text)) - len(found))


async def trained_judge(own: HFPolicy, seed: int, size: Size) -> ByModel:
    """A classifier that begins as the policy's layers and learns from its solutions of training
    problems: at the end of each step whether that is right, after the whole whether the answer is.
    """
    env = _env("train", seed + 1_000_000, size, size.judge_n)
    trees = await _collected(env, own, single_turn(), seed, size, samples=size.judge_samples)
    chat, data = Chat(TOKENIZER), []
    for tree in trees:
        prompt, attempt = chat.prompt(tree.task.prompt), tree.attempts[-1]
        text = chat.decode(chat.without_end(tree.ids(attempt.leaf)[len(prompt) :]))
        ids = [*prompt, *chat.encode(text), *chat.encode(chat.end_text, trusted=True)]
        ends = accumulate(len(chat.encode(piece)) for piece in steps_of(text))
        found = zip(ends, verdicts(tree.task, text), strict=True)
        places = {len(prompt) + end - 1: ok for end, ok in found}
        data.append((ids, {**places, len(ids) - 1: attempt.reward == 1.0}))
    return ByModel(classifier(own.model, data, seed, size.judge_steps))


def classifier(
    base: Any, data: Sequence[tuple[Sequence[int], dict[int, bool]]], seed: int, steps: int
) -> SequenceClassifier:
    """A copy of `base` with another head, which says at the given places of the ids whether what
    stands there is right."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits
    from transformers import LlamaForSequenceClassification

    config = copy.deepcopy(base.config)
    config.num_labels, config.pad_token_id = 1, 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(base.model.state_dict())
    optimizer, rng = torch.optim.AdamW(model.parameters(), lr=2e-3), Random(seed)
    for step in range(steps):
        batch = [data[rng.randrange(len(data))] for _ in range(64)]
        longest = max(len(ids) for ids, _ in batch)
        ids_BT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids, _ in batch])
        scores_BT = model.score(model.model(input_ids=ids_BT, use_cache=False)[0])[..., 0]
        at = [(b, t, float(ok)) for b, (_, places) in enumerate(batch) for t, ok in places.items()]
        rows_N, columns_N, right_N = (torch.tensor(x) for x in zip(*at, strict=True))
        loss = binary_cross_entropy_with_logits(scores_BT[rows_N, columns_N], right_N)
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return SequenceClassifier(model)


async def _measured(own: HFPolicy, judge: ByModel, seed: int, size: Size) -> Metrics:
    """Every way to answer, on problems that nothing was trained on."""
    env = _env("test", seed, size, size.eval_n)
    votes = magicore(candidates=size.votes, rounds=0, outcome=judge, process=judge, lead="")
    voted = await _collected(env, own, votes, seed, size)
    frozen = standard(first_scores(voted))
    refined = magicore(
        candidates=size.candidates,
        rounds=size.rounds,
        outcome=judge,
        process=judge,
        measured=frozen,
        threshold=LOW,
        lead="",
        review=REVIEW,
        refine=REFINE,
    )
    teams = await _collected(env, own, refined, seed + 1, size)
    last = [tree.attempts[-1] for tree in teams]
    found = {
        name: {"acc": _right(voted, size.votes, choose), "samples": float(size.votes)}
        for name, choose in WAYS.items()
    }
    plain = await _collected(env, own, single_turn(), seed, size, temperature=0.0)
    few = size.candidates
    return {
        "greedy": {"acc": fmean(t.attempts[-1].reward == 1.0 for t in plain), "samples": 1.0},
        "single": {"acc": _right(voted, 1, vote), "samples": 1.0},
        **found,
        "unrefined": {"acc": _right(voted, few, vote), "samples": float(few)},
        "magicore": {
            "acc": fmean(a.reward == 1.0 for a in last),
            "samples": fmean(a.metrics["replies"] for a in last),
            "hard": fmean(a.metrics["hard"] for a in last),
        },
    }


def _right(trees: Sequence[Tree], n: int, choose: Choose) -> float:
    """How often the solution that `choose` takes of the first `n` is right."""
    found = []
    for tree in trees:
        first = sorted(tree.attempts, key=lambda a: a.metrics["number"])[:n]
        chosen = choose([a.answer for a in first], [a.metrics["score"] for a in first])
        found.append(chosen is not None and first[chosen].reward == 1.0)
    return fmean(found)


async def _collected(
    env: Env,
    own: HFPolicy,
    rollout: Rollout,
    seed: int,
    size: Size,
    *,
    samples: int = 1,
    temperature: float | None = None,
) -> list[Tree]:
    temperature = size.temperature if temperature is None else temperature
    return await collect(
        env,
        rollout,
        own,
        samples=samples,
        params=SamplingParams(6 * size.width, temperature),
        seed=seed,
        concurrency=32,
        progress=False,
    )


def _env(split: str, seed: int, size: Size, n: int) -> Env:
    """Chains of sums and differences; all prompts of one length."""
    return envs.make("chains", split=split, seed=seed, kinds=size.kinds, width=size.width, n=n)


CLAIM = Claim(
    name="magicore",
    paper="arXiv 2409.12147",
    says="Refining the solutions of problems that look hard, guided by scores of outcome and "
    "steps, beats self-consistency with fewer samples.",
    task="Chains of three and five sums or differences of digits, worked out step by step by a "
    "model of two layers (0.1 million parameters) that plays all roles. It has imitated right "
    "solutions, reviews and refinements, and then such with errors: a quarter of all sums has a "
    "wrong result of its own, written in 60 % of the steps that need it, by solver and refiner "
    "alike; the others slip by one in 10 % of theirs. So most samples are wrong in the same way. "
    "The judge of steps and of whole solutions is one classifier, which begins as the model's "
    "layers and learns from 2,048 of its solutions of training problems. `magicore` has 8 "
    "candidates and up to two rounds; `self_consistency` is the majority of 24 samples, "
    "`best_of_n` and `weighted` choose among the same 24 by their scores, `unrefined` is the "
    "weighted vote of 8. 160 other problems, temperature 0.8.",
    effects=(
        Effect("right more often than self-consistency", "magicore.acc", "self_consistency.acc"),
        Effect("from fewer samples", "magicore.samples", "self_consistency.samples", sign=-1),
        Effect(
            "right more often than the best of as many samples", "magicore.acc", "best_of_n.acc"
        ),
        Effect("right more often than its first samples", "magicore.acc", "unrefined.acc"),
    ),
    run=run,
)

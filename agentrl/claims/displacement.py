"""Likelihood displacement on sorting: which preference pairs make the chosen answer less likely."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from string import digits as DIGITS
from typing import Any

from agentrl import losses
from agentrl.claims import Claim, Effect, Metrics
from agentrl.claims.base import Conversation, fresh, imitate, rows
from agentrl.engines.characters import CharTokenizer
from agentrl.select.pairs import lowest
from agentrl.train import Reference, TrainConfig, ches, train
from agentrl.types import Pair, Sample
from envs.sorting import Sorting, passes

TOKENIZER = CharTokenizer()
PASSES = 3
"""Attempts have gone through the digits up to this many times."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run. The share `near` of the `n` pairs has answers that differ in their last
    digit alone; the filters keep `share` of the pairs; `eta` is RPO's."""

    length: int = 6
    base_rows: int = 2048
    base_steps: int = 1200
    n: int = 512
    near: float = 0.5
    share: float = 0.05
    steps: int = 128
    batch_size: int = 32
    lr: float = 3e-4
    beta: float = 0.1
    eta: float = 1.0


def run(seed: int, folder: Path, size: Size | None = None) -> Metrics:
    """One seed: a base model, and each arm's training on its pairs, all for as many steps."""
    size = size or Size()
    base = _base(seed, size)
    every = preferences(seed, size)
    scores = ches.scores(base, every)
    kept = lowest(every, scores, size.share)
    drawn = Random(seed).sample(every, len(kept))
    plain = losses.make("dpo", beta=size.beta)
    arms = {
        "dpo": (every, plain),
        "ches": (kept, plain),
        "random": (drawn, plain),
        "rpo": (every, losses.make("rpo", beta=size.beta, eta=size.eta)),
    }
    return {
        name: _arm(copy.deepcopy(base), used, loss, seed, size)
        for name, (used, loss) in arms.items()
    }


def _base(seed: int, size: Size) -> Any:
    """A model that has imitated attempts of 0 to `PASSES` passes of bubble sort."""
    rng = Random(f"displacement {seed}")
    talks = [_talk(d, passes(d, rng.randint(0, PASSES))) for d in _digits(seed + 1, size)]
    return imitate(
        fresh(TOKENIZER, seed, layers=1, max_positions=64),
        rows(TOKENIZER, talks),
        steps=size.base_steps,
        seed=seed,
    )


def preferences(seed: int, size: Size) -> list[Pair]:
    """An attempt such as the base has imitated is preferred to one that is wrong: in its last digit
    alone, or, in the other pairs, made of random digits, with which it has nothing in common."""
    rng = Random(f"preferences {seed}")
    made: list[Pair] = []
    for digits in _digits(seed, size)[: size.n]:
        chosen = passes(digits, rng.randint(0, PASSES))
        same = size.length - 1 if rng.random() < size.near else 0
        rejected = chosen
        while rejected == chosen:
            rejected = chosen[:same] + "".join(rng.choice(DIGITS) for _ in chosen[same:])
        better, worse = rows(TOKENIZER, [_talk(digits, chosen), _talk(digits, rejected)])
        made.append(Pair(better, worse))
    return made


def _digits(seed: int, size: Size) -> list[str]:
    env = Sorting(seed=seed, length=size.length, n=size.base_rows)
    return [str(task.data["digits"]) for task in env.tasks()]


def _talk(digits: str, answer: str) -> Conversation:
    return (("user", digits), ("assistant", answer))


def _arm(
    model: Any, pairs: Sequence[Pair], loss: losses.Loss, seed: int, size: Size
) -> dict[str, float]:
    """Train, and see what it did to the pairs that it was trained on: `chosen` and `rejected` are
    mean changes of an answer's log-probability in nats, `fell` the share of chosen answers that
    are less likely than before, `accuracy` that of pairs whose chosen answer gained on the other.
    """
    config = TrainConfig(
        lr=size.lr,
        max_steps=size.steps,
        batch_size=size.batch_size,
        schedule="constant",
        save_every=0,
        seed=seed,
    )
    sides = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    before = _logprobs(model, sides)
    train(model, pairs, loss, config, progress=False)
    changes = [b - a for a, b in zip(before, _logprobs(model, sides), strict=True)]
    chosen, rejected = changes[: len(pairs)], changes[len(pairs) :]
    return {
        "chosen": fmean(chosen),
        "rejected": fmean(rejected),
        "fell": fmean(c < 0 for c in chosen),
        "accuracy": fmean(c > r for c, r in zip(chosen, rejected, strict=True)),
        "pairs": float(len(pairs)),
    }


def _logprobs(model: Any, samples: Sequence[Sample]) -> list[float]:
    """The log-probability of each sample's trained tokens (nats)."""
    scored = Reference(model).score(samples, 4096, "padded")
    return [sum(s.ref_logprobs or ()) for s in scored]


CLAIM = Claim(
    name="displacement",
    paper="arXiv 2410.08847 (CHES), 2405.16436 (RPO)",
    says="DPO makes chosen answers less likely where the two answers of a pair are alike; leaving "
    "those pairs out by their CHES score, or adding the chosen answer's likelihood (RPO), keeps "
    "them likely.",
    task="Six digits to sort by a transformer of one layer (60,096 parameters) that has imitated "
    "attempts of 0 to 3 passes of bubble sort for 1,200 steps. In 512 pairs such an attempt is "
    "preferred: in half of them to itself with another last digit, in the other half to random "
    "digits. 128 steps of 32 pairs in every arm, beta 0.1; `ches` and `random` train on a "
    "twentieth of the pairs, as much as the paper keeps. `chosen` and `rejected` are the mean "
    "changes of an answer's log-probability (nats) over the pairs that an arm was trained on, "
    "`fell` the share of chosen answers that got less likely.",
    effects=(
        Effect("plain DPO makes the chosen answers less likely", "dpo.chosen", sign=-1),
        Effect("filtered by CHES they are likelier than after DPO", "ches.chosen", "dpo.chosen"),
        Effect(
            "and likelier than with as many pairs drawn at random", "ches.chosen", "random.chosen"
        ),
        Effect("filtered by CHES they are likelier than they were", "ches.chosen"),
        Effect("with RPO they are likelier than after DPO", "rpo.chosen", "dpo.chosen"),
        Effect("with RPO they are likelier than they were", "rpo.chosen"),
    ),
    run=run,
)

"""Token weights: how most supervised methods differ from plain SFT.

Each function takes or makes `Sample`s (or lists over a sample's tokens) for `agentrl.losses.sft`,
whose loss is `sum(weight * nll) / denominator`. A weight is a mask and a scale in one number, but
the two are never confused: weight 0 means "no loss here"; a reward of 0 gives a positive weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from agentrl.errors import DataError, unknown
from agentrl.types import Sample

Case = Literal["tokens", "rows", "task_tokens", "task_rows"]
Baseline = Literal["none", "group"]


def scaled(sample: Sample, factor: float) -> Sample:
    """The sample with every weight multiplied by `factor`."""
    return replace(sample, weights=[factor * w for w in sample.weights])


def drop_turns(sample: Sample, turns: Sequence[int], wrong: Collection[int]) -> Sample:
    """No loss on the turns numbered in `wrong`; their tokens stay, as context of what follows.

    `turns[t]` is the turn of token t (`agentrl.credit.turn_numbers` of a path's nodes). AgentRefine
    (arXiv 2501.01702) leaves out turns that were judged wrong, TL-Training's MAE (2412.15495) those
    whose tool call failed, LeDex (2405.18649) the first attempt. Deleting them instead would take
    away what the repair refers to. Raises ValueError if the lengths differ.
    """
    if len(turns) != len(sample.weights):
        raise ValueError(f"{len(turns)} turn numbers for {len(sample.weights)} tokens")
    kept = [0.0 if turn in wrong else w for turn, w in zip(turns, sample.weights, strict=True)]
    return replace(sample, weights=kept)


def key_positions(
    gold: Sequence[int], others: Sequence[Sequence[int]], length: int | None = None
) -> list[int]:
    """The key tokens of a tool call, counted from the start of the tool's name (TL-Training, PKT).

    The answer's first token, and for every other tool whose name begins like the gold one's the
    first token at which the two differ, each once. `gold` and `others` are the names as token ids;
    `length` is that of the whole answer: where a name is the beginning of another one, the token
    that tells them apart stands after the name, and is left out if the answer ends there.
    """
    keys = {0}
    for other in others:
        common = 0
        for a, b in zip(gold, other, strict=False):
            if a != b:
                break
            common += 1
        if common > 0:
            keys.add(common)
    return sorted(k for k in keys if k < (len(gold) if length is None else length))


def key_weights(
    sample: Sample, keys: Collection[int], parameters: Collection[int] = (), cap: float = 9.0
) -> Sample:
    """Key tokens weigh `w = min(|O| / |K|, cap)` where there are fewer keys than others, else 1.

    TL-Training, arXiv 2412.15495 (PKT): K are the `keys`, O the other trained tokens, without the
    `parameters`, which weigh 1 too but do not count in w. Positions are of tokens in the sample
    (the weight multiplies the loss of predicting that token) and count where the sample's weight is
    positive; the loss is divided by the sum of weights.
    """
    trained = {t for t, w in enumerate(sample.weights) if w > 0 and t > 0}
    key = trained & set(keys)
    others = len(trained - key - set(parameters))
    factor = min(others / len(key), cap) if 0 < len(key) < others else 1.0
    weights = [factor * w if t in key else w for t, w in enumerate(sample.weights)]
    return replace(sample, weights=weights)


def reward_weights(
    rewards: Sequence[float],
    *,
    tau: float = 0.4,
    baseline: Baseline = "group",
    groups: Sequence[Hashable] | None = None,
    cap: float | None = 20.0,
    unit_mean: bool = True,
) -> list[float]:
    """RISE's weight of each row: `exp((r - mean r of its group) / tau)` (arXiv 2407.18219, 3.2).

    `groups[i]` is row i's prompt, over all turns and attempts of which the mean is taken (or a
    state, to centre over the candidates there). So a right answer weighs less the easier its
    prompt. `baseline="none"` is `exp(r / tau)`, which the released code has; the paper's text
    centres. Then `unit_mean` divides by the mean weight, so that tau does not change the learning
    rate, and `cap` bounds what is left. Raises ValueError without groups where they are needed, or
    if tau is not positive.
    """
    if not tau > 0:
        raise ValueError(f"tau must be positive, not {tau}")
    if baseline == "group":
        if groups is None or len(groups) != len(rewards):
            raise ValueError("the group baseline needs one group for each reward")
        centred = _centred(rewards, groups)
    elif baseline == "none":
        centred = list(rewards)
    else:
        raise unknown("baseline", baseline, ("none", "group"))
    weights = [math.exp(r / tau) for r in centred]
    if unit_mean and weights:
        mean = math.fsum(weights) / len(weights)
        weights = [w / mean for w in weights]
    return weights if cap is None else [min(w, cap) for w in weights]


def signed_weights(
    rewards: Sequence[float], groups: Sequence[Hashable], *, tau: float = 0.4
) -> list[float]:
    """RISE's formula read the other way: `exp(r / tau)` less its mean over the group, sum zero.

    What is worse than the mean has a negative weight and is made less likely, which is unstable;
    `reward_weights` is the reading to use. The trainer refuses negative weights: give these as
    `Sample.advantages` to the loss `reinforce`. Raises ValueError if tau is not positive, or for
    another number of groups.
    """
    if not tau > 0:
        raise ValueError(f"tau must be positive, not {tau}")
    return _centred([math.exp(r / tau) for r in rewards], groups)


def _centred(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """Each value less the mean of its group."""
    counts, means = Counter(groups), dict[Hashable, float]()
    for group, value in zip(groups, values, strict=True):
        means[group] = means.get(group, 0.0) + value / counts[group]
    return [v - means[g] for v, g in zip(values, groups, strict=True)]


def normalised(
    samples: Sequence[Sample],
    case: Case,
    tasks: Sequence[Hashable] | None = None,
    task_weights: Mapping[Hashable, float] | None = None,
) -> list[Sample]:
    """Weights under which the weighted mean over tokens is MFTCoder's loss of a case.

    ArXiv 2311.02303: `tokens` (case 1) leaves the mean over all tokens; `rows` (2) is the mean of
    the rows' means; `task_tokens` (3) and `task_rows` (4) take these within each task and then the
    mean over tasks, weighted by `task_weights` (1 each by default, shared out among the tasks that
    are present). `tasks[i]` is row i's. `samples` must be those of one optimizer step, whose sum of
    weights is the denominator: then splitting the step into micro-batches changes nothing, as it
    would if each divided by its own tokens. Raises DataError for a row without trainable tokens.
    """
    if case == "tokens":
        return list(samples)
    if case not in ("rows", "task_tokens", "task_rows"):
        raise unknown("case", case, ("tokens", "rows", "task_tokens", "task_rows"))
    tokens = [math.fsum(s.weights[1:]) for s in samples]
    if not all(n > 0 for n in tokens):
        raise DataError("a row without a trainable token has no mean; leave it out")
    if case == "rows":
        return [scaled(s, 1 / n) for s, n in zip(samples, tokens, strict=True)]
    if tasks is None or len(tasks) != len(samples):
        raise ValueError(f"case {case!r} needs one task for each sample")
    share: Counter[Hashable] = Counter()
    for task, n in zip(tasks, tokens, strict=True):
        share[task] += n if case == "task_tokens" else 1  # type: ignore[assignment]
    made = []
    for sample, task, n in zip(samples, tasks, tokens, strict=True):
        weight = 1.0 if task_weights is None else task_weights[task]
        row = 1.0 if case == "task_tokens" else n
        made.append(scaled(sample, weight / share[task] / row))
    return made


def focal_weight(probability: float, gamma: float = 2.0) -> float:
    """MFTCoder's focal weight `(1 - q)^gamma` of a row or task whose tokens have mean probability
    q: what is learnt already counts less."""
    return float((1.0 - probability) ** gamma)

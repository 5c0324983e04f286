"""What happens from turn to turn: accuracy, corrections and spoilt answers, votes, pass@k.

Every number is a mean over problems of what happened on average in the samples of that problem, so
all of them have intervals by the same bootstrap, and two evaluations are compared problem by
problem. Names, with t a turn and k a number of samples:

- `acc@t2`: the answer of turn 2 is right. `delta` = acc@t2 - acc@t1; `i2c` and `c2i` are the shares
  of ALL problems that went from incorrect to correct and back, so that delta = i2c - c2i;
  `change_rate` is the share whose answer changed, `edit_ratio` = lev(y1, y2) / (|y1| + |y2|) of the
  two texts (SCoRe, arXiv 2409.12917, sections 3 and 4). `delta@t3`, ...: from turn 1 to turn 3.
- `m1@t5`: the majority of the answers of turns 1 to 5 is right, `p1@t5`: one of them is (an oracle
  stops there), `m5@t1`: the majority of 5 first answers is (RISE, arXiv 2407.18219);
  `gain@t5` = m1@t5 - m1@t1, `sequential_gain@t5` = m1@t5 - m5@t1, which cost the same samples.
- `mixed@4`: the majority of 2 second answers, each made after a first one of its own (SCoRe,
  section 6, on inference-compute scaling), to set against `m4@t1`.
- `pass@k`, `majority@k`, `average@k` of k samples' last answers; where a reward model scored all of
  them (`metrics["reward_score"]`) `rm@k`, the one it finds best (Qwen2.5-Math, arXiv 2409.12122),
  and `weighted@k`, the vote in which each has the sigmoid of its score for a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from agentrl.evaluate.accuracy import final, refuse_reference
from agentrl.evaluate.answers import Turn, edit_ratio, pass_at_k, turns_of
from agentrl.evaluate.intervals import (
    RESAMPLES,
    Estimate,
    Values,
    bootstrap,
    permutation,
)
from agentrl.evaluate.votes import rm_at_k, sigmoid, voted_right
from agentrl.record import Tree

Samples = Sequence[Sequence[Turn]]
"""What was sampled for one problem: attempts, each a list of answers."""

SCORE = "reward_score"
"""The key of `Attempt.metrics` that holds a reward model's score."""

SCORED_BY = "reward_model"
"""The key of `Attempt.metrics` that holds the name of the model that gave the score."""

CHANGES = ("delta", "gain", "sequential_gain")
"""Metrics that are differences, from -1 to 1; all others are shares."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The scored attempts of an evaluation by problem, and how many could not be used.

    `shorter` attempts have fewer turns than the longest one; their last answer stands for the turns
    they lack. With `oracle` some of them stopped because an answer was right.
    """

    problems: Mapping[str, Samples]
    failed: int = 0
    unscored: int = 0
    shorter: int = 0
    oracle: bool = False
    turns: int = 1
    samples: int = 1


def read(trees: Iterable[Tree]) -> Answers:
    """The answers of the last attempt of each tree.

    Attempts that failed in our hands, and those of which an answer was not scored, are left out and
    counted. Raises DataError for attempts whose list of answers cannot be read, ConfigError for
    those that saw the reference answer.
    """
    problems: dict[str, list[list[Turn]]] = {}
    runs: list[tuple[list[Turn], bool]] = []  # and whether it may have stopped at a right answer
    failed = unscored = 0
    for tree, attempt in final(trees):
        refuse_reference([attempt])
        if attempt.error is not None:
            failed += 1
        elif (turns := turns_of(attempt)) is None:
            unscored += 1
        else:
            turns[-1] = replace(turns[-1], score=attempt.metrics.get(SCORE))
            problems.setdefault(tree.task.id, []).append(turns)
            runs.append((turns, bool(attempt.metrics.get("oracle", True))))
    longest = max((len(run) for run, _ in runs), default=1)
    short = [(run, oracle) for run, oracle in runs if len(run) < longest]
    return Answers(
        problems,
        failed,
        unscored,
        len(short),
        oracle=any(oracle and run[-1].right for run, oracle in short),
        turns=longest,
        samples=max(map(len, problems.values()), default=1),
    )


def table(answers: Answers) -> tuple[list[str], list[str], Values]:
    """The problems, the metrics, and each metric of each problem [problems, metrics].

    Where attempts stopped at a right answer an oracle told them to; what a model reaches by itself
    (accuracy by turn, corrections, votes over turns) cannot be said then and is left out.
    """
    columns = {
        name: [metric(samples) for samples in answers.problems.values()]
        for name, metric in _metrics(answers).items()
    }
    names = [n for n, column in columns.items() if any(v is not None for v in column)]
    values = [[np.nan if v is None else v for v in columns[n]] for n in names]
    shape = (len(names), len(answers.problems))
    return [*answers.problems], names, np.array(values, dtype=np.float64).reshape(shape).T


Metric = Callable[[Samples], float | None]


def _metrics(answers: Answers) -> dict[str, Metric]:
    turns, samples = range(1, answers.turns + 1), range(1, answers.samples + 1)
    found: dict[str, Metric] = {}
    if not answers.oracle:
        for t in turns:
            found[f"acc@t{t}"] = _mean(lambda run, t=t: _at(run, t).right)
        for t in turns[1:]:
            found.update(_transition(t, "" if t == 2 else f"@t{t}"))
        for t in turns:
            found[f"m1@t{t}"] = _mean(lambda run, t=t: voted_right(run[:t]))
        for t in turns[1:]:
            found[f"gain@t{t}"] = _difference(found[f"m1@t{t}"], found["m1@t1"])
    for t in turns:
        found[f"p1@t{t}"] = _mean(lambda run, t=t: any(turn.right for turn in run[:t]))
    for k in samples[1:]:
        found[f"m{k}@t1"] = _groups(k, lambda run: run[0])
    if answers.turns > 1 and not answers.oracle:
        for k in samples[1:]:
            found[f"mixed@{2 * k}"] = _groups(k, lambda run: _at(run, 2))
        for k in (t for t in turns[1:] if t <= answers.samples):
            found[f"sequential_gain@t{k}"] = _difference(found[f"m1@t{k}"], found[f"m{k}@t1"])
    for k in _powers(answers.samples):
        found[f"pass@{k}"] = partial(_pass, k=k)
        found[f"majority@{k}"] = _groups(k, lambda run: run[-1])
    runs = [run for samples in answers.problems.values() for run in samples]
    if runs and all(run[-1].score is not None for run in runs):
        for k in _powers(answers.samples):
            found[f"rm@{k}"] = partial(_chosen, k=k)
            found[f"weighted@{k}"] = _groups(k, lambda run: run[-1], weighted=True)
    found[f"average@{answers.samples}"] = _mean(lambda run: run[-1].right)
    return found


def _transition(t: int, suffix: str) -> dict[str, Metric]:
    """What changes from turn 1 to turn t."""

    def edited(run: Sequence[Turn]) -> float | None:
        first, later = run[0].text, _at(run, t).text
        return None if first is None or later is None else edit_ratio(first, later)

    found: dict[str, Callable[[Sequence[Turn]], float | None]] = {
        "delta": lambda run: float(_at(run, t).right) - float(run[0].right),
        "i2c": lambda run: float(_at(run, t).right and not run[0].right),
        "c2i": lambda run: float(run[0].right and not _at(run, t).right),
        "change_rate": lambda run: float(run[0].answer != _at(run, t).answer),
    }
    if t == 2:  # as the paper has it; of every later turn it would be slow
        found["edit_ratio"] = edited
    return {name + suffix: _mean(of_run) for name, of_run in found.items()}


def _at(run: Sequence[Turn], t: int) -> Turn:
    """The answer of turn t (from 1), the last one where there is none."""
    return run[min(t, len(run)) - 1]


def _mean(of_run: Callable[..., float | None]) -> Metric:
    """The mean over a problem's samples of what `of_run` says of one; None if it says nothing."""

    def metric(samples: Samples) -> float | None:
        found = [float(v) for run in samples if (v := of_run(run)) is not None]
        return sum(found) / len(found) if found else None

    return metric


def _groups(k: int, answer: Callable[[Sequence[Turn]], Turn], *, weighted: bool = False) -> Metric:
    """How often the majority of k samples is right, over as many groups of k as there are; with
    `weighted` each vote weighs what the reward model's score says."""

    def metric(samples: Samples) -> float | None:
        chosen = [answer(run) for run in samples]
        weights = [sigmoid(turn.score or 0.0) if weighted else 1.0 for turn in chosen]
        parts = (slice(i, i + k) for i in range(0, len(chosen) - k + 1, k))
        found = [voted_right(chosen[part], weights[part]) for part in parts]
        return sum(found) / len(found) if found else None

    return metric


def _difference(a: Metric, b: Metric) -> Metric:
    def metric(samples: Samples) -> float | None:
        one, other = a(samples), b(samples)
        return None if one is None or other is None else one - other

    return metric


def _pass(samples: Samples, k: int) -> float | None:
    n = len(samples)
    return pass_at_k(n, sum(run[-1].right for run in samples), k) if n >= k else None


def _chosen(samples: Samples, k: int) -> float | None:
    ends = [run[-1] for run in samples]
    scores = [turn.score for turn in ends if turn.score is not None]
    return rm_at_k(scores, [turn.right for turn in ends], k) if len(ends) >= k else None


def _powers(n: int) -> list[int]:
    """1, 2, 4, ... and n."""
    return sorted({n, *(1 << i for i in range(n.bit_length()) if 1 << i <= n)})


def limits(name: str) -> tuple[float, float]:
    """The least and the greatest value of a metric."""
    return (-1.0, 1.0) if name.partition("@")[0] in CHANGES else (0.0, 1.0)


def estimates(
    names: Sequence[str], values_NM: Values, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Estimate]:
    """The mean of each metric over the problems, with its 95 % interval."""
    found: dict[str, Estimate] = {}
    for bounds in {limits(n) for n in names}:
        own = [i for i, n in enumerate(names) if limits(n) == bounds]
        made = bootstrap(
            values_NM[:, own], lowest=bounds[0], highest=bounds[1], resamples=resamples, seed=seed
        )
        found.update({names[i]: e for i, e in zip(own, made, strict=True)})
    return {n: found[n] for n in names}


def turn_metrics(
    trees: Iterable[Tree], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Everything this module measures, as JSON.

    `metrics` has `value`, `ci95` and `n` (problems) by name, and for differences `p`, the paired
    permutation test's that there is none; `turns` the accuracy of each turn, of
    votes and of an oracle up to it, and how many of its answers a limit cut off; `equal_samples`
    sampling in parallel beside correcting in sequence for the same number of samples.
    `values(result)` are the bare numbers. Attempts that failed or were not scored are counted
    apart.
    """
    answers = read(trees)
    _, names, found = table(answers)
    metrics = estimates(names, found, resamples=resamples, seed=seed)
    return {
        "problems": len(answers.problems),
        "samples": answers.samples,
        "failed": answers.failed,
        "unscored": answers.unscored,
        "shorter": answers.shorter,
        "oracle": answers.oracle,
        "turns": _by_turn(answers, metrics),
        "equal_samples": _equal_samples(answers, metrics),
        "metrics": {
            name: metrics[name].to_json() | _tested(name, found[:, i], seed)
            for i, name in enumerate(names)
        },
    }


def _tested(name: str, differences_N: Values, seed: int) -> dict[str, float]:
    if name.partition("@")[0] not in CHANGES:
        return {}
    return {"p": round(permutation(differences_N, seed=seed), 5)}


def values(result: Mapping[str, Any]) -> dict[str, float]:
    """The bare numbers of `turn_metrics`, by name."""
    return {n: row["value"] for n, row in result["metrics"].items()}


def _by_turn(answers: Answers, metrics: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    runs = [run for samples in answers.problems.values() for run in samples]
    for t in range(1, answers.turns + 1):
        row: dict[str, Any] = {"turn": t}
        for name, of in (("answer", "acc"), ("majority", "m1"), ("oracle", "p1")):
            if (estimate := metrics.get(f"{of}@t{t}")) is not None:
                row[name] = estimate.to_json("accuracy")
        row["truncated"] = sum(len(run) >= t and run[t - 1].truncated for run in runs)
        rows.append(row)
    return rows


def _equal_samples(answers: Answers, metrics: Mapping[str, Estimate]) -> list[dict[str, Any]]:
    rows = []
    for k in range(2, max(answers.turns, answers.samples) + 1):
        row: dict[str, Any] = {"samples": k}
        for name, of in (
            ("parallel", f"m{k}@t1"),
            ("sequential", f"m1@t{k}"),
            ("mixed", f"mixed@{k}"),
        ):
            if of in metrics:
                row[name] = metrics[of].to_json("accuracy")
        if len(row) > 1:
            rows.append(row)
    return rows

"""FAFT: fine-tuning on good and bad answers alike, each behind the feedback that it got.

`L = -log p(answer | task, feedback)` ("Can We Rely on LLM Agents to Draft Long-Horizon Plans?", a
study of TravelPlanner). What a bad answer teaches is what an answer behind such feedback looks
like; at inference the feedback is `success` (`agentrl.rollouts.condition`). Mixed one to one; the
feedback of a bad answer lists the checks that it violates. Both are ours, the paper does not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentrl.chat import Chat
from agentrl.errors import DataError
from agentrl.evaluate import Graded, right
from agentrl.rollouts.condition import SUCCESS, with_feedback
from agentrl.select.rows import path_sample
from agentrl.tree import Tree
from agentrl.types import Attempt, Sample

GOAL = "goal not reached"


def rows(
    graded: Sequence[Graded], chat: Chat, *, ratio: float = 1.0, cap: int | None = None
) -> list[Sample]:
    """A row an attempt, its prompt with its feedback; loss on all that the policy said.

    `ratio` bad attempts for each good one, the first ones in order; where there are fewer bad ones,
    as many good ones as go with them; at most `cap` in all. Attempts that failed in our hands, were
    cut off or were not scored are neither good nor bad, and left out.
    """
    valid = [
        (t, a) for t, a in graded if a.error is None and a.reward is not None and not a.truncated
    ]
    good = [(t, a) for t, a in valid if right(a)]
    bad = [(t, a) for t, a in valid if not right(a)]
    n = min(len(good), int(len(bad) / ratio)) if ratio > 0 else len(good)
    if cap is not None:
        n = min(n, int(cap / (1 + ratio)))
    chosen = [*good[:n], *bad[: round(n * ratio)]]
    return [row(tree, attempt, feedback_of(tree, attempt), chat) for tree, attempt in chosen]


def feedback_of(tree: Tree, attempt: Attempt) -> str:
    """`success`, or the checks that the attempt violates: those that the environment named
    (`Attempt.metrics["violated"]`), in a game the kinds of its wrong turns."""
    if right(attempt):
        return SUCCESS
    named = attempt.metrics.get("violated")
    if named is None:
        faults = [n.info["fault"] for n in tree.path(attempt.leaf) if n.info.get("fault")]
        named = [GOAL, *sorted(set(faults))]
    return "violated: " + ", ".join(named)


def row(tree: Tree, attempt: Attempt, feedback: str, chat: Chat) -> Sample:
    """The attempt's path behind a prompt with `feedback`; what follows the prompt stays token for
    token. Raises DataError if the path does not begin with the task's prompt."""
    sample = path_sample(tree, attempt)
    plain = chat.prompt(tree.task.prompt)
    if list(sample.token_ids[: len(plain)]) != plain:
        raise DataError(
            f"task {tree.task.id}: the path does not begin with the task's prompt in this model's "
            "template. Name the model that made the trees"
        )
    prompt = chat.prompt(with_feedback(tree.task.prompt, feedback))
    ids = [*prompt, *sample.token_ids[len(plain) :]]
    weights = [0.0] * len(prompt) + list(sample.weights[len(plain) :])
    return Sample(ids, weights, meta=sample.meta | {"feedback": feedback})


Checks = Mapping[str, bool | None]
"""Check to whether it passed; None where it does not apply."""


@dataclass(frozen=True, slots=True)
class Checked:
    """A plan's checks, as TravelPlanner groups them. `hard` is None where the commonsense checks
    that it rests on (nothing is missing, nothing is invented) failed: it was not run."""

    delivered: bool
    commonsense: Checks = field(default_factory=dict)
    hard: Checks | None = None

    @property
    def violated(self) -> list[str]:
        """The names of the checks that failed."""
        if not self.delivered:
            return ["no plan"]
        checks = {**self.commonsense, **(self.hard or {})}
        return [name for name, passed in checks.items() if passed is False]


def rates(plans: Sequence[Checked]) -> dict[str, float]:
    """TravelPlanner's shares, from 0 to 1: `delivery`, micro (checks passed of those that apply)
    and macro (plans that pass all) of both groups, and `final` (plans that pass both).

    An empty plan passes nothing and has no check that applies. A plan whose hard checks were not
    run passes neither them nor `final`.
    """
    groups: dict[str, list[Checks | None]] = {
        "commonsense": [p.commonsense if p.delivered else None for p in plans],
        "hard": [p.hard if p.delivered else None for p in plans],
    }
    passed = {name: [_all(checks) for checks in found] for name, found in groups.items()}
    shares = {"delivery": _share([p.delivered for p in plans])}
    for name, found in groups.items():
        applies = [v for checks in found if checks for v in checks.values() if v is not None]
        shares[f"{name}_micro"] = _share(applies)
        shares[f"{name}_macro"] = _share(passed[name])
    both = zip(passed["commonsense"], passed["hard"], strict=True)
    return shares | {"final": _share([a and b for a, b in both])}


def _all(checks: Checks | None) -> bool:
    return checks is not None and all(v is not False for v in checks.values())


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0

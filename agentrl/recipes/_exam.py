"""How a model debugs, stage by stage of its training: its own wrong programs, and the same ones."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl import evaluate
from agentrl.evaluate import Proportion
from agentrl.interfaces import Env, Rollout
from agentrl.recipes._phases import Phases
from agentrl.rollouts.self_debug import self_debug
from agentrl.select import ledex
from agentrl.tree import Tree
from agentrl.types import Task


@dataclass(slots=True)
class Exam:
    """How a stage is measured; every answer is greedy."""

    phases: Phases
    env: Env
    debug: Mapping[str, Rollout]
    n: int
    wrong: list[Task] = field(default_factory=list)
    """The wrong programs of the model as it was before: the same ones for every stage."""

    async def sit(self, stage: str, policy: Any) -> dict[str, Any]:
        """`first` programs of the held-out tasks. By each instruction: of one refinement of the
        model's own wrong programs, the share `refined` and the `accuracy` over all tasks after it;
        and the share `repaired` of the wrong programs that it wrote before its training."""
        if not self.n:
            return {}
        collect = functools.partial(self.phases.collect, env=self.env, policy=policy)
        trees = await collect(f"{stage}_programs", rollout=self_debug(rounds=0), n=self.n)
        first = [a for _, a in evaluate.final(trees) if a.error is None]
        own = ledex.repair_tasks(ledex.split(trees).wrong)
        found: dict[str, Any] = {"first": evaluate.summarize(evaluate.final(trees))}
        for kind, rollout in self.debug.items():
            mended = _share(await collect(f"{stage}_{kind}", rollout=rollout, tasks=own))
            right = sum(map(evaluate.right, first)) + mended.successes
            found[kind] = Proportion(right, len(first)).to_json()
            found[kind]["refined"] = mended.to_json()
            if self.wrong:
                trees = await collect(f"{stage}_{kind}_known", rollout=rollout, tasks=self.wrong)
                mended = _share(trees)
            found[kind]["repaired"] = mended.to_json()
        self.wrong = self.wrong or own
        return found


def _share(trees: Sequence[Tree]) -> Proportion:
    valid = [a for _, a in evaluate.final(trees) if a.error is None]
    return Proportion(sum(map(evaluate.right, valid)), len(valid))

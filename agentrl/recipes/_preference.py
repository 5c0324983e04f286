"""What recipes share that make preferences with the policy as it is, and train on them, repeatedly.

Whatever the round, the policy is held to the same reference: itself as it was at first (MCTS-DPO,
arXiv 2405.00451; RLHF Workflow, arXiv 2405.07863). Renewed each round, that were another objective.

    policy, reference = await hold(config, policy)
    policy, facts = await phases.fine_tune(f"round_{k}", policy, pairs, goal, reference=reference,
                                           lora=None)          # few rounds, each a training
    row = steps(trainer, pairs, goal, reference, lr=..., number=...)       # many, of a few steps
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agentrl.recipes._online import mean
from agentrl.recipes._phases import Settings, adapted, stop_if_cancelled, training
from agentrl.train import Objective, Reference, Row, Trainer
from agentrl.train.plan import planned
from agentrl.train.setup import seed_all
from agentrl.tree import derive_seed
from agentrl.types import Pair


async def hold(config: Settings, policy: Any) -> tuple[Any, Reference]:
    """The policy, with a new adapter if the settings ask for one, and the reference that it is now.

    Call it before anything is trained or loaded: then a run that goes on after it was stopped has
    the same reference. An adapter is there afterwards, so later trainings are given `lora=None`.
    """
    seed_all(config.seed)
    policy = await adapted(policy, training(config).lora)
    return policy, Reference(policy.model)


def steps(
    trainer: Trainer,
    pairs: Sequence[Pair],
    goal: Objective,
    reference: Reference,
    *,
    lr: float,
    number: int,
) -> Row:
    """Optimizer steps over fresh pairs: `epochs` passes in the trainer's batch size, in an order
    that `number`, the iteration's, and the seed decide.

    The metrics are the means over the steps (`accuracy`, `margin`, `chosen_change` and so on are
    against the reference), with the number of `pairs` and `updates`. Raises DataError for pairs
    that the loss cannot use.
    """
    seed = derive_seed(trainer.config.seed, number)
    plan = planned(goal, pairs, replace(trainer.config, seed=seed))
    if not trainer.settled:  # one layout for the whole run
        trainer.settle(plan.samples, plan.members)
    if goal.needs_reference:
        plan.samples = trainer.referenced(plan.samples, reference)
    rows: list[Row] = []
    with trainer.training():
        for step in range(len(plan.chosen)):
            rows.append(plan.take(trainer, step, lr=lr, number=number))
            stop_if_cancelled(rows[-1])
    means = {name: mean([row[name] for row in rows]) for name in rows[0]}
    return means | {"updates": len(rows), "pairs": len(pairs)}

"""Which of the data each optimizer step takes, and the step itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentrl.train.objective import Goal, grouped
from agentrl.train.schedule import TrainConfig, plan_steps
from agentrl.train.step import Trainer
from agentrl.train.sums import Row
from agentrl.types import Pair, Sample


@dataclass(slots=True)
class Plan:
    """The steps over some data: `chosen` has each step's epoch (from 1) and units, which are single
    samples or what stays together in a pair; `members` the indices of each step's `samples`."""

    goal: Goal
    samples: list[Sample]
    pairs: list[Pair]
    sizes: list[int]
    """Samples of each unit."""
    chosen: list[tuple[int, list[int]]]
    members: list[list[int]]

    def take(self, trainer: Trainer, step: int, *, lr: float, number: int) -> Row:
        """The optimizer step at index `step`; `number` stands in errors. Raises what `Trainer.step`
        does."""
        units = self.chosen[step][1]
        picked = [self.samples[i] for i in self.members[step]]
        return trainer.step(
            picked,
            self.goal.part(picked, [self.pairs[u] for u in units] if self.pairs else []),
            self.goal.denominator(picked, len(units)),
            lr=lr,
            number=number,
            groups=grouped(range(self.sizes[u]) for u in units),
            names=self.members[step],
        )


def planned(goal: Goal, data: Sequence[Sample] | Sequence[Pair], config: TrainConfig) -> Plan:
    """The plan of training on `data`; a pure function of the data and the settings. Raises
    DataError for data that the goal cannot use."""
    units = goal.units(data)
    pairs = [one for one in data if isinstance(one, Pair)]
    places = grouped(units)
    chosen = plan_steps([sum(len(s.token_ids) for s in unit) for unit in units], config)
    members = [[i for u in of_step for i in places[u]] for _, of_step in chosen]
    samples = [s for unit in units for s in unit]
    return Plan(goal, samples, pairs, list(map(len, units)), chosen, members)

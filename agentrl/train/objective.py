"""What training minimises: a loss, what it is a mean over, and which samples belong together."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, overload

from agentrl import losses
from agentrl.batch import trainable_weight
from agentrl.errors import ConfigError, DataError
from agentrl.train.step import Part, of_logprobs
from agentrl.types import Pair, Sample

PER_SAMPLE = {"desirable": "desirable", "scores": "score"}
"""Options of losses that have one value a sample, and the key of `Sample.meta` that holds it."""


class Goal(Protocol):
    """What `train` needs of what it minimises. `Objective` is the goal of every loss of
    log-probabilities, `agentrl.train.reward.Ranking` that of a reward model."""

    @property
    def needs_reference(self) -> bool: ...

    @property
    def described(self) -> list[Any]:
        """What must be the same in a resumed run, as JSON."""
        ...

    def units(self, data: Any) -> list[list[Sample]]:
        """The data as lists of samples that stay together."""
        ...

    def denominator(self, samples: Sequence[Sample], units: int) -> float:
        """What the loss of a step of `samples`, in so many units, divides by."""
        ...

    def part(self, samples: Sequence[Sample], pairs: Sequence[Pair]) -> Part:
        """The loss of a step's micro-batches."""
        ...


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss for training on samples, or on pairs (`members` is then how many samples make one).

    `name` is that of a loss of `agentrl.losses`, with its `options`; without one `loss` is a
    function of your own, a mean over weights (or over pairs, if it is given pairs).
    """

    loss: losses.AnyLoss
    name: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    members: int = 1

    @property
    def needs_reference(self) -> bool:
        """True if the loss compares with log-probabilities of a reference policy."""
        return self.name in losses.WITH_REFERENCE and not self.options.get("reference_free")

    @property
    def described(self) -> list[Any]:
        """The loss's name with its options."""
        return [self.name or getattr(self.loss, "__qualname__", "own"), dict(self.options)]

    def units(self, data: Sequence[Sample] | Sequence[Pair]) -> list[list[Sample]]:
        """The data as lists of samples that stay together. Raises DataError for the wrong kind."""
        ones: list[Sample | Pair] = list(data)
        paired = isinstance(ones[0], Pair) if ones else self.members > 1
        if any(isinstance(one, Pair) != paired for one in ones):
            raise DataError("the data are samples and pairs mixed; train on one kind at a time")
        what = f"loss {self.name!r}" if self.name else "the loss"
        if self.name and paired != (self.members > 1):
            needs = "pairs (agentrl.types.Pair)" if self.members > 1 else "samples"
            raise DataError(
                f"{what} needs {needs}, the data are {'pairs' if paired else 'samples'}"
            )
        units: list[list[Sample]] = []
        for i, one in enumerate(ones):
            if isinstance(one, Sample):
                units.append([one])
            elif self.members < 3:
                units.append([one.chosen, one.rejected])
            elif one.gold is None:
                raise DataError(f"{what} needs a gold answer, and pair {i} has none: Pair.gold")
            else:
                units.append([one.chosen, one.rejected, one.gold])
        return units

    def denominator(self, samples: Sequence[Sample], units: int) -> float:
        """What the loss divides by in a step of `samples`, which are `units` pairs or samples."""
        if self.name:
            return losses.denominator(self.name, samples, max(2, self.members))
        return float(units) if len(samples) > units else math.fsum(map(trainable_weight, samples))

    def of_step(self, samples: Sequence[Sample], pairs: Sequence[Pair]) -> losses.Loss:
        """The loss with what it reads of a step besides the batch bound to it.

        Raises DataError if a sample lacks a value that the loss needs.
        """
        if self.members > 1 and pairs:
            return functools.partial(self.loss, pairs=pairs)
        bound = {}
        for option in _per_sample(self.name):
            key = PER_SAMPLE[option]
            missing = [i for i, s in enumerate(samples) if key not in s.meta]
            if missing:
                raise DataError(f"loss {self.name!r} reads Sample.meta[{key!r}], which some lack")
            bound[option] = [s.meta[key] for s in samples]
        return functools.partial(self.loss, **bound) if bound else self.loss

    def part(self, samples: Sequence[Sample], pairs: Sequence[Pair]) -> Part:
        """`of_step` as a part of the step's loss."""
        return of_logprobs(self.of_step(samples, pairs))


def grouped(units: Iterable[Sized]) -> list[list[int]]:
    """The indices of each unit's samples, where these stand one after the other."""
    groups: list[list[int]] = []
    for unit in units:
        first = groups[-1][-1] + 1 if groups else 0
        groups.append(list(range(first, first + len(unit))))
    return groups


@overload
def objective(loss: str | losses.AnyLoss, **options: Any) -> Objective: ...
@overload
def objective(loss: str | losses.AnyLoss | Goal, **options: Any) -> Goal: ...
def objective(loss: str | losses.AnyLoss | Goal, **options: Any) -> Goal:
    """The objective of a loss, by name with options or as a function.

    `losses.make(...)` is known by its name again. Raises ConfigError for an unknown name or option,
    or an option that has one value a sample, which is read from `Sample.meta`.
    """
    if not isinstance(loss, str) and hasattr(loss, "units"):
        return cast(Goal, loss)
    if not isinstance(loss, str):
        name = losses.name_of(loss)
        if name is None:
            return Objective(loss)
        options = {**getattr(loss, "keywords", {}), **options}
        loss = name
    per_sample = _per_sample(loss)
    if given := [o for o in (*per_sample, "pairs") if o in options]:
        keys = ", ".join(f"Sample.meta[{PER_SAMPLE[o]!r}]" for o in given if o in PER_SAMPLE)
        raise ConfigError(
            f"loss {loss!r}: {', '.join(given)} is not an option of training; it is read from "
            f"{keys or 'the pairs'}"
        )
    made = losses.make(loss, **options, **dict.fromkeys(per_sample, ()))
    members = int(options.get("members", losses.group_size(loss)))
    return Objective(made, loss, options, members)


def _per_sample(name: str | None) -> list[str]:
    return [] if name is None else [o for o in losses.options_of(name) if o in PER_SAMPLE]

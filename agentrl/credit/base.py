"""What credit assignment reads and makes: episodes in, an advantage for every sampled token out.

Rewards stay a sparse list of (token, value, source) until a scheme turns them into advantages, so
that no scheme has to guess what a sum was made of. A scheme is a pure function of one group (valid
attempts at one task); `assign` runs it over many groups and decides what no scheme should: failed
attempts never enter a baseline, truncation is treated as told, and groups without a signal are
dropped and counted.

Baselines made of other attempts take these to be independent. Attempts that fork from one another
are not: for the tokens they share, the others' rewards depend on those tokens, and the baseline
takes away part of the signal. Group attempts that began anew, or credit shared turns once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from agentrl.errors import DataError, unknown

Truncated = Literal["keep", "zero", "mask", "drop"]
"""What to do with attempts that a token limit cut off: `keep` them as they were scored; `zero`
their rewards; `mask`, they count in the baseline but are not trained on (DAPO's overlong filter);
`drop`, neither."""

FLAT = 1e-8
"""Advantages no larger than this are no signal (equal rewards leave rounding errors of 1e-13)."""


@dataclass(frozen=True, slots=True)
class Site:
    """A reward, earned by what was sampled up to and including `token` (an index from 0)."""

    token: int
    value: float
    source: str = "env"


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt as a scheme sees it.

    `turns[t]` is the number of the turn in which token t was sampled, from 0, and -1 where it was
    not (prompt, tool output, hints). `valid` is False for a failure of ours. `states[k]` is what
    the policy saw before turn k, for schemes that compare equal states. `values[t]` is a value
    head's output before token t was sampled (not read elsewhere; none: all 0), `bootstrap` its
    output after the last token, for an attempt that did not end by itself. `masked` are turns that
    are not trained on (they count in baselines): another policy's, or cut off.
    """

    turns: Sequence[int]
    rewards: Sequence[Site]
    valid: bool = True
    truncated: bool = False
    states: Sequence[Hashable] = ()
    values: Sequence[float] = ()
    bootstrap: float = 0.0
    masked: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.values and len(self.values) != len(self.turns):
            raise ValueError(f"{len(self.values)} values for {len(self.turns)} tokens")
        if missing := set(range(self.n_turns)) - set(self.turns):
            raise ValueError(f"turns are numbered from 0 without gaps; there is no {min(missing)}")

    @property
    def n_turns(self) -> int:
        """How many turns were sampled."""
        return max(self.turns, default=-1) + 1

    @property
    def sampled(self) -> list[int]:
        """The indices of the sampled tokens."""
        return [t for t, turn in enumerate(self.turns) if turn >= 0]

    def place(self, site: Site) -> int:
        """The sampled token that a reward belongs to: its own, or the last one before it.

        Raises DataError for a reward before anything was sampled, or past the end.
        """
        if not 0 <= site.token < len(self.turns):
            raise DataError(f"a reward at token {site.token} of {len(self.turns)}")
        for t in range(site.token, -1, -1):
            if self.turns[t] >= 0:
                return t
        raise DataError(f"the reward at token {site.token} stands before any sampled token")

    def token_rewards(self) -> list[float]:
        """The sum of rewards at each token."""
        found = [0.0] * len(self.turns)
        for site in self.rewards:
            found[self.place(site)] += site.value
        return found

    def turn_rewards(self) -> list[float]:
        """The sum of rewards in each turn."""
        sums = [0.0] * self.n_turns
        for turn, value in zip(self.turns, self.token_rewards(), strict=True):
            if turn >= 0:
                sums[turn] += value
        return sums

    @property
    def total(self) -> float:
        """The sum of all rewards."""
        return math.fsum(site.value for site in self.rewards)

    def only(self, *sources: str) -> Episode:
        """The episode with rewards of these sources alone."""
        return replace(self, rewards=[s for s in self.rewards if s.source in sources])

    def without(self, *sources: str) -> Episode:
        """The episode without rewards of these sources."""
        return replace(self, rewards=[s for s in self.rewards if s.source not in sources])

    def weighted(self, weights: Mapping[str, float]) -> Episode:
        """The episode with each source's rewards multiplied (by 1 where it has no weight)."""
        scaled = [replace(s, value=s.value * weights.get(s.source, 1.0)) for s in self.rewards]
        return replace(self, rewards=scaled)


Advantages = list[list[float]]
"""For each episode one number a token, 0 where nothing was sampled."""

Scheme = Callable[[Sequence[Episode]], Advantages]
"""From a group of valid attempts at one task to advantages; `functools.partial` binds options."""


@dataclass(frozen=True, slots=True)
class Credits:
    """What `assign` found.

    `advantages[g][i]` are those of attempt i of group g, None if it is not to be trained on.
    `dropped` counts attempts by reason; `refill` are the groups that gave no signal, to be sampled
    anew or replaced by other tasks.
    """

    advantages: list[list[list[float] | None]]
    dropped: Counter[str] = field(default_factory=Counter)
    refill: list[int] = field(default_factory=list)


def assign(
    groups: Sequence[Sequence[Episode]],
    scheme: Scheme,
    *,
    truncated: Truncated = "keep",
    smallest: int = 2,
) -> Credits:
    """Advantages for the attempts of each group.

    Attempts that are not `valid` (failed in our hands, or not scored), or in which nothing was
    sampled, enter no baseline and are not trained on. A group with fewer than `smallest` attempts
    left (1 for schemes with a value function) has no baseline; one whose advantages are all 0 (GRPO
    and others: equal rewards) has no gradient. Both are dropped whole and listed in `refill`.
    Raises ConfigError for an unknown way with truncation.
    """
    if truncated not in ("keep", "zero", "mask", "drop"):
        raise unknown("way with truncated attempts", truncated, ("keep", "zero", "mask", "drop"))
    credits = Credits([])
    for g, group in enumerate(groups):
        why = [_unusable(episode, truncated) for episode in group]
        seen = [i for i, reason in enumerate(why) if reason is None]
        usable = [_zeroed(group[i]) if truncated == "zero" else group[i] for i in seen]
        found: list[list[float] | None] = [None] * len(group)
        reasons = [r for r in why if r is not None]
        if len(seen) < smallest:
            reasons += ["group too small"] * len(seen)
            credits.refill.append(g)
        else:
            made = scheme(usable)
            trained = [
                (i, _unmasked(group[i], a))
                for i, a in zip(seen, made, strict=True)
                if not (truncated == "mask" and group[i].truncated)
            ]
            reasons += ["truncated"] * (len(seen) - len(trained))
            if all(abs(x) <= FLAT for _, a in trained for x in a):
                reasons += ["no signal in the group"] * len(trained)
                credits.refill.append(g)
            else:
                for i, a in trained:
                    found[i] = a
        credits.advantages.append(found)
        credits.dropped.update(reasons)
    return credits


def _unusable(episode: Episode, truncated: Truncated) -> str | None:
    if not episode.valid:
        return "failed or not scored"
    if not episode.sampled:
        return "nothing sampled"
    return "truncated" if truncated == "drop" and episode.truncated else None


def _unmasked(episode: Episode, advantages: list[float]) -> list[float]:
    """The advantages, 0 in turns that are not trained on."""
    if not episode.masked:
        return advantages
    pairs = zip(advantages, episode.turns, strict=True)
    return [0.0 if turn in episode.masked else a for a, turn in pairs]


def _zeroed(episode: Episode) -> Episode:
    return replace(episode, rewards=[]) if episode.truncated else episode


def over_turns(episode: Episode, values: Sequence[float]) -> list[float]:
    """Each turn's value at every token of the turn, 0 at tokens that were not sampled."""
    return [values[turn] if turn >= 0 else 0.0 for turn in episode.turns]


def others_mean(values: Sequence[float]) -> list[float]:
    """For each value the mean of the others; 0 where there are none."""
    total, n = math.fsum(values), len(values)
    return [(total - v) / (n - 1) if n > 1 else 0.0 for v in values]


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and the standard deviation with n - 1 in the denominator (0 for one value)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))


def whitened(advantages: Sequence[Sequence[float]], episodes: Sequence[Episode]) -> Advantages:
    """Advantages of sampled tokens with mean 0 and standard deviation 1 over all that are given.

    PPO's whitening (ReFT, arXiv 2401.08967, over all devices). It moves the zero, so in a batch of
    good attempts the worst of them is pushed down; and its scale depends on the batch.
    """
    pairs = list(zip(advantages, episodes, strict=True))
    mean, std = mean_and_std([a[t] for a, e in pairs for t in e.sampled])
    scale = 1 / (std + FLAT)
    return [
        [(x - mean) * scale if turn >= 0 else 0.0 for x, turn in zip(a, e.turns, strict=True)]
        for a, e in pairs
    ]

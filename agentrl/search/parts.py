"""What a search is put together from: who judges, what it may spend, how it chooses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agentrl.errors import ConfigError
from agentrl.search.table import State, Table
from agentrl.search.units import Unit, Units
from agentrl.tree import Cursor


@dataclass(frozen=True, slots=True)
class Place:
    """What a judge sees: a cursor of its own at the state, and `ahead`, a look at how the text
    could go on, which does not belong to the tree. `earlier` are the turns before this one."""

    cursor: Cursor
    state: State
    ahead: str = ""
    earlier: str = ""

    @property
    def text(self) -> str:
        """What was said so far, tool output included."""
        return self.earlier + self.cursor.turn_text() + self.ahead


class Judge(Protocol):
    """Says how good a state is; None where it cannot say. `reference` is true if it is shown the
    reference answer: such a search makes training data and is never evaluated."""

    reference: bool

    async def __call__(self, place: Place) -> float | None: ...


Grade = Callable[[State], Awaitable[float | None]]
"""The environment's reward of the finished path to a state; None: not scored."""

Alike = Callable[[str, str], bool]
"""Whether two steps' texts are near-duplicates."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one search may spend: `tokens` sampled, `seconds`, `iterations`. It is looked at before
    each wave of iterations, which it lets end; an answer is then chosen from what there is."""

    tokens: int | None = None
    seconds: float | None = None
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name in ("tokens", "seconds", "iterations"):
            limit = getattr(self, name)
            if limit is not None and not limit > 0:
                raise ConfigError(f"a search of {limit} {name} finds nothing: give more than 0")

    def left(self, table: Table) -> bool:
        """True while nothing of it is used up."""
        spent = (table.tokens, table.seconds, table.iterations)
        limits = (self.tokens, self.seconds, self.iterations)
        return all(limit is None or n < limit for n, limit in zip(spent, limits, strict=True))


@dataclass(frozen=True, slots=True)
class Strategy:
    """What makes one tree search differ from another.

    `units` say where a step ends, `width` how many are drawn in a state, `score` which is taken
    (table, step), `priors` and `created` give new siblings their first statistics, `backup`
    spreads (table, path, value of its end or None). With `judge_new` every new state is judged and
    an iteration goes on expanding until a finished path or `depth` steps below the root; otherwise
    it ends at the first state without children, which is judged then (with a look `ahead`) and
    expanded. `widen` says whether a state gets one more step before one is chosen. The first step
    drawn in a state is greedy if `greedy`; the others take at most `top_k` tokens. If `likeliest`,
    steps of one token are the likeliest tokens, of a policy that tells them. Steps that are `alike`
    are one. The next step of the reference `gold` is among those drawn where it can be.
    """

    name: str
    units: Units
    width: Callable[[State], int]
    score: Callable[[Table, State], float]
    priors: Callable[[Sequence[State]], None]
    created: Callable[[Table, State], None]
    backup: Callable[[Table, Sequence[State], float | None], None]
    judge_new: bool = True
    depth: int = 1 << 30
    ahead: Unit | None = None
    widen: Callable[[Table, State], bool] | None = None
    greedy: bool = False
    top_k: int | None = None
    likeliest: bool = False
    alike: Alike | None = None
    gold: str | None = None

"""The core of every search: expand, judge, walk, within a budget, and go on from disk.

All tokens enter through a `Cursor` at the state's own node: a step continues the ids that are
there, so nothing is sampled or encoded twice, and the engine's prefix cache does the rest. What a
search knows beside the tokens is its `Table`. Here is nothing about environments: how a finished
path is graded is a function that the rollout gives (`agentrl.rollouts.search`).
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agentrl.errors import StoreError
from agentrl.search.table import State, Table
from agentrl.search.units import WHOLE, Unit, Units
from agentrl.tree import Cursor, Tree, derive_seed
from agentrl.types import Node

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """What a judge sees: a cursor of its own at the state, and `ahead`, a look at how the text
    could go on, which does not belong to the tree."""

    cursor: Cursor
    state: State
    ahead: str = ""

    @property
    def text(self) -> str:
        """The answer so far."""
        return self.cursor.turn_text() + self.ahead


class Judge(Protocol):
    """Says how good a state is; None where it cannot say. `reference` is true if it is shown the
    reference answer: such a search makes training data and is never evaluated."""

    reference: bool

    async def __call__(self, place: Place) -> float | None: ...


Grade = Callable[[Cursor], Awaitable[float | None]]
"""The environment's reward of the finished path that the cursor stands at; None: not scored."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What one search may spend: `tokens` sampled, `seconds`, `iterations`. It is looked at before
    each wave of iterations, which it lets end; an answer is then chosen from what there is."""

    tokens: int | None = None
    seconds: float | None = None
    iterations: int | None = None

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
    drawn in a state is greedy if `greedy`; the others take at most `top_k` tokens.
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


@dataclass(slots=True)
class Search:
    """One search in one assistant turn; `cursor` stands at its beginning.

    `grade` is None where the search may not see outcomes. `at_once` iterations run together, kept
    apart by virtual loss; with one, a seed always makes the same search. `folder` keeps searches
    that were stopped: give it again, and they go on.
    """

    cursor: Cursor
    judge: Judge | None = None
    grade: Grade | None = None
    budget: Budget = field(default_factory=Budget)
    at_once: int = 1
    folder: Path | None = None
    table: Table = field(default_factory=Table)
    _busy: dict[int, asyncio.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self._resumed():
            self.table.add(self.cursor.node, None, judged=True)

    @property
    def root(self) -> State:
        """Where the search stands."""
        return self.table.states[self.table.root]

    @property
    def limit(self) -> int:
        """Tokens that the turn may have."""
        return self.cursor.params.max_tokens

    def at(self, state: State) -> Cursor:
        """A cursor of its own at `state`."""
        cursor = self.cursor.fork()
        cursor.rewind(state.node)
        return cursor

    async def expand(
        self, state: State, n: int, units: Units, *, greedy: bool = False, top_k: int | None = None
    ) -> list[State]:
        """Draw `n` more steps in `state`; returns those that are new (equal ones are dropped).

        The first that is ever drawn there is greedy if `greedy`. Where the turn has no room left,
        there are none, and the state is a finished, truncated path.
        """
        first, state.drawn = state.drawn, state.drawn + n
        draws = [
            self._step(state, i, units(state.depth), greedy and i == 0, top_k)
            for i in range(first, first + n)
        ]
        known = {self._ids(state, s.node) for s in self.table.children(state)}
        made = []
        for cursor in await together(draws):
            self.table.tokens += cursor.sampled_tokens - self.cursor.sampled_tokens
            ids = self._ids(state, cursor.node)
            if not ids or ids in known:
                continue
            known.add(ids)
            made.append(self._add(state, cursor, len(ids)))
        if not state.children:
            state.terminal = state.truncated = True
        return made

    async def _step(
        self, state: State, number: int, unit: Unit, greedy: bool, top_k: int | None
    ) -> Cursor:
        cursor = self.at(state)
        cursor.seed = derive_seed(self.cursor.seed, *_place(self.table, state), number)
        changes: dict[str, Any] = {"temperature": 0.0} if greedy else {}
        if top_k is not None and not greedy:
            changes["top_k"] = top_k
        left = self.limit - cursor.turn_tokens
        left = left if unit.max_tokens is None else min(left, unit.max_tokens)
        for _ in range(unit.parts):
            if left <= 0:
                break
            sampled = await cursor.sample(unit.stops, max_tokens=left, **changes)
            left -= len(sampled.completion.token_ids)
            if sampled.completion.finish_reason != "stop":
                break
        return cursor

    def _add(self, parent: State, cursor: Cursor, tokens: int) -> State:
        nodes = self._between(parent, cursor.node)
        found = [x for n in nodes for x in n.logprobs or ()]
        ended = not cursor.chat.without_end(cursor.ids[-1:])
        full = len(cursor.ids) >= cursor.policy.max_context or cursor.turn_tokens >= self.limit
        return self.table.add(
            cursor.node,
            parent,
            tokens=tokens,
            logprob=sum(found) if len(found) == tokens else None,
            terminal=ended or full,
            truncated=full and not ended,
        )

    def _between(self, parent: State, node: int) -> list[Node]:
        path = self.cursor.tree.path(node)
        return path[next(i for i, n in enumerate(path) if n.id == parent.node) + 1 :]

    def _ids(self, parent: State, node: int) -> tuple[int, ...]:
        return tuple(i for n in self._between(parent, node) for i in n.token_ids)

    def text(self, state: State) -> str:
        """The text of the step that leads to `state`."""
        return self.cursor.chat.decode(self._ids(self.table.parent(state), state.node))

    async def look(self, state: State, ahead: Unit | None = None) -> None:
        """Have `state` judged, and graded if it is a finished path, once."""
        if state.judged:
            return
        cursor = self.at(state)
        if state.terminal and self.grade is not None:
            state.outcome = await self.grade(cursor)
        if self.judge is not None:
            text = "" if ahead is None or state.terminal else await self._ahead(cursor, ahead)
            state.confidence = await self.judge(Place(self.at(state), state, text))
        state.judged = True

    async def _ahead(self, cursor: Cursor, unit: Unit) -> str:
        """How the text could go on; in a tree of its own, so that the record stays as it was."""
        own = cursor.fork()
        own.seed = derive_seed(self.cursor.seed, "ahead", *cursor.ids[cursor.turn_start :])
        tree = cursor.tree
        own.tree = Tree(tree.task, list(tree.nodes), meta=tree.meta)
        said = await own.sample(unit.stops, max_tokens=unit.max_tokens)
        self.table.tokens += len(said.completion.token_ids)
        return said.text

    async def walk(self, strategy: Strategy) -> None:
        """One iteration: from the root down, and back up."""
        table, path = self.table, [self.root]
        path[0].under_way += 1
        try:
            while not path[-1].terminal and path[-1].depth - path[0].depth < strategy.depth:
                state = path[-1]
                async with self._lock(state):
                    new = await self._open(strategy, state)
                if state.terminal or (new and not strategy.judge_new):
                    break
                best = max(table.children(state), key=lambda s: (strategy.score(table, s), -s.id))
                best.under_way += 1
                path.append(best)
            async with self._lock(path[-1]):
                await self.look(path[-1], strategy.ahead)
            strategy.backup(table, path, worth(path[-1]))
        finally:
            for state in path:
                state.under_way -= 1

    def _lock(self, state: State) -> asyncio.Lock:
        """One iteration at a time opens or judges a state."""
        return self._busy.setdefault(state.id, asyncio.Lock())

    async def _open(self, strategy: Strategy, state: State) -> bool:
        """Draw what `state` lacks. True if it had no children yet."""
        new = not state.children
        if new and not strategy.judge_new:
            await self.look(state, strategy.ahead)
        n = strategy.width(state) if new else 0
        if not new and strategy.widen is not None and strategy.widen(self.table, state):
            n = 1
        if n:
            made = await self.expand(
                state, n, strategy.units, greedy=strategy.greedy, top_k=strategy.top_k
            )
            strategy.priors(self.table.children(state))
            if strategy.judge_new:
                await together(self.look(s) for s in made)
            for child in made:
                strategy.created(self.table, child)
        return new

    async def wave(self, strategy: Strategy, most: int) -> None:
        """At most `at_once` iterations together; then the search is on disk, if it has a folder."""
        n = max(1, min(most, self.at_once))
        started = time.perf_counter()
        await together(self.walk(strategy) for _ in range(n))
        self.table.iterations += n
        self.table.here += n
        self.table.seconds += time.perf_counter() - started
        self._keep()

    async def grow(self, states: Sequence[State], n: int, units: Units) -> list[State]:
        """`n` steps in each of `states`, drawn and judged together (those that are there are not
        drawn again); what each is worth is its q. For searches that need no walks."""
        started = time.perf_counter()
        fresh = [s for s in states if not s.children]
        await together(self.expand(s, n, units) for s in fresh)
        made = [s for state in states for s in self.table.children(state)]
        await together(self.look(s) for s in made)
        for state in made:
            state.q, state.visits = worth(state) or 0.0, 1.0
        self.table.iterations += len(fresh)
        self.table.seconds += time.perf_counter() - started
        self._keep()
        return made

    async def complete(self, state: State) -> State:
        """The finished path that goes on from `state`: itself, or with the rest of the turn."""
        while not state.terminal:
            ready = [s for s in self.table.children(state) if s.terminal]
            made = ready or await self.expand(state, 1, lambda depth: WHOLE)
            state = made[0] if made else state
        return state

    def _keep(self) -> None:
        """Save where there is a folder: writing the whole table is not for nothing."""
        if self.folder is not None:
            self.save()

    def save(self) -> None:
        """Put the table into the tree's meta, and both on disk if there is a folder."""
        tree = self.cursor.tree
        tree.meta["search"] = self.table.to_json()
        if (path := self._file()) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            with part.open("w", encoding="utf-8") as file:
                json.dump({"seed": self.cursor.seed, "tree": tree.to_json()}, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)

    def done(self) -> None:
        """The search is over: nothing of it stays in the folder."""
        self.save()
        if (path := self._file()) is not None:
            path.unlink(missing_ok=True)

    def _file(self) -> Path | None:
        if self.folder is None:
            return None
        tree = self.cursor.tree
        name = derive_seed(tree.task.id, tree.meta.get("attempt", 0), self.cursor.seed)
        return self.folder / f"{name:016x}.json"

    def _resumed(self) -> bool:
        path = self._file()
        if path is None or not path.exists():
            return False
        try:
            saved = Tree.from_json(json.loads(path.read_text(encoding="utf-8"))["tree"])
            table = Table.from_json(saved.meta["search"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{path} is no stopped search ({error!r}); remove it to search that task anew"
            ) from error
        tree = self.cursor.tree
        if [n.token_ids for n in saved.nodes[: len(tree.nodes)]] != [
            n.token_ids for n in tree.nodes
        ]:
            raise StoreError(f"{path} is of another prompt; remove it or give another folder")
        tree.nodes[:] = saved.nodes
        self.table = table
        return True


async def together(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all of `work` returns. Where one fails the others are ended before the error goes on:
    none of them adds to the tree afterwards."""
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def worth(state: State) -> float | None:
    """What is known of a state: its judge's confidence and the environment's outcome, from -1 to 1,
    together. None if neither said anything."""
    parts = [state.confidence, None if state.outcome is None else 2 * state.outcome - 1]
    known = [p for p in parts if p is not None]
    return sum(known) if known else None


def _place(table: Table, state: State) -> list[int]:
    """Where a state stands by its siblings' numbers: the same whenever it was made."""
    path = table.path(state)
    return [a.children.index(b.id) for a, b in pairwise(path)]

"""The core of every search: expand, judge, walk, within a budget, and go on from disk.

All tokens enter through a `Cursor` at the state's own node: a step continues the ids that are
there, so nothing is sampled or encoded twice, and the engine's prefix cache does the rest. What a
search knows beside the tokens is its `Table`. Here is nothing about environments: how a finished
path is graded is a function that the rollout gives (`agentrl.rollouts.search`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from agentrl.interfaces import Ranks
from agentrl.search import disk
from agentrl.search.parts import Alike, Budget, Grade, Judge, Place, Strategy
from agentrl.search.stage import Stage
from agentrl.search.steps import Draw, drawn, gold_step, likeliest_steps
from agentrl.search.table import Acted, State, Table
from agentrl.search.units import WHOLE, Unit, Units
from agentrl.tree import Cursor, Tree, derive_seed
from agentrl.types import Node

T = TypeVar("T")


@dataclass(slots=True)
class Search:
    """One search; `cursor` stands at the beginning of the assistant's turn, `stage` is what its
    steps may ask the environment for.

    `grade` is None where the search may not see outcomes. `at_once` iterations run together, kept
    apart by virtual loss; with one, a seed always makes the same search. `folder` keeps searches
    that were stopped: give it again, and they go on.
    """

    cursor: Cursor
    stage: Stage
    judge: Judge | None = None
    grade: Grade | None = None
    budget: Budget = field(default_factory=Budget)
    at_once: int = 1
    folder: Path | None = None
    table: Table = field(default_factory=Table)
    _busy: dict[int, asyncio.Lock] = field(default_factory=dict)
    _turns: dict[int, Cursor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = None if self.folder is None else disk.file_of(self.folder, self.cursor)
        found = None if path is None else disk.read(path, self.cursor)
        if found is not None:
            self.table = found
        else:
            self.table.add(self.cursor.node, None, judged=True)

    @property
    def root(self) -> State:
        """Where the search stands."""
        return self.table.states[self.table.root]

    @property
    def limit(self) -> int:
        """Tokens that a path may have."""
        return self.cursor.params.max_tokens

    def at(self, state: State) -> Cursor:
        """A cursor of its own at `state`."""
        cursor = self._turn(state).fork()
        cursor.rewind(state.node)
        return cursor

    def _turn(self, state: State) -> Cursor:
        """A cursor in the assistant turn that `state` stands in."""
        acts = self.table.acts(state)
        while acts and not acts[-1].turn:
            acts.pop()
        if not acts:
            return self.cursor
        start = acts[-1].state
        if start not in self._turns:  # the search was stopped meanwhile
            said = [m for a in acts for m in (a.message, *a.observation)]
            cursor = self._turns[start] = self.cursor.fork()
            node = self.table.states[start].node
            cursor.enter(node, [*self.cursor.messages, *said], acts[-1].branches)
        return self._turns[start]

    async def expand(
        self,
        state: State,
        n: int,
        units: Units,
        *,
        greedy: bool = False,
        top_k: int | None = None,
        likeliest: bool = False,
        alike: Alike | None = None,
        gold: str | None = None,
    ) -> list[State]:
        """Draw `n` more steps in `state`; returns those that are new (equal ones are dropped, and
        those whose texts are `alike`).

        The first that is ever drawn there is greedy if `greedy`; steps of one token are the
        `likeliest`, if the policy tells them. The next step of the reference
        `gold` is among them where the path is how that begins. What the steps ask the environment
        for is carried out, once a step. Where the turn has no room left, there are none, and the
        state is a finished, truncated path.
        """
        first, state.drawn = state.drawn, state.drawn + n
        unit = units(state.depth)
        if likeliest and unit.max_tokens == 1 and isinstance(self.cursor.policy, Ranks):
            draws = await self._likeliest(state, first, n)
        else:
            draws = await together(
                self._draw(state, i, unit, greedy and i == 0, top_k)
                for i in range(first, first + n)
            )
        self.table.tokens += sum(d.tokens for d in draws)
        if gold is not None and not self._earlier(self._turn(state)):
            acts = len(self.table.acts(state))
            given = await gold_step(self.at(state), gold, unit.stops, self.stage, acts)
            draws += [given] if given else []
        made = await self._enter(state, self._distinct(state, draws, alike))
        if not state.children:
            state.terminal = state.truncated = True
        return made

    def _distinct(self, state: State, draws: Sequence[Draw], alike: Alike | None) -> list[Draw]:
        """The draws that say something new."""
        known: dict[tuple[int, ...], State | Draw] = {
            self._ids(state, s.said): s for s in self.table.children(state)
        }
        fresh = []
        for draw in draws:
            ids = self._ids(state, draw.cursor.node)
            same = self._same(ids, known, alike)
            if same is not None:
                same.times += not draw.gold
                same.gold = same.gold or (draw.gold and ids in known)
            elif ids:
                known[ids] = draw
                fresh.append(draw)
        return fresh

    def _same(
        self, ids: tuple[int, ...], known: Mapping[tuple[int, ...], T], alike: Alike | None
    ) -> T | None:
        """Which of the `known` steps says what `ids` say."""
        if ids in known or alike is None or not ids:
            return known.get(ids)
        text = self._decode(ids)
        return next((other for k, other in known.items() if alike(self._decode(k), text)), None)

    def _left(self, state: State, unit: Unit) -> int:
        """Tokens that a step from `state` may have."""
        left = self.limit - sum(s.tokens for s in self.table.path(state))
        return left if unit.max_tokens is None else min(left, unit.max_tokens)

    async def _draw(
        self, state: State, number: int, unit: Unit, greedy: bool, top_k: int | None
    ) -> Draw:
        cursor = self.at(state)
        cursor.seed = derive_seed(self.cursor.seed, *_place(self.table, state), number)
        changes: dict[str, Any] = {"temperature": 0.0} if greedy else {}
        if top_k is not None and not greedy:
            changes["top_k"] = top_k
        acts = len(self.table.acts(state))
        return await drawn(cursor, unit, self._left(state, unit), self.stage, acts, **changes)

    async def _likeliest(self, state: State, first: int, n: int) -> list[Draw]:
        """The likeliest next tokens in `state`, from the one at rank `first` on."""
        if self._left(state, WHOLE) <= 0:
            return []
        acts = len(self.table.acts(state))
        return await likeliest_steps(lambda: self.at(state), first, n, self.stage, acts)

    async def _enter(self, state: State, draws: Sequence[Draw]) -> list[State]:
        """The draws as states, with what the environment answered: asked together, in their order
        in the tree. One whose answer is lost is none."""
        await together(self._ask(state, draw) for draw in draws)
        found = [d for d in draws if d.message is None or d.answer is not None]
        return [await self._made(state, draw) for draw in found]

    async def _ask(self, state: State, draw: Draw) -> None:
        if draw.message is not None:
            draw.answer = await self.stage.answer(self.table, state, draw.message)

    async def _made(self, parent: State, draw: Draw) -> State:
        said = draw.cursor.node
        if draw.answer is None:
            return self._add(parent, draw, said, None)
        acted = await self.stage.enter(self.table, parent, draw.answer, draw.cursor)
        state = self._add(parent, draw, said, acted)
        if acted.turn:
            self._turns[state.id] = draw.cursor
        if not acted.ended:
            await self.stage.keep(self.table, state, draw.answer)
        return state

    def _add(self, parent: State, draw: Draw, said: int, acted: Acted | None) -> State:
        nodes, cursor = self._between(parent, said), draw.cursor
        found = [x for n in nodes for x in n.logprobs or ()]
        tokens = sum(len(n.token_ids) for n in nodes)
        spent = tokens + sum(s.tokens for s in self.table.path(parent))
        over = acted.ended != "" if acted else not cursor.chat.without_end(cursor.ids[-1:])
        full = len(cursor.ids) >= cursor.policy.max_context or spent >= self.limit
        return self.table.add(
            cursor.node,
            parent,
            tokens=tokens,
            logprob=sum(found) if len(found) == tokens else draw.logprob,
            terminal=over or full,
            truncated=full and not over,
            times=draw.times,
            gold=draw.gold,
            said=said,
            acted=acted,
        )

    def _between(self, parent: State, node: int) -> list[Node]:
        path = self.cursor.tree.path(node)
        return path[next(i for i, n in enumerate(path) if n.id == parent.node) + 1 :]

    def _ids(self, parent: State, node: int) -> tuple[int, ...]:
        return tuple(i for n in self._between(parent, node) for i in n.token_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.cursor.chat.decode(self.cursor.chat.without_end(ids))

    def text(self, state: State) -> str:
        """The text of the step that leads to `state`."""
        return self.cursor.chat.decode(self._ids(self.table.parent(state), state.said))

    async def look(self, state: State, ahead: Unit | None = None) -> None:
        """Have `state` judged, and graded if it is a finished path, once."""
        if state.judged:
            return
        cursor = self.at(state)
        if state.terminal and self.grade is not None:
            state.outcome = await self.grade(state)
        if self.judge is not None:
            text = "" if ahead is None or state.terminal else await self._ahead(cursor, ahead)
            place = Place(self.at(state), state, text, self._earlier(cursor))
            state.confidence = await self.judge(place)
        state.judged = True

    def _earlier(self, cursor: Cursor) -> str:
        """What was said in the turns before the one that `cursor` stands in, since the search
        began."""
        messages = cursor.messages[len(self.cursor.messages) :]
        return "".join(
            f"{m.content}\n" if m.role == "assistant" else f"[{m.role}] {m.content}\n"
            for m in messages
        )

    async def _ahead(self, cursor: Cursor, unit: Unit) -> str:
        """How the text could go on; in a tree of its own, so that the record stays as it was."""
        own = cursor.fork()
        own.seed = derive_seed(self.cursor.seed, "ahead", *cursor.ids[self.cursor.turn_start :])
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
                state,
                n,
                strategy.units,
                greedy=strategy.greedy,
                top_k=strategy.top_k,
                likeliest=strategy.likeliest,
                alike=strategy.alike,
                gold=strategy.gold,
            )
            if state.children:
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
            state = (made or self.table.children(state)[-1:] or [state])[0]
        return state

    def _keep(self) -> None:
        """Save where there is a folder: writing the whole table is not for nothing."""
        if self.folder is not None:
            self.save()

    def save(self) -> None:
        """Put the table into the tree's meta, and both on disk if there is a folder."""
        self.cursor.tree.meta["search"] = self.table.to_json()
        if self.folder is not None:
            disk.write(disk.file_of(self.folder, self.cursor), self.cursor)

    def done(self) -> None:
        """The search is over: nothing of it stays in the folder."""
        self.cursor.tree.meta["search"] = self.table.to_json()
        if self.folder is not None:
            disk.file_of(self.folder, self.cursor).unlink(missing_ok=True)


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

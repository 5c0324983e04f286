"""The environment's states along a search: forked where that is possible, replayed elsewhere.

The state behind a step is what its path's calls have made of an episode. An episode that has `fork`
gives a copy of itself, and one that has `save` a state from which others go on. Elsewhere, and
where that is refused or costs more than it spares, an episode is opened anew, and the path's
messages are played again. What it answers then must be what it answered before: if not, the state
is lost, and is never taken for the one that the tree shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, TypeGuard

from agentrl.errors import AgentRLError, ConfigError, InfraError, SnapshotRefused
from agentrl.interfaces import Episode, Forks, OpenEnv, Saved, Saves
from agentrl.search.table import Acted, State, Table
from agentrl.types import Message, Step

Restore = Literal["auto", "fork", "replay"]

LIVE = 8
"""Episodes that one search keeps open beside those that are at work: each may hold a sandbox."""

COPIES = 64
"""The same, of episodes that can be forked: they are plain data."""

SAVED_BYTES = 128 << 20
"""What the saved states of one search hold at most: the one that was not used for longest goes, and
is replayed when it is needed."""

WORTH_S = 0.05
"""With `auto`, a state is saved if what its path asked for took so many seconds, and twice what the
last one took to save: to play that again costs more than to save it and have it again."""

_REASON = 120  # characters of a reason that are counted as one
_ADDRESS = re.compile(r"0x[0-9a-f]+")


class Lost(AgentRLError):
    """A state that cannot be restored: its calls gave another answer the second time."""


class Worlds:
    """Episodes by the state that they stand in.

    `restore` is `fork` (an episode whose state cannot be copied or saved is an error), `replay`, or
    `auto`: fork where the episode can; save where it can and that is worth it (`WORTH_S`), or a
    state of this search was lost before; else replay. An episode that is not forked is handed on:
    the first step from a state goes on in it, and only the others need the state again.
    """

    def __init__(self, open_env: OpenEnv, restore: Restore = "auto") -> None:
        self.open_env, self.restore = open_env, restore
        self._kept: OrderedDict[int, Episode] = OrderedDict()
        self._forking = asyncio.Lock()
        self._saved: OrderedDict[int, Saved] = OrderedDict()
        self._took: dict[int, float] = {}  # seconds of the answer that led to a state
        self._cost = 0.0  # seconds that the last state took to save
        self._lost = False

    async def keep(
        self, table: Table, state: State, episode: Episode, seconds: float = 0.0
    ) -> None:
        """`episode` stands in `state`, to which its last answer led in `seconds`; the oldest may be
        closed for it.

        Raises ConfigError if it is to be forked and cannot.
        """
        if self.restore == "fork" and not isinstance(episode, Forks | Saves):
            raise ConfigError(
                f"{type(episode).__name__} has no fork() and no save(), one of which "
                "restore='fork' needs; use restore='replay' (or 'auto')"
            )
        self._took[state.id] = seconds
        await self._save(table, table.acts(state), state.id, episode)
        await self._hold(state.id, episode)

    async def _hold(self, place: int, episode: Episode) -> None:
        self._kept[place] = episode
        self._kept.move_to_end(place)
        most = COPIES if self._forks(episode) else LIVE
        while len(self._kept) > most:
            async with self._forking:  # none of them while it is copied
                if len(self._kept) > most:
                    await self.end(self._kept.popitem(last=False)[1])

    async def end(self, episode: Episode) -> None:
        """Close an episode that is needed no more."""
        with contextlib.suppress(InfraError):  # a session that died is closed already
            await episode.close()

    async def close(self) -> None:
        """Close every episode that is kept, and forget what was saved."""
        self._saved.clear()
        while self._kept:
            await self.end(self._kept.popitem()[1])

    async def at(self, table: Table, state: State) -> Episode:
        """An episode that stands where the path to `state` leads, for the caller alone.

        Raises Lost if the path's calls answer differently now; ConfigError if the episode is to be
        forked and cannot; SandboxError where infrastructure fails.
        """
        acts = table.acts(state)
        place = acts[-1].state if acts else table.states[0].id
        found = await self._taken(table, place)
        if found is not None:
            return found
        start, episode = await self._nearest(table, acts)
        if episode is None:
            episode = await self.open_env()
            await episode.reset()
        try:
            await self._replay(table, episode, acts[start:])
            if self._forks(episode):
                await self._hold(place, episode)
                return await self._taken(table, place) or episode
            if start < len(acts):
                await self._save(table, acts, place, episode)
        except BaseException:
            await self.end(episode)
            raise
        return episode

    def _forks(self, episode: Episode | None) -> TypeGuard[Forks]:
        return self.restore != "replay" and isinstance(episode, Forks)

    async def _nearest(self, table: Table, acts: Sequence[Acted]) -> tuple[int, Episode | None]:
        """An episode that stands in the last state on the way that was saved or can be copied, and
        how many acts it has behind it."""
        for n in range(len(acts), 0, -1):
            place = acts[n - 1].state
            forks = n < len(acts) and self._forks(self._kept.get(place))
            episode = await (self._taken if forks else self._resumed)(table, place)
            if episode is not None:
                return n, episode
        return 0, None

    async def _resumed(self, table: Table, place: int) -> Episode | None:
        """An episode in the state that was saved at `place`; None if none was, or it is no more."""
        if place not in self._saved:
            return None
        self._saved.move_to_end(place)
        try:
            episode = await self._saved[place].open()
        except SnapshotRefused as refusal:
            self._saved.pop(place, None)
            self._count(table, refusal)
            return None
        table.forked += 1
        return episode

    async def _save(
        self, table: Table, acts: Sequence[Acted], place: int, episode: Episode
    ) -> None:
        """Put the episode's state aside if that is wanted and possible."""
        if self._forks(episode) or not isinstance(episode, Saves) or not self._worth(acts):
            return
        began = time.perf_counter()
        try:
            self._saved[place] = await episode.save()
            self._cost = time.perf_counter() - began
        except SnapshotRefused as refusal:
            if self.restore == "fork":
                raise ConfigError(
                    f"a state cannot be saved, which restore='fork' needs: {refusal}. Use "
                    "restore='auto', which replays where that is so"
                ) from refusal
            self._count(table, refusal)
        while sum(saved.size for saved in self._saved.values()) > SAVED_BYTES:
            self._saved.popitem(last=False)

    def _worth(self, acts: Sequence[Acted]) -> bool:
        """Whether a state behind `acts` is to be saved."""
        if self.restore != "auto":
            return self.restore == "fork"
        took = sum(self._took.get(acted.state, 0.0) for acted in acts)
        worth = self._lost or took >= max(WORTH_S, 2 * self._cost)
        if not worth:
            self._cost /= 2  # so that one that was slow by chance is not the last
        return worth

    def _count(self, table: Table, refusal: SnapshotRefused) -> None:
        reason = str(refusal)[:_REASON]
        table.refused[reason] = table.refused.get(reason, 0) + 1

    async def _taken(self, table: Table, place: int) -> Episode | None:
        """A copy of the episode kept at `place`, or where there is no copying that one itself."""
        episode = self._kept.get(place)
        if not self._forks(episode):
            return self._kept.pop(place, None)
        async with self._forking:
            if place not in self._kept:
                return None  # it was closed meanwhile
            copy = await episode.fork()
        table.forked += 1
        return copy

    async def _replay(self, table: Table, episode: Episode, acts: Sequence[Acted]) -> None:
        for acted in acts:
            table.replayed += max(1, len(acted.message.tool_calls))
            began = time.perf_counter()
            step = await episode.step(acted.message)
            self._took[acted.state] = time.perf_counter() - began
            if _told(step.observation) != _told(acted.observation):
                self._lost = True
                raise Lost(
                    f"a call answered {_short(step)!r} when it was replayed, and not as before"
                )


def _told(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """What messages say; addresses in memory, which differ from process to process, are alike."""
    return [(m.role, _ADDRESS.sub("0x", m.content)) for m in messages]


def _short(step: Step) -> str:
    return "; ".join(m.content for m in step.observation)[:80]

"""The environment's states along a search: forked where that is possible, replayed elsewhere.

The state behind a step is what its path's calls have made of an episode. An episode that has `fork`
gives a copy of itself; one without is opened anew, and the path's messages are played again. What
it answers then must be what it answered before: if not, the state is lost, and is never taken for
the one that the tree shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, TypeGuard

from agentrl.errors import AgentRLError, ConfigError, InfraError
from agentrl.interfaces import Episode, Forks, OpenEnv
from agentrl.search.table import Acted, State, Table
from agentrl.types import Message, Step

Restore = Literal["auto", "fork", "replay"]

LIVE = 8
"""Episodes that one search keeps open beside those that are at work: each may hold a sandbox."""

COPIES = 64
"""The same, of episodes that can be forked: they are plain data."""

_ADDRESS = re.compile(r"0x[0-9a-f]+")


class Lost(AgentRLError):
    """A state that cannot be restored: its calls gave another answer the second time."""


class Worlds:
    """Episodes by the state that they stand in.

    `restore` is `fork` (an episode that cannot is an error), `replay`, or `auto`: fork where the
    episode can, else replay. An episode that is not forked is handed on: the first step that is
    taken in a state goes on in it, and only the others replay.
    """

    def __init__(self, open_env: OpenEnv, restore: Restore = "auto") -> None:
        self.open_env, self.restore = open_env, restore
        self._kept: OrderedDict[int, Episode] = OrderedDict()
        self._forking = asyncio.Lock()

    async def keep(self, place: int, episode: Episode) -> None:
        """`episode` stands in the state with the id `place`; the oldest may be closed for it.

        Raises ConfigError if it is to be forked and cannot.
        """
        if self.restore == "fork" and not isinstance(episode, Forks):
            raise ConfigError(
                f"{type(episode).__name__} has no fork(), which restore='fork' needs; use "
                "restore='replay' (or 'auto')"
            )
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
        """Close every episode that is kept."""
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
                await self.keep(place, episode)
                return await self._taken(table, place) or episode
        except BaseException:
            await self.end(episode)
            raise
        return episode

    def _forks(self, episode: Episode | None) -> TypeGuard[Forks]:
        return self.restore != "replay" and isinstance(episode, Forks)

    async def _nearest(self, table: Table, acts: Sequence[Acted]) -> tuple[int, Episode | None]:
        """A copy of the last episode on the way that can be copied, and how many acts it has
        behind it."""
        for n in range(len(acts) - 1, 0, -1):
            if self._forks(self._kept.get(acts[n - 1].state)):
                episode = await self._taken(table, acts[n - 1].state)
                return (n, episode) if episode is not None else (0, None)
        return 0, None

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
            step = await episode.step(acted.message)
            if _told(step.observation) != _told(acted.observation):
                raise Lost(
                    f"a call answered {_short(step)!r} when it was replayed, and not as before"
                )


def _told(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """What messages say; addresses in memory, which differ from process to process, are alike."""
    return [(m.role, _ADDRESS.sub("0x", m.content)) for m in messages]


def _short(step: Step) -> str:
    return "; ".join(m.content for m in step.observation)[:80]

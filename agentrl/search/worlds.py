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
from typing import Literal

from agentrl.errors import AgentRLError, ConfigError, InfraError
from agentrl.interfaces import Episode, Forks, OpenEnv
from agentrl.search.table import Acted, State, Table
from agentrl.types import Message, Step

Restore = Literal["auto", "fork", "replay"]

LIVE = 4
"""Episodes that one search keeps open beside those that are at work."""

_ADDRESS = re.compile(r"0x[0-9a-f]+")


class Lost(AgentRLError):
    """A state that cannot be restored: its calls gave another answer the second time."""


class Worlds:
    """Episodes by the state that they stand in.

    `restore` is `fork` (an episode that cannot is an error), `replay`, or `auto`: fork where the
    episode can, else replay. An episode that is not forked is handed on: the first step that is
    taken in a state goes on in it, and only the others replay.
    """

    def __init__(self, open_env: OpenEnv, restore: Restore = "auto", live: int = LIVE) -> None:
        self.open_env, self.restore, self.live = open_env, restore, live
        self._kept: OrderedDict[int, Episode] = OrderedDict()
        self._forking = asyncio.Lock()

    async def keep(self, place: int, episode: Episode) -> None:
        """`episode` stands in the state with the id `place`; older ones may be closed for it."""
        self._kept[place] = episode
        self._kept.move_to_end(place)
        while len(self._kept) > self.live:
            async with self._forking:
                if len(self._kept) > self.live:
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
        place = acts[-1].id if acts else table.states[0].id
        found = await self._taken(table, place)
        if found is not None:
            return found
        start, episode = 0, None
        for n in range(len(acts) - 1, 0, -1):  # a state on the way that can be forked
            if self._can_fork(acts[n - 1].id):
                start, episode = n, await self._taken(table, acts[n - 1].id)
                break
        if episode is None:
            start, episode = 0, await self.open_env()
            await episode.reset()
        try:
            await self._replay(table, episode, [s.acted for s in acts[start:] if s.acted])
        except BaseException:
            await self.end(episode)
            raise
        if self.restore != "replay" and isinstance(episode, Forks):
            await self.keep(place, episode)
            return await self._taken(table, place) or episode
        return episode

    def _can_fork(self, place: int) -> bool:
        return self.restore != "replay" and isinstance(self._kept.get(place), Forks)

    async def _taken(self, table: Table, place: int) -> Episode | None:
        """A copy of the episode kept at `place`, or that one itself."""
        episode = self._kept.get(place)
        if self.restore == "fork" and episode is not None and not isinstance(episode, Forks):
            raise ConfigError(
                f"{type(episode).__name__} has no fork(), which restore='fork' needs; use "
                "restore='replay' (or 'auto')"
            )
        if self.restore == "replay" or not isinstance(episode, Forks):
            return self._kept.pop(place, None)
        async with self._forking:
            if place not in self._kept:
                return None
            copy = await episode.fork()
        if copy is None:
            if self.restore == "fork":
                raise ConfigError(
                    f"this {type(episode).__name__} cannot be forked where it stands (its sandbox "
                    "session cannot be copied); use restore='replay' (or 'auto')"
                )
            return self._kept.pop(place, None)
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

"""So many at a time, so many more in a queue, and no more than that."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Full(Exception):
    """There is no place left, not even to wait; try again later."""


class Gate:
    """Lets `most` through at a time, first come first served; `queue` more may wait."""

    def __init__(self, most: int, queue: int) -> None:
        self.most = most
        self.queue = queue
        self.running = 0
        self.waiting = 0
        self._turns = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """A place inside, for as long as the block lasts. Raises Full."""
        if self.waiting >= self.queue:
            raise Full(f"{self.running} requests are running and {self.waiting} waiting")
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._turns.release()

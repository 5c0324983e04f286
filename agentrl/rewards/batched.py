"""Concurrent requests to a model in this process, computed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batched(Generic[Q, A]):
    """`await batched(request)`: what is asked while others are computed is computed next, at once.

    `compute` answers a list of requests, in their order; it runs in a thread, one call at a time.
    What it raises, all who asked in that call get. For one event loop at a time.
    """

    def __init__(self, compute: Callable[[Sequence[Q]], Sequence[A]]) -> None:
        self._compute = compute
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, request: Q) -> A:
        """The answer to `request`."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        await asyncio.sleep(0)  # all that ask in this turn of the loop come along
        while self._waiting:
            asked = [(request, future) for request, future in self._waiting if not future.done()]
            self._waiting = []
            try:
                answers = await asyncio.to_thread(self._compute, [request for request, _ in asked])
            except Exception as error:
                for _, future in asked:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), answer in zip(asked, answers, strict=True):
                if not future.done():  # who asked may have gone
                    future.set_result(answer)

"""An event loop that outlives those of its callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any


class LoopThread:
    """An event loop on a daemon thread, started when it is first needed: for connections and
    engines, which belong to one loop, while a policy is used from one after another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The outcome of `work` on that loop; cancelling this cancels that."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._started()))

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The same, for a caller without a loop."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result()

    async def stop(self) -> None:
        """End the thread; `run` starts another one."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        await asyncio.to_thread(thread.join)
        loop.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name=self.name, daemon=True
            )
            self._thread.start()
        return self._loop

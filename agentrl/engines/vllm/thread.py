"""An event loop that outlives those of its callers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from agentrl.errors import EngineError

_ENDING_S = 5.0


class LoopThread:
    """An event loop on a daemon thread, started when it is first needed: for connections and
    engines, which belong to one loop, while a policy is used from one after another."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The outcome of `work` on that loop; cancelling this cancels that. Raises EngineError if
        it was not done when `stop` was called."""
        made = asyncio.run_coroutine_threadsafe(work, self._started())
        try:
            return await asyncio.wrap_future(made)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if made.cancelled() and task is not None and not task.cancelling():
                raise EngineError("the engine was closed before it had answered") from None
            raise

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The same, for a caller without a loop."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result()

    async def stop(self) -> None:
        """End what runs there, and the thread; `run` starts another one."""
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        if loop is None or thread is None:
            return
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_end_others(), loop))
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


async def _end_others() -> None:
    """Cancel what else runs on this loop, and wait for it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=_ENDING_S)
    await asyncio.sleep(0)  # connections that they closed end in the loop's next round

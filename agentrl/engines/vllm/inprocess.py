"""An engine in this process, where vLLM can be imported."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from agentrl.errors import EngineError


class InProcess:
    """A `Core` on a thread with an event loop of its own: vLLM ties an engine to the loop that it
    first ran on, and a policy outlives one."""

    def __init__(self, model: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="agentrl-vllm", daemon=True
        )
        self._thread.start()
        self._core = asyncio.run_coroutine_threadsafe(_made(model, options), self._loop).result()

    def facts(self) -> dict[str, Any]:
        """See `inside.vllm_core.Core`, here and below."""
        facts: dict[str, Any] = self._core.facts()
        return facts

    async def sample(self, ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = await self._there(self._core.sample(ids, params))
        return made

    async def score(self, ids: list[int]) -> list[float]:
        made: list[float] = await self._there(self._core.score(ids))
        return made

    async def update(self, source: dict[str, Any], seconds: float) -> int:
        return int(await self._there(self._core.update(source, seconds)))

    async def close(self) -> None:
        if not self._loop.is_running():
            return
        await self._there(self._core.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _there(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The outcome of `work` on the engine's loop; cancelling this cancels that."""
        if self._loop.is_closed():
            work.close()
            raise EngineError("the engine is closed")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


async def _made(model: str, options: dict[str, Any]) -> Any:
    inside = str(Path(__file__).parent / "inside")  # as the server has it: nothing of agentrl
    if inside not in sys.path:
        sys.path.append(inside)
    from vllm_core import Core

    return Core(model, **options)

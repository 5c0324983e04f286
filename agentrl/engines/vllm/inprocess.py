"""An engine in this process, where vLLM can be imported."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from agentrl.engines.vllm.thread import LoopThread


class InProcess:
    """A `Core` on an event loop of its own: vLLM ties an engine to the loop it first ran on."""

    def __init__(self, model: str, **options: Any) -> None:
        self._there = LoopThread("agentrl-vllm")
        self._core = self._there.wait(_made(model, options))
        self._closed = False

    def facts(self) -> dict[str, Any]:
        """See `inside.vllm_core.Core`, here and below."""
        facts: dict[str, Any] = self._core.facts()
        return facts

    async def sample(self, ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = await self._there.run(self._core.sample(ids, params))
        return made

    async def score(self, ids: list[int]) -> list[float]:
        made: list[float] = await self._there.run(self._core.score(ids))
        return made

    async def update(self, source: dict[str, Any], seconds: float) -> int:
        return int(await self._there.run(self._core.update(source, seconds)))

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._there.run(self._core.close())
            await self._there.stop()


async def _made(model: str, options: dict[str, Any]) -> Any:
    inside = str(Path(__file__).parent / "inside")  # as the server has it: nothing of agentrl
    if inside not in sys.path:
        sys.path.append(inside)
    from vllm_core import Core

    return Core(model, **options)

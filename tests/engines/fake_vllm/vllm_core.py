"""Stands in for vLLM behind the real HTTP server: it does what the first id of a prompt says.

`options`: `update_s`, seconds that an update takes; `refuse`, what it fails with; `start`, what the
start fails with, `start_s`, how long it takes; `lives`, the completions after which the process
dies; `answer`, what is put into a completion, and `scores`, what is answered for log-probabilities.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

FAILS, REFUSES, HANGS, DIES = 1, 2, 3, 4
VOCABULARY, CONTEXT = 300, 64


class Core:
    def __init__(self, model: str, **options: Any) -> None:
        if "start" in options:
            raise RuntimeError(options["start"])
        if "start_s" in options:
            print("starting", flush=True)
            time.sleep(options["start_s"])
        self.model, self.options = model, options
        self.version = self.cancelled = self.running = self.asked = 0
        self.sources: list[dict[str, Any]] = []

    async def check(self) -> None:
        pass

    def facts(self) -> dict[str, Any]:
        names = ("model", "version", "cancelled", "running", "sources")
        facts = {name: getattr(self, name) for name in names}
        size = {"max_context": self.options.get("context", CONTEXT), "vocab_size": VOCABULARY}
        return {**facts, **size, "lora": self.options.get("enable_lora", False), "workers": 1}

    async def sample(self, ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
        self.running += 1
        self.asked += 1
        if self.asked > self.options.get("lives", self.asked):
            ids = [DIES]
        try:
            await self._do(ids[0])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        made = [7] * min(3, params["max_tokens"])
        plain = params["temperature"] in (0, 1)
        return {
            "ids": made,
            "logprobs": [-0.5] * len(made),
            "sampled": None if plain else [-0.25] * len(made),
            "finish": "length",
            "stop": None,
            "version": self.version,
        } | self.options.get("answer", {})

    async def score(self, ids: list[int]) -> list[float]:
        return self.options.get("scores", [-0.5] * (len(ids) - 1))

    async def update(self, source: dict[str, Any], seconds: float) -> int:
        if "refuse" in self.options:
            raise RuntimeError(self.options["refuse"])
        self.sources.append(source)
        async with asyncio.timeout(seconds):
            await asyncio.sleep(self.options.get("update_s", 0))
        self.version += 1
        return self.version

    async def close(self) -> None:
        pass

    async def _do(self, what: int) -> None:
        if what == FAILS:
            raise RuntimeError("out of blocks")
        if what == REFUSES:
            raise ValueError("top_p is odd")
        if what == HANGS:
            await asyncio.sleep(3600)
        if what == DIES:
            print("RuntimeError: the worker has died", file=sys.stderr, flush=True)
            os._exit(3)

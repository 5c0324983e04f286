"""How every recipe begins and ends; what it does in between stands in its own file."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any

import envs
import sandboxes
from agentrl.config import RunFolder
from agentrl.interfaces import Env, Sandbox
from agentrl.train import export

Run = Callable[..., Coroutine[Any, Any, dict[str, Any]]]


def once(run: Run) -> Run:
    """`run(config, folder, progress=..., box=...)`, but a run that is finished is not done again,
    its summary comes back; and without a sandbox the embedded one is opened."""

    @functools.wraps(run)
    async def begun(
        config: Any, folder: RunFolder, *, progress: bool = True, box: Sandbox | None = None
    ) -> dict[str, Any]:
        if (finished := folder.summary()) is not None:
            return finished
        if box is not None:
            return await run(config, folder, progress=progress, box=box)
        async with sandboxes.open("embedded") as opened:
            return await run(config, folder, progress=progress, box=opened)

    return begun


def splits(config: Any) -> tuple[Env, Env]:
    """The environment that a recipe's settings name: to train on, and to measure on."""
    train, test = (
        envs.make(config.env, split=split, seed=config.seed, **config.env_options)
        for split in ("train", "test")
    )
    return train, test


async def conclude(
    config: Any, folder: RunFolder, policy: Any, summary: dict[str, Any], started: float
) -> dict[str, Any]:
    """End the policy, export its model, and write the summary, which is returned: with the seconds
    since `started` (of `time.perf_counter`). Checkpoints go, unless the settings keep them."""
    await policy.close()
    export(policy.model, folder.path / "model", getattr(policy.tokenizer, "hf", None))
    summary = summary | {
        "resumed": folder.resumed,
        "seconds": round(time.perf_counter() - started, 1),
    }
    folder.write_summary(summary)
    if not getattr(config, "keep_checkpoints", False):
        folder.drop_checkpoints()
    return summary

"""Plain vLLM calls, in vLLM's own environment: `python peer_vllm.py MODEL OPTIONS`, no agentrl.

Each line of standard input is `{"work", "batch"}`: rollouts, each a list of turns `[prompt ids,
number of tokens]`, of which `batch` run at once, the turns of one after the other. The answer is a
line `bench done`. Caches are dropped before.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any


async def main(model: str, options: dict[str, Any]) -> None:
    """Answer until standard input ends."""
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model, disable_log_stats=True, **options))
    names = itertools.count()

    async def rollout(turns: list[Any], free: asyncio.Semaphore) -> None:
        async with free:
            for ids, n in turns:
                params = SamplingParams(
                    max_tokens=n,
                    temperature=1.0,
                    seed=0,
                    ignore_eos=True,
                    logprobs=0,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                )
                prompt = {"prompt_token_ids": ids}
                async for _ in engine.generate(prompt, params, str(next(names))):
                    pass

    print("bench ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        given = json.loads(line)
        await engine.reset_prefix_cache()
        free = asyncio.Semaphore(given["batch"])
        await asyncio.gather(*(rollout(turns, free) for turns in given["work"]))
        print("bench done", flush=True)
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))

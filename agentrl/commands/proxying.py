"""`agentrl proxy`: a policy behind an OpenAI-compatible address, for agents of any kind."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from agentrl import config as settings
from agentrl.commands.common import command_of, port
from agentrl.errors import ConfigError
from agentrl.types import SamplingParams


def add_proxy(commands: Any) -> None:
    c = command_of(
        commands,
        "proxy",
        "serve a policy to agents of any framework, and record their sessions as trees",
        "agentrl proxy --policy smollm2 --out runs/agents --port 8500",
    )
    c.add_argument("--policy", default="smollm2", help="as in agentrl rollout")
    c.add_argument("--out", type=Path, required=True, help="folder for the trees")
    c.add_argument("--host", default="127.0.0.1", help="address to listen on")
    c.add_argument("--port", type=port, default=8500, help="0: any (default: %(default)s)")
    c.add_argument("--max-tokens", type=int, default=1024, help="most in one reply")
    c.add_argument(
        "--temperature", type=float, help="whatever requests say (default: theirs, else 1)"
    )
    c.add_argument("--seed", type=int, default=0)
    c.add_argument("--deadline", type=float, default=600.0, metavar="S", help="of one request")
    c.add_argument("--idle", type=float, default=3600.0, metavar="S", help="a session's life")
    c.add_argument(
        "settings", nargs="*", default=[], metavar="policy.KEY=VALUE", help="the policy's options"
    )
    c.set_defaults(run=run_proxy)


def run_proxy(options: argparse.Namespace) -> int:
    """`agentrl proxy`: until SIGTERM or Ctrl-C."""
    from agentrl.engines import load_policy
    from agentrl.proxy import Sessions, Settings
    from agentrl.proxy.server import TOKEN_ENV, serve

    given = settings.pairs(options.settings)
    if strange := [name for name in given if not name.startswith("policy.")]:
        raise ConfigError(f"{strange[0]!r}: write policy.KEY=VALUE")
    heat = 1.0 if options.temperature is None else options.temperature
    how = Settings(
        SamplingParams(options.max_tokens, heat),
        fixed=options.temperature is not None,
        seed=options.seed,
        deadline_s=options.deadline,
        idle_s=options.idle,
    )
    policy = load_policy(
        options.policy, **{name.removeprefix("policy."): value for name, value in given.items()}
    )

    def ready(url: str) -> None:
        print(f"Serving {policy.name} on {url}/v1", flush=True)

    async def go() -> None:
        token = os.environ.get(TOKEN_ENV, "")
        try:
            with Sessions(policy, options.out, how) as sessions:
                await serve(
                    sessions, host=options.host, port=options.port, token=token, ready=ready
                )
        finally:
            await policy.close()

    asyncio.run(go())
    return 0

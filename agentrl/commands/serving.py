"""`agentrl sandbox serve` and `agentrl serve`: this machine's sandbox, or a model, for others."""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from agentrl import config as settings
from agentrl.commands.common import chosen_sandbox, command_of, port, sandbox_options
from agentrl.errors import ConfigError


def add_serve(parts: Any) -> None:
    c = command_of(
        parts,
        "serve",
        "serve the sandbox to other machines",
        "agentrl sandbox serve --host 10.0.0.5 --token-file tokens.txt memory_mb=2048",
    )
    c.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    c.add_argument("--port", type=port, default=8400, help="0: any (default: %(default)s)")
    sandbox_options(c)
    c.add_argument("--profile", default="bare", help="packages that sessions have imported")
    c.add_argument(
        "--token-file",
        type=Path,
        help="file with a token a line, each an owner of its own; else AGENTRL_SANDBOX_TOKEN",
    )
    c.add_argument("--max-sessions", type=int, metavar="N", help="open at a time")
    c.add_argument("--max-running", type=int, metavar="N", help="requests at a time")
    c.add_argument("--max-waiting", type=int, metavar="N", help="requests in line for that")
    c.add_argument("--idle", type=float, metavar="S", help="a session's life without its client")
    c.add_argument("--verbose", action="store_true", help="a line for each request")
    c.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="most that a client gets: memory_mb=2048",
    )
    c.set_defaults(run=run_serve)


def run_serve(options: argparse.Namespace) -> int:
    """`agentrl sandbox serve`: until SIGTERM or Ctrl-C."""
    import logging

    import sandboxes
    from sandboxes.embedded.plan import limits_of
    from sandboxes.remote import access, caps, serve

    given = {
        "most_sessions": options.max_sessions,
        "most_running": options.max_running,
        "most_waiting": options.max_waiting,
        "idle_s": options.idle,
    }
    how = serve.Settings(
        host=options.host,
        port=options.port,
        tokens=access.server_tokens(options.token_file),
        most=limits_of(caps.MOST, settings.pairs(options.settings)),
        verbose=options.verbose,
        **{name: value for name, value in given.items() if value is not None},
    )
    backend, asked = chosen_sandbox(options)
    if backend == "embedded":
        asked["max_running"] = how.most_running
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    async def go() -> None:
        opening = sandboxes.open(backend, how.limits, profile=options.profile, **asked)
        async with opening as box:
            has = box.capabilities

            def ready(url: str) -> None:
                print(f"Serving {has.backend} ({has.isolation}) on {url}", flush=True)

            await serve.serve(box, how, ready)

    asyncio.run(go())
    return 0


def add_serve_model(commands: Any) -> None:
    c = command_of(
        commands,
        "serve",
        "serve a model by vLLM, for policies vllm:MODEL@URL",
        "agentrl serve smollm2 --port 8600 dtype=bfloat16 enable_lora=true",
    )
    c.add_argument("model", help="smollm2, a folder, or a hub id")
    c.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s); beyond this machine, requests need the "
        "token in AGENTRL_TOKEN",
    )
    c.add_argument("--port", type=port, default=8600, help="0: any (default: %(default)s)")
    c.add_argument("--python", help="of an environment with vLLM; else AGENTRL_VLLM_PYTHON")
    c.add_argument(
        "settings", nargs="*", default=[], metavar="KEY=VALUE", help="vLLM's engine arguments"
    )
    c.set_defaults(run=run_serve_model)


def run_serve_model(options: argparse.Namespace) -> int:
    """`agentrl serve`: becomes the server."""
    from agentrl.engines.vllm import loading, server

    if options.host not in server.LOCAL and not os.environ.get("AGENTRL_TOKEN"):
        raise ConfigError(
            f"serve --host {options.host}: others can reach it. Set AGENTRL_TOKEN to a secret, "
            "here and for the clients"
        )
    loading.check_found(options.python)
    given = settings.pairs(options.settings)
    command = server.program(
        loading.source(options.model), options.python, given, host=options.host, port=options.port
    )
    try:
        os.execvpe(command[0], command, server.environment())
    except OSError as error:
        raise ConfigError(f"cannot start {command[0]}: {error.strerror}") from error

"""An agent outside of agentrl as a rollout: a command in any language, or a function.

    rollout = external("node agent.js")
    trees = await collect(env, rollout, policy, n=64)

Every attempt has an address of its own that speaks OpenAI's chat interface, and a key to it. The
agent is started, told both and its task, and asks the policy as it would ask any model; what it
says becomes the attempt's tree, token for token (`agentrl.rollouts.conversations`). When it has
ended, the environment grades its answer, unless it said itself what it earned. Needs the extra
`remote`; see docs/agents.md.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from agentrl.errors import ConfigError
from agentrl.interfaces import OpenEnv, Rollout
from agentrl.rollouts.blocks import told
from agentrl.rollouts.conversations import Conversations
from agentrl.tree import Cursor
from agentrl.types import Message

if TYPE_CHECKING:
    from agentrl.proxy.outside import Link


def external(
    agent: str | Sequence[str] | Callable[[Link], Any],
    *,
    answer: Literal["reply", "output"] = "reply",
    deadline_s: float = 300.0,
    max_tokens: int | None = None,
    fixed: bool = True,
) -> Rollout:
    """An agent of your own is the rollout: a command in any language, or a function.

    `agent` is a command (no shell; a list, or a text that is split as a shell would), which reads
    its task as JSON from its input (`task`, `messages`); or a function of a `Link`, asynchronous or
    run in a thread. The environment grades the policy's last reply, or with `answer="output"` what
    the command printed or the function returned.

    With `fixed`, temperature, top-p, top-k and seed are the collection's whatever the agent asks;
    `max_tokens` limits what is sampled in all its replies together. An agent that runs for longer
    than `deadline_s` is killed with all that it started (a function in a thread is left alone, and
    no longer answered). It raises DeadlineError then, and AgentError if the agent fails or never
    asks: such attempts are tried again, and have no reward. Raises ConfigError for an agent that
    cannot be started.
    """
    if answer not in ("reply", "output"):
        raise ConfigError(f"answer is 'reply' or 'output', not {answer!r}")
    if not deadline_s > 0:
        raise ConfigError(f"deadline_s must be above 0, not {deadline_s}")
    from agentrl.proxy.outside import Command, Link, Outside, output_of
    from agentrl.proxy.server import serving
    from agentrl.proxy.sessions import Session, Settings

    run = agent if callable(agent) else Command(_arguments(agent))

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode, task = await open_env(), cursor.tree.task
        shown = [{"role": m.role, "content": m.content} for m in await episode.reset()]
        settings = Settings(cursor.params, fixed=fixed, deadline_s=deadline_s)
        session = Session("attempt", Conversations(cursor, max_tokens), settings)
        attempt, key = Outside(session), secrets.token_hex(16)
        async with serving(attempt, token=key) as url:
            link = Link(f"{url}/sessions/{session.name}/v1", key, task.id, shown)
            try:
                output = await output_of(run, link, attempt, deadline_s)
            finally:
                await attempt.close()
        if attempt.posted is not None:
            posted = attempt.posted
            session.record(posted.reward, answer=posted.answer, rewards=posted.rewards)
            return
        last = session.conversations.last()
        assert last is not None
        text = output if answer == "output" else last.message.content
        step = await episode.step(Message("assistant", text))
        given = str(step.info.get("answer", text))
        session.record(step.reward, answer=given, **told(step))

    rollout.__name__ = "external"
    return rollout


def _arguments(agent: str | Sequence[str]) -> list[str]:
    try:
        arguments = shlex.split(agent) if isinstance(agent, str) else list(agent)
    except ValueError as error:
        raise ConfigError(f"{agent!r} is no command: {error}") from error
    if not arguments:
        raise ConfigError("an external agent is a command or a function; this one is empty")
    return arguments

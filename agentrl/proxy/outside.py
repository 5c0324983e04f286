"""One attempt of an agent outside: its address, what it says there, and the command that it is.

See `agentrl.rollouts.external`, the rollout.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrl.errors import AgentError, ConfigError, DeadlineError, InfraError
from agentrl.interfaces import Policy
from agentrl.proxy.sessions import Ended, Session
from agentrl.rollouts.conversations import Said
from agentrl.types import Message, ToolSpec, TurnReward

PROMPT = "{prompt}"
"""Stands in a command's arguments for the text of the task's last user message."""

_KEPT = 1 << 16
"""Bytes of what a command prints that are kept, the last ones."""
_CLOSING_S = 5.0


@dataclass(frozen=True, slots=True)
class Link:
    """What an agent is told: where to ask the policy, with which key, and its task.

    `reward_url` takes what `agentrl proxy` takes at `/reward`. `messages` are dictionaries.
    """

    base_url: str
    api_key: str
    task: str
    messages: list[dict[str, str]]

    @property
    def reward_url(self) -> str:
        """Where the agent may say what it earned."""
        return self.base_url.removesuffix("/v1") + "/reward"

    @property
    def prompt(self) -> str:
        """The text of the last user message."""
        return next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), "")

    def environment(self) -> dict[str, str]:
        """The environment of a command: this process's, with the address and the key."""
        own = {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_BASE": self.base_url}
        own |= {"OPENAI_API_KEY": self.api_key, "AGENTRL_REWARD_URL": self.reward_url}
        return {**os.environ, **own}


Agent = Callable[[Link], Any]


@dataclass(frozen=True, slots=True)
class Posted:
    reward: float | None
    answer: str
    rewards: list[TurnReward]


@dataclass(slots=True)
class Outside:
    """The one session behind an attempt's address (`agentrl.proxy.server.Served`)."""

    session: Session
    posted: Posted | None = None
    failure: InfraError | None = None
    closed: bool = False
    _replying: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def policy(self) -> Policy:
        """Who is asked."""
        return self.session.conversations.start.policy

    def __len__(self) -> int:
        return 1

    async def reply(
        self,
        name: str,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        **sampling: Any,
    ) -> tuple[str, Said]:
        """See `agentrl.proxy.sessions.Sessions.reply`. Remembers a failure that nobody mended."""
        if self.closed or self.posted is not None:
            raise Ended("the attempt has ended")
        if self.session.settings.fixed:  # one seed would make all attempts at a task the same
            sampling.pop("seed", None)
        task = asyncio.current_task()
        assert task is not None
        self._replying.add(task)
        try:
            made = await self.session.reply(messages, tools, **sampling)
        except InfraError as error:
            self.failure = error
            raise
        finally:
            self._replying.discard(task)
        self.failure = None
        return made

    def end(
        self,
        name: str,
        reward: float | None = None,
        *,
        task: str = "",
        answer: str = "",
        error: str | None = None,
        rewards: Mapping[str, float] | None = None,
    ) -> dict[str, Any]:
        """What the agent says that it earned; see `agentrl.proxy.sessions.Sessions.end`."""
        if self.closed or self.posted is not None:
            raise Ended("the attempt has ended")
        own = self.session.conversations.start.tree.task.id
        if task not in ("", own):
            raise ConfigError(f"this is an attempt at task {own!r}, not {task!r}")
        turns = self.session.check(reward, rewards)
        if error is not None:
            self.failure = AgentError(f"the agent says: {error}")
        else:
            self.posted = Posted(reward, answer, turns)
        return {"session": name, "task": own, "reward": reward if error is None else None}

    def sweep(self) -> int:
        """An attempt ends with its agent, never for being idle."""
        return 0

    async def close(self) -> None:
        """Answer nobody any more; what is being sampled is given up."""
        self.closed = True
        replying = list(self._replying)
        for task in replying:
            task.cancel()
        await asyncio.gather(*replying, return_exceptions=True)


async def output_of(run: Agent, link: Link, attempt: Outside, deadline_s: float) -> str:
    """What the agent's output is, once it has ended. Raises InfraError where it failed, unless it
    had said before what it earned."""
    try:
        async with asyncio.timeout(deadline_s) as deadline:
            made = run(link) if _asynchronous(run) else await _in_thread(run, link)
            output = await made if inspect.isawaitable(made) else made
    except ConfigError:
        raise
    except Exception as error:
        if attempt.posted is not None:
            return ""
        if attempt.failure is not None:
            raise attempt.failure from error
        if deadline.expired():
            raise DeadlineError(f"the agent took over {deadline_s:g} s") from error
        if isinstance(error, AgentError):
            raise
        raise AgentError(f"the agent failed: {type(error).__name__}: {error}") from error
    if attempt.posted is None and attempt.failure is not None:
        raise attempt.failure
    if not attempt.session.conversations.said:
        raise AgentError(
            "the agent ended and never asked the policy: it must send its requests to "
            "OPENAI_BASE_URL with the key OPENAI_API_KEY (a function: link.base_url, link.api_key)"
        )
    return "" if output is None else str(output)


async def _in_thread(run: Agent, link: Link) -> Any:
    """What a plain function returns. Its thread is its own: nobody waits for one that hangs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def deliver(made: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(made)
        else:
            future.set_exception(error)

    def work() -> None:
        made, failure = None, None
        try:
            made = run(link)
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(deliver, made, failure)

    threading.Thread(target=work, name=f"agent-{link.task}", daemon=True).start()
    return await future


def _asynchronous(run: Agent) -> bool:
    return isinstance(run, Command) or inspect.iscoroutinefunction(run)


@dataclass(frozen=True, slots=True)
class Command:
    """A program as an agent."""

    arguments: Sequence[str]

    async def __call__(self, link: Link) -> str:
        """What it printed. Kills it, and all that it started, if this is cancelled."""
        arguments = [a.replace(PROMPT, link.prompt) for a in self.arguments]
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=link.environment(),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"the agent {arguments[0]!r} cannot be started: {error}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        given = json.dumps({"task": link.task, "messages": link.messages}).encode()
        out, err = deque[bytes](), deque[bytes]()
        talk = [
            asyncio.create_task(_feed(process.stdin, given)),
            asyncio.create_task(_read(process.stdout, out)),
            asyncio.create_task(_read(process.stderr, err)),
        ]
        try:
            await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait(talk, timeout=_CLOSING_S)
            for task in talk:
                task.cancel()
            await process.wait()
        if process.returncode:
            why = _text(err)[-1000:] or "it printed no error"
            raise AgentError(f"the agent ended with status {process.returncode}: {why}")
        return _text(out)


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # it need not read its input
        stream.write(data)
        await stream.drain()
    stream.close()


async def _read(stream: asyncio.StreamReader, kept: deque[bytes]) -> None:
    """Read to the end, and keep the last `_KEPT` bytes or a little more."""
    while piece := await stream.read(1 << 14):
        kept.append(piece)
        while sum(map(len, kept)) - len(kept[0]) >= _KEPT:
            kept.popleft()


def _text(kept: deque[bytes]) -> str:
    return b"".join(kept).decode("utf-8", "replace").strip()

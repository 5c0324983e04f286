"""What agents say through the proxy: a session an attempt, a tree each, stored when it has ended.

A session begins with its first request and ends with a reward, an error or the lack of a word.
Ended ones are on the disk before the answer that says so; those that had not ended when the process
was killed are lost, and may be made anew.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentrl.chat import Chat
from agentrl.errors import AgentRLError, ConfigError, DeadlineError
from agentrl.interfaces import Policy
from agentrl.rollouts.conversations import Conversations, Said, cut_reason
from agentrl.store import FILE, TreeStore, key, load
from agentrl.tree import Cursor, Tree, derive_seed
from agentrl.types import (
    Attempt,
    Message,
    SamplingParams,
    StopReason,
    Task,
    ToolSpec,
    TurnReward,
)

_NAME = re.compile(r"[\w.:@-]{1,200}", re.ASCII)


class NoSession(AgentRLError):
    """There is no session of that name."""


class Ended(AgentRLError):
    """The session cannot do that any more, or not yet."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all sessions.

    `params` are the sampling parameters of requests that name none, its `max_tokens` the most that
    one may ask for; with `fixed`, temperature, top-p and top-k are these whatever a request says.
    `deadline_s` is for one request, `idle_s` how long a session lives without one.
    """

    params: SamplingParams = field(default_factory=SamplingParams)
    fixed: bool = False
    seed: int = 0
    deadline_s: float = 600.0
    idle_s: float = 3600.0
    most_sessions: int = 4096

    def __post_init__(self) -> None:
        for name in ("deadline_s", "idle_s", "most_sessions"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(slots=True)
class Session:
    """What one agent says: its conversations, and which node each completion ends with."""

    name: str
    conversations: Conversations
    settings: Settings
    touched: float = field(default_factory=time.monotonic)
    running: int = 0
    nodes: dict[str, int] = field(default_factory=dict)

    async def reply(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec] = (), **sampling: Any
    ) -> tuple[str, Said]:
        """The policy's next message, and the completion's id.

        `sampling` are fields of SamplingParams. Raises DeadlineError, EngineError, ChatError.
        """
        self.running += 1
        try:
            async with asyncio.timeout(self.settings.deadline_s) as deadline:
                said = await self.conversations.reply(messages, tools, **self._sampling(sampling))
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise DeadlineError(f"sampling took over {self.settings.deadline_s:g} s") from error
        finally:
            self.running -= 1
            self.touched = time.monotonic()
        completion = f"chatcmpl-{self.name}-{len(self.nodes)}"
        self.nodes[completion] = said.node
        return completion, said

    def _sampling(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        given = {k: v for k, v in asked.items() if v is not None}
        if self.settings.fixed:
            given = {k: v for k, v in given.items() if k not in ("temperature", "top_p", "top_k")}
        most = self.settings.params.max_tokens
        return given | {"max_tokens": min(given.get("max_tokens", most), most)}

    def check(self, reward: float | None, rewards: Mapping[str, float] | None) -> list[TurnReward]:
        """The rewards of single replies. Raises ConfigError for one that is no number, or of no
        reply; Ended while replies are under way, or where there is none."""
        if self.running:
            raise Ended(f"session {self.name!r} still samples: end it when its replies are there")
        if reward is not None:
            number(reward)
        turns = [TurnReward(self._node(k), number(v), "agent") for k, v in (rewards or {}).items()]
        if not self.conversations.said:
            raise Ended(f"session {self.name!r} has no reply that could have a reward")
        return turns

    def _node(self, completion: str) -> int:
        if completion not in self.nodes:
            raise ConfigError(f"{completion!r} is no completion of this session")
        return self.nodes[completion]

    def record(
        self,
        reward: float | None,
        *,
        answer: str = "",
        error: str | None = None,
        rewards: Sequence[TurnReward] = (),
        **metrics: Any,
    ) -> Attempt:
        """All conversations as one attempt; with an `error` it has no reward."""
        last = self.conversations.last()
        assert last is not None
        reason: StopReason = "cancelled" if error else cut_reason(last) or "final_answer"
        return self.conversations.finish(
            last,
            reason,
            reward=None if error or reward is None else float(reward),
            answer=answer or last.message.content,
            error=error,
            rewards=[] if error else list(rewards),
            **metrics,
        )


class Sessions:
    """The sessions of one policy, stored in `folder`. Use as a context manager.

    Raises ConfigError if the folder holds trees of another tokenizer, StoreError if it cannot be
    written.
    """

    def __init__(
        self, policy: Policy, folder: str | os.PathLike[str], settings: Settings | None = None
    ) -> None:
        self.policy, self.settings = policy, settings or Settings()
        self._chat = Chat(policy.tokenizer)
        self._open: dict[str, Session] = {}
        self._ended: set[str] = set()
        self._attempts: Counter[str] = Counter()
        self._store = TreeStore(folder)
        try:
            self._remember(Path(folder))
        except BaseException:
            self._store.close()
            raise

    def _remember(self, folder: Path) -> None:
        """What an earlier process has left."""
        ours = getattr(self.policy.tokenizer, "fingerprint", None)
        for tree in load(folder) if (folder / FILE).exists() else []:
            if tree.meta.get("tokenizer") != ours:
                raise ConfigError(
                    f"{folder} holds trees of another tokenizer: give another folder, or the model "
                    "that they were made with"
                )
            task, attempt = key(tree)
            self._attempts[task] = max(self._attempts[task], attempt + 1)
            if not any(a.error for a in tree.attempts):
                self._ended.add(str(tree.meta.get("session")))

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._open)

    async def reply(
        self,
        name: str,
        messages: Sequence[Message],
        tools: Sequence[ToolSpec] = (),
        **sampling: Any,
    ) -> tuple[str, Said]:
        """The policy's next message in a session, and the completion's id.

        `sampling` are fields of SamplingParams. Raises Ended, DeadlineError, EngineError,
        ChatError; ConfigError for a name that cannot be, or too many sessions.
        """
        return await self._session(name, messages).reply(messages, tools, **sampling)

    def _session(self, name: str, messages: Sequence[Message]) -> Session:
        if name in self._ended:
            raise Ended(f"session {name!r} has ended; begin another")
        if name not in self._open:
            self._check(name)
            tree = Tree(Task(name, tuple(messages), "proxy"), meta=self._meta(name))
            seed = derive_seed(self.settings.seed, name)
            cursor = Cursor(tree, self.policy, self._chat, self.settings.params, seed)
            self._open[name] = Session(name, Conversations(cursor), self.settings)
        return self._open[name]

    def _check(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no session's name: up to 200 letters, digits and ._:@-")
        if len(self._open) >= self.settings.most_sessions:
            raise Ended(f"{len(self._open)} sessions are open: end some of them first")

    def _meta(self, name: str) -> dict[str, Any]:
        params = self.settings.params
        return {
            "session": name,
            "seed": self.settings.seed,
            "rollout": "proxy",
            "policy": self.policy.name,
            "sampling": {n: getattr(params, n) for n in ("temperature", "top_p", "top_k")},
            "policy_version": self.policy.version,
            "tokenizer": getattr(self.policy.tokenizer, "fingerprint", None),
            "failures": [],
        }

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
        """End a session and store its tree. Returns what was stored, in short.

        `reward` None is "not scored". Sessions with the same `task` are attempts at one task (by
        default each is a task of its own). `rewards` are those of single replies, by the ids of
        their completions. With an `error` the attempt failed in our hands, and has no reward.

        Raises NoSession; Ended if it has ended before, still samples, or has no reply; ConfigError
        for a reward that is no number or of no reply; StoreFullError, after which it is still open.
        """
        session = self._found(name)
        turns = session.check(None if error else reward, rewards)
        tree = session.conversations.start.tree
        tree.task = replace(tree.task, id=task or name)
        tree.meta["attempt"] = self._attempts[tree.task.id]
        tree.attempts.clear()
        attempt = session.record(reward, answer=answer, error=error, rewards=turns)
        self._store.append(tree)
        self._attempts[tree.task.id] += 1
        del self._open[name]
        if error is None:
            self._ended.add(name)
        return {
            "session": name,
            "task": tree.task.id,
            "attempt": tree.meta["attempt"],
            "reward": attempt.reward,
            "replies": attempt.metrics["replies"],
            "sampled_tokens": attempt.metrics["sampled_tokens"],
        }

    def _found(self, name: str) -> Session:
        if name in self._ended:
            raise Ended(f"session {name!r} has ended before")
        if name not in self._open:
            raise NoSession(f"there is no session {name!r}: it begins with its first request")
        return self._open[name]

    def sweep(self) -> int:
        """End the sessions that were idle for too long, as failures. Returns how many."""
        late = time.monotonic() - self.settings.idle_s
        idle = [n for n, s in self._open.items() if not s.running and s.touched < late]
        for name in idle:
            self._drop(name, f"no request for {self.settings.idle_s:g} s")
        return len(idle)

    def _drop(self, name: str, why: str) -> None:
        """End a session that nobody ended."""
        if self._open[name].conversations.said:
            self.end(name, error=why)
        else:
            del self._open[name]

    def close(self) -> None:
        """Store the sessions that are open, as failures. Calling it twice is fine."""
        try:
            for name in list(self._open):
                self._open[name].running = 0
                self._drop(name, "the proxy was stopped before the session had ended")
        finally:
            self._store.close()


def number(value: Any) -> float:
    """A reward as a number. Raises ConfigError for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"a reward is a finite number, not {value!r}")
    return float(value)

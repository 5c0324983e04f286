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
from agentrl.types import Message, SamplingParams, StopReason, Task, ToolSpec, TurnReward

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
class _Session:
    conversations: Conversations
    touched: float
    running: int = 0
    nodes: dict[str, int] = field(default_factory=dict)  # by the completion's id


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
        self._open: dict[str, _Session] = {}
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
        session = self._session(name, messages)
        session.running += 1
        try:
            async with asyncio.timeout(self.settings.deadline_s) as deadline:
                said = await session.conversations.reply(
                    messages, tools, **self._sampling(sampling)
                )
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise DeadlineError(f"sampling took over {self.settings.deadline_s:g} s") from error
        finally:
            session.running -= 1
            session.touched = time.monotonic()
        completion = f"chatcmpl-{name}-{len(session.nodes)}"
        session.nodes[completion] = said.node
        return completion, said

    def _session(self, name: str, messages: Sequence[Message]) -> _Session:
        if name in self._ended:
            raise Ended(f"session {name!r} has ended; begin another")
        if name not in self._open:
            self._check(name)
            tree = Tree(Task(name, tuple(messages), "proxy"), meta=self._meta(name))
            seed = derive_seed(self.settings.seed, name)
            cursor = Cursor(tree, self.policy, self._chat, self.settings.params, seed)
            self._open[name] = _Session(Conversations(cursor), time.monotonic())
        return self._open[name]

    def _check(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"{name!r} is no session's name: up to 200 letters, digits and ._:@-")
        if len(self._open) >= self.settings.most_sessions:
            raise Ended(f"{len(self._open)} sessions are open: end some of them first")

    def _sampling(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        given = {k: v for k, v in asked.items() if v is not None}
        if self.settings.fixed:
            given = {k: v for k, v in given.items() if k not in ("temperature", "top_p", "top_k")}
        most = self.settings.params.max_tokens
        return given | {"max_tokens": min(given.get("max_tokens", most), most)}

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
        talk, tree = session.conversations, session.conversations.start.tree
        turns = [
            TurnReward(_node(session, k), _number(v), "agent") for k, v in (rewards or {}).items()
        ]
        reward = None if reward is None or error is not None else _number(reward)
        last = talk.last()
        if last is None:
            raise Ended(f"session {name!r} has no reply that could have a reward")
        tree.task = replace(tree.task, id=task or name)
        tree.meta["attempt"] = self._attempts[tree.task.id]
        reason: StopReason = "cancelled" if error else cut_reason(last) or "final_answer"
        tree.attempts.clear()
        talk.finish(
            last, reason, reward=reward, answer=answer or last.message.content, error=error,
            rewards=[] if error else turns,
        )  # fmt: skip
        self._store.append(tree)
        self._attempts[tree.task.id] += 1
        del self._open[name]
        if error is None:
            self._ended.add(name)
        return {
            "session": name,
            "task": tree.task.id,
            "attempt": tree.meta["attempt"],
            "reward": reward,
            "replies": len(talk.said),
            "sampled_tokens": talk.sampled_tokens,
        }

    def _found(self, name: str) -> _Session:
        if name in self._ended:
            raise Ended(f"session {name!r} has ended before")
        if name not in self._open:
            raise NoSession(f"there is no session {name!r}: it begins with its first request")
        session = self._open[name]
        if session.running:
            raise Ended(f"session {name!r} still samples: end it when its replies are there")
        return session

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


def _node(session: _Session, completion: str) -> int:
    if completion not in session.nodes:
        raise ConfigError(f"{completion!r} is no completion of this session")
    return session.nodes[completion]


def _number(value: Any) -> float:
    """Raises ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"a reward is a finite number, not {value!r}")
    return float(value)

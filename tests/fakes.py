"""Fakes shared by tests: an environment that needs no sandbox, and short ways to run a rollout."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Sequence
from typing import Any

from agentrl.chat import Chat
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.interfaces import Rollout
from agentrl.tree import Cursor, Tree
from agentrl.types import Attempt, ExecResult, Message, SamplingParams, Step, Task, ToolSpec

PYTHON = ToolSpec("python", "Run Python code.", {"type": "object", "properties": {}})


def task(id: str = "t0", question: str = "What is 6*7?", answer: str = "42", **kw: Any) -> Task:
    return Task(id, (Message("user", question),), "fake", data={"answer": answer}, **kw)


class FakeEpisode:
    """Runs code with exec in this process (tests' own code only) and grades by the last word."""

    tools = (PYTHON,)

    def __init__(self, of: Task) -> None:
        self.task, self.names, self.closed, self.codes = of, {}, False, []

    async def reset(self) -> tuple[Message, ...]:
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        assert not self.closed
        if not message.tool_calls:
            words = message.content.split()
            answer = words[-1].strip(".") if words else ""
            right = answer == self.task.data["answer"]
            return Step(reward=float(right), terminated=True, info={"answer": answer})
        observations, results = [], []
        for call in message.tool_calls:
            code = str(call.arguments.get("code", ""))
            self.codes.append(code)
            out = io.StringIO()
            try:
                with contextlib.redirect_stdout(out):
                    exec(code, self.names)
                status, text = "ok", out.getvalue()
            except Exception as error:
                status, text = "error", f"{type(error).__name__}: {error}"
            results.append(ExecResult(status))
            observations.append(Message("tool", text.rstrip("\n"), tool_call_id=call.id))
        return Step(tuple(observations), info={"results": results})

    async def close(self) -> None:
        self.closed = True


class FakeEnv:
    """An environment of given tasks; `episodes` keeps what was opened."""

    name, tools = "fake", ()

    def __init__(self, tasks: Sequence[Task] | None = None) -> None:
        self._tasks = list(tasks or [task()])
        self.episodes: list[FakeEpisode] = []

    def tasks(self, n: int | None = None) -> list[Task]:
        return self._tasks[:n]

    def open(self, of: Task, box: object) -> FakeEpisode:
        self.episodes.append(FakeEpisode(of))
        return self.episodes[-1]


def run(
    rollout: Rollout,
    script: Any,
    *,
    of: Task | None = None,
    seed: int = 0,
    max_tokens: int = 4000,
    **policy: Any,
) -> tuple[Tree, Cursor, FakeEnv]:
    """One rollout on one task with a scripted policy."""
    made = script if hasattr(script, "sample") else ScriptedPolicy(script, **policy)
    env = FakeEnv([of or task()])
    tree = Tree(env.tasks()[0])
    cursor = Cursor(tree, made, Chat(made.tokenizer), SamplingParams(max_tokens=max_tokens), seed)

    async def open_env() -> FakeEpisode:
        return env.open(tree.task, None)

    asyncio.run(rollout(cursor, open_env))
    return tree, cursor, env


def text(tree: Tree, chat: Chat | None = None, leaf: int | None = None) -> str:
    """The decoded path of the last attempt."""
    leaf = tree.attempts[-1].leaf if leaf is None else leaf
    return (chat or Chat(ScriptedPolicy([]).tokenizer)).decode(tree.ids(leaf))


def attempt_at(
    id: str, number: int, reward: float | None, text: str = "", **kw: Any
) -> tuple[Tree, Attempt]:
    """A graded attempt: a prompt, an answer, an end."""
    chat = Chat(ScriptedPolicy([]).tokenizer)
    tree = Tree(task(id), meta={"attempt": number})
    tree.add(None, "user", "template", chat.prompt(tree.task.prompt))
    ids = [*chat.encode(text or f"answer {number}"), 257]
    leaf = tree.add(0, "assistant", "policy", ids, logprobs=[-0.5] * len(ids)).id
    tree.attempts.append(Attempt(leaf, kw.pop("stop", "final_answer"), reward=reward, **kw))
    return tree, tree.attempts[-1]

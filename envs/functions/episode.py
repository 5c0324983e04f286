"""An attempt at a task of function calling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, Literal

from agentrl.types import ExecResult, Message, Step, Task, ToolCall
from envs.base import EpisodeOver
from envs.functions import rewards
from envs.functions.checker import Verdict, check
from envs.functions.rewards import CallClass
from envs.functions.schema import specs
from envs.functions.tools import Workshop, shown
from envs.grading import grade

Reward = Literal["match", "classes"]

NOT_RUN = "[this tool is described only; it is not run]"
_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call_start|>")


class FunctionEpisode:
    """One attempt: the first message is the answer, or, in a `conversation`, tools answer until a
    message without calls.

    A conversation is right if the calls that succeeded are the wanted ones and the last message
    states the result, where there is one. A call that failed costs nothing but the turn, unless no
    call is wanted.
    """

    def __init__(
        self,
        task: Task,
        shop: Workshop | None,
        *,
        shows_tools: bool,
        conversation: bool = False,
        reward: Reward = "match",
        values: Mapping[CallClass, float] = rewards.TABLE,
    ) -> None:
        self.task = task
        self.tools = specs(task.data["functions"]) if shows_tools else ()
        self._shop, self._conversation = shop, conversation
        self._reward, self._values = reward, values
        self._made: list[tuple[ToolCall, ExecResult]] = []
        self._over = ""

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt. Raises EpisodeOver once the episode has begun to end."""
        self._require_open()
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        """Run the message's calls where the tools are simulated; grade what ends the attempt.

        Raises EpisodeOver after the answer or `close`.
        """
        self._require_open()
        calls = message.tool_calls
        results = [self._shop.run(call) for call in calls] if self._shop else []
        texts = [shown(result) for result in results] or [NOT_RUN for _ in calls]
        answers = tuple(
            Message("tool", text, tool_call_id=call.id, name=call.name)
            for call, text in zip(calls, texts, strict=True)
        )
        info: dict[str, Any] = {"results": results} if results else {}
        if self._conversation and calls:
            self._made += zip(calls, results, strict=True)
            return Step(answers, info=info)
        self._over = "the answer was given"
        value, found = self._end(message) if self._conversation else self._turn(message)
        return Step(answers, value, terminated=True, info=info | found)

    async def fork(self) -> FunctionEpisode:
        """The same attempt, in the same state; from here on it is another one."""
        self._require_open()
        other = copy(self)
        other._shop, other._made = copy(self._shop), list(self._made)
        return other

    async def close(self) -> None:
        """End the episode. Calling it twice is fine."""
        self._over = self._over or "it was closed"

    def _turn(self, message: Message) -> tuple[float, dict[str, Any]]:
        """The reward of a single turn, and what is known about it."""
        calls, data = message.tool_calls, self.task.data
        wanted, functions = data["steps"][0], data["functions"]
        verdict = check(calls, functions, wanted)
        classes = rewards.classify_all(calls, wanted, functions)
        if not calls and any(mark in message.content for mark in _MARKS):  # cut off in a call
            verdict, classes = Verdict(False, "wrong_count", "the call has no end"), ["unparsable"]
        value = float(verdict.valid)
        if self._reward == "classes":
            value = rewards.reward(classes, self._values)
        return value, {
            "answer": _listed(calls) if calls else message.content,
            "reason": verdict.fault or "right",
            "feedback": verdict.detail,
            "classes": classes,
        }

    def _end(self, message: Message) -> tuple[float, dict[str, Any]]:
        """The reward of a conversation that ends with `message`, and what is known about it."""
        data = self.task.data
        wanted = [one for step in data["steps"] for one in step]
        calls = [call for call, result in self._made if result.ok or not wanted]
        verdict = check(calls, data["functions"], wanted)
        stated, answer = True, message.content
        if data["result"] is not None:
            kind = "text" if isinstance(data["result"], str) else "number"
            found = grade(message.content, data["result"], kind)
            stated, answer = found.right, found.answer
        reason = verdict.fault or ("right" if stated else "wrong_answer")
        return float(verdict.valid and stated), {"answer": answer, "reason": reason}

    def _require_open(self) -> None:
        if self._over:
            raise EpisodeOver(
                f"this episode of task {self.task.id!r} is over: {self._over}. "
                "Open another with env.open(task, box)."
            )


def _listed(calls: Sequence[ToolCall]) -> str:
    return json.dumps([{c.name: dict(c.arguments)} for c in calls], ensure_ascii=False)

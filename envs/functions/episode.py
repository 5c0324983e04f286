"""One attempt at a task of function calling."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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


class CallEpisode:
    """The first message is the answer: its calls are graded (none, where no tool fits)."""

    def __init__(
        self,
        task: Task,
        shop: Workshop | None,
        *,
        shows_tools: bool,
        reward: Reward = "match",
        values: Mapping[CallClass, float] = rewards.TABLE,
    ) -> None:
        self.task = task
        self.tools = specs(task.data["functions"]) if shows_tools else ()
        self._shop, self._reward, self._values = shop, reward, values
        self._over = ""

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt. Raises EpisodeOver once the episode has begun to end."""
        self._require_open()
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        """Grade the message; its calls are answered as well where the tools are simulated.

        Raises EpisodeOver after the answer or `close`.
        """
        self._require_open()
        self._over = "the answer was given"
        calls, data = message.tool_calls, self.task.data
        wanted, functions = data["steps"][0], data["functions"]
        verdict = check(calls, functions, wanted)
        classes = rewards.classify_all(calls, wanted, functions)
        if not calls and any(mark in message.content for mark in _MARKS):  # cut off in a call
            verdict, classes = Verdict(False, "wrong_count", "the call has no end"), ["unparsable"]
        value = float(verdict.valid)
        if self._reward == "classes":
            value = rewards.reward(classes, self._values)
        results, answers = _run(self._shop, calls)
        info: dict[str, Any] = {
            "answer": _listed(calls) if calls else message.content,
            "reason": verdict.fault or "right",
            "feedback": verdict.detail,
            "classes": classes,
        }
        if results:
            info["results"] = results
        return Step(answers, value, terminated=True, info=info)

    async def close(self) -> None:
        """End the episode. Calling it twice is fine."""
        self._over = self._over or "it was closed"

    def _require_open(self) -> None:
        if self._over:
            raise EpisodeOver(
                f"this episode of task {self.task.id!r} is over: {self._over}. "
                "Open another with env.open(task, box)."
            )


class ConversationEpisode(CallEpisode):
    """The tools answer until a message without calls, which ends the attempt.

    It is right if the calls that succeeded are the wanted ones and the message states the result,
    where there is one. A call that failed costs nothing but the turn, unless no call is wanted.
    """

    def __init__(self, task: Task, shop: Workshop, *, shows_tools: bool) -> None:
        super().__init__(task, shop, shows_tools=shows_tools)
        self._made: list[tuple[ToolCall, ExecResult]] = []

    async def step(self, message: Message) -> Step:
        """Run the message's calls, or grade it as the end.

        Raises EpisodeOver after the end or `close`.
        """
        self._require_open()
        if message.tool_calls:
            results, answers = _run(self._shop, message.tool_calls)
            self._made += zip(message.tool_calls, results, strict=True)
            return Step(answers, info={"results": results})
        self._over = "the answer was given"
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
        return Step(
            reward=float(verdict.valid and stated),
            terminated=True,
            info={"answer": answer, "reason": reason},
        )


def _run(
    shop: Workshop | None, calls: Sequence[ToolCall]
) -> tuple[list[ExecResult], tuple[Message, ...]]:
    """The results of the calls, where the tools are simulated, and a message for each."""
    results = [shop.run(call) for call in calls] if shop else []
    texts = [shown(r) for r in results] or [NOT_RUN for _ in calls]
    return results, tuple(
        Message("tool", text, tool_call_id=call.id, name=call.name)
        for call, text in zip(calls, texts, strict=True)
    )


def _listed(calls: Sequence[ToolCall]) -> str:
    return json.dumps([{c.name: dict(c.arguments)} for c in calls], ensure_ascii=False)

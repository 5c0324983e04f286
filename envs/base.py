"""The episode of a question with one answer and, where it is offered, a `python` tool."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Self

from agentrl.errors import (
    AgentRLError,
    ConfigError,
    EndedByCode,
    SandboxError,
    SessionDead,
    SnapshotRefused,
)
from agentrl.interfaces import Sandbox, Session, Snapshot, Snapshots
from agentrl.types import ExecResult, Message, Step, Task, ToolCall, ToolSpec
from envs.grading import Grade
from sandboxes.feedback import tool_text

PYTHON = ToolSpec(
    "python",
    "Run Python code. Names stay defined from call to call. Returns what the code prints, or the "
    "value of its last expression.",
    {
        "type": "object",
        "properties": {"code": {"type": "string", "description": "the Python code to run"}},
        "required": ["code"],
    },
)

DEADLY = frozenset({"timeout", "oom", "output_limit", "crashed", "tampered", "exit"})
"""Statuses after which the session may have ended."""

STATE_LOST = "[the interpreter was restarted: earlier variables and imports are gone]"

Grader = Callable[[Task, str], Grade | Awaitable[Step]]
"""Grades the text of an answer; what needs the sandbox for it makes the step itself."""


class EpisodeOver(AgentRLError, RuntimeError):
    """A step was taken on an episode that has ended or was closed."""


class QuestionEpisode:
    """One attempt: messages with tool calls run code, a message without any is the answer.

    The sandbox session is opened at the first call, and again after code that ended it; the model
    is then told that its state is lost. Only `SandboxError` says that something of ours failed.
    `fenced` episodes get answers whole, with their blocks (see `agentrl.interfaces.Episode`).
    """

    def __init__(
        self,
        task: Task,
        grader: Grader,
        box: Sandbox | None,
        *,
        tools: Sequence[ToolSpec] = (PYTHON,),
        timeout: float | None = None,
        fenced: bool = False,
    ) -> None:
        self.task = task
        self.tools = tuple(tools)
        self.fenced = fenced
        self._grader = grader
        self._box = box
        self._timeout = timeout
        self._session: Session | None = None
        self._endangered = False
        self._over = ""

    async def reset(self) -> tuple[Message, ...]:
        """The task's prompt. Raises EpisodeOver once the episode has begun to end."""
        self._require_open()
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        """Run the message's tool calls, or grade it as the answer.

        Raises SandboxError if the sandbox failed, EpisodeOver after the answer or `close`.
        """
        self._require_open()
        if message.tool_calls:
            return await self._call(message.tool_calls)
        self._over = "the answer was given"
        grade = self._grader(self.task, message.content)
        if not isinstance(grade, Grade):
            return await grade
        return Step(
            reward=1.0 if grade.right else 0.0,
            terminated=True,
            info={"answer": grade.answer, "reason": grade.reason},
        )

    async def save(self) -> SavedQuestion:
        """The state of its session, if it has one; see `agentrl.interfaces.Saves`. What a subclass
        adds and changes in steps is shared by the episodes that go on from here: override this.

        Raises SnapshotRefused where the state cannot be carried, EpisodeOver.
        """
        self._require_open()
        session = self._session
        if session is None:
            return SavedQuestion(self._with(None), None)
        if not isinstance(session, Snapshots):
            raise SnapshotRefused("the sandbox has no snapshots of its sessions")
        try:
            return SavedQuestion(self._with(None), await session.snapshot())
        except SessionDead as error:
            if not (self._endangered or isinstance(error, EndedByCode)):
                raise
            ended = self._with(session)  # the next call finds out, and tells the model
            ended._endangered = True
            return SavedQuestion(ended, None)

    def _with(self, session: Session | None) -> Self:
        """A copy that has a session of its own."""
        other = copy.copy(self)
        other._session = session
        return other

    async def close(self) -> None:
        """End the session. Calling it twice is fine."""
        self._over = self._over or "it was closed"
        await self._drop()

    def _require_open(self) -> None:
        if self._over:
            raise EpisodeOver(
                f"this episode of task {self.task.id!r} is over: {self._over}. "
                "Open another with env.open(task, box)."
            )

    async def _call(self, calls: Sequence[ToolCall]) -> Step:
        observations: list[Message] = []
        results: list[ExecResult] = []
        for call in calls:
            code, complaint = self._code(call)
            if code is None:
                text = complaint
            else:
                result, restarted = await self._execute(code)
                results.append(result)
                text = tool_text(result)
                if restarted:
                    text = f"{STATE_LOST}\n{text}"
            observations.append(Message("tool", text, tool_call_id=call.id, name=call.name))
        return Step(tuple(observations), info={"results": results})

    def _code(self, call: ToolCall) -> tuple[str | None, str]:
        """The code of a call, or what is wrong with the call."""
        known = [t.name for t in self.tools]
        if call.name not in known:
            return None, f"Error: there is no tool {call.name!r}. Tools: {', '.join(known)}."
        code = call.arguments.get("code")
        if not isinstance(code, str):
            return None, f"Error: {call.name} needs the argument 'code', a string of Python code."
        return code, ""

    async def _execute(self, code: str) -> tuple[ExecResult, bool]:
        """Run a cell; the flag says that a new session took the place of one that code had ended.

        A session that is dead although nothing in it ended it is our failure: SessionDead. What a
        cell left running may end it after the cell.
        """
        restarted = False
        try:
            result = await (await self._open()).run(code, timeout=self._timeout)
        except SessionDead as error:
            if not (self._endangered or isinstance(error, EndedByCode)):
                raise
            await self._drop()
            restarted = True
            result = await (await self._open()).run(code, timeout=self._timeout)
        if result.status == "infra":
            raise SandboxError(f"the sandbox failed: {result.detail or 'it gave no reason'}")
        self._endangered = result.status in DEADLY
        return result, restarted

    async def _open(self) -> Session:
        if self._session is None:
            if self._box is None:
                raise ConfigError(
                    "running code needs a sandbox: env.open(task, box) got None. "
                    'Open one with sandboxes.open("embedded").'
                )
            self._session = await self._box.session().open()
            self._endangered = False
        return self._session

    async def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(SessionDead):
                await session.close()


@dataclass(frozen=True, slots=True)
class SavedQuestion:
    """The state of an episode, and what its session begins with if it has a living one."""

    episode: QuestionEpisode
    start: Snapshot | None

    @property
    def size(self) -> int:
        """The bytes that it holds."""
        return 0 if self.start is None else self.start.size

    async def open(self) -> QuestionEpisode:
        """An independent episode in this state. Raises SnapshotRefused, SandboxError."""
        if self.start is None:
            return self.episode._with(self.episode._session)
        return self.episode._with(await self.start.session().open())

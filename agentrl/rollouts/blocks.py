"""The interpreter protocol of START (section 2 of its specification): code blocks in one turn.

The policy writes a block fenced as `python`. When its fence closes, the block runs and the result
is inserted as a block fenced as `output`; the policy goes on in the same turn. State lasts from
block to block. The last block that may run says so in its output; later ones stay text.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrl.interfaces import Episode, OpenEnv
from agentrl.tree import Cursor, Sampled
from agentrl.types import Attempt, Message, Step, StopReason, ToolCall

FENCE = "```"
STOP = "```\n"
MAX_CALLS = 6
NOTICE = "[no more code can be run; give the final answer]"
PYTHON = frozenset({"python", "py", "python3"})

Event = Literal["end", "limit", "stop"]

_OPEN = re.compile(r"```([A-Za-z0-9_+-]*)[ \t]*$")


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block in a text: `[start, end)` are its character offsets, fences included."""

    language: str
    body: str
    start: int
    end: int
    closed: bool


def fences(text: str) -> list[Fence]:
    """The fenced blocks of `text`, in order; the last one may be open."""
    found: list[Fence] = []
    language, body, start, at = "", 0, -1, 0
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if start < 0:
            opener = _OPEN.search(line.rstrip("\r\n"))
            if opener:
                language, start = opener[1].lower(), at + opener.start()
                body = at + len(line)
        elif bare == FENCE:
            found.append(Fence(language, text[body:at], start, at + len(line), True))
            start = -1
        at += len(line)
    if start >= 0:
        found.append(Fence(language, text[body:], start, len(text), False))
    return found


def prose(text: str) -> str:
    """`text` without its fenced blocks."""
    kept, at = [], 0
    for block in fences(text):
        kept.append(text[at : block.start])
        at = block.end
    return "".join([*kept, text[at:]])


@dataclass(slots=True)
class BlockTurn:
    """One assistant turn with an interpreter. `advance` samples until something happens."""

    cursor: Cursor
    episode: Episode
    max_calls: int = MAX_CALLS
    max_tokens: int | None = None
    calls: int = 0
    statuses: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    last: Sampled | None = None
    follow: tuple[str, str] | None = None
    """Text (and the id of the hint it belongs to) to insert after the next output, once."""
    _done: int = 0  # characters of the turn in which every block was dealt with

    @property
    def limit(self) -> int:
        """Policy tokens that this turn may have."""
        return self.cursor.params.max_tokens if self.max_tokens is None else self.max_tokens

    @property
    def room(self) -> int:
        """Policy tokens that may still be sampled in this turn."""
        return self.limit - self.cursor.turn_tokens

    async def advance(self, stop: Sequence[str] = ()) -> Event:
        """Sample, running blocks as they close, until the turn ends, a limit, or a `stop` string.

        Raises SandboxError or EngineError where infrastructure fails.
        """
        while True:
            stops = (*stop, STOP) if self.calls < self.max_calls else tuple(stop)
            self.last = sampled = await self.cursor.sample(stops, max_tokens=self.room)
            text = self.cursor.turn_text()
            code = next_block(text, self._done) if self.calls < self.max_calls else None
            if code is not None:
                if sampled.ended:
                    self.cursor.rewind(sampled.body)  # an end token after the fence
                await self._execute(code)
            elif sampled.ended:
                return "end"
            elif sampled.completion.finish_reason == "length":
                return "limit"
            elif sampled.stop != STOP:
                return "stop"

    async def say(self, text: str) -> None:
        """Append `text` as a hint, as if it were sampled: its python blocks run where they close.

        Raises SandboxError where infrastructure fails.
        """
        at = 0
        for block in fences(text):
            if block.closed and block.language in PYTHON and self.calls < self.max_calls:
                self.cursor.hint(text[at : block.end])
                await self._execute(block.body)
                at = block.end
        self.cursor.hint(text[at:])

    async def _execute(self, code: str) -> None:
        """Run a block and insert its output."""
        step = await self.episode.step(block_call(code, self.calls))
        self.calls += 1
        self.codes.append(code)
        self.statuses.append(
            insert_output(self.cursor, step, self.calls, last=self.calls == self.max_calls)
        )
        self._done = len(self.cursor.turn_text())
        if self.follow is not None and self.statuses[-1] == "ok":
            follow, hint = self.follow
            self.cursor.hint(follow, hint=hint)
        self.follow = None

    def rewound(self) -> None:
        """Tell the turn that the cursor went back: what was executed ends with the last output."""
        self._done = executed_to(self.cursor)


def executed_to(cursor: Cursor) -> int:
    """The characters of the turn up to the end of its last output: every block there was run."""
    segments = list(cursor.turn_segments())
    while segments and segments[-1][0] != "environment":
        segments.pop()
    return sum(len(text) for _, text in segments)


def next_block(text: str, done: int) -> str | None:
    """The code of the first closed python block of a turn's `text` behind its first `done`
    characters, where no block is open."""
    for block in fences(text[done:]):
        if block.closed and block.language in PYTHON:
            return block.body
    return None


def block_call(code: str, number: int) -> Message:
    """The message that asks the environment to run a turn's block."""
    return Message("assistant", code, (ToolCall("python", {"code": code}, f"call{number}"),))


def insert_output(cursor: Cursor, step: Step, number: int, *, last: bool) -> str:
    """Insert what the `number`-th block printed, and a notice if it was the last that may run.
    Returns its status."""
    status = result_status(step)
    output = step.observation[0].content if step.observation else ""
    if last:
        output = f"{output}\n{NOTICE}" if output else NOTICE
    start = "" if cursor.turn_text().endswith("\n") else "\n"
    block = f"{start}{FENCE}output\n{escape(output)}\n{FENCE}\n"
    cursor.insert(block, status=status, call=number)
    return status


def result_status(step: Step) -> str:
    """The status of the executions that a step reports: the first that failed has the word ('ok'
    where all went well, or none is named)."""
    return next((status for status in result_statuses(step) if status != "ok"), "ok")


def result_statuses(step: Step) -> list[str]:
    """The status of each execution that a step reports."""
    return [str(result.status) for result in step.info.get("results") or ()]


def escape(output: str) -> str:
    """Output as it stands in a block: a fence in it cannot close the block."""
    return output.replace(FENCE, "'''").rstrip("\n")


def invented_output(cursor: Cursor) -> bool:
    """True if the policy wrote an output block itself in this turn."""
    written = "".join(t if s == "policy" else "\n" for s, t in cursor.turn_segments())
    return re.search(r"```(output|tool_output|console)\b", written) is not None


def answer_text(cursor: Cursor, episode: Episode) -> str:
    """What the policy says as its answer: its prose after the last output block.

    Where a boxed answer stands only before that, all its prose; all that it wrote, blocks included,
    if the episode has `fenced` (its answers are programs). Tool output is never in it.
    """
    segments = list(cursor.turn_segments())
    parts = ["\n" if s == "environment" else t for s, t in segments]
    if getattr(episode, "fenced", False):
        return "".join(parts).strip()
    outputs = [i for i, (s, _) in enumerate(segments) if s == "environment"]
    tail = prose("".join(parts[outputs[-1] + 1 :])) if outputs else None
    whole = prose("".join(parts))
    if tail is None or ("\\boxed" in whole and "\\boxed" not in tail):
        return whole.strip()
    return tail.strip()


def cut_to(cursor: Cursor, characters: int) -> None:
    """Rewind to the fewest tokens whose text holds the turn's first `characters` characters."""
    ids, start = cursor.ids, cursor.turn_start

    def length(n: int) -> int:
        return len(cursor.chat.decode(ids[start : start + n]))

    n = bisect_left(range(len(ids) - start), characters, key=length)
    cursor.rewind(cursor.node, start + n)


async def grade(
    cursor: Cursor, episode: Episode, turn: BlockTurn, event: Event, **metrics: Any
) -> Attempt:
    """Let the environment grade the turn's answer and record the attempt.

    A turn that a limit cut off is graded by what it says, and recorded as truncated. The metrics
    have the environment's `feedback` and `status`, where it gives them.
    """
    answer = answer_text(cursor, episode)
    step = await episode.step(Message("assistant", answer))
    return cursor.finish(
        stop_reason(cursor, truncated=event == "limit"),
        reward=step.reward,
        answer=str(step.info.get("answer", answer)),
        calls=turn.calls,
        statuses=list(turn.statuses),
        hallucinated_output=invented_output(cursor),
        sampled_tokens=cursor.sampled_tokens,
        **told(step),
        **metrics,
    )


async def graded(cursor: Cursor, open_env: OpenEnv) -> tuple[str, Step]:
    """The turn's answer, and what an episode of its own says of it."""
    episode = await open_env()
    await episode.reset()
    answer = answer_text(cursor, episode)
    step = await episode.step(Message("assistant", answer))
    await episode.close()
    return answer, step


def stop_reason(cursor: Cursor, *, truncated: bool) -> StopReason:
    """Why an answer ended; a `truncated` one by the context's limit or that of its tokens."""
    if not truncated:
        return "final_answer"
    return "context_full" if len(cursor.ids) >= cursor.policy.max_context else "max_tokens"


def told(step: Step) -> dict[str, Any]:
    """What the environment says of an answer beside its reward, as an attempt's metrics have it."""
    return {k: step.info[k] for k in ("feedback", "status") if step.info.get(k)}

"""The question episode: tool calls, their texts, dead sessions, grading, the end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from canned_box import CannedBox, ok

import envs
from agentrl.errors import ConfigError, EndedByCode, SandboxError, SessionDead
from agentrl.types import ExecResult, Message, Step, Task, ToolCall
from envs.base import STATE_LOST, EpisodeOver, QuestionEpisode
from envs.grading import grade_task

TASK = Task("t", (Message("user", "6*7?"),), "e", data={"answer": "42", "type": "number"})


def code(*sources: Any) -> Message:
    calls = tuple(ToolCall("python", {"code": s}, f"c{i}") for i, s in enumerate(sources))
    return Message("assistant", "", calls)


def answer(text: str) -> Message:
    return Message("assistant", text)


def play(box: CannedBox | None, *messages: Message) -> tuple[QuestionEpisode, list[Step]]:
    episode = QuestionEpisode(TASK, grade_task, box)

    async def go() -> list[Step]:
        await episode.reset()
        steps = [await episode.step(m) for m in messages]
        await episode.close()
        await episode.close()
        return steps

    return episode, asyncio.run(go())


def test_calls_run_in_order_in_one_session_opened_at_first_use() -> None:
    box = CannedBox(ok("1\n"), ok("2\n"), ok(value="3"))
    _, (first, second, last) = play(box, code("a", "b"), code("c"), answer("It is 42."))
    assert [m.content for m in first.observation] == ["1", "2"]
    assert [m.tool_call_id for m in first.observation] == ["c0", "c1"]
    assert {m.role for m in first.observation} == {"tool"}
    assert second.observation[0].content == "3"
    assert (first.reward, first.terminated) == (None, False)
    assert [r.stdout for r in first.info["results"]] == ["1\n", "2\n"]
    assert len(box.sessions) == 1
    assert box.sessions[0].codes == ["a", "b", "c"]
    assert box.sessions[0].closed == 1
    assert (last.reward, last.terminated) == (1.0, True)
    assert last.info == {"answer": "42", "reason": "right"}


def test_without_a_call_no_session_is_opened() -> None:
    box = CannedBox(fails=True)
    _, (step,) = play(box, answer("41"))
    assert (step.reward, step.info["reason"], box.sessions) == (0.0, "wrong", [])
    _, (step,) = play(None, answer("no idea"))
    assert (step.reward, step.info["reason"]) == (0.0, "no_answer")


def test_unknown_tools_and_bad_arguments_are_told_to_the_model() -> None:
    box = CannedBox()
    calls = (ToolCall("search", {"q": 1}, "x"), ToolCall("python", {"cod": "1"}))
    _, (step,) = play(box, Message("assistant", "", calls))
    unknown, bad = (m.content for m in step.observation)
    assert "no tool 'search'" in unknown
    assert "python" in unknown
    assert "'code'" in bad
    assert step.info["results"] == []
    assert box.sessions == []


def test_a_session_that_its_code_killed_is_replaced_and_the_model_is_told() -> None:
    box = CannedBox(ok(), ExecResult("timeout", duration=10.0), ok("7\n"), ok("8\n"))
    _, (_, late, after, later) = play(box, code("x=1"), code("while 1: 0"), code("x"), code("y"))
    assert late.observation[0].content == "[timed out after 10.0 s]"
    assert after.observation[0].content == f"{STATE_LOST}\n7"
    assert later.observation[0].content == "8"
    assert [s.codes for s in box.sessions] == [["x=1", "while 1: 0"], ["x", "y"]]
    assert all(s.closed == 1 for s in box.sessions)


def test_a_session_that_its_code_ended_after_its_cell_is_replaced() -> None:
    box = CannedBox(ok(), EndedByCode("the interpreter ended between two calls"), ok("8\n"))
    _, (_, after) = play(box, code("x=1"), code("x"))
    assert after.observation[0].content == f"{STATE_LOST}\n8"
    assert [s.codes for s in box.sessions] == [["x=1", "x"], ["x"]]


def test_a_session_that_survives_a_timeout_keeps_its_state() -> None:
    box = CannedBox(ExecResult("timeout"), ok("7\n"))
    episode = QuestionEpisode(TASK, grade_task, box)

    async def go() -> Step:
        await episode.step(code("slow"))
        box.sessions[0].dead = False
        return await episode.step(code("x"))

    assert asyncio.run(go()).observation[0].content == "7"
    assert len(box.sessions) == 1


@pytest.mark.parametrize(
    "box",
    [
        CannedBox(ExecResult("infra", detail="fork failed")),
        CannedBox(SandboxError("gone")),
        CannedBox(SessionDead("ended by us")),
        CannedBox(fails=True),
    ],
)
def test_our_failures_are_errors_and_never_rewards(box: CannedBox) -> None:
    with pytest.raises(SandboxError):
        play(box, code("1"))


def test_an_episode_that_is_over_says_so() -> None:
    episode, _ = play(None, answer("42"))
    with pytest.raises(EpisodeOver, match="the answer was given"):
        asyncio.run(episode.step(answer("43")))
    with pytest.raises(EpisodeOver, match=r"env\.open"):
        asyncio.run(episode.reset())


def test_code_without_a_sandbox_names_the_cure() -> None:
    with pytest.raises(ConfigError, match=r"sandboxes\.open"):
        play(None, code("1"))


def test_registry() -> None:
    assert {"arithmetic", "gsm8k"} <= set(envs.names())
    assert all(envs.names().values())
    with pytest.raises(ConfigError, match=r"Did you mean 'arithmetic'.*gsm8k"):
        envs.make("arithmetics")
    with pytest.raises(ConfigError, match="exists already"):
        envs.register("gsm8k", lambda: envs.make("arithmetic"))


def test_an_environment_of_your_own() -> None:
    def mine(size: int = 3) -> Any:
        """Small sums."""
        return envs.make("arithmetic", kinds=["expression"], n=size)

    try:
        envs.register("mine", mine)
        assert len(envs.make("mine", size=2).tasks()) == 2
        assert envs.names()["mine"] == "Small sums."
        with pytest.raises(ConfigError, match="Did you mean 'size'"):
            envs.make("mine", sise=2)
    finally:
        envs._registered.pop("mine", None)

"""The contract of environments and episodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any

from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.evaluate import right
from agentrl.interfaces import Demonstrated, Env, Episode, Sandbox
from agentrl.rollouts import replay
from agentrl.testing.common import ConformanceError, raises, require
from agentrl.types import ExecResult, Message, Step, Task, ToolCall, ToolSpec

SECRETS = ("answer", "answers", "solution", "program", "tests", "reference", "gold")
"""Keys of `Task.data` whose longer texts must not stand in the prompt."""

MOST_ACTIONS = 1000
"""An interactive episode ends before so many wrong actions."""


def check_env(
    env: Env, box: AbstractAsyncContextManager[Sandbox] | None = None, *, n: int = 8
) -> None:
    """Check `n` tasks of an environment, and its episodes.

    With `box`, tools are called too (the tool `python`, if it has one, with real code), and
    demonstrations are played, where it has them. An environment with `interactive = True` is
    played: a message without tool calls is one of many actions there, not the answer.
    """
    require(isinstance(env, Env), f"{type(env).__name__} lacks a member of agentrl.interfaces.Env")
    tasks = _check_tasks(env, n)
    _check_tools(env.tools)

    interactive = bool(getattr(env, "interactive", False))

    async def go() -> None:
        async with contextlib.AsyncExitStack() as stack:
            opened = await stack.enter_async_context(box) if box is not None else None
            for task in tasks:
                await (_check_play if interactive else _check_answers)(env, task, opened)
            if interactive:
                return
            await _check_episode(env, tasks[0], opened)
            if opened is not None and env.tools:
                await _check_calls(env, tasks[0], opened)
            if isinstance(env, Demonstrated) and (opened is not None or not env.tools):
                await _check_demonstrations(env, tasks, opened)

    asyncio.run(go())


def _check_tasks(env: Env, n: int) -> list[Task]:
    tasks = env.tasks(n)
    require(tasks, "tasks(n) gave no task")
    require(len(tasks) <= n, f"tasks({n}) gave {len(tasks)} tasks: n is the most to give")
    require(tasks == env.tasks(n), "tasks(n) gave other tasks the second time: it must not change")
    require(tasks[:1] == env.tasks(1), "tasks(1) is not the beginning of tasks(n)")
    ids = [t.id for t in tasks]
    require(len(set(ids)) == len(ids), f"task ids repeat: {sorted(ids)}")
    for task in tasks:
        where = f"task {task.id!r}"
        require(task.env == env.name, f"{where}: env is {task.env!r}, not {env.name!r}")
        require(task.prompt and task.prompt[-1].content.strip(), f"{where} has an empty prompt")
        try:
            json.dumps(asdict(task))
        except (TypeError, ValueError) as error:
            raise ConformanceError(f"{where} is not JSON, so no tree of it can be kept") from error
        prompt = "\n".join(m.content for m in task.prompt)
        for key in SECRETS:
            value = task.data.get(key)
            leak = isinstance(value, str) and len(value) >= 8 and value in prompt
            require(not leak, f"{where}: data[{key!r}] stands in the prompt; data is never shown")
    return tasks


def _check_tools(tools: Sequence[ToolSpec]) -> None:
    require(isinstance(tools, tuple), "tools is not a tuple")
    require(len({t.name for t in tools}) == len(tools), "two tools have the same name")
    for tool in tools:
        kind = tool.parameters.get("type")
        require(kind == "object", f"tool {tool.name!r}: parameters is no JSON schema of an object")
        json.dumps(tool.to_json())


async def _check_answers(env: Env, task: Task, box: Sandbox | None) -> None:
    """The right answer, where the task tells it, scores more than no answer."""
    poor = await _answer(env, task, box, "I do not know.")
    gold = task.data.get("answer")
    if not isinstance(gold, str | int | float) or isinstance(gold, bool):
        return
    forms = (f"The answer is {gold}", f"\\boxed{{{gold}}}", str(gold))
    best = max([await _answer(env, task, box, form) for form in forms])
    require(best > poor, f"task {task.id!r}: its own data['answer'] ({gold!r}) earns no reward")


async def _check_play(env: Env, task: Task, box: Sandbox | None) -> None:
    """Every action is answered and judged, nonsense is an error, and the game ends."""
    first, second = env.open(task, box), env.open(task, box)
    require(isinstance(first, Episode), "open(task, box) gave no agentrl.interfaces.Episode")
    require(first is not second, "open gave the same episode twice: one attempt, one episode")
    require(tuple(await first.reset()) == tuple(await second.reset()), "two resets differ")
    actions, over = 0, False
    while not over and actions < MOST_ACTIONS:
        actions += 1
        step = await first.step(Message("assistant", "I do not know."))
        _check_reward(step)
        require(step.info.get("ok") is False, "nonsense is a wrong action: info['ok'] is not False")
        error, progress = step.info.get("error"), step.info.get("progress", 0.0)
        require(isinstance(error, str) and error, "a wrong action has its text in info['error']")
        require(0 <= progress <= 1, f"info['progress'] is {progress!r}, not between 0 and 1")
        over = step.terminated or step.truncated
        users = {m.role for m in step.observation} == {"user"}
        require(users or over, "an action is answered by messages of the user's")
    require(over, f"{MOST_ACTIONS} actions did not end the episode")
    require(step.reward is not None, "an ended episode was graded None: nothing scored it")
    refused = await raises(first.step(Message("assistant", "One more.")))
    require(refused, "a step after the end of the episode must raise, not go on")
    step = await second.step(Message("assistant", "I do not know."))
    ended = actions > 1 and (step.terminated or step.truncated)
    require(not ended, "playing one episode changed another one of the same task")
    for episode in (first, second, second):
        await episode.close()


async def _answer(env: Env, task: Task, box: Sandbox | None, text: str) -> float:
    episode = env.open(task, box)
    try:
        await episode.reset()
        step = await episode.step(Message("assistant", text))
    finally:
        await episode.close()
    require(isinstance(step, Step), f"step returned {type(step).__name__}, not a Step")
    _check_reward(step)
    require(step.terminated, "a message without tool calls is the answer: terminated must be True")
    require(step.reward is not None, "an answer was graded None; None means that nothing scored it")
    return float(step.reward or 0.0)


def _check_reward(step: Step) -> None:
    reward = step.reward
    number = isinstance(reward, int | float) and not isinstance(reward, bool)
    ok = reward is None or (number and math.isfinite(reward))
    require(ok, f"the reward {reward!r} is neither None nor a finite number")


async def _check_episode(env: Env, task: Task, box: Sandbox | None) -> None:
    """Two episodes of one task know nothing of each other; an ended one is over."""
    first, second = env.open(task, box), env.open(task, box)
    require(isinstance(first, Episode), "open(task, box) gave no agentrl.interfaces.Episode")
    require(first is not second, "open gave the same episode twice: one attempt, one episode")
    shown = await first.reset()
    require(tuple(shown) == tuple(await second.reset()), "reset differs between two episodes")
    require(all(isinstance(m, Message) for m in shown) and shown, "reset gave no messages")
    await first.step(Message("assistant", "I do not know."))
    require(
        await raises(first.step(Message("assistant", "One more."))),
        "a step after the end of the episode must raise, not grade again",
    )
    await first.close()
    await first.close()
    step = await second.step(Message("assistant", "I do not know."))
    require(step.terminated, "ending one episode changed another one of the same task")
    await second.close()
    await env.open(task, box).close()


async def _check_demonstrations(
    env: Demonstrated, tasks: Sequence[Task], box: Sandbox | None
) -> None:
    """What the environment says is right earns the full reward when it is played."""
    shown = [t for t in tasks if env.demonstrations(t)]
    for tree in await collect(
        env, replay(env.demonstrations), ScriptedPolicy([]), tasks=shown, box=box, progress=False
    ):
        attempt = tree.attempts[-1]
        require(
            attempt.error is None and right(attempt),
            f"task {tree.task.id!r}: its own demonstration earns {attempt.reward} when it is played"
            f"{f' ({attempt.error})' if attempt.error else ''}",
        )


async def _check_calls(env: Env, task: Task, box: Sandbox) -> None:
    episode, other = env.open(task, box), env.open(task, box)
    try:
        await episode.reset()
        await other.reset()
        step = await _call(episode, ("no_such_tool", {}))
        require(not step.terminated, "an unknown tool ended the episode; tell the model instead")
        if any(t.name == "python" for t in env.tools):
            step = await _call(
                episode, ("python", {"code": "x = 41"}), ("python", {"code": "print(x + 1)"})
            )
            require("42" in step.observation[1].content, "the second call lost the first's state")
            results = step.info.get("results")
            typed = [isinstance(r, ExecResult) for r in results or ()]
            require(typed == [True, True], "info['results'] has not one ExecResult a call")
            step = await _call(episode, ("python", {"code": "1/0"}))
            require("ZeroDivisionError" in step.observation[0].content, "an error is not shown")
            step = await _call(other, ("python", {"code": "print('x' in globals())"}))
            require("False" in step.observation[0].content, "two episodes share an interpreter")
    finally:
        for opened in (episode, other):
            await opened.close()
            await opened.close()


async def _call(episode: Episode, *calls: tuple[str, Mapping[str, Any]]) -> Step:
    made = tuple(ToolCall(name, args, f"id{i}") for i, (name, args) in enumerate(calls))
    step = await episode.step(Message("assistant", "", made))
    _check_reward(step)
    require(len(step.observation) == len(made), "there is not one tool message for each call")
    for message, call in zip(step.observation, made, strict=True):
        require(message.role == "tool", f"a tool's answer has role {message.role!r}, not 'tool'")
        require(message.tool_call_id == call.id, "tool messages do not carry their call's id")
    return step

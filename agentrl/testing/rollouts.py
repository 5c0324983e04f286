"""The contract of rollouts: what they leave in the tree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, get_args

from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.interfaces import Env, Policy, Rollout, Sandbox
from agentrl.testing.common import require
from agentrl.tree import Tree
from agentrl.types import (
    Attempt,
    Completion,
    ExecResult,
    Message,
    SamplingParams,
    Step,
    StopReason,
    Task,
    ToolSpec,
)

ANSWER = "42"
_PYTHON = ToolSpec(
    "python",
    "Run Python code.",
    {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)


def check_rollout(
    rollout: Rollout,
    *,
    script: Callable[[str], str] | None = None,
    env: Env | None = None,
    box: AbstractAsyncContextManager[Sandbox] | None = None,
    n: int = 3,
    params: SamplingParams | None = None,
) -> None:
    """Run a rollout on `n` tasks, twice, and check the trees it leaves.

    `script` is what the policy says to a text (by default: a block of Python, and after its output
    the answer). By default the environment is one whose every piece of code prints 42, the answer.
    """
    chosen = env or _CannedEnv()
    say = script or _say

    async def go() -> None:
        first = _Recorder(say)
        async with contextlib.AsyncExitStack() as stack:
            opened = await stack.enter_async_context(box) if box is not None else None
            trees = await _collect(chosen, rollout, first, n, opened, params)
            again = await _collect(chosen, rollout, _Recorder(say), n, opened, params)
        for tree in trees:
            _check_tree(tree)
        _check_sampled(trees, first)
        require(
            [t.nodes for t in trees] == [t.nodes for t in again],
            "the same seed and policy gave other trees: take randomness from cursor.seed",
        )

    asyncio.run(go())


async def _collect(
    env: Env,
    rollout: Rollout,
    policy: Policy,
    n: int,
    box: Sandbox | None,
    params: SamplingParams | None,
) -> list[Tree]:
    limits = params or SamplingParams(max_tokens=4000)
    return await collect(
        env, rollout, policy, n=n, box=box, params=limits, samples=2, progress=False, retries=0
    )


def _check_tree(tree: Tree) -> None:
    require(tree.attempts, "the rollout recorded no attempt: it must call cursor.finish")
    for node in tree.nodes:
        sampled = node.logprobs is not None
        require(
            sampled == (node.source == "policy"),
            f"node {node.id} ({node.source}): log-probabilities exist for policy nodes only",
        )
        require(
            node.logprobs is None or len(node.logprobs) == len(node.token_ids),
            f"node {node.id} has not one log-probability a token",
        )
        require(node.parent is None or node.parent < node.id, f"node {node.id} precedes its parent")
    for attempt in tree.attempts:
        _check_attempt(tree, attempt)
    copy = Tree.from_json(tree.to_json())
    require(copy.nodes == tree.nodes, "the tree does not survive being stored: info must be JSON")


def _check_attempt(tree: Tree, attempt: Attempt) -> None:
    require(0 <= attempt.leaf < len(tree.nodes), f"an attempt ends at no node: {attempt.leaf}")
    reasons = get_args(StopReason)
    require(attempt.stop_reason in reasons, f"{attempt.stop_reason!r} is no stop reason")
    require(attempt.error is None, f"an attempt failed in our hands: {attempt.error}")
    path = tree.path(attempt.leaf)
    sampled = any(n.source == "policy" for n in path)
    require(sampled, "nothing on an attempt's path was sampled from the policy")
    on_paths = {n.id for leaf in (*attempt.branches, attempt.leaf) for n in tree.path(leaf)}
    for turn in attempt.rewards:
        require(turn.node in on_paths, "a turn's reward lies off the attempt's paths")


def _check_sampled(trees: Sequence[Tree], policy: _Recorder) -> None:
    """Whatever the policy was shown and sampled stands in a tree, token for token."""
    require(policy.seen, "the rollout never sampled from the policy")
    paths: list[tuple[list[int], list[float | None]]] = []
    for tree in trees:
        for leaf in tree.leaves:
            ids: list[int] = []
            logprobs: list[float | None] = []
            for node in tree.path(leaf):
                ids.extend(node.token_ids)
                logprobs.extend(node.logprobs or [None] * len(node.token_ids))
            paths.append((ids, logprobs))
    for prompt, made in policy.seen:
        wanted = [*prompt, *made.token_ids]
        start, end = len(prompt), len(wanted)
        kept = any(
            ids[:end] == wanted and logprobs[start:end] == list(made.logprobs)
            for ids, logprobs in paths
        )
        require(
            kept,
            "tokens that the policy sampled are not in the tree behind exactly the tokens it was "
            "shown: sample, hint, insert and observe through the cursor only",
        )


class _Recorder(ScriptedPolicy):
    """A scripted policy with telling log-probabilities that remembers what it was asked."""

    def __init__(self, script: Callable[[str], str]) -> None:
        super().__init__(script, latency=0.001)
        self.seen: list[tuple[tuple[int, ...], Completion]] = []

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """Sample as the script says; token i gets the log-probability -(i + 1) / 1000."""
        made = await super().sample(prompt_ids, params)
        logprobs = tuple(-(i + 1) / 1000 for i in range(len(made.token_ids)))
        made = Completion(
            made.token_ids, logprobs, made.finish_reason, made.policy_version, made.stop
        )
        self.seen.append((tuple(prompt_ids), made))
        return made


def _say(text: str) -> str:
    turn = text.rsplit("<|im_start|>assistant\n", 1)[-1]
    if "```output" in turn:
        return f"Wait, let me see. The answer is {ANSWER}."
    if turn.endswith("```python\n"):
        return "print(6 * 7)\n```\n"
    return "Let me compute.\n```python\nprint(6 * 7)\n```\n"


class _CannedEpisode:
    tools: tuple[ToolSpec, ...] = (_PYTHON,)

    def __init__(self, task: Task) -> None:
        self._task = task

    async def reset(self) -> tuple[Message, ...]:
        return self._task.prompt

    async def step(self, message: Message) -> Step:
        if message.tool_calls:
            said = tuple(Message("tool", ANSWER, tool_call_id=c.id) for c in message.tool_calls)
            return Step(said, info={"results": [ExecResult("ok", f"{ANSWER}\n") for _ in said]})
        right = ANSWER in message.content
        info = {"answer": ANSWER} if right else {"answer": "", "feedback": "there is no 42 in it"}
        return Step(reward=float(right), terminated=True, info=info)

    async def close(self) -> None: ...


class _CannedEnv:
    """Tasks of one answer, and a python tool that needs no sandbox: whatever runs prints 42."""

    name = "canned"
    tools: tuple[ToolSpec, ...] = ()

    def tasks(self, n: int | None = None) -> list[Task]:
        every: list[Any] = [f"What is 6 * 7? ({i})" for i in range(n or 3)]
        return [
            Task(f"canned-{i}", (Message("user", q),), self.name, data={"answer": ANSWER})
            for i, q in enumerate(every)
        ]

    def open(self, task: Task, box: Sandbox | None) -> _CannedEpisode:
        return _CannedEpisode(task)

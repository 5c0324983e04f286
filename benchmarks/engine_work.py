"""The rollouts that the engine benchmark runs, and the same work by plain calls.

A model that cannot call tools is measured in calling them: `Talker` lets the policy sample as many
tokens as a seed says, and ends each reply with a call that the sandbox really runs.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import envs
from agentrl.interfaces import Policy, Rollout, Sandbox
from agentrl.rollouts import single_turn, tool_loop
from agentrl.types import Completion, Message, SamplingParams, Step, Task
from benchmarks.work import PROGRAMS
from envs.base import QuestionEpisode
from envs.grading import Grade

Turns = list[tuple[list[int], int]]
"""A rollout: for each turn the ids before it, and how many were sampled."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Rollouts of `turns` turns, each of `least` to `most` sampled tokens (evenly distributed)."""

    name: str
    rollout: Rollout
    turns: int
    least: int
    most: int


SHAPES = (
    Shape("single", single_turn(), 1, 8, 48),
    Shape("four_turns", tool_loop(tools="native"), len(PROGRAMS) + 1, 4, 16),
)


TOOLS = (
    "You can run Python: write <tool_call>, a line of JSON with name and arguments, </tool_call>.\n"
)


class TalkEnv:
    """The arithmetic environment's questions, with a python tool that stands in the prompt (the
    model's chat template shows none); any answer is right."""

    name, tools = "talk", ()

    def __init__(self, n: int) -> None:
        tasks = envs.make("arithmetic", split="train", seed=0).tasks(n)
        self._tasks = [
            replace(task, prompt=(Message("user", TOOLS + task.prompt[-1].content),))
            for task in tasks
        ]

    def tasks(self, n: int | None = None) -> list[Task]:
        """The tasks."""
        return self._tasks[:n]

    def open(self, task: Task, box: Sandbox | None) -> _Untold:
        """An episode with a session of its own, opened at the first call."""
        return _Untold(QuestionEpisode(task, lambda of, answer: Grade(True, answer, "right"), box))


class _Untold:
    """An episode whose tools the chat template is not told of."""

    tools = ()

    def __init__(self, episode: QuestionEpisode) -> None:
        self._episode = episode

    async def reset(self) -> tuple[Message, ...]:
        return await self._episode.reset()

    async def step(self, message: Message) -> Step:
        return await self._episode.step(message)

    async def close(self) -> None:
        await self._episode.close()


class Talker:
    """`policy` as a policy that calls python in every turn but the last.

    A turn's length comes from the seed of its call, unless the model ends it earlier. `work` has
    what was sampled, by rollout (each runs in a task of its own).
    """

    def __init__(self, policy: Policy, shape: Shape) -> None:
        self.policy, self.shape = policy, shape
        self.name, self.tokenizer = policy.name, policy.tokenizer
        self.max_context = policy.max_context
        self.work: dict[Any, Turns] = {}
        self._ends = [*map(self._end, PROGRAMS), [min(self.tokenizer.eos_ids)]]

    def _end(self, code: str) -> list[int]:
        call = json.dumps({"name": "python", "arguments": {"code": code}})
        text = f"\n<tool_call>\n{call}\n</tool_call>"
        return [*self.tokenizer.encode(text), min(self.tokenizer.eos_ids)]

    @property
    def version(self) -> int:
        """The policy's."""
        return self.policy.version

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """What the policy says, and the call."""
        turns = self.work.setdefault(asyncio.current_task(), [])
        most = random.Random(params.seed).randint(self.shape.least, self.shape.most)
        made = await self.policy.sample(prompt_ids, replace(params, max_tokens=most))
        turns.append((list(prompt_ids), len(made.token_ids)))
        said = len(made.token_ids) - (made.finish_reason == "eos")
        end = self._ends[min(len(turns), self.shape.turns) - self.shape.turns - 1]
        return replace(
            made,
            token_ids=(*made.token_ids[:said], *end),
            logprobs=(*made.logprobs[:said], *[0.0] * len(end)),
            finish_reason="eos",
        )

    async def close(self) -> None:
        """The policy stays open."""


def sampled(work: Sequence[Turns]) -> int:
    """Tokens."""
    return sum(n for turns in work for _, n in turns)


def by_turn(work: Sequence[Turns], batch: int) -> list[Turns]:
    """The batches of plain calls: `batch` rollouts at a time, turn after turn."""
    return [
        [turns[number] for turns in rows if len(turns) > number]
        for rows in (work[at : at + batch] for at in range(0, len(work), batch))
        for number in range(max(map(len, rows)))
    ]


def generate(model: Any, work: Sequence[Turns], batch: int, pad: int) -> None:
    """transformers' own `generate` on these batches, padded on the left, each as long as the
    longest of its rows."""
    for turns in by_turn(work, batch):
        _generate(model, turns, pad)


def _generate(model: Any, turns: Turns, pad: int) -> None:
    import torch

    width, longest = max(len(ids) for ids, _ in turns), max(n for _, n in turns)
    padding = [width - len(ids) for ids, _ in turns]
    model.generate(
        torch.tensor([[pad] * n + ids for n, (ids, _) in zip(padding, turns, strict=True)]),
        attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in padding]),
        max_new_tokens=longest,
        min_new_tokens=longest,
        do_sample=True,
        top_k=0,
        pad_token_id=pad,
    )

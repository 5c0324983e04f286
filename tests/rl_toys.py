"""A tiny task for online RL: the policy knows what an answer looks like, not which one is right."""

from __future__ import annotations

import copy
import functools

from agentrl.chat import Chat
from agentrl.engines.hf import HFPolicy
from agentrl.engines.models import tiny_model
from agentrl.engines.scripted import ByteTokenizer
from agentrl.train import TrainConfig, train
from agentrl.types import Message, Sample, Step, Task

TOKENIZER = ByteTokenizer()
LETTERS = "abcd"


class Episode:
    """One answer, graded exactly."""

    tools = ()

    def __init__(self, task: Task) -> None:
        self.task = task

    async def reset(self):
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        right = message.content == self.task.data["answer"]
        return Step(reward=float(right), terminated=True, info={"answer": message.content})

    async def close(self) -> None:
        pass


class NextLetter:
    """`a` is answered by `b`, ..., the last letter by the first."""

    name, tools = "next_letter", ()

    def tasks(self, n=None):
        made = []
        for i, letter in enumerate(LETTERS):
            data = {"answer": LETTERS[(i + 1) % len(LETTERS)]}
            made.append(Task(letter, (Message("user", letter),), self.name, data=data))
        return made[:n]

    def open(self, task, box):
        return Episode(task)


@functools.cache
def pretrained():
    """The model of `policy(0)`, made once for all tests: take a copy."""
    return policy(0).model


def copied() -> HFPolicy:
    """`policy(0)`, with a model of its own."""
    return HFPolicy(copy.deepcopy(pretrained()), TOKENIZER, name="tiny")


def policy(seed: int = 0, tokenizer=TOKENIZER, hidden: int = 96, **options) -> HFPolicy:
    """A tiny model, from scratch, that has learnt to answer with any letter, somewhat more often
    with the right one."""
    model = tiny_model(tokenizer.vocab_size, hidden=hidden, layers=2, init_std=0.1, seed=seed)
    chat, end = Chat(tokenizer), min(tokenizer.eos_ids)
    rows = []
    for task in NextLetter().tasks():
        prompt = chat.prompt(task.prompt)
        for answer in [*LETTERS * 3, *task.data["answer"] * 2]:
            ids = [*tokenizer.encode(answer), end]
            weights = [0.0] * len(prompt) + [1.0] * len(ids)
            rows.append(Sample([*prompt, *ids], weights))
    config = TrainConfig(lr=5e-3, max_steps=120, batch_size=24, save_every=0, seed=seed)
    train(model, rows, "sft", config, progress=False)
    return HFPolicy(model, tokenizer, name="tiny", **options)

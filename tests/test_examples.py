"""The complete examples: a ReAct graph trained by GRPO, and three agents work as one graph."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("langgraph", reason="needs the extra 'langgraph'")
pytest.importorskip("torch", reason="needs the extra 'train'")

import envs
import sandboxes
from agentrl.collect import collect
from agentrl.config import RunFolder, settings
from agentrl.credit import credited, episode_of
from agentrl.engines.hf import HFPolicy
from agentrl.engines.models import tiny_model
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.recipes import grpo
from agentrl.rollouts.langgraph import langgraph
from agentrl.train import TrainConfig, train
from agentrl.types import Message, Sample, SamplingParams, Step, Task, ToolSpec

FOLDER = Path(__file__).parent.parent / "examples"
LETTERS = "abc"
TOKENIZER = ByteTokenizer()


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Keys:
    """Each letter has a key, the letter after it; the tool says what a key opens."""

    name = "keys"
    tools = (ToolSpec("f", "Try a key.", {"type": "object", "properties": {}}),)

    def tasks(self, n=None):
        return [Task(q, (Message("user", q),), self.name) for q in LETTERS][:n]

    def open(self, task, box):
        return KeysEpisode(task)


class KeysEpisode:
    tools = Keys.tools

    def __init__(self, task: Task) -> None:
        self.task, self.opened = task, False

    async def reset(self):
        return self.task.prompt

    async def step(self, message: Message) -> Step:
        if not message.tool_calls:
            return Step(reward=float(self.opened and message.content == "yes"), terminated=True)
        key = message.tool_calls[0].arguments.get("x")
        self.opened = key == LETTERS[(LETTERS.index(self.task.id) + 1) % len(LETTERS)]
        return Step((Message("tool", "yes" if self.opened else "no"),))

    async def close(self) -> None:
        pass


def beginner(agent: Any) -> HFPolicy:
    """A tiny model that can call the tool and repeat its answer, and tries any key."""
    rows = []
    for key in LETTERS:

        def say(text: str, key: str = key) -> str:
            found = re.search(r"tool\n(yes|no)", text)
            return found[1] if found else call(key)

        policy = ScriptedPolicy(say)
        for tree in asyncio.run(collect(Keys(), langgraph(agent), policy, progress=False)):
            path = tree.path(tree.attempts[-1].leaf)
            weights = [float(n.source == "policy") for n in path for _ in n.token_ids]
            rows.append(Sample(tree.ids(path[-1].id), weights))
    model = tiny_model(TOKENIZER.vocab_size, hidden=96, layers=2, init_std=0.1, seed=0)
    config = TrainConfig(lr=5e-3, max_steps=100, batch_size=16, save_every=0, seed=0)
    train(model, rows, "sft", config, progress=False)
    return HFPolicy(model, TOKENIZER, name="tiny")


def call(key: str) -> str:
    return f'<tool_call>{{"name": "f", "arguments": {{"x": "{key}"}}}}</tool_call>'


def test_a_react_graph_is_trained_by_grpo_on_the_ids_it_sampled(tmp_path):
    agent = example("react_grpo").agent(Keys())
    config = grpo.Config(
        n=3,
        prompts=3,
        group=8,
        eval_n=3,
        max_tokens=80,
        lr=1e-3,
        steps=2,
        save_every=0,
        train_dtype="fp32",
    )
    policy, run = beginner(agent), RunFolder(tmp_path / "run", settings(config), resume=False)
    rollout = langgraph(agent, max_turns=4, max_tokens=config.max_tokens)
    learning = grpo.learn(config, policy, Keys(), Keys(), run, progress=False, rollout=rollout)
    summary = asyncio.run(learning)
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert summary["training"]["samples"] > 0
    assert len(rows) == 2
    assert max(row.get("logprob_diff_max", 0) for row in rows) < 1e-4  # ids as they were sampled
    assert rows[-1]["tool_call_rate"] > 0.9


def test_the_react_graph_uses_the_interpreter():
    env = envs.make("arithmetic", split="train", seed=0)

    def say(text: str) -> str:
        found = re.findall(r"<\|im_start\|>tool\n(.*)<\|im_end\|>", text)
        if found:
            return f"\\boxed{{{found[-1]}}}"
        return '<tool_call>{"name": "python", "arguments": {"code": "print(6 * 7)"}}</tool_call>'

    async def go():
        async with sandboxes.open("embedded") as box:
            rollout = langgraph(example("react_grpo").agent(env))
            params = SamplingParams(max_tokens=4000)
            policy = ScriptedPolicy(say)
            return await collect(env, rollout, policy, n=1, box=box, params=params, progress=False)

    (tree,) = asyncio.run(go())
    attempt = tree.attempts[-1]
    assert (attempt.error, attempt.metrics["statuses"], attempt.answer) == (None, ["ok"], "42")
    assert attempt.reward in (0.0, 1.0)


def speak(text: str) -> str:
    """The solver is wrong, the reviewer says so once, the refiner mends it."""
    turn = text.rsplit("<|im_start|>system\n", 1)[-1]
    if turn.startswith("Solve"):
        return "\\boxed{41}"
    if turn.startswith("Check"):
        return "ACCEPT" if "boxed{42}" in turn else "41 is one too small."
    return "\\boxed{42}"


@pytest.mark.parametrize(
    ("trained", "learnt"),
    [
        (None, ["\\boxed{41}", "41 is one too small.", "\\boxed{42}", "ACCEPT"]),
        (["refiner"], ["\\boxed{42}"]),
        (["solver", "reviewer"], ["\\boxed{41}", "41 is one too small.", "ACCEPT"]),
    ],
)
def test_solver_reviewer_and_refiner_learn_where_they_are_to(trained, learnt):
    from tests.fakes import FakeEnv, task

    env = FakeEnv([task(answer="\\boxed{42}")])
    rollout = example("solver_reviewer_refiner").rollout(trained)
    params = SamplingParams(max_tokens=4000)
    (tree,) = asyncio.run(
        collect(env, rollout, ScriptedPolicy(speak), n=1, params=params, progress=False)
    )
    (attempt,) = tree.attempts
    assert attempt.reward == 1.0
    assert attempt.metrics["replies"] == 4
    rows = credited(tree, attempt, [1.0] * len(episode_of(tree, attempt).turns))
    said = [[i for i, w in zip(r.token_ids, r.weights, strict=True) if w] for r in rows]
    assert sorted(map(TOKENIZER.decode, said)) == sorted(f"{text}<|im_end|>" for text in learnt)


@pytest.mark.parametrize(
    ("said", "replies"), [(["42"] * 4, 4), (["40", "41", "39", "38"], 12)], ids=["easy", "hard"]
)
def test_magicore_as_a_graph_refines_what_is_hard(said, replies):
    from tests.fakes import FakeEnv, task

    calls = iter(said)

    def say(text: str) -> str:
        if "Write the solution anew" in text:
            return "Step 1: 6*7 = 42"
        return "too low" if "Do not write a new solution" in text else next(calls)

    async def score(problem: str, text: str):
        return (0.9, (0.8,)) if "42" in text else (0.2, (0.1,))

    rollout = example("magicore_graph").rollout(score, ["refiner"])
    env, policy = FakeEnv([task(answer="42")]), ScriptedPolicy(say)
    (tree,) = asyncio.run(collect(env, rollout, policy, n=1, progress=False))
    (attempt,) = tree.attempts
    assert (attempt.reward, attempt.metrics["replies"]) == (1.0, replies)

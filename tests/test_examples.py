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
from agentrl.credit import credited, episode_of
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.rollouts.langgraph import langgraph
from agentrl.types import SamplingParams

FOLDER = Path(__file__).parent.parent / "examples"
TOKENIZER = ByteTokenizer()


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_react_graph_is_trained_by_grpo_on_the_ids_it_sampled(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    learning = example("react_learns").main(
        0, tmp_path / "run", taught=60, steps=2, group=4, method="grpo"
    )
    summary = asyncio.run(learning)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
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

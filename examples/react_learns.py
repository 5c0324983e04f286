"""The ReAct graph learns on a CPU: a tiny model finds out what to compute, by GRPO.

    python examples/react_learns.py --seed 0

Each letter has a number that nobody says. The model, made from nothing and taught the form, calls
the interpreter with `print(1)`, `print(2)` or `print(3)`, every second time with the right one, and
says what it printed. The reward tells it which one was right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from react_grpo import agent

import sandboxes
from agentrl.collect import collect
from agentrl.config import RunFolder, settings
from agentrl.engines.hf import HFPolicy
from agentrl.engines.models import tiny_model
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.recipes import grpo
from agentrl.rollouts.langgraph import langgraph
from agentrl.train import TrainConfig, train
from agentrl.types import Message, Sample, Task
from envs.base import PYTHON, QuestionEpisode
from envs.grading import Grade

NUMBERS = {"a": "2", "b": "3", "c": "1"}


class Letters:
    """One task a letter: say its number."""

    name, tools = "letters", (PYTHON,)

    def tasks(self, n: int | None = None) -> list[Task]:
        """The tasks."""
        return [Task(q, (Message("user", q),), self.name) for q in NUMBERS][:n]

    def open(self, task: Task, box: Any) -> QuestionEpisode:
        """An episode with an interpreter."""
        return QuestionEpisode(task, _grade, box)


def _grade(task: Task, answer: str) -> Grade:
    return Grade(answer.strip() == NUMBERS[task.id], answer, "its number?")


def call(number: str) -> str:
    """A call that prints `number`."""
    code = f'"code": "print({number})"'
    return f'<tool_call>{{"name": "python", "arguments": {{{code}}}}}</tool_call>'


async def beginner(graph: Any, box: Any, seed: int = 0, steps: int = 150) -> HFPolicy:
    """A tiny model that calls the interpreter with any number, and says what it printed. It has
    seen the right one twice as often as another: there is something to build on."""
    rows = []
    for number in NUMBERS.values():

        def say(text: str, number: str = number) -> str:
            found = re.search(r"tool\n(\d)", text)
            return found[1] if found else call(number)

        env, teacher = Letters(), ScriptedPolicy(say)
        for tree in await collect(env, langgraph(graph), teacher, box=box, progress=False):
            path = tree.path(tree.attempts[-1].leaf)
            weights = [float(n.source == "policy") for n in path for _ in n.token_ids]
            row = Sample(tree.ids(path[-1].id), weights)
            rows += [row] * (2 if number == NUMBERS[tree.task.id] else 1)
    tokenizer = ByteTokenizer()
    model = tiny_model(tokenizer.vocab_size, hidden=96, layers=2, init_std=0.1, seed=seed)
    config = TrainConfig(lr=5e-3, max_steps=steps, batch_size=len(rows), save_every=0, seed=seed)
    train(model, rows, "sft", config, progress=False)
    return HFPolicy(model, tokenizer, name="tiny")


async def main(seed: int, out: Path, taught: int = 150, **changes: Any) -> dict[str, Any]:
    """Teach the form in `taught` steps, train, and return the run's summary."""
    options = {"n": 3, "prompts": 3, "group": 8, "eval_n": 3, "max_tokens": 80, "lr": 5e-4}
    options |= {"method": "dr_grpo", "steps": 25, "save_every": 0, "train_dtype": "fp32"}
    options |= {"seed": seed}
    config = grpo.Config(**(options | changes))
    env = Letters()
    graph = agent(env)
    rollout = langgraph(graph, max_turns=4, max_tokens=config.max_tokens)
    folder = RunFolder(out, settings(config), resume=False)
    async with sandboxes.open("embedded") as box:
        policy = await beginner(graph, box, seed, taught)
        return await grpo.learn(
            config, policy, env, env, folder, box=box, rollout=rollout, progress=False
        )


def commandline(argv: Sequence[str] | None = None) -> None:
    """Train, and say what was learnt."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the run's folder (default: none is kept)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary) / "run"
        made = asyncio.run(main(options.seed, out))
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = (fmean(row["reward"] for row in part) for part in (rows[:5], rows[-5:]))
    print(f"reward {first:.2f} in the first five steps, {last:.2f} in the last five")
    print(f"greedy accuracy {made['baseline']['accuracy']} -> {made['tuned']['accuracy']}")


if __name__ == "__main__":
    commandline()

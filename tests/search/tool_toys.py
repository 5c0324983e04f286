"""Toys of searches with tools: policies that draw what they say, and ways to run a search."""

from __future__ import annotations

import asyncio
import re
from random import Random

from agentrl.chat import Chat
from agentrl.collect import collect
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import EngineError
from agentrl.rollouts import make
from agentrl.search.evaluators import ByValue
from agentrl.search.table import Table
from agentrl.types import SamplingParams
from envs.base import PYTHON, QuestionEpisode
from envs.grading import grade_task
from tests.fakes import FakeEnv, task

CHAT = Chat(ByteTokenizer())
CALL = '<tool_call>\n{{"name": "python", "arguments": {{"code": "{}"}}}}\n</tool_call>'


class Drawn:
    """Says one of `choices(turn so far, whole text)`, by the call's seed, and goes on with what it
    began to say since the last output. It fails at call number `fails`."""

    name, version, max_context = "drawn", 0, 1 << 16

    def __init__(self, choices, fails=None):
        self.tokenizer, self.choices, self.fails = ByteTokenizer(), choices, fails
        self.calls = self.tokens = 0

    async def sample(self, ids, params: SamplingParams):
        self.calls += 1
        if self.calls - 1 == self.fails:
            raise EngineError("the engine is down")
        text = self.tokenizer.decode(ids)
        turn = text.rpartition("assistant\n")[2]
        done = [m.end() for m in re.finditer(r"```output\n.*?\n```\n", turn, re.S)]
        said = turn[done[-1] if done else 0 :]
        ends = [o for o in self.choices(turn, text) if o.startswith(said)]
        reply = ends[Random(params.seed).randrange(len(ends))].removeprefix(said)
        made = await ScriptedPolicy([reply]).sample(ids, params)
        self.tokens += len(made.token_ids)
        return made

    async def score(self, ids):
        return [-0.5] * (len(ids) - 1)

    async def update(self, weights):
        self.version += 1

    async def close(self):
        pass


def assign_and_print(turn, text):
    """Two lines of thought: x is 1 or 2; each then looks at x and says what it saw."""
    if "output" not in turn:
        return [f"Try {n}.\n```python\nx = {n}; 'y' in dir()\n```\n" for n in (1, 2)]
    if turn.count("output") == 1:
        return ["```python\ny = x * 10; print(y)\n```\n", "Look:\n```python\nprint(x)\n```\n"]
    return [f"The answer is {turn.rsplit('output')[-1].split()[0]}."]


async def tens(of, text):
    """A judge that likes long answers, and so keeps on going."""
    return len(text) / 1000


def searched(name, policy, env, *, box=None, retries=0, tokens=4000, **options):
    options = {"judge": ByValue(tens), **options}
    return asyncio.run(
        collect(
            env,
            make(name, **options),
            policy,
            params=SamplingParams(tokens, 1.0),
            box=box,
            retries=retries,
            progress=False,
        )
    )


def table_of(tree):
    return Table.from_json(tree.meta["search"])


class Noted(QuestionEpisode):
    ran: list[str]

    async def _execute(self, code):
        self.ran.append(code)
        return await super()._execute(code)


class Interpreter(FakeEnv):
    """Questions with the real python tool; `ran` is the code that the sandbox was given."""

    def __init__(self):
        super().__init__([task(answer="10")])
        self.ran = []

    def open(self, of, box):
        episode = Noted(of, grade_task, box, tools=(PYTHON,))
        episode.ran = self.ran
        return episode


async def in_a_sandbox(box, name, options):
    """A search in which x is 1 or 2; its tree, environment and policy."""
    env, policy = Interpreter(), Drawn(assign_and_print)
    rollout = make(name, **{"judge": ByValue(tens), "tools": "blocks", **options})
    params = SamplingParams(4000, 1.0)
    with_box = {"box": box, "params": params, "retries": 0, "progress": False}
    (tree,) = await collect(env, rollout, policy, **with_box)
    return tree, env, policy


def check_states(tree, env, policy):
    """Every call saw its own path alone, ran once, and what was replayed is counted apart."""
    table = table_of(tree)
    assert tree.attempts[-1].error is None
    for state in table.states:
        if state.acted is None:
            continue
        said = CHAT.decode(tree.ids(state.node))
        x = said.rpartition("x = ")[2][0]
        seen = state.acted.observation[0].content
        first = "'y' in dir()" in state.acted.message.content
        assert seen == ("False" if first else f"{x}0" if "y = " in said else x)
        assert said.endswith(f"```output\n{seen}\n```\n")
    assert table.calls == sum(s.acted is not None for s in table.states)
    assert len(env.ran) == table.calls + table.replayed
    assert table.tokens == policy.tokens
    return table.replayed


def native(turn, text):
    if text.count("<tool_call>") < 2:
        return [CALL.format(c) for c in ("x = 40", "x = 2; print(x)", "print(x)")]
    return ["It is 42", "It is 40"]

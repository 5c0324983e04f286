"""Agents outside: they speak HTTP, and leave the trees that an agent in this process leaves."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="needs the extra 'remote'")

from agentrl.collect import collect
from agentrl.credit import credited, episode_of
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, EngineError
from agentrl.rollouts import make
from agentrl.types import SamplingParams
from tests.fakes import FakeEnv, task

AGENT = """
import json, os, sys, urllib.request

def post(url, body):
    head = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    asked = urllib.request.Request(url, json.dumps(body).encode(), head)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return json.loads(answer.read())

chat, given = os.environ["OPENAI_BASE_URL"] + "/chat/completions", json.load(sys.stdin)
messages = given["messages"]
first = post(chat, {"messages": messages, "temperature": 0})["choices"][0]["message"]
messages += [first, {"role": "user", "content": "Are you sure?"}]
last = post(chat, {"messages": messages})["choices"][0]["message"]["content"]
print(sys.argv[1], given["task"], last)
if "reward" in sys.argv:
    post(os.environ["AGENTRL_REWARD_URL"], {"reward": 0.25, "answer": "mine"})
    sys.exit(3)
"""


def say(text: str) -> str:
    return "It is 42" if "sure?" in text else "It is 41"


def ran(
    agent: Any,
    policy: Any = None,
    n: int = 1,
    retries: int = 0,
    samples: int = 1,
    **options: Any,
) -> list[Any]:
    """The trees of `n` tasks."""
    policy = policy or ScriptedPolicy(say)
    env = FakeEnv([task(f"t{i}") for i in range(n)])
    rollout = make("external", agent=agent, **options)
    params = SamplingParams(4000, 0.7)
    many = {"samples": samples, "retries": retries, "progress": False}
    return asyncio.run(collect(env, rollout, policy, params=params, **many))


def ask(link: Any, messages: Any = None, **asked_for: Any) -> str:
    """One request, as any client in a thread would send it."""
    body = json.dumps({"messages": messages or link.messages, **asked_for}).encode()
    head = {"Authorization": f"Bearer {link.api_key}"}
    asked = urllib.request.Request(f"{link.base_url}/chat/completions", body, head)
    with urllib.request.urlopen(asked, timeout=20) as answer:
        return str(json.loads(answer.read())["choices"][0]["message"]["content"])


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    file = tmp_path / "agent.py"
    file.write_text(AGENT)
    return [sys.executable, "-S", str(file), "asked: {prompt}"]


def test_a_command_is_graded_by_the_environment_and_trained_on_what_it_sampled(command):
    seen = []

    class Seeing(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            seen.append(params.temperature)
            return await super().sample(prompt_ids, params)

    (tree,) = ran(command, Seeing(say))
    (attempt,) = tree.attempts
    assert (attempt.reward, attempt.answer, attempt.stop_reason) == (1.0, "42", "final_answer")
    assert attempt.metrics["replies"] == 2
    assert seen == [0.7, 0.7]  # the collection's, not the agent's
    decode = ScriptedPolicy([]).tokenizer.decode
    said = [decode(n.token_ids) for n in tree.nodes if n.source == "policy"]
    assert said == ["It is 41", "<|im_end|>", "It is 42", "<|im_end|>"]
    assert len(credited(tree, attempt, [1.0] * len(episode_of(tree, attempt).turns))) == 1


def test_what_a_command_prints_can_be_its_answer_and_what_it_earned_its_own_word(command):
    (tree,) = ran(command, answer="output")
    assert tree.attempts[0].metrics.get("replies") == 2
    assert tree.attempts[0].reward == 1.0  # the last word of "asked: What is 6*7? t0 It is 42"
    (tree,) = ran([*command, "reward"])
    (attempt,) = tree.attempts
    assert (attempt.reward, attempt.answer, attempt.error) == (0.25, "mine", None)


@pytest.mark.parametrize(
    ("agent", "why"),
    [
        ("sh -c 'echo no luck >&2; exit 3'", "AgentError: the agent ended with status 3: no luck"),
        ("sh -c 'kill -9 $$'", "status -9"),
        ("true", "never asked the policy"),
    ],
)
def test_an_agent_that_fails_has_no_reward_and_is_tried_again(agent, why):
    (tree,) = ran(agent, retries=1)
    (attempt,) = tree.attempts
    assert (attempt.reward, attempt.stop_reason, len(tree.meta["failures"])) == (
        None,
        "cancelled",
        2,
    )
    assert why in attempt.error


def test_an_agent_that_hangs_is_killed_with_all_that_it_started(tmp_path):
    note = tmp_path / "pids"
    agent = ["sh", "-c", f"sleep 60 & echo $! $$ > {note}; wait"]
    (tree,) = ran(agent, deadline_s=0.3)
    assert tree.attempts[0].stop_reason == "timeout"
    assert "took over 0.3 s" in tree.attempts[0].error
    for pid in map(int, note.read_text().split()):
        deadline = time.monotonic() + 10
        while _alive(pid):
            assert time.monotonic() < deadline, f"process {pid} is left"
            time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_functions_are_agents_as_well_many_at_once():
    async def agent(link):
        return await asyncio.to_thread(ask, link)

    def in_a_thread(link):
        assert link.prompt == "What is 6*7?"
        return ask(link, [*link.messages, {"role": "user", "content": "sure?"}])

    for one, reward in ((agent, 0.0), (in_a_thread, 1.0)):
        trees = ran(one, n=6)
        assert [t.attempts[0].reward for t in trees] == [reward] * 6
        assert {t.attempts[0].metrics["replies"] for t in trees} == {1}


@pytest.mark.parametrize("fixed", [True, False])
def test_a_seed_that_an_agent_writes_does_not_make_a_group_the_same(fixed):
    seeds = []

    class Seeing(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            seeds.append(params.seed)
            return await super().sample(prompt_ids, params)

    def agent(link):
        return ask(link, seed=42)

    ran(agent, Seeing(say), n=1, fixed=fixed, samples=4)
    assert len(set(seeds)) == (4 if fixed else 1)


def test_a_function_that_comes_too_late_is_not_answered():
    told, over = [], threading.Event()

    def late(link):
        ask(link)
        over.wait(10)
        try:
            ask(link)
        except urllib.error.URLError as error:
            told.append(error)

    (tree,) = ran(late, deadline_s=0.3)
    over.set()
    assert tree.attempts[0].stop_reason == "timeout"
    deadline = time.monotonic() + 10
    while not told:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_failure_of_the_engine_counts_unless_the_agent_asked_again():
    calls = []

    def flaky(text):
        calls.append(text)
        if len(calls) == 1:
            raise EngineError("gone")
        return "It is 42"

    def stubborn(link):
        try:
            return ask(link)
        except urllib.error.HTTPError:
            return ask(link)

    assert ran(stubborn, ScriptedPolicy(flaky))[0].attempts[0].reward == 1.0

    def gives_up(link):
        try:
            ask(link)
        except urllib.error.HTTPError:
            return "never mind"

    calls.clear()
    (attempt,) = ran(gives_up, ScriptedPolicy(flaky))[0].attempts
    assert (attempt.reward, attempt.stop_reason) == (None, "engine_error")
    assert "gone" in attempt.error


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"agent": "no-such-agent-here"}, "cannot be started"),
        ({"agent": ""}, "is empty"),
        ({"agent": "'"}, "is no command"),
        ({"agent": "true", "answer": "all"}, "'reply' or 'output'"),
        ({"agent": "true", "deadline_s": 0}, "above 0"),
    ],
)
def test_what_cannot_be_is_an_error_at_once(options, why):
    with pytest.raises(ConfigError, match=why):
        ran(**options)


def test_an_agent_never_sees_the_answer(tmp_path):
    (tree,) = ran(["sh", "-c", f"env > {tmp_path}/env; cat > {tmp_path}/task"])
    assert tree.attempts[0].error
    given = json.loads((tmp_path / "task").read_text())
    assert given == {"task": "t0", "messages": [{"role": "user", "content": "What is 6*7?"}]}
    assert "127.0.0.1" in (tmp_path / "env").read_text()
    assert "OPENAI_BASE_URL" not in os.environ


def test_grpo_trains_an_agent_outside_on_the_ids_it_sampled(tmp_path):
    pytest.importorskip("torch", reason="needs the extra 'train'")
    from agentrl.config import RunFolder, settings
    from agentrl.recipes import grpo
    from tests.rl_toys import NextLetter, policy

    options = {"n": 4, "prompts": 4, "group": 4, "eval_n": 4, "max_tokens": 4, "lr": 1e-3}
    config = grpo.Config(steps=2, save_every=0, train_dtype="fp32", **options)
    run, env = RunFolder(tmp_path, settings(config), resume=False), NextLetter()
    learning = grpo.learn(
        config, policy(), env, env, run, progress=False, rollout=make("external", agent=ask)
    )
    summary = asyncio.run(learning)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert summary["training"]["samples"] > 0
    assert [row["failure_rate"] for row in rows] == [0.0, 0.0]
    assert max(row.get("logprob_diff_max", 0) for row in rows) < 1e-4

"""The conformance kit: it passes what keeps the contract, and names the rule that is broken."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

import envs
import sandboxes
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import IsolationError, SandboxError
from agentrl.interfaces import OpenEnv
from agentrl.rollouts import ROLLOUTS, hint_infer, make
from agentrl.testing import (
    ConformanceError,
    check_env,
    check_policy,
    check_rollout,
    check_sandbox,
)
from agentrl.tree import Cursor
from agentrl.types import Completion, Message, SamplingParams, Step, Task
from envs.base import QuestionEpisode
from envs.grading import Grade, grade_task


def embedded() -> Any:
    """The real sandbox, or a skip that says why there is none here."""

    async def probe() -> None:
        async with sandboxes.open("embedded"):
            pass

    try:
        asyncio.run(probe())
    except IsolationError as error:
        pytest.skip(f"no isolation on this machine: {error}")
    return sandboxes.open("embedded")


# What keeps the contract


@pytest.mark.parametrize("split", ["train", "test", "unseen"])
def test_arithmetic(split: str) -> None:
    check_env(envs.make("arithmetic", split=split), n=40)


def test_arithmetic_in_the_real_sandbox() -> None:
    check_env(envs.make("arithmetic"), embedded(), n=2)


def test_gsm8k(tmp_path: Any) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"question": "1+1?", "answer": "#### 2"}\n' * 3)
    check_env(envs.make("gsm8k", path=file))


def test_embedded_sandbox() -> None:
    check_sandbox(embedded())


async def outside(link: Any) -> None:
    """An agent that asks once."""
    aiohttp = pytest.importorskip("aiohttp", reason="needs the extra 'remote'")
    headers = {"Authorization": f"Bearer {link.api_key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as http,
        http.post(f"{link.base_url}/chat/completions", json={"messages": link.messages}) as answer,
    ):
        assert answer.status == 200, await answer.text()


SMALL: dict[str, dict[str, Any]] = {
    "mcts": {"iterations": 2, "first": 1, "max_tokens": 200},
    "best_first": {"width": 2, "max_iterations": 4},
    "beam": {"beams": 2, "width": 2, "max_tokens": 200},
    "external": {"agent": outside},
}
LOOKS_AHEAD = {"rain"}
"""What they sample to judge a state by is in no tree, by design: the kit refuses them."""


@pytest.mark.parametrize("name", sorted(ROLLOUTS.keys() - LOOKS_AHEAD))
def test_rollouts(name: str) -> None:
    check_rollout(make(name, **SMALL.get(name, {})))


@pytest.mark.parametrize("position", ["start", "wait", "end"])
def test_hint_infer(position: Any) -> None:
    check_rollout(hint_infer(position=position))


def test_a_rollout_with_code_in_the_real_sandbox() -> None:
    env = envs.make("arithmetic", kinds=["product"])
    check_rollout(hint_infer(position="start"), env=env, box=embedded())


class Scripted(ScriptedPolicy):
    """The scripted policy with a context that ends."""

    def __init__(self, script: Callable[[str], str] = lambda text: "one two three four") -> None:
        super().__init__(script, max_context=1000)

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        if len(prompt_ids) > self.max_context:
            raise ValueError("too long")
        return await super().sample(prompt_ids, params)


def test_scripted_policy() -> None:
    check_policy(Scripted(), weights={})
    check_policy(Scripted(lambda text: "yes" + ScriptedPolicy.CUT), max_tokens=3)


# What breaks it: environments


@dataclasses.dataclass(frozen=True)
class Env:
    """A good environment of sums; each test spoils something."""

    name: str = "sums"
    tools: tuple[Any, ...] = ()
    grader: Callable[[Task, str], Grade] = grade_task
    episode: Callable[..., Any] = QuestionEpisode
    spoil: Callable[[Task, int], Task] = lambda task, i: task

    def tasks(self, n: int | None = None) -> list[Task]:
        made = (
            Task(f"t{i}", (Message("user", f"{i}+40?"),), "sums", data={"answer": i + 40})
            for i in range(n or 5)
        )
        return [self.spoil(task, i) for i, task in enumerate(made)]

    def open(self, task: Task, box: Any) -> Any:
        return self.episode(task, self.grader, box, tools=self.tools)


class GradesTwice(QuestionEpisode):
    async def step(self, message: Message) -> Step:
        self._over = ""
        return await super().step(message)


class ClosesOnce(QuestionEpisode):
    async def close(self) -> None:
        if self._over == "closed":
            raise RuntimeError("closed already")
        self._over = "closed"


class NeverEnds(QuestionEpisode):
    async def step(self, message: Message) -> Step:
        return dataclasses.replace(await super().step(message), terminated=False)


class Unscored(QuestionEpisode):
    async def step(self, message: Message) -> Step:
        return dataclasses.replace(await super().step(message), reward=None)


def other_env(task: Task, i: int) -> Task:
    return dataclasses.replace(task, env="other")


def same_id(task: Task, i: int) -> Task:
    return dataclasses.replace(task, id="t")


def no_json(task: Task, i: int) -> Task:
    return dataclasses.replace(task, data={"answer": 40 + i, "f": {1, 2}})


def leak(task: Task, i: int) -> Task:
    prompt = (Message("user", "Is it print(40 + 2)?"),)
    return dataclasses.replace(task, prompt=prompt, data={"program": "print(40 + 2)"})


def random_tasks() -> Callable[[Task, int], Task]:
    seen: list[int] = []

    def spoil(task: Task, i: int) -> Task:
        seen.append(i)
        return dataclasses.replace(task, kind=str(len(seen)))

    return spoil


def test_the_good_environment_passes() -> None:
    check_env(Env())


@pytest.mark.parametrize(
    ("env", "rule"),
    [
        (Env(spoil=other_env), "env is 'other', not 'sums'"),
        (Env(spoil=same_id), "ids repeat"),
        (Env(spoil=no_json), "not JSON"),
        (Env(spoil=leak), "'program'.*stands in the prompt"),
        (Env(spoil=random_tasks()), "other tasks the second time"),
        (Env(grader=lambda task, text: Grade(False, "", "wrong")), "earns no reward"),
        (Env(grader=lambda task, text: Grade(True, "", "right")), "earns no reward"),
        (Env(episode=GradesTwice), "after the end of the episode"),
        (Env(episode=NeverEnds), "terminated must be True"),
        (Env(episode=Unscored), "None means that nothing scored it"),
    ],
)
def test_broken_environments_are_named(env: Any, rule: str) -> None:
    with pytest.raises(ConformanceError, match=rule):
        check_env(env)


def test_closing_twice_must_be_fine() -> None:
    with pytest.raises(RuntimeError, match="closed already"):
        check_env(Env(episode=ClosesOnce))  # type: ignore[arg-type]


# What breaks it: policies


class Spoilt(Scripted):
    """A scripted policy whose completions are changed before they are given out."""

    def __init__(self, **changes: Callable[[Completion], Any]) -> None:
        super().__init__()
        self.changes = changes

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        made = await super().sample(prompt_ids, params)
        return dataclasses.replace(made, **{k: f(made) for k, f in self.changes.items()})


class Frozen(Scripted):
    async def update(self, weights: Mapping[str, Any]) -> None: ...


class Unseeded(Scripted):
    def __init__(self) -> None:
        super().__init__(lambda text: f"number {self.calls}")


@pytest.mark.parametrize(
    ("policy", "rule"),
    [
        (Spoilt(logprobs=lambda c: c.logprobs[1:]), "one log-probability a token"),
        (Spoilt(logprobs=lambda c: (0.5,) * len(c.logprobs)), "above 0"),
        (Spoilt(logprobs=lambda c: (-0.7,) * len(c.logprobs)), "score differs"),
        (Spoilt(token_ids=lambda c: (999, *c.token_ids[1:])), "outside the vocabulary"),
        (Spoilt(finish_reason=lambda c: "eos"), "end token"),
        (Spoilt(finish_reason=lambda c: "done"), "is no reason"),
        (Spoilt(policy_version=lambda c: 5), "policy_version"),
        (Spoilt(stop=lambda c: None), "Completion.stop is None"),
        (Unseeded(), "two different completions"),
        (Frozen(), "did not count the version up"),
    ],
)
def test_broken_policies_are_named(policy: ScriptedPolicy, rule: str) -> None:
    with pytest.raises(ConformanceError, match=rule):
        check_policy(policy, weights={})


# What breaks it: rollouts


async def fails(cursor: Cursor, open_env: OpenEnv) -> None:
    cursor.begin(await (await open_env()).reset())
    await cursor.sample()
    raise SandboxError("no box")


async def reencodes(cursor: Cursor, open_env: OpenEnv) -> None:
    cursor.begin(await (await open_env()).reset())
    made = await cursor.policy.sample(cursor.ids, cursor.params)
    cursor.hint(cursor.chat.decode(made.token_ids[:-1]))
    await cursor.sample()
    cursor.finish("final_answer", reward=0.0)


def count() -> Any:
    calls: list[int] = []

    async def unrepeatable(cursor: Cursor, open_env: OpenEnv) -> None:
        cursor.begin(await (await open_env()).reset())
        calls.append(1)
        cursor.hint(f"call {len(calls)}")
        await cursor.sample()
        cursor.finish("final_answer", reward=0.0)

    return unrepeatable


async def odd_reason(cursor: Cursor, open_env: OpenEnv) -> None:
    cursor.begin(await (await open_env()).reset())
    await cursor.sample()
    cursor.finish("done", reward=0.0)  # type: ignore[arg-type]


async def unsampled(cursor: Cursor, open_env: OpenEnv) -> None:
    cursor.begin(await (await open_env()).reset())
    cursor.finish("final_answer", reward=0.0)


@pytest.mark.parametrize(
    ("rollout", "rule"),
    [
        (reencodes, "not in the tree"),
        (fails, "failed in our hands"),
        (count(), "other trees"),
        (odd_reason, "no stop reason"),
        (unsampled, "nothing on an attempt's path was sampled"),
    ],
)
def test_broken_rollouts_are_named(rollout: Any, rule: str) -> None:
    with pytest.raises(ConformanceError, match=rule):
        check_rollout(rollout)

"""Collecting: concurrency, deadlines, retries, resume, and failures that are never rewards."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys
import time

import pytest

from agentrl.collect import collect
from agentrl.engines.scripted import ByteTokenizer, ScriptedPolicy
from agentrl.errors import ConfigError, EngineError, InfraError, IsolationError
from agentrl.rollouts import single_turn, tool_loop
from agentrl.store import FILE, load
from agentrl.tree import Tree
from agentrl.types import Message, SamplingParams
from tests.fakes import FakeEnv, task


def go(env, rollout, policy, **kw) -> list[Tree]:
    kw.setdefault("progress", False)
    kw.setdefault("params", SamplingParams(max_tokens=1000))
    return asyncio.run(collect(env, rollout, policy, **kw))


def env_of(n: int) -> FakeEnv:
    return FakeEnv([task(f"t{i}") for i in range(n)])


def test_order_samples_and_closing():
    env = env_of(5)
    trees = go(env, single_turn(), ScriptedPolicy(lambda t: "42"), samples=3)
    assert [(t.task.id, t.meta["attempt"]) for t in trees] == [
        (f"t{i}", a) for i in range(5) for a in range(3)
    ]
    assert all(t.attempts[-1].reward == 1.0 for t in trees)
    assert len(env.episodes) == 15
    assert all(e.closed for e in env.episodes)


def test_concurrency_overlaps_waiting_and_is_bounded():
    started = time.perf_counter()
    go(env_of(20), single_turn(), ScriptedPolicy(lambda t: "42", latency=0.1), concurrency=20)
    assert time.perf_counter() - started < 1.0, "20 rollouts of 0.1 s one after the other take 2 s"
    busy = most = 0

    class Counting(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            try:
                return await super().sample(prompt_ids, params)
            finally:
                busy -= 1

    go(env_of(20), single_turn(), Counting(lambda t: "42", latency=0.01), concurrency=3)
    assert most == 3


class Flaky(ScriptedPolicy):
    """Fails `failures` times for each prompt, then answers."""

    def __init__(self, failures: int) -> None:
        super().__init__(lambda t: "42")
        self.left: dict[tuple[int, ...], int] = {}
        self.failures = failures

    async def sample(self, prompt_ids, params):
        left = self.left.setdefault(tuple(prompt_ids), self.failures)
        if left:
            self.left[tuple(prompt_ids)] -= 1
            raise EngineError("the engine went away")
        return await super().sample(prompt_ids, params)


def test_infrastructure_failures_are_retried_then_recorded_without_reward():
    env = FakeEnv([task("a", "x"), task("b", "y")])
    trees = go(env, single_turn(), Flaky(2), retries=2)
    assert [t.attempts[-1].reward for t in trees] == [1.0, 1.0]
    assert trees[0].meta["failures"] == ["EngineError: the engine went away"] * 2
    trees = go(env, single_turn(), Flaky(3), retries=2)
    for t in trees:
        assert [a.reward for a in t.attempts] == [None]
        assert t.attempts[0].stop_reason == "engine_error"
        assert "the engine went away" in t.attempts[0].error
    assert all(e.closed for e in env.episodes)


def test_a_deadline_is_an_infrastructure_failure():
    policy = ScriptedPolicy(lambda t: "42", latency=5)
    (tree,) = go(env_of(1), single_turn(), policy, deadline_s=0.05, retries=0)
    assert tree.attempts[0].stop_reason == "timeout"
    assert tree.attempts[0].reward is None
    assert "deadline" in tree.attempts[0].error.lower()


def test_what_failed_is_named_for_what_it_was():
    """A time-out of something else is no deadline; every error of the sandbox is the sandbox's."""
    for error, reason in (
        (TimeoutError("the server gave no answer"), "timeout"),
        (IsolationError("no namespaces"), "sandbox_error"),
    ):

        async def failing(cursor, open_env, error=error):
            raise error

        (tree,) = go(env_of(1), failing, ScriptedPolicy([]), retries=0)
        assert tree.attempts[0].stop_reason == reason
        assert tree.attempts[0].error == f"{type(error).__name__}: {error}"


def test_trees_of_another_collection_are_not_taken_for_ones_own(tmp_path):
    policy = ScriptedPolicy(lambda t: "42")
    go(env_of(2), single_turn(), policy, out=tmp_path)
    go(env_of(3), single_turn(), policy, out=tmp_path)
    for rollout, other in (
        (tool_loop(), {}),
        (single_turn(), {"seed": 1}),
        (single_turn(), {"params": SamplingParams(max_tokens=1000, temperature=0.5)}),
    ):
        with pytest.raises(ConfigError, match="another collection"):
            go(env_of(2), rollout, policy, out=tmp_path, **other)


@pytest.mark.parametrize("change", [{"env": "another"}, {"prompt": (Message("user", "Anew?"),)}])
def test_trees_of_other_tasks_are_not_taken_for_ones_own(tmp_path, change):
    policy = ScriptedPolicy(lambda t: "42")
    go(env_of(2), single_turn(), policy, out=tmp_path)
    env = FakeEnv([dataclasses.replace(task(f"t{i}"), **change) for i in range(2)])
    with pytest.raises(ConfigError, match="trees of other tasks"):
        go(env, single_turn(), policy, out=tmp_path)


def test_most_rollouts_failing_stops_the_collection_with_the_reason():
    env = env_of(100)
    with pytest.raises(InfraError, match="the engine went away") as caught:
        go(env, single_turn(), Flaky(10**6), retries=0, concurrency=2)
    assert "8 of 8 rollouts failed" in str(caught.value)
    assert "max_failed is 0.5" in str(caught.value)
    assert "--max-failed 1" in str(caught.value)
    assert "No folder was given" in str(caught.value)


@pytest.mark.parametrize(
    ("max_failed", "stops"), [(0.0, 8), (0.5, 8), (0.74, 8), (0.75, 0), (1, 0)]
)
def test_how_many_may_fail_is_the_users_choice(tmp_path, max_failed, stops):
    """Of each four rollouts, the last three fail."""

    async def mostly(cursor, open_env):
        if int(cursor.tree.task.id[1:]) % 4:
            raise EngineError("the engine went away")
        await single_turn()(cursor, open_env)

    def run():
        how = {"retries": 0, "concurrency": 1, "max_failed": max_failed, "out": tmp_path}
        return go(env_of(12), mostly, ScriptedPolicy(lambda t: "42"), **how)

    if not stops:
        trees = run()
        assert sum(a.error is not None for t in trees for a in t.attempts) == 9
        return
    with pytest.raises(InfraError, match=f"6 of {stops} rollouts failed") as caught:
        run()
    assert f"The others are kept in {tmp_path}" in str(caught.value)
    assert len(load(tmp_path)) == stops


def test_a_share_that_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="max_failed is a share from 0 to 1"):
        go(env_of(1), single_turn(), ScriptedPolicy(lambda t: "42"), max_failed=1.5)


def test_a_bug_in_a_rollout_is_raised_and_names_the_task():
    async def broken(cursor, open_env):
        await open_env()
        raise ZeroDivisionError("bug")

    env = env_of(3)
    with pytest.raises(ZeroDivisionError) as caught:
        go(env, broken, ScriptedPolicy([]))
    assert "t0" in caught.value.__notes__[0]
    assert all(e.closed for e in env.episodes)

    async def silent(cursor, open_env):
        cursor.begin(await (await open_env()).reset())

    with pytest.raises(ConfigError, match="recorded no attempt"):
        go(env, silent, ScriptedPolicy([]))


def test_resume_runs_only_what_is_missing(tmp_path):
    policy = ScriptedPolicy(lambda t: "42")
    go(env_of(3), single_turn(), policy, out=tmp_path, samples=2)
    assert policy.calls == 6
    trees = go(env_of(5), single_turn(), policy, out=tmp_path, samples=2)
    assert policy.calls == 10
    assert len(trees) == len(load(tmp_path)) == 10


def test_resume_runs_infrastructure_failures_again(tmp_path):
    env = FakeEnv([task("a", "x"), task("b", "y")])
    go(env, single_turn(), Flaky(1), retries=0, out=tmp_path)
    trees = go(env, single_turn(), ScriptedPolicy(lambda t: "42"), out=tmp_path)
    assert [t.attempts[-1].reward for t in trees] == [1.0, 1.0]
    assert [t.attempts[-1].reward for t in load(tmp_path)] == [1.0, 1.0]


def test_another_tokenizer_is_refused(tmp_path):
    go(env_of(1), single_turn(), ScriptedPolicy(lambda t: "42"), out=tmp_path)

    class Other(ByteTokenizer):
        fingerprint = "other"

    with pytest.raises(ConfigError, match="another tokenizer"):
        go(
            env_of(1),
            single_turn(),
            ScriptedPolicy(lambda t: "42", tokenizer=Other()),
            out=tmp_path,
        )


def test_same_seed_same_trees():
    def once():
        trees = go(env_of(4), tool_loop(), ScriptedPolicy(lambda t: "42"), samples=2, seed=3)
        return [{**t.to_json(), "meta": 0} for t in trees]

    assert once() == once()


def test_cancelling_closes_every_episode_and_keeps_finished_trees(tmp_path):
    env = env_of(10)

    class SlowLater(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            if self.calls >= 4:
                await asyncio.sleep(30)
            return await super().sample(prompt_ids, params)

    async def main():
        policy = SlowLater(lambda t: "42")
        job = asyncio.create_task(
            collect(env, single_turn(), policy, out=tmp_path, concurrency=2, progress=False)
        )
        await asyncio.sleep(0.3)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job

    asyncio.run(main())
    assert len(load(tmp_path)) == 4
    assert all(e.closed for e in env.episodes)


def test_most_attempts_cut_off_is_said():
    with pytest.warns(UserWarning, match="4 of 4 attempts were cut off by a token limit"):
        go(env_of(4), single_turn(), ScriptedPolicy(lambda t: "4" * 99), params=SamplingParams(9))


def test_bad_arguments():
    with pytest.raises(ConfigError, match="samples is at least 1"):
        go(env_of(1), single_turn(), ScriptedPolicy([]), samples=0)
    with pytest.raises(ConfigError, match="same id"):
        go(FakeEnv([task("a"), task("a")]), single_turn(), ScriptedPolicy([]))


KILLED = """
import asyncio, sys, time
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.rollouts import single_turn
from tests.store.test_collect import env_of

policy = ScriptedPolicy(lambda t: "42", latency=0.02)
asyncio.run(
    collect(env_of(200), single_turn(), policy, out=sys.argv[1], concurrency=4, progress=False)
)
"""


def test_kill_minus_nine_during_collection_then_resume_loses_and_doubles_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)])
    while process.poll() is None and (not (tmp_path / FILE).exists() or len(load(tmp_path)) < 20):
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = load(tmp_path)
    assert 20 <= len(before) < 200
    policy = ScriptedPolicy(lambda t: "42")
    go(env_of(200), single_turn(), policy, out=tmp_path)
    assert policy.calls == 200 - len(before), "what was finished is not run again"
    after = load(tmp_path)
    assert sorted(t.task.id for t in after) == sorted(f"t{i}" for i in range(200))
    assert after[: len(before)] == before


class Seeded(ScriptedPolicy):
    """Right or wrong, early or late by the seed alone."""

    async def sample(self, prompt_ids, params):
        self.calls += 1
        await asyncio.sleep(params.seed % 7 / 1000)
        answer = "42" if params.seed % 3 == 0 else "41"
        return await ScriptedPolicy([answer]).sample(prompt_ids, params)


def until(right: int):
    """Enough for a task: so many right answers. `seen` has what it was shown."""
    found: dict[str, int] = {}
    seen: list[tuple[str, int]] = []

    def enough(tree: Tree) -> bool:
        seen.append((tree.task.id, tree.meta["attempt"]))
        found[tree.task.id] = found.get(tree.task.id, 0) + (tree.attempts[-1].reward == 1.0)
        return found[tree.task.id] >= right

    return enough, seen


def test_each_task_is_attempted_until_it_has_enough():
    results = []
    for concurrency in (1, 3, 16):
        enough, seen = until(2)
        policy = Seeded([])
        trees = go(
            env_of(4), single_turn(), policy, samples=40, enough=enough, concurrency=concurrency
        )
        results.append([(t.task.id, t.meta["attempt"], t.attempts[-1].reward) for t in trees])
        assert sorted(seen) == sorted(r[:2] for r in results[-1]), "each tree is shown once"
        assert policy.calls <= len(trees) + 4 * concurrency, "not far beyond what was wanted"
    assert results[0] == results[1] == results[2], "who was faster does not matter"
    for id in ("t0", "t1", "t2", "t3"):
        rewards = [r for t, _, r in results[0] if t == id]
        assert sum(rewards) == 2
        assert rewards[-1] == 1.0


def test_a_task_that_never_has_enough_stops_at_the_cap():
    policy = ScriptedPolicy(lambda t: "41")
    trees = go(env_of(2), single_turn(), policy, samples=5, enough=until(1)[0])
    assert len(trees) == policy.calls == 10


def test_what_is_enough_is_counted_over_a_resume(tmp_path):
    whole = go(env_of(3), single_turn(), Seeded([]), samples=40, enough=until(3)[0])
    options = {"samples": 40, "concurrency": 1, "out": tmp_path}
    go(env_of(3), single_turn(), Seeded([]), enough=until(1)[0], **options)
    on_disk = len(load(tmp_path))
    policy = Seeded([])
    trees = go(env_of(3), single_turn(), policy, enough=until(3)[0], **options)
    assert [t.meta["attempt"] for t in trees] == [t.meta["attempt"] for t in whole]
    assert 0 < policy.calls <= len(trees) - 3
    assert len(load(tmp_path)) == on_disk + policy.calls
    again = Seeded([])
    go(env_of(3), single_turn(), again, enough=until(3)[0], **options)
    assert again.calls == 0


def test_a_slow_attempt_does_not_let_the_others_run_on():
    class FirstHangs(ScriptedPolicy):
        async def sample(self, prompt_ids, params):
            self.calls += 1
            await asyncio.sleep(0.2 if self.calls == 1 else 0)
            return await ScriptedPolicy(["42"]).sample(prompt_ids, params)

    policy = FirstHangs([])
    enough, _ = until(2)
    trees = go(env_of(1), single_turn(), policy, samples=500, enough=enough, concurrency=4)
    assert len(trees) == 2
    assert policy.calls <= 5

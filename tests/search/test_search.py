"""Searches in a toy: three lines of one digit each, right if all are 1."""

from __future__ import annotations

import asyncio
import math
from random import Random

import pytest

from agentrl import evaluate
from agentrl.cli import main
from agentrl.collect import collect
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import ConfigError, EngineError, StoreError
from agentrl.rollouts import make
from agentrl.search.core import together
from agentrl.search.evaluators import ByValue, SelfEvaluation, option_masses
from agentrl.search.table import Table
from agentrl.types import Completion, Message, SamplingParams, Step, Task


class Digits:
    """Says a digit a line, drawn by the call's seed, and ends after three lines.

    `trace` holds what it was shown and what it said. It fails at call number `fails`.
    """

    name, version, max_context = "digits", 0, 1 << 16

    def __init__(self, right: float = 0.5, fails: int | None = None) -> None:
        self.tokenizer, self.right, self.fails = ByteTokenizer(), right, fails
        self.trace: list[tuple[int, ...]] = []
        self.tokens = 0

    async def sample(self, ids, params: SamplingParams) -> Completion:
        if self.fails is not None and len(self.trace) == self.fails:
            raise EngineError("the engine is down")
        self.trace.append(tuple(ids))
        await asyncio.sleep(0)
        draw = Random(params.seed)
        said = self.tokenizer.decode(ids).rpartition("assistant\n")[2]
        out: list[int] = []
        while len(out) < params.max_tokens:
            line, text = said.count("\n"), said + self.tokenizer.decode(out)
            line = text.count("\n")
            if line == 3:
                out.append(257)
                break
            if text and text[-1] in "01":
                out.append(10)
                if "\n" in params.stop:
                    self.tokens += len(out)
                    return Completion(tuple(out), (-0.7,) * len(out), "stop", 0, "\n")
            else:
                one = params.temperature == 0 or draw.random() < self.right
                out.append(ord("1" if one else "0"))
        finish = "eos" if out[-1] == 257 else "length"
        self.tokens += len(out)
        return Completion(tuple(out), (-0.7,) * len(out), finish, 0)

    async def score(self, ids):
        return [-0.7] * (len(ids) - 1)

    async def update(self, weights):
        self.version += 1

    async def close(self):
        pass


class Ones:
    """Grades: are all three lines 1?"""

    name, tools = "ones", ()

    def __init__(self, n: int = 1, scored: bool = True) -> None:
        self.n, self.scored, self.graded = n, scored, 0

    def tasks(self, n=None):
        return [
            Task(f"t{i}", (Message("user", f"ones {i}"),), "ones", data={"answer": "111"})
            for i in range(self.n)
        ][:n]

    def open(self, task, box):
        return OnesEpisode(self, task)


class OnesEpisode:
    tools = ()

    def __init__(self, env, task):
        self.env, self.task = env, task

    async def reset(self):
        return self.task.prompt

    async def step(self, message):
        self.env.graded += 1
        answer = message.content.replace("\n", "")
        reward = float(answer == "111") if self.env.scored else None
        return Step(reward=reward, terminated=True, info={"answer": answer})

    async def close(self):
        pass


async def ones(task, text):
    """The share of ones among the lines."""
    lines = [x for x in text.split("\n") if x.strip("\x00")]
    return sum(x.startswith("1") for x in lines) / max(len(lines), 1)


async def all_ones(task, text):
    """As iTool's grades: below 0 for what is not right."""
    return await ones(task, text) - 0.9


def searched(name, policy=None, env=None, *, tasks=1, seed=0, retries=0, **options):
    policy = policy or Digits()
    env = env or Ones(tasks)
    trees = asyncio.run(
        collect(
            env,
            make(name, **options),
            policy,
            params=SamplingParams(32, 1.0),
            seed=seed,
            retries=retries,
            progress=False,
        )
    )
    return trees, policy


def texts(tree):
    return [a.answer for a in tree.attempts]


JUDGED = {"judge": ByValue(ones)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mcts", {"outcome": False, "b1": 16, "b2": 16}),
        ("best_first", {"width": 16}),
        ("beam", {"width": 16}),
        ("best_of_n", {"candidates": 200}),
        ("itool", {"width": 200, "iterations": 40, "judge": ByValue(all_ones)}),
    ],
)
def test_a_search_with_a_good_judge_finds_what_sampling_rarely_does(name, options):
    trees, _ = searched(name, Digits(0.3), tasks=6, **{**JUDGED, **options})
    assert [t.attempts[-1].answer for t in trees] == ["111"] * 6
    assert evaluate.summarize(evaluate.final(trees))["accuracy"] == 1.0
    plain, _ = searched("single_turn", Digits(0.3), tasks=6)
    assert evaluate.summarize(evaluate.final(plain))["accuracy"] < 0.5


def test_nothing_is_sampled_or_recorded_twice():
    trees, policy = searched("mcts", outcome=True, **JUDGED)
    tree = trees[0]
    table = Table.from_json(tree.meta["search"])
    inside = sum(len(n.token_ids) for n in tree.nodes if n.source == "policy")
    assert table.tokens == policy.tokens == inside
    for state in table.states[1:]:
        assert tree.path(state.node)[-1].id == state.node
    assert len({s.node for s in table.states}) == len(table.states)


def test_outcomes_guide_and_every_graded_path_is_an_attempt():
    env = Ones()
    trees, _ = searched("mcts", Digits(0.4), env, judge=None, outcome=True, b1=12, b2=12)
    tree, table = trees[0], Table.from_json(trees[0].meta["search"])
    assert len(tree.attempts) == sum(s.outcome is not None for s in table.states) == env.graded
    assert tree.attempts[-1].reward == 1.0
    assert tree.attempts[-1].leaf == table.states[table.chosen].node
    assert {a.reward for a in tree.attempts} == {0.0, 1.0}


def test_what_is_not_scored_is_no_failure():
    trees, _ = searched("mcts", env=Ones(scored=False), outcome=True, **JUDGED)
    table = Table.from_json(trees[0].meta["search"])
    assert all(s.outcome is None and s.reward >= -1 for s in table.states)
    assert trees[0].attempts[-1].reward is None


def test_one_iteration_at_a_time_is_reproducible_and_many_find_the_same_steps():
    first, _ = searched("mcts", outcome=True, **JUDGED)
    again, _ = searched("mcts", outcome=True, **JUDGED)
    seconds = ("seconds",)
    one, two = (
        {k: v for k, v in t[0].meta["search"].items() if k not in seconds} for t in (first, again)
    )
    assert one == two
    assert first[0].nodes == again[0].nodes
    other, _ = searched("mcts", outcome=True, seed=1, **JUDGED)
    assert other[0].nodes != first[0].nodes


def test_iterations_at_once_go_different_ways_and_leave_nothing_behind():
    options = {"b1": 12, "iterations": 8, "first": 1, "judge": ByValue(never), "outcome": False}
    visited = []
    for at_once in (1, 4):
        trees, _ = searched("mcts", Digits(0.5), at_once=at_once, **options)
        table = Table.from_json(trees[0].meta["search"])
        root = table.states[0]
        assert root.visits == root.full == 8
        moved = table.path(table.states[table.chosen])[1]  # the next root, searched on its own
        assert sum(s.visits for s in table.children(root)) == 8 + 8 * (not moved.terminal)
        visited.append(sum(s.visits > 0 for s in table.children(root)))
        assert all(not s.under_way for s in table.states)
    assert visited[1] >= 2


def test_a_stopped_search_goes_on_where_it_was(tmp_path):
    options = {"outcome": True, "iterations": 4, **JUDGED}
    whole, policy = searched("mcts", **options)
    calls = len(policy.trace)
    for fails in range(1, calls, 3):
        folder = tmp_path / str(fails)
        trees, _ = searched("mcts", Digits(fails=fails), folder=str(folder), **options)
        assert trees[0].attempts[-1].error is not None
        trees, second = searched("mcts", folder=str(folder), **options)
        assert texts(trees[0]) == texts(whole[0])
        ours, theirs = (t[0].meta["search"]["states"] for t in (trees, whole))
        for a, b in zip(ours, theirs, strict=True):
            assert {**a, "node": 0} == {**b, "node": 0}
        assert len(second.trace) <= calls
        assert not list(folder.iterdir())


def test_when_one_iteration_fails_the_others_end_with_it():
    after = []

    async def slow(gate):
        await gate.wait()
        after.append("went on")

    async def broken():
        raise EngineError("the engine is down")

    async def both():
        gate = asyncio.Event()
        with pytest.raises(EngineError, match="down"):
            await together([slow(gate), broken(), slow(gate)])
        gate.set()
        await asyncio.sleep(0.01)

    asyncio.run(both())
    assert after == []


def test_many_iterations_at_once_stop_and_go_on_too(tmp_path):
    options = {"outcome": True, "at_once": 4, "b1": 8, **JUDGED}
    trees, _ = searched("mcts", Digits(fails=12), folder=str(tmp_path), **options)
    assert "the engine is down" in trees[0].attempts[-1].error
    trees, _ = searched("mcts", folder=str(tmp_path), **options)
    assert trees[0].attempts[-1].error is None
    table = Table.from_json(trees[0].meta["search"])
    assert table.states[0].visits == 32
    inside = sum(len(n.token_ids) for n in trees[0].nodes if n.source == "policy")
    assert table.tokens == inside


@pytest.mark.parametrize(
    ("name", "option"), [("mcts", "b2"), ("rain", "width"), ("beam", "beams"), ("itool", "group")]
)
def test_numbers_that_search_nothing_are_refused(name, option):
    with pytest.raises(ConfigError, match=f"{option} is 1 or more"):
        make(name, **{option: 0})


@pytest.mark.parametrize("limit", [{"max_tokens": 0}, {"seconds": -1.0}])
def test_a_budget_for_nothing_is_refused(limit):
    with pytest.raises(ConfigError, match="finds nothing: give more than 0"):
        make("mcts", outcome=True, **limit)


def test_a_search_of_another_prompt_is_not_taken(tmp_path):
    searched("mcts", Digits(fails=6), outcome=True, folder=str(tmp_path), **JUDGED)
    (file,) = tmp_path.iterdir()
    file.write_text("{}")
    with pytest.raises(StoreError, match="no stopped search"):
        searched("mcts", outcome=True, folder=str(tmp_path), **JUDGED)


def test_a_budget_of_tokens_ends_the_search_but_not_the_answer():
    trees, _ = searched("mcts", outcome=True, iterations=50, max_tokens=20, **JUDGED)
    table = Table.from_json(trees[0].meta["search"])
    assert table.tokens < 60
    assert len(trees[0].attempts[-1].answer) == 3


def test_a_path_without_room_is_truncated():
    env, policy = Ones(), Digits()
    rollout = make("mcts", outcome=True, **JUDGED)
    trees = asyncio.run(
        collect(env, rollout, policy, params=SamplingParams(4, 1.0), progress=False)
    )
    assert trees[0].attempts[-1].stop_reason == "max_tokens"
    assert max(a.metrics["sampled_tokens"] for a in trees[0].attempts) >= 4


async def always(task, text):
    return 1.0


async def never(task, text):
    return -1.0


def test_rain_keeps_a_group_after_more_than_t_min_visits():
    trees, _ = searched("rain", judge=ByValue(always), t_min=6, width=4)
    table = Table.from_json(trees[0].meta["search"])
    kept = table.path(table.states[table.chosen])[1]
    assert kept.full >= 7
    first = [s for s in table.states if s.depth == 1]
    assert all(s.full <= 7 for s in first if s is not kept)


def test_rain_spends_all_of_its_budget_on_what_is_bad():
    trees, _ = searched("rain", judge=ByValue(never), iterations=20, least=5, width=4)
    table = Table.from_json(trees[0].meta["search"])
    path = table.path(table.states[table.chosen])
    assert table.iterations >= 20 + 5 * (len(path) - 2)
    assert path[0].full == 20


def test_evaluation_refuses_what_saw_the_reference():
    trees, _ = searched("mcts", outcome=True, **JUDGED)
    with pytest.raises(ConfigError, match="reference answer in view"):
        evaluate.summarize(evaluate.final(trees))
    assert make("mcts", outcome=True).sees_reference
    assert make("itool").sees_reference
    assert make("mcts", outcome=False, reference=True).sees_reference
    assert not make("mcts", outcome=False).sees_reference
    with pytest.raises(ConfigError, match="nothing tells paths apart"):
        make("best_of_n", judge=None)


class Options(Digits):
    """Gives the options their probabilities; `swayed` prefers whatever stands first."""

    def __init__(self, swayed: bool) -> None:
        super().__init__()
        self.swayed, self.asked = swayed, []

    async def score(self, ids):
        text = self.tokenizer.decode(ids)
        self.asked.append(text)
        good_first = "(A) correct" in text
        likes_a = self.swayed or good_first
        end = text.rpartition("The answer is (")[2]
        mass = {"A": 0.7 if likes_a else 0.2, "B": 0.2 if likes_a else 0.7}.get(end, 0.0)
        logs = [0.0] * (len(ids) - 1)
        logs[-1] = math.log(mass) if mass else -1e9
        return logs


def test_options_count_as_whole_tokens():
    policy = Options(swayed=True)
    from agentrl.chat import Chat

    ids = policy.tokenizer.encode("The answer is (")
    masses = asyncio.run(option_masses(policy, Chat(policy.tokenizer), ids, "AB"))
    assert masses == pytest.approx([0.7, 0.2])


@pytest.mark.parametrize(("swayed", "value"), [(False, 0.7), (True, 0.45)])
def test_the_order_of_options_does_not_decide(swayed, value):
    policy = Options(swayed)
    trees, _ = searched("best_of_n", policy, candidates=2, judge=SelfEvaluation())
    table = Table.from_json(trees[0].meta["search"])
    assert table.states[1].confidence == pytest.approx(value)
    assert not any("111" in t.split("Solution so far")[0] for t in policy.asked)
    votes, _ = searched(
        "best_of_n", Options(swayed), candidates=2, judge=SelfEvaluation(votes=True)
    )
    assert votes[0].meta["search"]["states"][1]["confidence"] == (0.0 if swayed else 1.0)


def test_the_reference_is_shown_only_where_it_is_asked_for():
    policy = Options(False)
    searched("best_of_n", policy, candidates=2, judge=SelfEvaluation(reference=True))
    assert all("Reference answer: 111" in t for t in policy.asked)


def test_the_command_refuses_to_evaluate_with_the_answer_in_view(capsys):
    command = [
        "eval",
        "--env",
        "arithmetic",
        "--policy",
        "scripted:tests.test_cli:answer",
        "-n",
        "1",
    ]
    assert main([*command, "--rollout", "itool"]) != 0
    assert "reference answer in view" in capsys.readouterr().err

"""The RISE recipe from scratch on a CPU in seconds: later turns learn what earlier ones show."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import random
from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="needs the extra 'train'")

from agentrl.claims import rise as claim  # noqa: E402
from agentrl.claims.base import fresh, imitate, policy, rows  # noqa: E402
from agentrl.config import RunFolder, settings  # noqa: E402
from agentrl.engines.characters import CharTokenizer  # noqa: E402
from agentrl.engines.scripted import ScriptedPolicy  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.recipes import rise  # noqa: E402
from agentrl.store import load  # noqa: E402
from agentrl.types import Message, Step, Task  # noqa: E402

TOKENIZER = CharTokenizer()
ANSWERS = {"a": "x", "b": "y", "c": "z"}


class Letters:
    """`a1`, `a2`, ... are answered by x, `b1`, ... by y: three answers, of which one is right."""

    name, tools = "letters", ()

    def __init__(self, numbers) -> None:
        self.names = [f"{letter}{n}" for n in numbers for letter in ANSWERS]

    def tasks(self, n=None):
        return [
            Task(name, (Message("user", name),), self.name, data={"answer": ANSWERS[name[0]]})
            for name in self.names[:n]
        ]

    def open(self, task, box):
        return Episode(task)


class Episode:
    tools = ()

    def __init__(self, task) -> None:
        self.task = task

    async def reset(self):
        return self.task.prompt

    async def step(self, message):
        right = message.content == self.task.data["answer"]
        return Step(reward=float(right), terminated=True, info={"answer": message.content})

    async def close(self) -> None:
        pass


TRAIN, TEST = Letters(range(1, 7)), Letters(range(7, 10))


@functools.cache
def guessing():
    """A model that answers with any of the three letters, in every turn."""
    rng = random.Random(0)
    talks = []
    for name in (TRAIN.names + TEST.names) * 6:
        first, second = rng.choices("xyz", k=2)
        talk = [("user", name), ("assistant", first), ("user", "?" + name), ("assistant", second)]
        talks.append(talk)
    model = fresh(TOKENIZER, 0, hidden=48, layers=1, max_positions=64)
    return imitate(model, rows(TOKENIZER, talks), steps=120)


OPTIONS = {
    "rollout_options": {"feedback": "?"},
    "n": 18,
    "eval_n": 9,
    "iterations": 1,
    "eval_turns": 3,
    "candidates": 8,
    "max_tokens": 4,
    "lr": 3e-3,
    "epochs": 15,
    "batch_size": 16,
    "train_dtype": "fp32",
}


def learnt(folder, *, teacher=None, resume=False, **changes):
    config = rise.Config(**(OPTIONS | changes))
    run = RunFolder(folder, settings(config), resume=resume)
    student = policy(copy.deepcopy(guessing()), TOKENIZER)
    learning = rise.learn(config, student, TRAIN, TEST, run, teacher=teacher, progress=False)
    return asyncio.run(learning)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rise") / "run"
    return folder, learnt(folder)


def test_one_iteration_teaches_the_second_turn(run):  # section 7, test 15
    _, summary = run
    before, after = summary["metrics"]
    assert before["acc@t2"] < 0.7
    assert after["acc@t2"] > before["acc@t2"] + 0.25
    assert after["m1@t3"] > before["m1@t3"]
    assert summary["tuned"]["accuracy"] == pytest.approx(after["m1@t3"], abs=1e-4)
    assert summary["baseline_first"]["n"] == 9
    assert {"m3@t1", "p1@t3", "change_rate", "truncated", "failed"} <= after.keys()
    assert after["p1@t3"] >= max(after[f"acc@t{t}"] for t in (1, 2, 3))
    assert after["p1@t1"] == after["m1@t1"]


def test_what_was_collected_is_counted(run):
    folder, summary = run
    made = summary["iterations"][0]
    trees = load(folder / "trees" / "collect_1")
    assert made["attempts"] == len(list(trees)) == 18
    assert made["right_at_once"] + made["right_improved"] <= 18
    assert made["rows"] == made["training"]["samples"] > 18
    assert summary["contaminated"] == 0
    assert json.loads((folder / "summary.json").read_text())["iterations"] == summary["iterations"]
    assert (folder / "model" / "config.json").exists()


def test_an_interrupted_run_ends_as_if_it_had_not_been(run, tmp_path, monkeypatch):
    measure = rise._measure

    async def interrupted(phases, config, phase, *others):
        if phase == "after_1":
            raise KeyboardInterrupt
        return await measure(phases, config, phase, *others)

    monkeypatch.setattr(rise, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learnt(tmp_path / "run")
    monkeypatch.undo()
    _, whole = run
    summary = learnt(tmp_path / "run", resume=True)
    assert summary["resumed"]
    assert summary["metrics"] == whole["metrics"]


def test_the_evaluation_shows_no_more_history_than_training(run):
    folder, _ = run
    for tree in load(folder / "trees" / "after_1_sequence"):
        asked = [n for n in tree.path(tree.attempts[-1].leaf) if n.role == "user"]
        assert len(asked) == 2, "the task and one request; three turns were taken"
        assert len(tree.attempts[-1].metrics["turns"]) == 3


def test_a_finished_run_is_not_done_again(run):
    folder, summary = run
    config = rise.Config(**OPTIONS)
    again = asyncio.run(rise.run(config, RunFolder(folder, settings(config), resume=True)))
    assert again == json.loads(json.dumps(summary))


@pytest.mark.parametrize("lora", [0, 4])
def test_a_teachers_turns_are_learnt_and_each_iteration_collects_anew(tmp_path, lora):
    def script(text: str) -> str:
        return ANSWERS[text.rsplit("<|user|>?", 1)[1][0]]

    teacher = ScriptedPolicy(script, name="teacher", tokenizer=TOKENIZER)
    summary = learnt(tmp_path / "run", teacher=teacher, iterations=2, epochs=2, lora=lora)
    first, second = summary["iterations"]
    assert first["right_at_once"] + first["right_improved"] == 18
    assert first["dropped"] == {}
    assert second["training"]["samples"] == second["rows"]
    answers = [
        [
            a.metrics["turns"][0]["answer"]
            for t in load(tmp_path / "run/trees" / f"collect_{k}")
            for a in t.attempts
        ]
        for k in (1, 2)
    ]
    assert answers[0] != answers[1]
    versions = [
        Counter(
            n.policy_version for t in load(tmp_path / "run/trees" / f"collect_{k}") for n in t.nodes
        )
        for k in (1, 2)
    ]
    assert len({*versions[0], *versions[1]} - {None}) == 2, "by the policy as it is then"


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"eval_turns": 1}, "eval_turns"),
        ({"temperature": 0.0}, "greedy"),
        ({"tau": 0.0}, "tau"),
        ({"n": 0}, "n is at least 1"),
        ({"turns": 1}, "rise_collect"),
        ({"rollout_options": {"window": 3}}, "rollout_options"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, cause):
    with pytest.raises(ConfigError, match=cause):
        rise.check(rise.Config(**changes))


def test_the_presets_are_settings_of_the_recipe():
    assert len(rise.Config.__dataclass_fields__) <= 25
    for preset in rise.PRESETS.values():
        rise.check(rise.Config(**preset))


def test_the_claim_runs_its_arms(tmp_path):
    size = claim.Size(
        length=4, base_rows=128, base_steps=20, n=8, eval_n=8, candidates=2, iterations=1
    )
    made = claim.run(0, tmp_path, size)
    assert made.keys() == {"base", *claim.ARMS}
    for effect in claim.CLAIM.effects:
        assert abs(effect.difference(made)) <= 1

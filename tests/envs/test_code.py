"""Programs judged by tests: extraction, grades, feedback, sets, and what is never a grade."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import envs
import sandboxes
from agentrl.collect import collect
from agentrl.engines.scripted import ScriptedPolicy
from agentrl.errors import ConfigError, DataError, IsolationError, SandboxError
from agentrl.interfaces import Sandbox
from agentrl.rollouts import replay, self_debug, single_turn
from agentrl.testing import check_env
from agentrl.types import Message, Step, Task, Verdict
from envs.code import NO_PROGRAM, program_of
from envs.code_sets import SETS
from sandboxes.feedback import HIDDEN
from tests.envs.canned_box import CannedBox


@pytest.fixture(scope="module")
def arena() -> Iterator[tuple[asyncio.Runner, Sandbox]]:
    """An event loop with a sandbox."""
    with asyncio.Runner() as runner:
        box = sandboxes.open("embedded")
        try:
            opened = runner.run(box.__aenter__())
        except IsolationError as error:
            pytest.skip(f"no isolation on this machine: {error}")
        yield runner, opened
        runner.run(box.__aexit__(None, None, None))


def block(program: str) -> str:
    return f"Here it is.\n```python\n{program}\n```\n"


async def step(env: Any, task: Task, text: str, box: Sandbox | None) -> Step:
    episode = env.open(task, box)
    try:
        await episode.reset()
        return await episode.step(Message("assistant", text))
    finally:
        await episode.close()


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("first\n```py\nx = 1\n```\nthen\n```python\nx = 2\n```\nend", "x = 2\n"),
        ("```python\nx = 1\n```\n```text\nno code\n```", "x = 1\n"),
        ("cut off\n```python\ndef f():\n    ret", "def f():\n    ret"),
        ("def f():\n    return 1", "def f():\n    return 1"),
        ("Sure!\nimport math\ndef f(): pass", "import math\ndef f(): pass"),
        ("I do not know.", None),
        ("It is from 3 to 4, or import them.", None),
        ("```text\ndef f(): pass\n```", None),
        ("", None),
    ],
)
def test_the_program_of_an_answer(text: str, program: str | None) -> None:
    assert program_of(text) == program


def test_the_contract(arena: Any) -> None:
    check_env(envs.make("code"), n=30)
    check_env(envs.make("code", split="test", repair=True, seed=1), n=30)
    check_env(envs.make("code"), sandboxes.open("embedded"), n=1)


def test_every_built_in_solution_passes_and_every_wrong_program_fails_a_visible_test(
    arena: Any,
) -> None:
    runner, box = arena
    gate = asyncio.Semaphore(4)

    async def one(env: Any, task: Task) -> tuple[Step, Step]:
        async with gate:
            right = await step(env, task, block(task.data["solution"]), box)
            return right, await step(env, task, block(task.data["wrong"]), box)

    async def everything() -> list[tuple[Step, Step]]:
        made = [envs.make("code", split=split) for split in ("train", "test")]
        pairs = [(env, task) for env in made for task in env.tasks()]
        assert [len(env.tasks()) for env in made] == [24, 16]
        return await asyncio.gather(*(one(env, task) for env, task in pairs))

    for right, wrong in runner.run(everything()):
        assert (right.reward, right.info["feedback"], right.info["status"]) == (1.0, "", "passed")
        assert wrong.reward == 0.0
        assert wrong.info["feedback"].startswith("assert "), wrong.info


def problem(tmp_path: Path, *tests: str, **options: Any) -> tuple[Any, Task]:
    """An environment of one problem of our own, `f`."""
    record = {
        "task_id": "f",
        "split": "train",
        "text": "Write f.",
        "code": "def f(x=3):\n    return x",
        "test_setup_code": "",
        "test_list": list(tests),
    }
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(record) + "\n")
    env = envs.make("code", path=file, **options)
    return env, env.tasks()[0]


def test_feedback_shows_a_visible_test_and_hides_the_others(arena: Any, tmp_path: Path) -> None:
    runner, box = arena
    env, task = problem(tmp_path, "assert f(1) == 1", "assert f(77) == 77")
    assert "assert f(1) == 1" in task.prompt[-1].content
    assert "77" not in task.prompt[-1].content

    def told(program: str, env: Any = env) -> Step:
        return runner.run(step(env, task, block(program), box))

    assert told("def f(x):\n    return 4").info["feedback"] == (
        "assert f(1) == 1\nAssertionError: it gave 4"
    )
    hidden = told("def f(x):\n    return 1")
    assert (hidden.reward, hidden.info["feedback"], hidden.info["passed"]) == (0.0, HIDDEN, 0.5)
    secret = told("def f(x):\n    return {1: 1}[x]")
    assert secret.info["feedback"] == HIDDEN, "a KeyError would name the hidden input"
    everything, _ = problem(tmp_path, "assert f(1) == 1", "assert f(77) == 77", feedback="all")
    shown = told("def f(x):\n    return 1", everything)
    assert shown.info["feedback"] == "assert f(77) == 77\nAssertionError: it gave 1"
    fraction, _ = problem(tmp_path, "assert f(1) == 1", "assert f(77) == 77", reward="fraction")
    assert told("def f(x):\n    return 1", fraction).reward == 0.5


def test_feedback_names_lines_of_the_program(arena: Any, tmp_path: Path) -> None:
    """LeTI's exact test: the frame is line 2 of the program, never a wrapper's."""
    runner, box = arena
    env, task = problem(tmp_path, "assert f() == 1", timeout=2.0)

    def told(program: str) -> str:
        return str(runner.run(step(env, task, block(program), box)).info["feedback"])

    assert told("def f():\n    return 1/0") == (
        "assert f() == 1\n"
        "Traceback (most recent call last):\n"
        '  File "solution.py", line 2, in f\n'
        "    return 1/0\n"
        "ZeroDivisionError: division by zero"
    )
    assert told("def f():\n    return (1 +") == (
        "  File \"solution.py\", line 2\n    return (1 +\nSyntaxError: '(' was never closed"
    )
    assert told("def f():\n    while True: pass") == "timeout"
    assert told("import os\nos._exit(0)") == "exit"
    assert told("def g(): pass") == (
        "assert f() == 1\nAttributeError: module 'solution' has no attribute 'f'"
    )


def test_feedback_is_bounded(arena: Any, tmp_path: Path) -> None:
    runner, box = arena
    env, task = problem(tmp_path, "assert f() == 1")
    loud = block("def f():\n    raise ValueError('x' * 100000)")
    text = runner.run(step(env, task, loud, box)).info["feedback"]
    assert len(text) < 2100
    assert "left out" in text


def test_an_answer_without_a_program_needs_no_sandbox() -> None:
    env = envs.make("code")
    found = asyncio.run(step(env, env.tasks(1)[0], "I do not know.", None))
    assert (found.reward, found.info["feedback"]) == (0.0, NO_PROGRAM)
    with pytest.raises(ConfigError, match="needs a sandbox"):
        asyncio.run(step(env, env.tasks(1)[0], block("x = 1"), None))


class BrokenBox(CannedBox):
    """A sandbox whose sessions all fail."""

    def session(self, *args: Any, **options: Any) -> Any:
        raise SandboxError("no more sessions")


def test_a_failure_of_the_judge_is_no_grade() -> None:
    env = envs.make("code")
    with pytest.raises(SandboxError, match="the judge failed: no more sessions"):
        asyncio.run(step(env, env.tasks(1)[0], block("x = 1"), BrokenBox()))


def test_programs_reach_the_environment_in_their_blocks(arena: Any) -> None:
    runner, box = arena
    env = envs.make("code", n=2)
    answers = {t.prompt[-1].content[:30]: block(t.data["solution"]) for t in env.tasks()}
    policy = ScriptedPolicy(lambda text: next(a for q, a in answers.items() if q in text))
    trees = runner.run(collect(env, single_turn(max_tokens=2000), policy, box=box, progress=False))
    assert [t.attempts[0].reward for t in trees] == [1.0, 1.0]
    told = replay(env.demonstrations, max_calls=0)
    trees = runner.run(collect(env, told, policy, box=box, progress=False))
    assert [t.attempts[0].reward for t in trees] == [1.0, 1.0]


def test_a_wrong_program_is_debugged(arena: Any) -> None:
    runner, box = arena
    env = envs.make("code", n=1)
    task = env.tasks()[0]
    policy = ScriptedPolicy([block(task.data["solution"])])
    rollout = self_debug(given=True, max_tokens=2000)
    (tree,) = runner.run(collect(env, rollout, policy, box=box, progress=False))
    made = tree.attempts[0]
    assert [t["reward"] for t in made.metrics["turns"]] == [0.0, 1.0]
    assert made.metrics["feedback"][0].startswith("assert double(3) == 6")


def test_repair_shows_the_wrong_program(tmp_path: Path) -> None:
    task = envs.make("code", repair=True).tasks(1)[0]
    assert task.data["wrong"] in task.prompt[-1].content
    assert task.kind == "builtin"
    with pytest.raises(ConfigError, match=r"no problem.*wrong=FILE\.jsonl"):
        problem(tmp_path, "assert f() == 3", repair=True)
    file = tmp_path / "wrong.jsonl"
    file.write_text('{"task_id": "f", "program": "def f(): return 2"}\n')
    _, task = problem(tmp_path, "assert f() == 3", repair=True, wrong=file)
    assert "def f(): return 2" in task.prompt[-1].content
    with pytest.raises(ConfigError, match="no file"):
        problem(tmp_path, "assert f() == 3", wrong=tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"source": "apps"}, "Known: builtin, humaneval, mbpp"),
        ({"source": "humaneval"}, "split of humaneval"),
        ({"feedback": "some"}, "Known: all, visible"),
        ({"reward": "some"}, "Known: all, fraction"),
        ({"visible": -1}, "at least 0"),
        ({"n": 0}, "at least 1"),
    ],
)
def test_bad_options_say_what_exists(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        envs.make("code", **options)


def test_a_broken_line_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_text('{"task_id": 3}\n')
    with pytest.raises(DataError, match=r"broken\.jsonl, line 1: not a problem"):
        envs.make("code", path=file).tasks()
    monkeypatch.delenv("AGENTRL_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"Set AGENTRL_DATA .*mbpp\.jsonl.*source='builtin'"):
        envs.make("code", source="mbpp").tasks()


def data(name: str) -> None:
    if not Path(os.environ.get("AGENTRL_DATA", ""), name).is_file():
        pytest.skip(f"AGENTRL_DATA does not name a folder with {name}")


def test_mbpp_has_its_splits_and_every_test_is_a_case() -> None:
    data("mbpp/mbpp.jsonl")
    sizes = {}
    for split in SETS["mbpp"].splits:
        tasks = envs.make("code", source="mbpp", split=split).tasks()
        sizes[split] = len(tasks)
        for task in tasks:
            assert task.data["visible"][0] in task.prompt[-1].content
            hidden = set(task.data["hidden"]) - set(task.data["visible"])
            assert not any(test in task.prompt[-1].content for test in hidden)
            SETS["mbpp"].tests(task.data, False)
    assert sizes == {"train": 374, "validation": 90, "test": 500, "prompt": 10}


def test_humaneval_and_mbpp_in_the_sandbox(arena: Any) -> None:
    """A few of each: what all references give is in tests/sandboxes/test_judge_suites.py."""
    data("humaneval/HumanEval.jsonl")
    runner, box = arena
    for source in ("humaneval", "mbpp"):
        env = envs.make("code", source=source, split="test", seed=0, n=4, timeout=20.0)
        for task in env.tasks():
            right = runner.run(step(env, task, block(task.data["solution"]), box))
            assert right.reward == 1.0, (task.id, right.info)


def test_examples_of_humaneval_are_right(arena: Any) -> None:
    """Each example that feedback may show is passed by the reference."""
    data("humaneval/HumanEval.jsonl")
    runner, box = arena
    tasks = envs.make("code", source="humaneval", split="test", visible=9).tasks()
    assert len(tasks) == 164

    async def one(task: Task, gate: asyncio.Semaphore) -> Verdict | None:
        examples = SETS["humaneval"].tests(task.data, False).examples
        async with gate:
            return examples and await examples.judge(box, task.data["solution"], timeout=20.0)

    async def everything() -> list[Verdict | None]:
        gate = asyncio.Semaphore(4)
        return await asyncio.gather(*(one(task, gate) for task in tasks))

    found = runner.run(everything())
    verdicts = {t.id: v for t, v in zip(tasks, found, strict=True) if v is not None}
    assert [name for name, v in verdicts.items() if not v.passed] == []
    assert len(verdicts) > 50

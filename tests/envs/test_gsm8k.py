"""GSM8K: the real files where they are, and what broken ones say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import envs
from agentrl.errors import ConfigError, DataError
from envs.grading import grade_task
from envs.gsm8k import reference

GOOD = '{"question": "1+1?", "answer": "It is two.\\n#### 2"}\n'


def test_local_file(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(GOOD * 3 + "\n" + GOOD)
    tasks = envs.make("gsm8k", path=file).tasks()
    assert len(tasks) == len({t.id for t in tasks}) == 4
    assert tasks[0].data["answer"] == "2"
    assert "two" not in tasks[0].prompt[-1].content
    assert len(envs.make("gsm8k", path=file, n=2).tasks()) == 2
    assert len(envs.make("gsm8k", path=file).tasks(3)) == 3


def test_the_folder_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(GOOD)
    monkeypatch.setenv("AGENTRL_DATA", str(tmp_path))
    assert len(envs.make("gsm8k", split="test").tasks()) == 1
    with pytest.raises(DataError, match=r"no file .*train\.jsonl.*AGENTRL_DATA"):
        envs.make("gsm8k", split="train").tasks()
    monkeypatch.delenv("AGENTRL_DATA")
    with pytest.raises(ConfigError, match=r"Set AGENTRL_DATA.*path=.*hub"):
        envs.make("gsm8k").tasks()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"question": "x", "answer"\n', "not valid JSON"),
        (b"\xff\xfe\n", "not UTF-8"),
        (b"[1, 2]\n", "an object with"),
        (b'{"question": "x"}\n', "'answer' is missing"),
        (b'{"question": 3, "answer": "#### 1"}\n', "'question' is missing or not text"),
        (b'{"question": "x", "answer": "one"}\n', "#### NUMBER"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_bytes(GOOD.encode() + line + GOOD.encode())
    with pytest.raises(DataError, match=rf"broken\.jsonl, line 2: .*{says}"):
        envs.make("gsm8k", path=file).tasks()


def test_bad_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Known: test, train"):
        envs.make("gsm8k", split="dev")
    with pytest.raises(ConfigError, match="hub"):
        envs.make("gsm8k", source="web")
    with pytest.raises(ConfigError, match="leave it out"):
        envs.make("gsm8k", source="hub", path=tmp_path)
    with pytest.raises(DataError, match="option path"):
        envs.make("gsm8k", path=tmp_path / "no.jsonl").tasks()


def test_reference() -> None:
    assert reference("a\n#### 1,234") == "1234"
    assert reference("#### 1\n#### -5 ") == "-5"
    assert reference("#### many") is None
    assert reference("12") is None


def test_the_real_test_file() -> None:
    if not Path(os.environ.get("AGENTRL_DATA", ""), "gsm8k", "test.jsonl").is_file():
        pytest.skip("AGENTRL_DATA does not name a folder with gsm8k/test.jsonl")
    tasks = envs.make("gsm8k", split="test").tasks()
    assert len(tasks) == 1319
    assert all(grade_task(t, t.data["solution"]).right for t in tasks)
    assert not any("####" in t.prompt[-1].content for t in tasks)
    mixed = envs.make("gsm8k", split="test", seed=1).tasks()
    assert mixed != tasks
    assert sorted(t.id for t in mixed) == [t.id for t in tasks]


def test_a_demonstration_is_the_solution_without_its_calculator(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    solution = "She sold 48/2 = <<48/2=24>>24 clips.\\nIn all 48+24 = <<48+24=72>>72.\\n#### 1,072"
    file.write_text(f'{{"question": "How many?", "answer": "{solution}"}}\n')
    env = envs.make("gsm8k", path=file)
    (task,) = env.tasks()
    (shown,) = env.demonstrations(task)
    assert shown == ("She sold 48/2 = 24 clips.\nIn all 48+24 = 72.\nThe answer is \\boxed{1072}.")
    assert grade_task(task, shown).right

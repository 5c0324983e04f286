"""`agentrl eval`: its numbers, the folder that it leaves, and the comparison of two."""

from __future__ import annotations

import json
import re

import pytest

from agentrl import rewards
from agentrl.cli import main
from agentrl.errors import AgentRLWarning, ConfigError
from agentrl.store import load

EVAL = ["eval", "--env", "arithmetic", "env.kinds=[product]", "-n", "6", "--rollout", "single_turn"]


def good(text: str) -> str:
    """A policy that knows products (used by name)."""
    a, b = re.findall(r"\d+", text)[:2]
    return f"The answer is {int(a) * int(b)}"


def bad(text: str) -> str:
    """A policy that does not."""
    return "The answer is 1"


def policy(name: str) -> list[str]:
    return ["--policy", f"scripted:tests.evaluate.test_eval_command:{name}"]


def test_a_single_answer_has_metrics_too(capsys):
    assert main([*EVAL, *policy("good"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] == 1.0
    assert result["problems"] == 6
    assert result["metrics"]["acc@t1"] == result["metrics"]["pass@1"]
    assert result["metrics"]["m1@t1"]["ci95"][0] < 1.0
    assert [row["turn"] for row in result["turns"]] == [1]


def test_two_folders_are_compared(tmp_path, capsys):
    for name in ("bad", "good"):
        assert main([*EVAL, *policy(name), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "good" / "report.html").exists()
    summary = json.loads((tmp_path / "good" / "summary.json").read_text())
    assert summary["measured"]["accuracy"] == 1.0
    capsys.readouterr()
    folders = [str(tmp_path / "bad"), str(tmp_path / "good" / "trees")]
    assert main(["eval", "--compare", *folders, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = found["metrics"]["acc@t1"]
    assert (row["difference"], row["only_b"], row["mcnemar"]) == (1.0, 6, 0.03125)
    assert main(["eval", "--compare", *folders]) == 0
    assert "McNemar" in capsys.readouterr().out


def half(text: str) -> str:
    """A policy that is right every other time, whatever the problem."""
    half.calls += 1
    return good(text) if half.calls % 2 else bad(text)


half.calls = 0


class Longer:
    """A reward model: the more tokens, the better; `sign` -1: the fewer."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    async def reward(self, token_ids) -> float:
        return self.sign * len(token_ids)


def test_what_a_reward_model_says_is_stored_and_compared(tmp_path, capsys, monkeypatch):
    """One model finds the right answers best (they are longer), one the wrong ones."""
    monkeypatch.setattr(
        rewards, "load_reward", lambda name: Longer(1.0 if name.endswith("long") else -1.0)
    )
    samples = ["--samples", "2", "--temperature", "1", "--json"]
    for name in ("short", "long"):
        half.calls = 0
        out = ["--out", str(tmp_path / name), "--reward", f"models/{name}"]
        assert main([*EVAL, *policy("half"), *samples, *out, "--concurrency", "1"]) == 0
    summary = json.loads((tmp_path / "long" / "summary.json").read_text())
    assert summary["reward_model"] == "models/long"
    assert summary["metrics"]["rm@2"]["value"] == 1.0
    trees = load(tmp_path / "long" / "trees")
    assert len(trees) == 12
    for tree in trees:
        attempt = tree.attempts[-1]
        assert attempt.metrics["reward_model"] == "models/long"
        assert attempt.metrics["reward_score"] == len(tree.ids(attempt.leaf))
    capsys.readouterr()
    folders = [str(tmp_path / "short"), str(tmp_path / "long")]
    assert main(["eval", "--compare", *folders, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = found["metrics"]["rm@2"]
    assert (row["a"], row["b"], row["difference"]) == (0.0, 1.0, 1.0)
    assert row["ci95"][0] > 0
    assert (row["only_a"], row["only_b"], row["mcnemar"]) == (0, 6, 0.03125)
    assert found["metrics"]["pass@2"]["difference"] == 0
    assert found["reward_models"] == {"a": ["models/short"], "b": ["models/long"]}
    assert main(["eval", "--compare", *folders]) == 0
    assert "Scores of A are those of models/short." in capsys.readouterr().out


def test_a_second_scoring_takes_the_place_of_the_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        rewards, "load_reward", lambda name: Longer(1.0 if name.endswith("long") else -1.0)
    )
    run = [*EVAL, *policy("good"), "--out", str(tmp_path), "--json"]
    lines = []
    for name in ("long", "long", "short"):
        assert main([*run, "--reward", name]) == 0
        lines.append(len((tmp_path / "trees" / "trees.jsonl").read_text().splitlines()))
    assert lines == [12, 12, 18], "what is known already is not written again"
    assert {t.attempts[-1].metrics["reward_model"] for t in load(tmp_path / "trees")} == {"short"}
    assert main(run) == 0
    assert "rm@1" in json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]


def test_a_second_run_resumes_and_may_take_more_problems(tmp_path, capsys):
    out = ["--out", str(tmp_path), "--json"]
    assert main([*EVAL, *policy("good"), *out]) == 0
    assert main([*EVAL, *policy("good"), *out, "-n", "9"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["problems"] == 9


def test_what_cannot_be_is_refused(capsys, tmp_path):
    assert main(["eval"]) == 2
    assert "--env" in capsys.readouterr().err
    assert main([*EVAL, "--turns", "0"]) == 2
    assert main(["eval", "--compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no trees" in capsys.readouterr().err


def test_samples_at_temperature_0_are_warned_of(capsys):
    with pytest.warns(AgentRLWarning, match="temperature 1"):
        assert main([*EVAL, *policy("good"), "--samples", "2", "--json"]) == 0


def learns(text: str) -> str:
    """A policy that is right from its second answer on, and wrong in the fourth."""
    turn = text.count("<|im_start|>assistant")
    return good(text) if turn in (2, 3, 5) else bad(text)


def test_turns_are_asked_for_without_an_oracle(tmp_path, capsys):
    argv = [a for a in EVAL if a not in ("--rollout", "single_turn")]
    out = ["--turns", "5", "--out", str(tmp_path), "--json"]
    assert main([*argv, *policy("learns"), *out]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["answer"]["accuracy"] for row in result["turns"]] == [0, 1, 1, 0, 1]
    assert [row["majority"]["accuracy"] for row in result["turns"]] == [0, 1, 1, 0, 1]
    assert [row["oracle"]["accuracy"] for row in result["turns"]] == [0, 1, 1, 1, 1]
    assert (result["accuracy"], result["oracle"]) == (1.0, False)
    assert result["metrics"]["delta"]["value"] == result["metrics"]["i2c"]["value"] == 1.0
    assert result["metrics"]["gain@t5"]["value"] == 1.0
    page = (tmp_path / "report.html").read_text()
    assert "majority" in page


def test_turns_are_printed(capsys):
    argv = [*EVAL[:-1], "self_correct", "--turns", "2", *policy("learns")]
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "i2c" in text
    assert "majority" in text


def test_other_settings_are_refused_before_old_trees_are_taken_for_new(tmp_path, capsys):
    out = ["--out", str(tmp_path), "-n", "2"]
    run = ["eval", "--env", "arithmetic", "env.kinds=[product]", *policy("good"), *out, "--json"]
    assert main([*run, "--turns", "2"]) == 0
    assert main([*run, "--turns", "2", "-n", "3"]) == 0, "more problems"
    capsys.readouterr()
    for more, says in (
        (["--turns", "3"], "rollout.turns: 2 then, 3 now"),
        (["--turns", "2", "--max-tokens", "9"], "max_tokens: 256 then, 9 now"),
        (["--turns", "2", "env.system=Think."], "env.system: None then, 'Think.' now"),
    ):
        assert main([*run, *more]) == 2
        assert says in capsys.readouterr().err


def test_a_reward_model_that_is_not_there_costs_no_rollout(tmp_path, monkeypatch, capsys):
    def missing(name):
        raise ConfigError(f"no {name}")

    monkeypatch.setattr(rewards, "load_reward", missing)
    run = [*EVAL, *policy("good"), "-n", "2", "--out", str(tmp_path), "--reward", "nowhere"]
    assert main(run) == 2
    assert not (tmp_path / "trees").exists()

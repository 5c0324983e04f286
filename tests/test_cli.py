"""The command line: one clear line with the cure for bad input, and a non-zero exit."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agentrl import config, doctor, recipes
from agentrl.cli import main
from agentrl.commands.data import SELECTORS
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import ConfigError
from agentrl.store import load
from agentrl.train import TrainConfig


def answer(text: str) -> str:
    """A policy that always says the same (used by name: scripted:tests.test_cli:answer)."""
    return "The answer is 42"


def slow(text: str) -> str:
    time.sleep(0.05)
    return "The answer is 42"


def right(text: str) -> str:
    """A policy that computes what it is asked, if that is a product."""
    if "```output" in text:
        return "The answer is " + text.split("```output\n")[1].split("\n")[0]
    a, b = re.findall(r"\d+", text)
    return f"```python\nprint({a} * {b})\n```\n"


RIGHT = ["--policy", "scripted:tests.test_cli:right", "env.kinds=[product]"]


def broken(text: str) -> str:
    raise RuntimeError("no answer")


POLICY = ["--policy", "scripted:tests.test_cli:answer"]
BROKEN = ["--policy", "scripted:tests.test_cli:broken", "--json"]
HINTS = ["--rollout", "hint_infer"]


def fails(capsys, *argv: str) -> str:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("agentrl: ")
    assert error.count("\n") == 1, "one clear line"
    return error


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["run", "strat"], "unknown recipe 'strat'. Did you mean 'start'?"),
        (["run", "start", "epoch=3"], "unknown setting 'epoch'. Did you mean 'epochs'?"),
        (["run", "start", "epochs=many"], "epochs='many': expected a whole number"),
        (["run", "start", "epochs"], "write key=value"),
        (["run", "start", "--preset", "papr"], "Did you mean 'paper'?"),
        (["run", "nothing.yaml"], "cannot read nothing.yaml"),
        (["eval", "--env", "arithmetics", *POLICY], "Did you mean 'arithmetic'?"),
        (["eval", "--env", "arithmetic", "--rollout", "tool_lop", *POLICY], "'tool_loop'"),
        (["eval", "--env", "arithmetic", "x=1", *POLICY], "write env.KEY"),
        (["eval", "--env", "arithmetic", "env.colour=1", *POLICY], "colour"),
        (["eval", "--env", "arithmetic", "rollout.colour=1", *POLICY], "colour"),
        (["eval", "--env", "arithmetic", "--policy", "scripted:no.such:f"], "No module named"),
        (["eval", "--env", "arithmetic", "--policy", "scripted:tests.test_cli:os"], "no function"),
        (["eval", "--env", "arithmetic", *POLICY, "policy.colour=1"], "Known: latency"),
        (["eval", "--env", "arithmetic", *POLICY, "policy.latency=long"], "expected a number"),
        (["eval", "--env", "arithmetic", *POLICY, "rollout.max_calls=many"], "whole number"),
        (["eval", "--env", "arithmetic", *POLICY, "env.level=high"], "'arithmetic'"),
        (["eval", "--env", "arithmetic", *POLICY, "-n", "-3"], "n is at least 0"),
        (["eval", "--env", "arithmetic", *POLICY, "--temperature", "-1"], "temperature is"),
        (["eval", "--env", "arithmetic", *BROKEN, "-n", "2"], "all 2 rollouts failed"),
        (["eval", "--env", "arithmetic", "--policy", "openi:m"], "Did you mean 'openai'?"),
        (["reproduce"], "name a claim"),
        (["report", "nothing"], "nothing"),
        (["sandbox", "run", "nothing.py"], "cannot read nothing.py"),
        (["run", "binary.yaml"], "binary.yaml is not UTF-8"),
        (["run", "broken.yaml"], "broken.yaml is not valid YAML: line 2, column 1: expected"),
        (["run", "start", "n=[1"], "'n=[1': the value is not YAML: line 1, column 3: expected"),
        (["sandbox", "run", "binary.yaml"], "binary.yaml is not UTF-8"),
        (["sandbox", "run", "5.json", "--backend", "embeded"], "mean 'embedded'?"),
        (["eval", "--env", "arithmetic", *POLICY, "--sandbox", "embedded:x"], "on this machine"),
        (["eval", "--env", "arithmetic", *POLICY, *HINTS, "rollout.occurrence=al"], "occurrence"),
        (["eval", "--env", "arithmetic", *POLICY, *HINTS, "rollout.hints=5.json"], "a list of"),
        (
            ["eval", "--env", "arithmetic", *POLICY, *HINTS, "rollout.hints=k.json"],
            "kinds is a list",
        ),
        (["train", "sft", "--data", "nothing.jsonl", "--out", "x"], "cannot read nothing.jsonl"),
    ],
)
def test_bad_input(capsys, monkeypatch, tmp_path, argv, says):
    monkeypatch.chdir(tmp_path)
    Path("binary.yaml").write_bytes(b"\xff\xfe")
    Path("broken.yaml").write_text("n: [1\n")
    Path("5.json").write_text("5")
    Path("k.json").write_text('[{"id": "a", "kinds": "any"}]')
    assert says in fails(capsys, *argv)


def test_an_unknown_model_says_what_can_be_given(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    error = fails(capsys, "eval", "--env", "arithmetic", "--policy", "./no-such-model")
    assert "no-such-model" in error


def test_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what the command sets goes, too
    for given in ({}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        for name in names:
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        assert main(["list", "envs"]) == 0
        found = {name: os.environ[name] for name in names if name in os.environ}
        assert found == (given or {"GOMP_SPINCOUNT": "1000"})


def test_eval_as_json(capsys):
    assert main(["eval", "--env", "arithmetic", *POLICY, "-n", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n"] == 5
    assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]


def test_rollout_resumes_in_its_folder(capsys, tmp_path):
    argv = ["rollout", "--env", "arithmetic", *POLICY, "--out", str(tmp_path / "t")]
    assert main([*argv, "-n", "3"]) == 0
    assert main([*argv, "-n", "5"]) == 0
    assert len(load(tmp_path / "t")) == 5


@pytest.mark.parametrize("what", ["envs", "rollouts", "losses", "credit", "selectors", "recipes"])
def test_list(capsys, what):
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all(len(line.split()) > 2 for line in lines)


@pytest.mark.parametrize("command", ["run", "rollout", "eval", "select", "train", "report", "list"])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"agentrl {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (["run", "start"], ["presets: small, smoke, paper", "  epochs=2", "  model=smollm2"]),
        (["run", "mine.yaml"], []),
        (
            ["rollout", "--env", "chains", "--rollout", "mcts"],
            ["  env.width=0", "  env.kinds=[2+-, 4+-, 6+-*]", "  rollout.judge=self"],
        ),
        (["train", "dpo"], ["  betas=[0.9, 0.999]", "  lora=null", "  loss.beta=0.1"]),
        (["train", "reward"], ["settings of training:"]),
    ],
)
def test_help_lists_the_settings_of_what_is_named(capsys, argv, lines):
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(line in out for line in lines)
    for name in ("members", "pairs="):  # which training fills in
        assert f"loss.{name}" not in out


@pytest.mark.parametrize("command", ["proxy --out x", "view x", "serve m", "sandbox serve"])
def test_a_port_that_cannot_be_is_refused(capsys, command):
    with pytest.raises(SystemExit):
        main([*command.split(), "--port", "99999"])
    assert "ports 1 to 65535" in capsys.readouterr().err


def test_help_on_what_there_is_not_says_so(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["run", "strat", "--help"])
    assert stop.value.code == 2
    assert "Did you mean 'start'?" in capsys.readouterr().err


def test_selectors_of_the_command_are_told_from_those_of_python(capsys):
    main(["list", "selectors"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(SELECTORS) <= set(lines)
    assert all(("(from Python)" in line) != (name in SELECTORS) for name, line in lines.items())


def test_ctrl_c_keeps_finished_records_and_says_how_to_go_on(tmp_path):
    argv = ["rollout", "--env", "arithmetic", "--policy", "scripted:tests.test_cli:slow"]
    argv += ["-n", "400", "--concurrency", "2", "--out", str(tmp_path / "t")]
    process = subprocess.Popen(
        [sys.executable, "-m", "agentrl", *argv],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    while not (tmp_path / "t" / "trees.jsonl").exists() or not load(tmp_path / "t"):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"interrupted. Finished work is kept; go on with: agentrl {shlex.join(argv)}\n" in error
    done = len(load(tmp_path / "t"))
    assert 0 < done < 400


def test_a_run_folder_is_not_overwritten(tmp_path):
    folder = config.RunFolder(tmp_path / "r", {"a": 1}, resume=False)
    folder.trees("before").mkdir(parents=True)
    (folder.trees("before") / "trees.jsonl").write_text("a tree")
    with pytest.raises(ConfigError, match="Add --resume"):
        config.RunFolder(tmp_path / "r", {"a": 1}, resume=False)
    with pytest.raises(ConfigError, match="a: 1 then, 2 now"):
        config.RunFolder(tmp_path / "r", {"a": 2}, resume=True)
    assert config.RunFolder(tmp_path / "r", {"a": 1}, resume=True).resumed


def test_a_run_that_failed_before_it_made_anything_does_not_stand_in_the_way(capsys, tmp_path):
    argv = ["run", "start", "--out", str(tmp_path / "r")]
    assert "arithmetic" in fails(capsys, *argv, "env=arithmetics")
    assert "no such folder" in fails(capsys, *argv, "model=./nowhere")
    assert "no such folder" in fails(capsys, *argv, "model=./nowhere")


def test_settings_may_stand_behind_options(capsys):
    tail = ["--json", "env.kinds=[product]", "--samples", "1", "rollout.max_calls=2"]
    assert main(["eval", "--env", "arithmetic", *POLICY, "-n", "2", *tail]) == 0
    assert list(json.loads(capsys.readouterr().out)["by_kind"]) == ["product"]
    for odd in ("product", "--colour=1"):
        with pytest.raises(SystemExit):
            main(["eval", "--env", "arithmetic", *POLICY, odd, "--json", odd])
        assert f"unrecognized arguments: {odd}" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [["select", "hint_rft"], ["report"]])
def test_a_full_disk_is_one_line(capsys, monkeypatch, tmp_path, parts):
    assert (
        main(["rollout", "--env", "arithmetic", *POLICY, "-n", "1", "--out", f"{tmp_path}/t"]) == 0
    )
    capsys.readouterr()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(Path, "write_text", full)
    argv = {"select": [f"{tmp_path}/rows.jsonl", "--policy", "scripted"]}.get(parts[0], [])
    assert "the disk is full" in fails(capsys, *parts, str(tmp_path / "t"), *argv)
    assert not list(tmp_path.glob("*rows*"))


def test_ids_of_another_tokenizer_are_refused(capsys, monkeypatch, tmp_path):
    """Even where its vocabulary has all of them: they mean something else there."""
    out, rows = str(tmp_path / "t"), str(tmp_path / "rows.jsonl")
    monkeypatch.setattr(ByteTokenizer, "fingerprint", "another")
    assert main(["rollout", "--env", "arithmetic", *RIGHT, "-n", "1", "--out", out]) == 0
    assert main(["select", "hint_rft", out, rows, "--policy", "scripted"]) == 0
    monkeypatch.undo()
    capsys.readouterr()
    error = fails(capsys, "select", "hint_rft", out, rows, "--policy", "scripted")
    assert "made with another tokenizer (another)" in error
    error = fails(capsys, "train", "sft", "--data", rows, "--model", "scripted", "--out", out)
    assert "made with another tokenizer (another)" in error


def test_rows_are_selected_by_every_method_with_its_settings(capsys, tmp_path):
    out, rows = str(tmp_path / "t"), str(tmp_path / "rows.jsonl")
    argv = ["--samples", "2", "--out", out]
    assert main(["rollout", "--env", "arithmetic", *RIGHT, "-n", "3", *argv]) == 0
    kept = {"raft": 3, "raft ranking=global keep=2": 2, "superhf keep=4": 4, "dart k=2": 3}
    for words, n in kept.items():
        method, *given = words.split()
        capsys.readouterr()
        assert main(["select", method, out, rows, *given, "--policy", "scripted"]) == 0
        assert f"{n} rows of 6 trees" in capsys.readouterr().out
        assert len(Path(rows).read_text().splitlines()) == n
    assert "ranking" in fails(capsys, "select", "raft", out, rows, "rank=1", "--policy", "scripted")
    scripted = ["--policy", "scripted"]
    for method, given, says in (
        ("raft", "keep=many", "raft: keep='many': expected a whole number or null"),
        ("pairs", "gap=wide", "pairs: gap='wide': expected a number"),
        ("pairs", "soft=maybe", "pairs: soft='maybe': expected true or false"),
    ):
        assert says in fails(capsys, "select", method, out, rows, given, *scripted)
    assert "is a folder" in fails(capsys, "select", "raft", out, str(tmp_path), *scripted)
    error = fails(capsys, "train", "dpo", "--data", rows, "--model", "scripted", "--out", out)
    assert "a preference pair (chosen, rejected) is needed here, a single sample" in error
    fails(capsys, "select", "dart", out, rows, "--greedy", out, "--policy", "scripted")
    assert "trained by LeTI" in fails(capsys, "select", "leti", out, rows, "--policy", "scripted")


def test_a_turn_is_a_row_of_rise(capsys, tmp_path):
    out, rows = str(tmp_path / "t"), str(tmp_path / "rows.jsonl")
    argv = ["--rollout", "rise_collect", "rollout.candidates=2", "-n", "3", "--out", out]
    assert main(["rollout", "--env", "arithmetic", *POLICY, *argv]) == 0
    for given, n in (([], 3), (["keep=success", "baseline=none"], 0)):
        capsys.readouterr()
        assert main(["select", "rise", out, rows, *given, "--policy", "scripted"]) == 0
        assert f"{n} rows of 3 trees" in capsys.readouterr().out
        assert len(Path(rows).read_text().splitlines()) == n
    error = fails(capsys, "select", "rise", out, rows, "keep=some", "--policy", "scripted")
    assert "keep rule" in error


def test_the_override_of_isolation_is_at_hand(capsys, tmp_path):
    (tmp_path / "p.py").write_text("print(6 * 7)")
    assert main(["sandbox", "run", str(tmp_path / "p.py"), "--isolation", "none", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["stdout"], result["isolation"]) == ("42\n", "none")
    argv = ["eval", "--env", "arithmetic", *RIGHT, "-n", "1", "--json", "--isolation", "none"]
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0


def test_programs_in_other_languages_and_with_packages(capsys, tmp_path):
    (tmp_path / "p").write_text("echo $((6 * 7)); exit 3")
    (tmp_path / "q").write_text("import numpy; print(numpy.arange(3).sum())")
    plain = ["--isolation", "none", "--json"]
    assert main(["sandbox", "run", str(tmp_path / "p"), "--language", "sh", *plain]) == 1
    result = json.loads(capsys.readouterr().out)
    assert (result["stdout"], result["status"], result["exit_code"]) == ("42\n", "exit", 3)
    assert main(["sandbox", "run", str(tmp_path / "q"), "--profile", "numpy", *plain]) == 0
    assert json.loads(capsys.readouterr().out)["stdout"] == "3\n"
    assert main(["sandbox", "run", str(tmp_path / "q"), "--language", "shel", *plain]) == 2
    assert "unknown or absent language 'shel'" in capsys.readouterr().err


def test_the_doctor_says_whether_there_is_a_key_and_not_which(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "secret")
    [check] = [c for c in doctor.checks() if c.name == "endpoints"]
    assert check.ok
    assert "OPENAI_API_KEY is set" in check.text
    assert "secret" not in check.text


def test_the_doctor_says_what_the_hf_engine_would_do():
    pytest.importorskip("torch")
    shown = [c.text for c in doctor.checks()]
    topics = ("dtype", "linear layers", "attention", "compile")
    assert all(any(text.startswith(f"{topic}: ") for text in shown) for topic in topics)


def test_the_doctor_shows_extras_in_full(capsys):
    doctor.show([doctor.Check("ray", False, "pip install 'agentrl[ray]'")])
    assert "'agentrl[ray]'" in capsys.readouterr().out


def test_a_script_beside_the_user_is_found(tmp_path):
    (tmp_path / "my_script.py").write_text("def say(text): return 'The answer is 42'\n")
    code = "import sys; sys.path.remove(''); from agentrl.cli import main; sys.exit(main())"
    argv = ["eval", "--env", "arithmetic", "--policy", "scripted:my_script:say", "-n", "1"]
    subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=tmp_path,
        check=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "start", "--out", "r"],
        ["train", "sft", "--data", "x", "--out", "y"],
        ["list", "losses"],
        ["eval", "--env", "arithmetic"],
    ],
)
def test_without_torch_the_extra_is_named(tmp_path, argv):
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None); "
        "from agentrl.cli import main; sys.exit(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert result.returncode == 2
    assert "pip install 'agentrl[train]'" in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


def test_settings_are_typed():
    made = config.build(TrainConfig, config.pairs(["lr=1e-5", "epochs=2"]))
    assert made.lr == 1e-5
    assert made.epochs == 2
    with pytest.raises(ConfigError, match="expected"):
        config.build(TrainConfig, {"lr": True})


@pytest.mark.parametrize(
    ("given", "model"),
    [
        ({}, None),
        ({"policy": "hf"}, "smollm2"),
        ({"policy": "vllm"}, "vllm:smollm2"),
        ({"policy": "vllm", "model": "org/m"}, "vllm:org/m"),
        ({"policy": "vllm@http://h:1"}, "vllm:smollm2@http://h:1"),
    ],
)
def test_a_recipe_is_told_who_samples_for_it(given, model):
    made = recipes.sampled_by({"n": 1, **given}, "smollm2")
    assert made == {"n": 1} | ({"model": model} if model else {})


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("policy=vlm", "Did you mean 'vllm'"),
        ("policy=hf@http://h:1", "policy=vllm@URL"),
        ("policy=vllm model=vllm:smollm2", "give model=MODEL and policy=vllm"),
    ],
)
def test_a_sampler_that_cannot_be(capsys, setting, says):
    assert says in fails(capsys, "run", "start", *setting.split())


def test_a_resumed_run_may_change_what_changes_no_result(tmp_path):
    folder = config.RunFolder(tmp_path / "r", {"n": 1, "concurrency": 64}, resume=False)
    folder.write_summary({})
    assert config.RunFolder(tmp_path / "r", {"n": 1, "concurrency": 8}, resume=True).resumed


def test_bad_numbers_of_a_recipe_are_said_at_once(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "lr" in fails(capsys, "run", "start", "lr=-1")
    assert "rft_temperature" in fails(capsys, "run", "start", "rft_temperature=-1")

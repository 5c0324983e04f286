"""Two processes do what one does: the same losses, gradients, weights, checkpoints and errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks_run import CASES, run
from ranks_tokenizer import hf_bytes
from train_toys import some_samples, tiny
from transformers import AutoModelForCausalLM

from agentrl.batch import plan
from agentrl.engines.scripted import ByteTokenizer
from agentrl.errors import ConfigError
from agentrl.ranks import Ranks
from agentrl.select import rows
from agentrl.train import TrainConfig, export, train
from agentrl.train.distributed import share
from agentrl.types import Sample

ROOT = Path(__file__).parents[2]
LAUNCH = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'train'}",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=250
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(*LAUNCH, str(Path(__file__).parent / "ranks_run.py"), str(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """What one process wrote."""
    folder = tmp_path_factory.mktemp("one")
    for name in CASES:
        run(name, folder / name, Ranks())
    return folder


def metrics(folder: Path) -> list[dict[str, float]]:
    written = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = json.loads((folder / "result.json").read_text())
    assert found == written
    return [{k: v for k, v in r.items() if k not in ("seconds", "tokens_per_s")} for r in found]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(name, way, one, two) -> None:
    ours, theirs = metrics(one / name), metrics(two / way / name)
    assert len(ours) == len(theirs) > 3
    near = {"abs": 1e-5, "rel": 1e-5} if name != "bf16" else {"rel": 2e-2}
    for a, b in zip(ours, theirs, strict=True):
        for key in ("loss", "grad_norm_raw", "weight", "tokens", "lr"):
            assert a[key] == pytest.approx(b[key], **near), key
    if name != "bf16":
        for key, tensor in weights(one / name).items():
            torch.testing.assert_close(weights(two / way / name)[key], tensor, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_two_processes_resume_bit_for_bit(way, two) -> None:
    whole, resumed = two / way / "whole", two / way / "resumed"
    assert metrics(whole) == metrics(resumed)
    for (name, a), b in zip(weights(whole).items(), weights(resumed).values(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_holds_whole_tensors_and_every_generator(two, one) -> None:
    shapes = []
    for way in ("ddp", "fsdp"):
        folder = two / way / "sft" / "checkpoints" / "step-00000006"
        saved = torch.load(folder / "training.pt", weights_only=True)
        assert len(saved["rng"]) == 2
        moments = saved["optimizer"]["state"].values()
        shapes.append([{name: t.shape for name, t in part.items()} for part in moments])
    assert shapes[0] == shapes[1]
    with pytest.raises(ConfigError, match="processes: was 2, is 1"):
        run("sft", two / "ddp" / "sft", Ranks(), resume=True)


def test_a_loss_that_is_not_finite_in_one_process_ends_all(two) -> None:
    for rank in range(2):
        said = (two / f"nan-{rank}").read_text()
        assert said.startswith("True the loss of step 1 is nan, in the micro-batch of samples [1].")


def test_processes_with_other_data_are_refused(two) -> None:
    for rank in range(2):
        assert "train together differ in layout, samples:" in (two / f"other-{rank}").read_text()


def test_sharding_needs_several_processes() -> None:
    with pytest.raises(ConfigError, match="shard=True needs several processes"):
        train(tiny(), some_samples(4), "sft", TrainConfig(shard=True), progress=False)


@pytest.mark.parametrize("layout", ["padded", "packed", "tree"])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_are_a_partition_of_equal_length(layout, size) -> None:
    samples = some_samples(9, seed=2)
    groups = [[0, 1, 2], [3], [4, 5], [6], [7], [8]]
    shares = [share(Ranks(r, size), samples, 50, layout, groups) for r in range(size)]
    assert len({len(own) for own in shares}) == 1
    micros = [micro for own in shares for micro in own if micro]
    assert sorted(i for micro in micros for row in micro for i in row) == list(range(9))
    for group in groups:
        assert any(set(group) <= {i for row in micro for i in row} for micro in micros)


def test_one_micro_batch_is_cut_for_two() -> None:
    samples = [Sample([1] * 10, [1.0] * 10) for _ in range(8)]
    assert len(plan(samples, 1000, "padded")) == 1
    shares = [share(Ranks(r, 2), samples, 1000, "padded") for r in range(2)]
    assert [[len(micro) for micro in own] for own in shares] == [[4], [4]]


def test_accelerate_launches_the_command(tmp_path) -> None:
    """`accelerate launch -m agentrl train sft`: one line of output, one model, as one process."""
    tokenizer = ByteTokenizer()
    pytest.importorskip("accelerate")
    folder = export(tiny(vocab_size=300), tmp_path / "base", hf_bytes())
    texts = [tokenizer.encode(f"{i}+{i}={2 * i}") for i in range(6)]
    rows.write(tmp_path / "rows.jsonl", [Sample(ids, [1.0] * len(ids)) for ids in texts])
    common = ["-m", "agentrl", "train", "sft", "--data", str(tmp_path / "rows.jsonl")]
    common += ["--model", str(folder), "lr=0.01", "epochs=2", "batch_size=3", "shard=true"]
    started = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    started += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    done = launch(*started, *common, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("the model is in") == 1
    assert done.stderr.count("step 4/4") == 1
    assert "- Method: sft" in (tmp_path / "run/model/README.md").read_text()
    AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")

"""What `test_distributed` runs in each of its processes; the main one writes what came out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from train_toys import some_samples, tiny

from agentrl.errors import ConfigError
from agentrl.losses import LossOutput
from agentrl.ranks import Ranks
from agentrl.train import TrainConfig, export, train
from agentrl.train.distributed import joined
from agentrl.types import Pair, Sample

COMMON = {"lr": 1e-2, "epochs": 2, "batch_size": 5, "micro_tokens": 40, "save_every": 2}


def pairs() -> list[Pair]:
    made = some_samples(12, seed=3)
    for s in made:
        s.weights = [0.0, 1.0, *s.weights[2:]]
    return [Pair(a, b) for a, b in zip(made[::2], made[1::2], strict=True)]


CASES = {
    "sft": (lambda: some_samples(12), "sft", {"layout": "packed"}),
    "padded": (lambda: some_samples(12), "sft", {"layout": "padded", "weight_decay": 0.1}),
    "one_sample_a_step": (lambda: some_samples(3), "sft", {"batch_size": 1}),
    "dpo": (pairs, "dpo", {"batch_size": 3, "layout": "tree"}),
    "lora": (lambda: some_samples(12), "sft", {"lora": {"r": 4}}),
    "checkpointing": (lambda: some_samples(12), "sft", {"grad_checkpointing": True}),
    "clipped": (lambda: some_samples(12), "sft", {"clip": 0.05}),
    "bf16": (lambda: some_samples(12), "sft", {"dtype": "bf16"}),
}
"""Data, loss and settings. Sizes are such that processes get unequal numbers of micro-batches."""


def run(case: str, out: Path, ranks: Ranks, shard: bool = False, **options) -> None:
    data, loss, own = CASES[case]
    stop, dropout = options.pop("stop", None), options.pop("dropout", 0.0)

    def end(row):
        if row["step"] == stop:
            raise InterruptedError

    model = tiny(attention_dropout=dropout)
    config = TrainConfig(**{**COMMON, **own}, shard=shard)
    result = train(model, data(), loss, config, out, callbacks=[end], progress=False, **options)
    if ranks.main:
        export(result.model, out / "model")
        (out / "result.json").write_text(json.dumps(result.metrics))


def resumed(out: Path, ranks: Ranks, shard: bool) -> None:
    """A run with dropout, and the same run interrupted after its third step."""
    run("sft", out / "whole", ranks, shard, dropout=0.3)
    try:
        run("sft", out / "resumed", ranks, shard, dropout=0.3, stop=3)
    except InterruptedError:
        run("sft", out / "resumed", ranks, shard, dropout=0.3, resume=True)


def nan_in_one(out: Path, ranks: Ranks) -> None:
    """A loss that is not finite in one process must end all of them."""

    def loss(logprobs_BT, batch, denominator):
        bad = batch.input_ids_BT.shape[1] > 3
        return LossOutput(-logprobs_BT.sum() / denominator * (float("nan") if bad else 1.0))

    samples = [Sample([1, 2, 3], [1, 1, 1]), Sample([4] * 20, [1] * 20)]
    model, config = tiny(), TrainConfig(batch_size=2, micro_tokens=3, max_steps=1)
    try:
        train(model, samples, loss, config, progress=False)
    except FloatingPointError as error:
        unchanged = all(map(torch.equal, model.parameters(), tiny().parameters()))
        (out / f"nan-{ranks.rank}").write_text(f"{unchanged} {error}")


def other_data_in_one(out: Path, ranks: Ranks) -> None:
    try:
        train(tiny(), some_samples(3, seed=ranks.rank), "sft", progress=False)
    except ConfigError as error:
        (out / f"other-{ranks.rank}").write_text(str(error))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    with joined() as team:
        for way, shard in (("ddp", False), ("fsdp", True)):
            for name in CASES:
                run(name, folder / way / name, team, shard)
            resumed(folder / way, team, shard)
        nan_in_one(folder, team)
        other_data_in_one(folder, team)

"""TRL's SFT and DPO trainers on token ids, and its GRPO trainer, step by step, beside ours.

Both sides get the same ids, masks, batch, optimizer, learning rate and precision; every step trains
on all samples, so the order of data does not matter. TRL 1.16; a newer one may need changes here.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from typing import Any

from agentrl.types import Pair, Sample

LR = 1e-4


def sft(model: Any, samples: Sequence[Sample], steps: int, **options: Any) -> tuple[float, list]:
    """CPU seconds of `steps` optimizer steps on all samples, and the loss before each."""
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": list(s.token_ids),
            "labels": [i if w else -100 for i, w in zip(s.token_ids, s.weights, strict=True)],
        }
        for s in samples
    ]
    return _run(SFTTrainer, SFTConfig, model, rows, steps, {"packing": False} | options)


def dpo(model: Any, pairs: Sequence[Pair], steps: int, batch: int) -> tuple[float, list]:
    """The same on preference pairs, `batch` pairs a forward pass; the reference is precomputed."""
    from trl import DPOConfig, DPOTrainer

    class OnIds(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    rows = []
    for pair in pairs:
        prompt = next(i for i, w in enumerate(pair.chosen.weights) if w)
        rows.append(
            {
                "prompt_ids": list(pair.chosen.token_ids[:prompt]),
                "chosen_ids": list(pair.chosen.token_ids[prompt:]),
                "rejected_ids": list(pair.rejected.token_ids[prompt:]),
                "ref_chosen_logps": sum(pair.chosen.ref_logprobs or ()),
                "ref_rejected_logps": sum(pair.rejected.ref_logprobs or ()),
            }
        )
    options = {"per_device_train_batch_size": batch, "precompute_ref_log_probs": True}
    return _run(OnIds, DPOConfig, model, rows, steps, options)


def grpo(model: Any, text: str, group: int, new: int, steps: int, reward: Any) -> list[float]:
    """CPU seconds of each GRPO step on one prompt, generation included: `group` completions of
    `new` tokens, one optimizer step, no KL. `reward` goes from a completion's ids to a number."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.peer_trl import tiny_tokenizer

    took: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            took.append(time.process_time() - self.began)

    def rewards(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        if {len(ids) for ids in completion_ids} != {new}:
            raise RuntimeError("TRL's completions have other lengths than ours")
        return [reward(ids) for ids in completion_ids]

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            max_steps=steps,
            learning_rate=LR,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            per_device_train_batch_size=group,
            num_generations=group,
            max_completion_length=new,
            generation_kwargs={"min_new_tokens": new},
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            loss_type="grpo",
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            model=copy.deepcopy(model),
            reward_funcs=rewards,
            args=config,
            processing_class=tiny_tokenizer(),
            train_dataset=Dataset.from_list([{"prompt": text}] * steps),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return took


def _run(
    trainer_kind: Any, config_kind: Any, model: Any, rows: list, steps: int, options: dict
) -> tuple[float, list]:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset, disable_progress_bars
    from transformers import PrinterCallback, TrainerCallback

    from benchmarks.peer_trl import tiny_tokenizer

    class Clock(TrainerCallback):  # type: ignore[misc]
        """CPU time from the beginning of the first step to the end of the last."""

        def __init__(self) -> None:
            self.took, self.losses = 0.0, []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.took += time.process_time() - self.began

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))

    class InOrder(trainer_kind):  # type: ignore[misc]
        def _precompute_ref_logps(self, dataset: Any, *_: Any) -> Any:
            return dataset

    disable_progress_bars()
    clock = Clock()
    micro = options.pop("per_device_train_batch_size", 1)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = config_kind(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
            max_steps=steps,
            learning_rate=LR,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            max_grad_norm=1.0,
            per_device_train_batch_size=micro,
            dataloader_pin_memory=False,
            **options,
        )
        trainer = InOrder(
            model=copy.deepcopy(model),
            args=config,
            processing_class=tiny_tokenizer(),
            train_dataset=Dataset.from_list(rows),
            callbacks=[clock],
        )
        trainer.args.gradient_accumulation_steps = -(-len(trainer.train_dataset) // micro)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.took, clock.losses

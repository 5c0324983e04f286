"""What recipes of collecting and fine-tuning share: phases that are timed, stored and resumed."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from agentrl import evaluate, losses
from agentrl.collect import collect
from agentrl.config import RunFolder
from agentrl.engines.memory import give_memory_back
from agentrl.errors import AgentRLWarning
from agentrl.interfaces import Env, Policy, Rollout, Sandbox
from agentrl.train import Objective, Reference, TrainConfig, adapt, train
from agentrl.tree import Tree
from agentrl.types import Pair, Sample, SamplingParams, Task


class Settings(Protocol):
    """The settings that phases read, as a recipe's `Config` has them."""

    @property
    def seed(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def lora(self) -> int: ...
    @property
    def train_dtype(self) -> Literal["fp32", "bf16", "auto"]: ...
    @property
    def concurrency(self) -> int: ...
    @property
    def deadline_s(self) -> float: ...


def training(config: Settings, **changes: Any) -> TrainConfig:
    """How a stage is trained: the recipe's settings, a linear schedule, and `changes`.

    Raises ConfigError for numbers that cannot be; a recipe calls it once before it samples.
    """
    options: dict[str, Any] = {
        "lr": config.lr,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "schedule": "linear",
        "dtype": config.train_dtype,
        "micro_tokens": 512,
        "lora": {"r": config.lora, "alpha": 2 * config.lora} if config.lora else None,
    }
    return TrainConfig(**(options | changes))


@dataclass(frozen=True, slots=True)
class Phases:
    """A run's settings, its folder, and the sandbox that its episodes use."""

    config: Settings
    folder: RunFolder
    progress: bool
    box: Sandbox | None

    async def collect(
        self, phase: str, env: Env, rollout: Rollout, policy: Policy, **how: Any
    ) -> list[Tree]:
        """Trees of the phase's tasks, stored under its name; greedy unless told otherwise.

        `temperature`, `top_p` and the options of `agentrl.collect.collect` say how. What runs
        `beside` another phase fills the same batches, and shows no bar of its own.
        """
        config = self.config
        shown = not how.pop("beside", False) and self.progress
        params = SamplingParams(
            max_tokens=config.max_tokens,
            temperature=how.pop("temperature", 0.0),
            top_p=how.pop("top_p", 1.0),
        )
        common: dict[str, Any] = {
            "params": params,
            "seed": config.seed,
            "box": self.box,
            "concurrency": config.concurrency,
            "deadline_s": config.deadline_s,
            "out": self.folder.trees(phase),
            "progress": shown,
            "label": phase.replace("_", " "),
        }
        with self.folder.phase(phase):
            return await collect(env, rollout, policy, **(common | how))

    async def measure(
        self, phase: str, env: Env, rollout: Rollout, policy: Policy, tasks: Sequence[Task]
    ) -> dict[str, Any]:
        """Greedy results on held-out tasks; empty without any."""
        if not tasks:
            return {}
        trees = await self.collect(phase, env, rollout, policy, tasks=tasks)
        return evaluate.summarize(evaluate.final(trees))

    async def fine_tune(
        self,
        name: str,
        policy: Any,
        rows: Sequence[Sample] | Sequence[Pair],
        loss: losses.Loss | Objective | str = "sft",
        *,
        reference: Reference | None = None,
        **changes: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Train a policy's model on `rows`; the policy that samples the result, and facts.

        Where there are none, that is said, and the model stays as it is. A loss that compares with
        a `reference` takes the model before this training if none is given. `changes` are settings
        of training that differ from the recipe's.
        """
        config = training(self.config, **changes)
        if not rows:
            warnings.warn(
                f"no trajectory is left to train {name} on: the model stays as it is. More "
                "problems (n=...), a longer max_tokens or other prompts may help.",
                category=AgentRLWarning,
                stacklevel=2,
            )
            return policy, {"samples": 0, "steps": 0}
        policy.refresh()  # frees its keys and values
        give_memory_back()
        with self.folder.phase(f"train_{name}"):
            result = train(
                policy.model,
                rows,
                loss,
                config,
                out_dir=self.folder.path / "checkpoints" / name,
                resume=True,
                progress=self.progress,
                callbacks=[stop_if_cancelled],
                reference=reference,
            )
        give_memory_back()
        if result.model is policy.model:
            policy.refresh()
        else:
            policy = await policy.over(result.model)
        return policy, {
            "samples": len(rows),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "loss": round(result.metrics[-1]["loss"], 4),
        }


async def adapted(policy: Any, lora: Mapping[str, Any] | None) -> Any:
    """The policy with a new adapter in its model, if `lora` is one."""
    return policy if lora is None else await policy.over(adapt(policy.model, lora))


def stop_if_cancelled(row: dict[str, float]) -> None:
    """Called after each step of training, which holds the event loop: lets Ctrl-C through."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError

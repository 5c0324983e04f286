"""Training: samples or pairs and a loss in, a trained model and its metrics out.

result = train(model, samples, "sft", TrainConfig(lr=1e-4, epochs=3), out_dir="runs/a")
result = train(model, pairs, losses.make("dpo", beta=0.05), TrainConfig(lr=1e-6))
export(result.model, "runs/a/model", tokenizer)
"""

from agentrl.train.adapter import adapt
from agentrl.train.export import export
from agentrl.train.loop import TrainResult, train
from agentrl.train.objective import Objective, objective
from agentrl.train.reference import Reference
from agentrl.train.schedule import TrainConfig
from agentrl.train.scorer import Scorer, Scores
from agentrl.train.step import Trainer
from agentrl.train.sums import Row

__all__ = [
    "Objective",
    "Reference",
    "Row",
    "Scorer",
    "Scores",
    "TrainConfig",
    "TrainResult",
    "Trainer",
    "adapt",
    "export",
    "objective",
    "train",
]

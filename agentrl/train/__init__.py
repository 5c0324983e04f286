"""Training: samples and a loss in, a trained model and its metrics out.

result = train(model, samples, "sft", TrainConfig(lr=1e-4, epochs=3), out_dir="runs/a")
export(result.model, "runs/a/model", tokenizer)
"""

from agentrl.train.adapter import adapt
from agentrl.train.export import export
from agentrl.train.loop import Row, TrainResult, train
from agentrl.train.reference import Reference
from agentrl.train.schedule import TrainConfig
from agentrl.train.scorer import Scorer, Scores

__all__ = [
    "Reference",
    "Row",
    "Scorer",
    "Scores",
    "TrainConfig",
    "TrainResult",
    "adapt",
    "export",
    "train",
]

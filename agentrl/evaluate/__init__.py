"""Evaluation: accuracy, what changes from turn to turn, votes, intervals and paired tests.

Torch-free. `summarize` says what attempts came to, `turn_metrics` what happened from turn to turn,
`compare` whether one evaluation is better than another on the same problems.
"""

from agentrl.evaluate.accuracy import (
    Graded,
    Proportion,
    effective_size,
    final,
    of_round,
    right,
    summarize,
    wilson,
)
from agentrl.evaluate.answers import Turn, edit_distance, edit_ratio, pass_at_k, turns_of
from agentrl.evaluate.compare import compare
from agentrl.evaluate.intervals import Estimate, bootstrap, mcnemar, permutation
from agentrl.evaluate.turns import turn_metrics, values
from agentrl.evaluate.votes import best, masses, rm_at_k, sigmoid, vote

__all__ = [
    "Estimate",
    "Graded",
    "Proportion",
    "Turn",
    "best",
    "bootstrap",
    "compare",
    "edit_distance",
    "edit_ratio",
    "effective_size",
    "final",
    "masses",
    "mcnemar",
    "of_round",
    "pass_at_k",
    "permutation",
    "right",
    "rm_at_k",
    "sigmoid",
    "summarize",
    "turn_metrics",
    "turns_of",
    "values",
    "vote",
    "wilson",
]

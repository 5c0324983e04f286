"""Tree search over the record: one core, six searches, judges.

A search expands a `Cursor`'s assistant turn step by step; see `core` (expansion, iterations,
budgets, resume), `rules` (the formulas), `units` (where a step ends), `strategies` (MCTS-DPO,
iTool, RAIN, best-first, beam, best-of-n) and `evaluators` (who judges). As rollouts they are in
`agentrl.rollouts.search`.
"""

from agentrl.search.core import Search
from agentrl.search.counts import statistics
from agentrl.search.parts import Budget, Judge, Place, Strategy
from agentrl.search.table import State, Table

__all__ = ["Budget", "Judge", "Place", "Search", "State", "Strategy", "Table", "statistics"]

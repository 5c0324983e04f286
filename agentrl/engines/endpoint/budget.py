"""What may be spent on endpoints: requests, tokens, money.

A request reserves the most that it can cost before it is sent and is charged what it did cost, so
that many at once cannot spend what is there only once.
"""

from __future__ import annotations

import asyncio
import os
import threading
from dataclasses import dataclass
from functools import cache

from agentrl.errors import BudgetError, ConfigError

ENVIRONMENT = {
    "requests": "AGENTRL_BUDGET_REQUESTS",
    "tokens": "AGENTRL_BUDGET_TOKENS",
    "money": "AGENTRL_BUDGET_MONEY",
}
PRICES = "AGENTRL_PRICES"
_WAIT_S = 0.02


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens read (`input`) and written (`output`), in any currency."""

    input: float
    output: float

    @classmethod
    def of_environment(cls) -> Prices | None:
        """AGENTRL_PRICES, as in 0.15,0.6; None where it is not set. Raises ConfigError."""
        text = os.environ.get(PRICES)
        if text is None:
            return None
        try:
            input, output = map(float, text.split(","))
        except ValueError:
            raise ConfigError(f"{PRICES}={text!r}: give two numbers, as in 0.15,0.6") from None
        return cls(input, output)

    def of(self, prompt: int, completion: int) -> float:
        """What so many tokens cost."""
        return (prompt * self.input + completion * self.output) / 1e6


@dataclass(frozen=True, slots=True)
class Cost:
    """Requests sent (retries included), tokens read and written, money."""

    requests: int = 0
    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.requests + other.requests, self.tokens + other.tokens, self.money + other.money
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost(-other.requests, -other.tokens, -other.money)


class Budget:
    """Limits that several clients may share, in several threads and event loops (None: no limit).

    Raises ConfigError for a limit below 0.
    """

    def __init__(
        self,
        *,
        requests: float | None = None,
        tokens: float | None = None,
        money: float | None = None,
    ) -> None:
        self.limits = {"requests": requests, "tokens": tokens, "money": money}
        for name, limit in self.limits.items():
            if limit is not None and limit < 0:
                raise ConfigError(f"budget: {name} is at least 0, not {limit}")
        self.spent = Cost()
        """What answered requests have cost, and those whose cost nobody knows."""
        self._reserved = Cost()
        self._lock = threading.Lock()

    async def reserve(self, most: Cost) -> None:
        """Set aside what a request can cost at most.

        Waits while requests under way may give some back. Raises BudgetError if that is no use.
        """
        while True:
            with self._lock:
                if not self._over(self.spent + self._reserved + most):
                    self._reserved += most
                    return
                over = self._over(self.spent + most)
            if over:
                raise BudgetError(
                    f"the budget is used up: this request may cost up to {getattr(most, over):g} "
                    f"{over}, {getattr(self.spent, over):g} of {self.limits[over]:g} are spent. "
                    f"What was answered is kept; to go on, raise the limit of {over}."
                )
            await asyncio.sleep(_WAIT_S)

    def settle(self, most: Cost, real: Cost) -> None:
        """Give back what was set aside for a request and charge what it cost."""
        with self._lock:
            self._reserved -= most
            self.spent += real

    def _over(self, cost: Cost) -> str:
        """The name of the first limit that `cost` exceeds, '' if none."""
        for name, limit in self.limits.items():
            if limit is not None and getattr(cost, name) > limit + 1e-12:
                return name
        return ""


@cache
def process_budget() -> Budget:
    """The budget of this process, which clients draw on that are given none of their own.

    Its limits are AGENTRL_BUDGET_REQUESTS, _TOKENS and _MONEY of the environment, read at the first
    use; without them it only counts. Raises ConfigError for one that is no number.
    """
    limits: dict[str, float | None] = {}
    for name, variable in ENVIRONMENT.items():
        text = os.environ.get(variable)
        try:
            limits[name] = None if text is None else float(text)
        except ValueError:
            raise ConfigError(f"{variable}={text!r} is not a number") from None
    requests, tokens = (
        None if (v := limits[n]) is None else int(v) for n in ("requests", "tokens")
    )
    return Budget(requests=requests, tokens=tokens, money=limits["money"])

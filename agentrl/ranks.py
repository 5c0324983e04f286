"""The processes that train together, and what they say to each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import distributed as dist

from agentrl.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train together; this one is number `rank` of `size`.

    Every method must be called by all of them at the same place. One process alone calls nobody.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """True in the one process that prints and writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every process's `value` (anything that can be pickled), in all of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def on_main(self, do: Callable[[], T]) -> T:
        """Call `do` in the main process only; all get its result, or its exception."""
        if self.size == 1:
            return do()
        box: list[Any] = [None, None]
        if self.main:
            try:
                box[0] = do()
            except Exception as error:
                box[1] = error
        dist.broadcast_object_list(box)
        if box[1] is not None:
            raise box[1]
        result: T = box[0]
        return result

    def agree(self, fingerprint: Mapping[str, Any]) -> None:
        """Raise ConfigError, in all processes, if they were given different things to do."""
        everyone = self.gather(dict(fingerprint))
        other = [k for k in fingerprint if any(f[k] != everyone[0][k] for f in everyone)]
        if other:
            raise ConfigError(
                f"the processes that train together differ in {', '.join(other)}: give all of them "
                "the same model, data and settings"
            )

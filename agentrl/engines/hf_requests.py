"""What the worker thread of `agentrl.engines.hf` is asked for."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from agentrl.engines.hf_sampling import StopFinder
from agentrl.types import Completion, SamplingParams

Outcome = Completion | list[float] | list[tuple[int, float]] | BaseException

_serials = itertools.count()


@dataclass(eq=False)
class Request:
    """One call of `sample` (with `params`) or `score` (without); with `top`, of `top`. `done` is
    called exactly once, in the worker thread, unless the request was cancelled."""

    ids: list[int]
    params: SamplingParams | None
    done: Callable[[Outcome], None]
    stop: StopFinder | None = None
    cancelled: bool = False
    top: int = 0
    slot: int = -1
    version: int = 0

    def __post_init__(self) -> None:
        self.serial = next(_serials)
        self.n_prompt = len(self.ids)
        self.ids_np = np.asarray(self.ids, dtype=np.int64)
        self.logprobs: list[float] = []
        self.sampled_logprobs: list[float] = []
        self.random = random.Random(self.params.seed) if self.params is not None else None


@dataclass(eq=False)
class Barrier:
    """Work that needs the engine empty: it runs after all requests that came before it."""

    work: Callable[[], None]
    done: Callable[[BaseException | None], None]

"""The key/value slots of `agentrl.engines.hf`: one row per sequence, kept between requests.

Axes: S slots, C positions (the capacity), K key/value heads, D head size, N tokens of one forward.
Host bookkeeping (`ids_SC`, `known`, `computed`) says which ids a row holds; ids[:computed] have
keys and values in the tensors. Nothing here is thread-safe: one thread owns it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import Cache

from agentrl.errors import EngineError

MIN_SHARE = 16
"""A prefix shorter than this is computed again instead of waited for or copied."""


class SlotCache(Cache):  # type: ignore[misc]
    """Preallocated keys and values, `[S, K, C, D]` a layer, written in place.

    It is handed to the unmodified model as `past_key_values`; `update` writes the new tokens where
    `place_tokens` said and returns the whole slot tensors, which only `hf_attention` understands.
    """

    def __init__(self, *, max_slots: int, max_context: int, budget_bytes: int) -> None:
        super().__init__(layers=[])
        self.max_slots = max_slots
        self.max_context = max_context
        self.budget_bytes = budget_bytes
        self.bytes_per_token = 0  # all layers, keys and values; known after the first forward
        self.tokens_copied = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}
        self._slots = 0
        self._capacity = 0
        self.known = np.zeros(max_slots, dtype=np.int64)
        self.computed = np.zeros(max_slots, dtype=np.int64)
        self.busy = np.zeros(max_slots, dtype=bool)
        self.used_at = np.zeros(max_slots, dtype=np.int64)
        self.reserved = np.zeros(max_slots, dtype=np.int64)
        self.scoring = np.zeros(max_slots, dtype=bool)
        self.scored = np.zeros(max_slots, dtype=np.int64)
        self.ids_SC = np.full((max_slots, 64), -1, dtype=np.int64)
        self.logprobs_SC = np.zeros((max_slots, 64))
        self._clock = 0
        self._decode_slots = torch.empty(0, dtype=torch.long)
        self._decode_positions = torch.empty(0, dtype=torch.long)
        self._pieces: Sequence[tuple[int, int, int, int]] = ()

    # --- what the model calls -------------------------------------------------------------------

    def place_tokens(
        self, slots_N: Tensor, positions_N: Tensor, pieces: Sequence[tuple[int, int, int, int]]
    ) -> None:
        """Say where the next forward's tokens go.

        The first `len(slots_N)` tokens go one each to (slot, position); then each piece
        `(first, last, slot, position)` puts tokens `first:last` into `slot` from `position` on.
        """
        self._decode_slots, self._decode_positions, self._pieces = slots_N, positions_N, pieces

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values `[1, K, N, D]`; return the whole `[S, K, C, D]` tensors."""
        if layer_idx not in self._keys:
            self._keys[layer_idx] = self._zeros(key_states)
            self._values[layer_idx] = self._zeros(value_states)
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        n = len(self._decode_slots)
        for whole, new in ((keys, key_states), (values, value_states)):
            if n:
                where = (self._decode_slots, slice(None), self._decode_positions)
                whole[where] = new[0, :, :n].transpose(0, 1)
            for first, last, slot, position in self._pieces:
                whole[slot, :, position : position + last - first] = new[0, :, first:last]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Unused by our calls (positions are explicit); 0 keeps models from adding an offset."""
        return 0

    @property
    def is_compileable(self) -> bool:
        """False: the shapes change at every step."""
        return False

    # --- memory ---------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(slots, positions) now allocated."""
        return self._slots, self._capacity

    def flush(self) -> None:
        """Forget every row and free the memory."""
        self._keys.clear()
        self._values.clear()
        self._slots = self._capacity = 0
        self.known[:] = self.computed[:] = self.scored[:] = 0
        self.busy[:] = False
        self.reserved[:] = 0

    def grow(self, positions: int) -> None:
        """Make room for `positions` in each row (called before a forward that needs them)."""
        if positions > self._capacity:
            wanted = max(positions, min(self.max_context, self._capacity * 3 // 2), 128)
            self._resize(self._slots, -(-wanted // 64) * 64)

    def slots_that_fit(self, positions: int) -> int:
        """How many rows of `positions` the memory budget allows."""
        if not self.bytes_per_token:
            return self.max_slots
        return min(self.max_slots, self.budget_bytes // (self.bytes_per_token * max(positions, 1)))

    def measure(self) -> None:
        """Learn `bytes_per_token` from the layers that the first forward made."""
        tensors = [*self._keys.values(), *self._values.values()]
        self.bytes_per_token = sum(t.shape[1] * t.shape[3] * t.element_size() for t in tensors)

    def _zeros(self, like: Tensor) -> Tensor:
        shape = (self._slots, like.shape[1], self._capacity, like.shape[3])
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def _resize(self, slots: int, capacity: int) -> None:
        rows = min(slots, self._slots)
        kept = min(int(self.computed[:rows].max(initial=0)), capacity)
        for table in (self._keys, self._values):
            for layer, old in table.items():
                shape = (slots, old.shape[1], capacity, old.shape[3])
                new = torch.zeros(shape, dtype=old.dtype, device=old.device)
                new[:rows, :, :kept] = old[:rows, :, :kept]
                table[layer] = new
        self._slots, self._capacity = slots, capacity

    # --- finding a row for a request ------------------------------------------------------------

    def place(
        self, ids_T: np.ndarray, *, need: int, limit: int, scoring: bool = False
    ) -> tuple[int, int] | Literal["wait", "full"]:
        """Take a row for a sequence; returns (slot, how many of its tokens need no computing).

        `need` is the most positions the sequence may grow to, `limit` the most tokens to reuse.
        With `scoring`, the log-probabilities of the reused tokens' successors are known as well.
        "wait": another row is computing a long common prefix just now. "full": no row is free.
        Raises EngineError if the sequence cannot fit into memory even alone.
        """
        self._make_room(need)
        shared = self._common_prefix(ids_T)
        potential = np.minimum(shared, limit)
        ready = np.minimum(potential, self.computed)
        if scoring:  # of the last shared token the successor differs
            to_come = np.where(self.scoring & self.busy, self.known, self.scored)
            potential = np.minimum(np.maximum(shared - 1, 0), np.minimum(to_come, limit))
            ready = np.minimum(potential, np.minimum(self.computed, self.scored))
        best = int(ready.argmax())
        if int(potential.max()) >= int(ready[best]) + MIN_SHARE:
            return "wait"
        target = self._choose(best, int(ready[best]), need)
        if target is None:
            return "full"
        reuse = int(ready[best]) if ready[best] >= MIN_SHARE or target == best else 0
        if reuse and target != best:
            self._copy_row(best, target, reuse)
        self._clock += 1
        self.used_at[target] = self._clock
        self.busy[target] = True
        self.reserved[target] = need
        self.computed[target] = reuse
        same = min(reuse, max(int(shared[best]) - 1, 0))  # tokens whose successor is the same too
        self.scored[target] = min(int(self.scored[target]), same)
        self.scoring[target] = scoring
        self._set_ids(target, ids_T)
        return target, reuse

    def append(self, slot: int, token: int) -> None:
        """Record a sampled token (its keys are computed by a later forward)."""
        n = int(self.known[slot])
        if n >= self.ids_SC.shape[1]:
            self._widen(n + 1)
        self.ids_SC[slot, n] = token
        self.known[slot] = n + 1

    def keep_scores(self, slot: int, logprobs: Sequence[float]) -> None:
        """Record all log-probabilities of a row so far: of its tokens 1, 2, ..."""
        self.logprobs_SC[slot, : len(logprobs)] = logprobs
        self.scored[slot] = len(logprobs)

    def scores(self, slot: int) -> list[float]:
        """The log-probabilities that are known of a row's first tokens, but for token 0."""
        known: list[float] = self.logprobs_SC[slot, : self.scored[slot]].tolist()
        return known

    def release(self, slot: int) -> None:
        """The request is done; its row stays for whoever continues it."""
        self._clock += 1
        self.used_at[slot] = self._clock
        self.busy[slot] = False
        self.reserved[slot] = 0
        self.known[slot] = self.computed[slot]

    def _common_prefix(self, ids_T: np.ndarray) -> np.ndarray:
        """Per slot, how many leading ids it shares with `ids_T`."""
        rows = max(self._slots, 1)
        n = min(len(ids_T), self.ids_SC.shape[1], int(self.known[:rows].max()))
        shared = np.zeros(self.max_slots, dtype=np.int64)
        if n:
            differs = self.ids_SC[:rows, :n] != ids_T[:n]
            first = np.where(differs.any(1), differs.argmax(1), n)
            shared[:rows] = np.minimum(first, self.known[:rows])
        return shared

    def _make_room(self, need: int) -> None:
        """Give idle rows at the end back to memory if rows must become longer."""
        allowed = self.slots_that_fit(max(int(self.reserved.max()), need))
        if allowed < 1 and not self.busy.any():
            raise EngineError(
                f"a sequence of {need} tokens needs more than the {self.budget_bytes >> 20} MiB"
                " this policy may use for keys and values. Lower max_tokens or raise kv_memory_gb."
            )
        if allowed < self._slots and not self.busy[allowed:].any():
            self.known[allowed:] = self.computed[allowed:] = 0
            self._resize(allowed, self._capacity)

    def _choose(self, best: int, ready: int, need: int) -> int | None:
        """The row to use: the one that is continued, an empty one, or the least recently used."""
        allowed = self.slots_that_fit(max(int(self.reserved.max()), need))
        if allowed < self._slots:
            return None  # memory: a row at the end is busy
        idle = [s for s in range(self._slots) if not self.busy[s]]
        if best in idle and ready and self.computed[best] - ready <= MIN_SHARE:
            return best
        for slot in idle:
            if not self.known[slot]:
                return slot
        if self._slots < allowed:
            slot = self._slots
            self._resize(min(allowed, max(2 * slot, 8)), max(self._capacity, 128))
            return slot
        others = [s for s in idle if s != best or not ready]
        return min(others or idle, key=lambda s: int(self.used_at[s]), default=None)

    def _copy_row(self, source: int, target: int, n: int) -> None:
        for table in (self._keys, self._values):
            for whole in table.values():
                whole[target, :, :n] = whole[source, :, :n]
        self.scored[target] = self.scored[source]
        self.logprobs_SC[target, :n] = self.logprobs_SC[source, :n]
        self.tokens_copied += n

    def copy_newest(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Give each target row the newest computed token of its source, whose ids are the same."""
        positions = self.computed[list(sources)] - 1
        for table in (self._keys, self._values):
            for whole in table.values():
                at = torch.as_tensor(positions, device=whole.device)
                whole[list(targets), :, at] = whole[list(sources), :, at]
        self.computed[list(targets)] = positions + 1

    def _set_ids(self, slot: int, ids_T: np.ndarray) -> None:
        if len(ids_T) > self.ids_SC.shape[1]:
            self._widen(len(ids_T))
        self.ids_SC[slot, : len(ids_T)] = ids_T
        self.known[slot] = len(ids_T)

    def _widen(self, n: int) -> None:
        wider = np.full((self.max_slots, max(n, 2 * self.ids_SC.shape[1])), -1, dtype=np.int64)
        scores = np.zeros(wider.shape)
        for new, old in ((wider, self.ids_SC), (scores, self.logprobs_SC)):
            new[:, : old.shape[1]] = old
        self.ids_SC, self.logprobs_SC = wider, scores

"""Continuous batching on a transformers model: the single-threaded half of `agentrl.engines.hf`.

`Engine.step` is one forward: every sequence that decodes gives one token, prompts fill what is left
of the step's token budget. Requests join and leave between any two steps. Nothing here knows of
asyncio or threads.

Axes: N tokens of the step, O output positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agentrl.engines import hf_device
from agentrl.engines.hf_attention import Piece, Plan, Run, common_with_next, cut_runs, make_runs
from agentrl.engines.hf_requests import Barrier, Outcome, Request
from agentrl.engines.hf_sampling import Drawn, draw, likeliest, logprobs_of
from agentrl.engines.hf_slots import SlotCache
from agentrl.errors import EngineError
from agentrl.types import Completion, FinishReason

_SCORE_ELEMENTS = 1 << 25
"""Logits (positions times vocabulary) that one step computes for scoring at most."""


@dataclass(slots=True)
class HFStats:
    """Counts since the policy was made; times are seconds in the worker thread."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    steps: int = 0
    tokens_computed: int = 0
    """Tokens that went through the model, all in all."""
    tokens_prefilled: int = 0
    """Prompt tokens that went through the model."""
    tokens_reused: int = 0
    """Prompt tokens whose keys and values were there already."""
    tokens_copied: int = 0
    """Of these, tokens copied from another row (a shared prefix)."""
    tokens_merged: int = 0
    """Tokens taken from another row that held the same ids, and so were not computed."""
    tokens_sampled: int = 0
    tokens_scored: int = 0
    flushes: int = 0
    seconds: float = 0.0


class Engine:
    """Serves requests on one view of a model. Owned by one thread."""

    def __init__(
        self,
        view: nn.Module,
        *,
        device: torch.device,
        vocab_size: int,
        eos_ids: frozenset[int],
        max_context: int,
        max_batch: int,
        cache: SlotCache,
        step_tokens: int,
        prefix_cache: bool = True,
    ) -> None:
        self.view = view
        self.device = device
        self.vocab_size = vocab_size
        self.eos_ids = eos_ids
        self.max_context = max_context
        self.max_batch = max_batch
        self.cache = cache
        self.step_tokens = step_tokens
        self.prefix_cache = prefix_cache
        self.score_tokens = max(16, _SCORE_ELEMENTS // vocab_size)
        self.version = 0
        self.stats = HFStats()
        self.waiting: deque[Request | Barrier] = deque()
        self.active: list[Request] = []
        self._cuts: tuple[list[int], list[tuple[int, int, int]]] = ([], [])

    @property
    def busy(self) -> bool:
        """True while there is anything to do."""
        return bool(self.active or self.waiting)

    def step(self) -> None:
        """Admit what fits, run one forward, deliver what is finished."""
        began = time.perf_counter()
        with torch.inference_mode():
            self._drop_cancelled()
            self._admit()
            if self.active:
                self._forward()
                self.stats.steps += 1
        self.stats.tokens_copied = self.cache.tokens_copied
        self.stats.seconds += time.perf_counter() - began

    def fail(self, error: BaseException) -> None:
        """Give every request `error` and start with empty rows."""
        victims = [*self.active, *self.waiting]
        self.active.clear()
        self.waiting.clear()
        self.flush()
        for victim in victims:
            if isinstance(victim, Barrier) or not victim.cancelled:
                self.stats.failed += 1
                victim.done(error)

    def flush(self) -> None:
        """Forget all keys and values (the weights changed)."""
        self.cache.flush()
        self.stats.flushes += 1

    # --- admission ------------------------------------------------------------------------------

    def _drop_cancelled(self) -> None:
        for request in [r for r in self.active if r.cancelled]:
            self.active.remove(request)
            self.cache.release(request.slot)
            self.stats.cancelled += 1

    def _admit(self) -> None:
        """Start waiting requests, first come first served; those whose prefix is being computed by
        another row wait a step longer without holding up the others."""
        later: list[Request | Barrier] = []
        looks = 2 * self.max_batch
        while self.waiting and len(self.active) < self.max_batch and looks:
            item = self.waiting.popleft()
            looks -= 1
            if isinstance(item, Barrier):
                if self.active or later:
                    later.append(item)
                    break
                self._run_barrier(item)
            elif item.cancelled:
                self.stats.cancelled += 1
            elif not self._start(item, later):
                break
        self.waiting.extendleft(reversed(later))

    def _start(self, request: Request, later: list[Request | Barrier]) -> bool:
        """Give the request a row. False if none is free, so that looking on is of no use."""
        scoring = request.params is None
        room = request.params.max_tokens if request.params else 0
        need = min(request.n_prompt + room, self.max_context)
        limit = request.n_prompt - 1 if self.prefix_cache else 0
        try:
            found = self.cache.place(request.ids_np, need=need, limit=limit, scoring=scoring)
        except EngineError as error:
            self.stats.failed += 1
            request.done(error)
            return True
        if isinstance(found, str):
            later.append(request)
            return found == "wait"
        request.slot, reused = found
        if scoring:
            request.logprobs = self.cache.scores(request.slot)
        request.version = self.version
        self.active.append(request)
        self.stats.requests += 1
        self.stats.tokens_reused += reused
        return True

    def _run_barrier(self, barrier: Barrier) -> None:
        try:
            with torch.inference_mode(False):
                barrier.work()
        except Exception as error:
            barrier.done(error)
        else:
            barrier.done(None)

    # --- one forward ----------------------------------------------------------------------------

    def _forward(self) -> None:
        decoding, chunks = self._choose()
        decoding, twins = self._apart(decoding)
        tokens, positions, pieces, outputs = self._pack(decoding, chunks)
        logits_OV = self._run_model(decoding, tokens, positions, pieces, outputs)
        for request in decoding:
            self.cache.computed[request.slot] += 1
        if twins:
            slots = [(decoding[i].slot, twin.slot) for twin, i in twins]
            self.cache.copy_newest(*zip(*slots, strict=True))
            self.stats.tokens_merged += len(twins)
        for request, n in chunks:
            self.cache.computed[request.slot] += n
            self.stats.tokens_prefilled += n
        self.stats.tokens_computed += len(tokens)
        self._finish_step(decoding, twins, chunks, logits_OV)

    def _apart(
        self, decoding: Sequence[Request]
    ) -> tuple[list[Request], list[tuple[Request, int]]]:
        """Rows whose ids differ; and of each that holds the same ids as one of these its index
        there. Answers to one prompt are alike until their first tokens differ, and so long it is
        enough to compute one of them."""
        if not (self.prefix_cache and hf_device.costs(self.device).merges):
            return list(decoding), []
        own: list[Request] = []
        twins: list[tuple[Request, int]] = []
        known: dict[tuple[int, int], list[int]] = {}
        for request in decoding:
            n = len(request.ids)
            ids_T = self.cache.ids_SC[request.slot, :n]
            alike = known.setdefault((n, request.ids[-1]), [])
            same = (i for i in alike if np.array_equal(self.cache.ids_SC[own[i].slot, :n], ids_T))
            found = next(same, None)
            if found is None:
                alike.append(len(own))
                own.append(request)
            else:
                twins.append((request, found))
        return own, twins

    def _choose(self) -> tuple[list[Request], list[tuple[Request, int]]]:
        """Who takes part: rows with one pending token, ordered by slot, and pieces of prompts."""
        decoding: list[Request] = []
        chunks: list[tuple[Request, int]] = []
        budget, score_budget = self.step_tokens, self.score_tokens
        for request in self.active:
            pending = len(request.ids) - int(self.cache.computed[request.slot])
            if request.params is None:
                n = min(pending, budget, score_budget)
                score_budget -= n
            elif pending == 1:
                decoding.append(request)
                continue
            else:
                n = min(pending, budget)
            if n > 0:
                budget -= n
                chunks.append((request, n))
        decoding.sort(key=lambda r: r.slot)
        return decoding, chunks

    def _pack(
        self, decoding: Sequence[Request], chunks: Sequence[tuple[Request, int]]
    ) -> tuple[list[int], list[int], list[Piece], list[int]]:
        """Token ids and positions of the step, its pieces, and which tokens need logits."""
        tokens = [r.ids[-1] for r in decoding]
        positions = [len(r.ids) - 1 for r in decoding]
        outputs = list(range(len(decoding)))
        pieces = []
        for request, n in chunks:
            at, first = int(self.cache.computed[request.slot]), len(tokens)
            pieces.append(Piece(first, first + n, request.slot, at))
            tokens.extend(request.ids[at : at + n])
            positions.extend(range(at, at + n))
            if request.params is None:
                outputs.extend(range(first, first + n))
            elif at + n == len(request.ids):
                outputs.append(first + n - 1)
        return tokens, positions, pieces, outputs

    def _run_model(
        self,
        decoding: Sequence[Request],
        tokens: list[int],
        positions: list[int],
        pieces: list[Piece],
        outputs: list[int],
    ) -> Tensor:
        """Logits `[O, V]` at the output positions."""
        slots = np.array([r.slot for r in decoding], dtype=np.int64)
        lengths = np.array([len(r.ids) for r in decoding], dtype=np.int64)
        self.cache.grow(max(positions) + 1)
        plan = Plan(self._runs(decoding, slots, lengths), lengths, slots, pieces)
        self.cache.place_tokens(
            torch.from_numpy(slots).to(self.device),
            torch.from_numpy(lengths - 1).to(self.device),
            [(p.first, p.last, p.slot, p.position) for p in pieces],
        )
        keep = torch.tensor(outputs or [0], device=self.device)
        result: Any = self.view(
            input_ids=torch.tensor([tokens], device=self.device),
            position_ids=torch.tensor([positions], device=self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
            slot_plan=plan,
        )
        logits_OV: Tensor = result.logits[0]
        if logits_OV.shape[0] != len(keep):  # a model that ignores logits_to_keep
            logits_OV = logits_OV[keep]
        return logits_OV[: len(outputs)]

    def _runs(
        self, decoding: Sequence[Request], slots: np.ndarray, lengths: np.ndarray
    ) -> list[Run]:
        """How the decoding rows are cut for attention; found anew when others take part."""
        key = [r.serial for r in decoding]
        if self._cuts[0] != key or self.stats.steps % 32 == 0:
            costs, ids_RC = hf_device.costs(self.device), self.cache.ids_SC[slots]
            common = common_with_next(ids_RC, lengths) if costs.shares else np.zeros_like(lengths)
            self._cuts = (key, cut_runs(slots, lengths, common, costs.call))
        return make_runs(self._cuts[1], slots, self.device)

    def _finish_step(
        self,
        decoding: Sequence[Request],
        twins: Sequence[tuple[Request, int]],
        chunks: Sequence[tuple[Request, int]],
        logits_OV: Tensor,
    ) -> None:
        """Sample for the rows that are at their end; collect the scores of the others."""
        samplers, rows = list(decoding), list(range(len(decoding)))
        samplers += [twin for twin, _ in twins]
        rows += [i for _, i in twins]
        row = len(decoding)
        for request, n in chunks:
            if request.params is None:
                self._take_scores(request, n, logits_OV[row : row + n])
                row += n
            elif self.cache.computed[request.slot] == len(request.ids):
                samplers.append(request)
                rows.append(row)
                row += 1
        if not samplers:
            return
        picked_BV = logits_OV if rows == [*range(logits_OV.shape[0])] else logits_OV[rows]
        params = [r.params for r in samplers if r.params is not None]
        uniforms = [r.random.random() for r in samplers if r.random is not None]
        drawn_B = draw(picked_BV, params, uniforms)
        for request, drawn, logits_V in zip(samplers, drawn_B, picked_BV, strict=True):
            if request.top and not drawn.fault:
                self._leave(request, likeliest(logits_V, request.top))
            else:
                self._take_token(request, drawn)

    def _take_scores(self, request: Request, n: int, logits_NV: Tensor) -> None:
        end = int(self.cache.computed[request.slot])
        targets = request.ids[end - n + 1 : end + 1]
        if targets:
            targets_N = torch.tensor(targets, device=self.device)
            request.logprobs += logprobs_of(logits_NV[: len(targets)], targets_N).tolist()
            self.cache.keep_scores(request.slot, request.logprobs)
        self.stats.tokens_scored += n
        if end == len(request.ids):
            self._leave(request, list(request.logprobs))

    def _take_token(self, request: Request, drawn: Drawn) -> None:
        if drawn.fault:
            self.stats.failed += 1
            self._leave(
                request,
                EngineError(
                    "the model's logits are not finite; its weights or activations overflowed. "
                    "Check the last update (learning rate), or use dtype float32."
                ),
            )
            return
        params = request.params
        assert params is not None
        request.ids.append(drawn.token)
        request.logprobs.append(drawn.logprob)
        if drawn.sampled_logprob is not None:
            request.sampled_logprobs.append(drawn.sampled_logprob)
        self.cache.append(request.slot, drawn.token)
        self.stats.tokens_sampled += 1
        stop = request.stop.push(drawn.token) if request.stop else None
        reason: FinishReason | None = None
        if drawn.token in self.eos_ids:
            reason, stop = "eos", None
        elif stop is not None:
            reason = "stop"
        elif len(request.logprobs) >= params.max_tokens or len(request.ids) >= self.max_context:
            reason = "length"
        if reason is not None:
            self._leave(
                request,
                Completion(
                    token_ids=tuple(request.ids[request.n_prompt :]),
                    logprobs=tuple(request.logprobs),
                    finish_reason=reason,
                    policy_version=request.version,
                    stop=stop,
                    sampled_logprobs=tuple(request.sampled_logprobs) or None,
                ),
            )

    def _leave(self, request: Request, outcome: Outcome) -> None:
        self.active.remove(request)
        self.cache.release(request.slot)
        self.stats.finished += 1
        request.done(outcome)

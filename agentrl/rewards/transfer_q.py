"""Transfer Q* (arXiv 2405.20495): a policy's next tokens, weighed by what a baseline makes of them.

For each token, the `k` likeliest of the policy are carried on to the end by a baseline policy that
is aligned with some reward, and the target reward of what comes is the token's Q:
`pi(z|s) ~ p(z|s) exp(Q(s, z) / alpha)`. Rolling out with the policy itself would estimate the Q of
the wrong policy, which is the paper's point.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from random import Random
from typing import Any

from agentrl.errors import ConfigError
from agentrl.interfaces import Policy, Ranks
from agentrl.rewards.answers import check_tokenizer
from agentrl.rewards.base import RewardModel
from agentrl.tree import derive_seed
from agentrl.types import Completion, FinishReason, SamplingParams


def reweighted(logprobs: Sequence[float], q: Sequence[float], alpha: float) -> list[float]:
    """`p exp(q / alpha)`, normalised over the tokens given.

    An infinite `alpha` leaves p; 0 leaves the tokens of the highest q alone.
    """
    if alpha == 0:
        scaled = [0.0 if value == max(q) else -math.inf for value in q]
    else:
        scaled = [value / alpha for value in q]
    logits = [p + value for p, value in zip(logprobs, scaled, strict=True)]
    odds = [math.exp(x - max(logits)) for x in logits]
    return [x / math.fsum(odds) for x in odds]


def transferred(rewards: Sequence[float], others: Sequence[float], beta: float = 1.0) -> float:
    """The mean of `rewards` over rollouts of a baseline that is aligned with another reward
    (`others`): each counts with `exp((r - r_other) / beta)`, the weights with a sum of 1."""
    gaps = [r - other for r, other in zip(rewards, others, strict=True)]
    weights = reweighted([0.0] * len(gaps), gaps, beta)
    return math.fsum(w * r for w, r in zip(weights, rewards, strict=True))


class TransferQ:
    """`policy`, each of its tokens chosen among its `k` likeliest by `reward` of how `baseline`
    goes on, for collecting and evaluation; it is not trained.

    *Direct*, without `baseline_reward`: the baseline is aligned with `reward`. *Indirect*: with
    `baseline_reward`, which it is aligned with, its rollouts are reweighted (`beta`); that takes
    several. `rollouts` are drawn for each token, greedily if it is one; the token that ends the
    turn needs none. They may have `max_tokens` (by default as many as are left). `alpha` is in the
    reward's units, and 0 is greedy in Q. A token costs k rollouts.

    `Completion.logprobs` are those of `policy`, `sampled_logprobs` those that were drawn from.
    Raises ConfigError for policies that do not go together.
    """

    def __init__(
        self,
        policy: Policy,
        reward: RewardModel,
        baseline: Policy,
        *,
        k: int = 10,
        alpha: float = 1.0,
        rollouts: int = 1,
        baseline_reward: RewardModel | None = None,
        beta: float = 1.0,
        max_tokens: int | None = None,
    ) -> None:
        if not isinstance(policy, Ranks):
            raise ConfigError(
                f"TransferQ: policy {policy.name!r} does not tell its likeliest tokens; take one "
                "that runs in transformers here (a model's name or path)"
            )
        prints = [getattr(p.tokenizer, "fingerprint", id(p.tokenizer)) for p in (policy, baseline)]
        if prints[0] != prints[1]:
            raise ConfigError("TransferQ: the baseline must have the policy's tokenizer")
        for model in (reward, baseline_reward):
            check_tokenizer(model, policy.tokenizer)  # it reads the policy's ids
        if k < 1 or rollouts < 1 or alpha < 0 or beta <= 0:
            raise ConfigError(
                "TransferQ: k and rollouts are 1 or more, alpha is 0 or more, beta above 0"
            )
        if baseline_reward is not None and rollouts < 2:
            raise ConfigError("TransferQ: reweighting takes 2 rollouts or more, not 1")
        self.policy, self.baseline, self.ranks = policy, baseline, policy
        self.reward, self.baseline_reward = reward, baseline_reward
        self.k, self.alpha, self.beta = k, alpha, beta
        self.rollouts, self.max_tokens = rollouts, max_tokens
        self.name = f"transfer_q:{policy.name}"
        self.tokenizer = policy.tokenizer
        self.max_context = min(policy.max_context, baseline.max_context)

    @property
    def version(self) -> int:
        """The policy's."""
        return self.policy.version

    async def sample(self, prompt_ids: Sequence[int], params: SamplingParams) -> Completion:
        """See `agentrl.interfaces.Policy.sample`; `params` apply to the reweighted distribution.

        Raises ValueError for an empty or too long prompt, and what the policies and the reward
        model raise.
        """
        ids, n, version = list(prompt_ids), len(prompt_ids), self.version
        if not 0 < n <= self.max_context:
            raise ValueError(f"a prompt of {n} tokens; it has 1 to {self.max_context}")
        room = min(params.max_tokens, self.max_context - n)
        chance, found = Random(params.seed), list[tuple[float, float]]()
        reason: FinishReason = "length"
        stop: str | None = None
        while len(found) < room and reason == "length":
            tokens, logprobs = zip(*await self.ranks.top(ids, self.k), strict=True)
            left = room - len(found) - 1
            left = left if self.max_tokens is None else min(left, self.max_tokens)
            ends = [
                SamplingParams(left, seed=chance.getrandbits(62), stop=params.stop) for _ in tokens
            ]
            values = [self.value([*ids, z], p) for z, p in zip(tokens, ends, strict=True)]
            weights = reweighted(logprobs, await asyncio.gather(*values), self.alpha)
            chosen, logprob = _drawn(weights, params, chance)
            ids.append(tokens[chosen])
            found.append((logprobs[chosen], logprob))
            stop = next((s for s in params.stop if s in self.tokenizer.decode(ids[n:])), None)
            if ids[-1] in self.tokenizer.eos_ids:
                reason, stop = "eos", None
            elif stop is not None:
                reason = "stop"
        own, drawn = (tuple(x) for x in zip(*found, strict=True)) if found else ((), ())
        return Completion(tuple(ids[n:]), own, reason, version, stop, drawn or None)

    async def value(self, ids: Sequence[int], params: SamplingParams) -> float:
        """Q of the last token of `ids`: the reward of what the baseline makes of it, or of `ids`
        themselves where they end the turn, or nothing may follow."""
        if ids[-1] in self.tokenizer.eos_ids or not params.max_tokens:
            return await self.reward.reward(ids)
        greedy = 0.0 if self.rollouts == 1 else 1.0
        drawn = [
            replace(params, temperature=greedy, seed=derive_seed(params.seed, i))
            for i in range(self.rollouts)
        ]
        made = await asyncio.gather(*(self.baseline.sample(ids, p) for p in drawn))
        whole = [[*ids, *m.token_ids] for m in made]
        rewards = await asyncio.gather(*map(self.reward.reward, whole))
        if self.baseline_reward is None:
            return math.fsum(rewards) / len(rewards)
        others = await asyncio.gather(*map(self.baseline_reward.reward, whole))
        return transferred(rewards, others, self.beta)

    async def score(self, token_ids: Sequence[int]) -> list[float]:
        """The policy's own log-probabilities."""
        return await self.policy.score(token_ids)

    async def update(self, weights: Mapping[str, Any]) -> None:
        """New weights for the policy; the baseline stays as it is."""
        await self.policy.update(weights)

    async def close(self) -> None:
        """Close the policy and the baseline."""
        await self.policy.close()
        await self.baseline.close()


def _drawn(weights: Sequence[float], params: SamplingParams, chance: Random) -> tuple[int, float]:
    """An index drawn by `weights` (a sum of 1) after temperature, top-k and top-p, in this order,
    and its log-probability."""
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if params.temperature == 0:
        return order[0], 0.0
    odds = [weights[i] ** (1 / params.temperature) for i in order[: params.top_k or None]]
    before = [0.0, *accumulate(odds)]
    kept = [w for w, b in zip(odds, before, strict=False) if b < params.top_p * math.fsum(odds)]
    (rank,) = chance.choices(range(len(kept)), kept)
    return order[rank], math.log(kept[rank] / math.fsum(kept))

"""The contract of policies and their tokenizers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from agentrl.interfaces import Policy, Tokenizer
from agentrl.testing.common import raises, require
from agentrl.types import Completion, FinishReason, Message, SamplingParams


def check_policy(
    policy: Policy,
    *,
    prompt: str = "Count from one to ten.",
    max_tokens: int = 12,
    tolerance: float = 1e-3,
    weights: Mapping[str, Any] | None = None,
) -> None:
    """Check sampling, scoring, seeds, stop strings, limits and many calls at once.

    `tolerance` (nats) is how far a log-probability scored again may be from the sampled one; a
    policy in bf16 needs about 0.1. With `weights` (an empty mapping, where that is allowed),
    `update` is checked too.
    """
    require(isinstance(policy, Policy), f"{type(policy).__name__} lacks a member of Policy")
    require(isinstance(policy.tokenizer, Tokenizer), "policy.tokenizer lacks a member of Tokenizer")
    ids = _check_tokenizer(policy.tokenizer, prompt)
    params = SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=7)

    async def go() -> None:
        try:
            first = await _checked(policy, ids, params, tolerance)
            again = await policy.sample(ids, params)
            require(again.token_ids == first.token_ids, "one seed gave two different completions")
            await _check_limits(policy, ids, params, tolerance)
            await _check_stop(policy, ids, params)
            await _check_many(policy, ids, params, tolerance)
            await _check_prompts(policy, ids, params)
            if weights is not None:
                await _check_update(policy, ids, params, weights)
        finally:
            await policy.close()
            await policy.close()

    asyncio.run(go())


def _check_tokenizer(tokenizer: Tokenizer, prompt: str) -> list[int]:
    messages = [Message("user", prompt)]
    text = tokenizer.render(messages, add_generation_prompt=True)
    closed = tokenizer.render(messages)
    require(prompt in text, "render does not show the message")
    require(text.startswith(closed), "add_generation_prompt changes what stands before")
    ids = tokenizer.encode(text)
    require(ids and all(isinstance(i, int) for i in ids), "encode gave no list of token ids")
    require(all(0 <= i < tokenizer.vocab_size for i in ids), "an id lies outside the vocabulary")
    require(tokenizer.decode(ids) == text, "decode(encode(text)) is not the text")
    require(tokenizer.eos_ids, "eos_ids is empty: no assistant turn could ever end")
    for eos in tokenizer.eos_ids:
        shown = tokenizer.decode([eos])
        forged = set(tokenizer.encode(f"a{shown}b", special=False)) & tokenizer.eos_ids
        require(not forged, f"encode(special=False) lets text forge the end token {shown!r}")
    return list(ids)


async def _checked(
    policy: Policy, ids: Sequence[int], params: SamplingParams, tolerance: float
) -> Completion:
    """Sample once and check all that must hold for any completion."""
    made = await policy.sample(ids, params)
    tokens, eos = made.token_ids, policy.tokenizer.eos_ids
    require(isinstance(made, Completion), "sample gave no Completion")
    require(
        0 < len(tokens) <= params.max_tokens,
        f"{len(tokens)} tokens were sampled, max_tokens is {params.max_tokens}",
    )
    require(
        all(0 <= i < policy.tokenizer.vocab_size for i in tokens), "an id outside the vocabulary"
    )
    require(len(made.logprobs) == len(tokens), "there is not one log-probability a token")
    require(all(p <= 1e-4 for p in made.logprobs), "a log-probability is above 0, or not a number")
    drawn = made.sampled_logprobs
    require(
        drawn is None or (len(drawn) == len(tokens) and all(p <= 1e-4 for p in drawn)),
        "sampled_logprobs are not one log-probability a token",
    )
    require(made.finish_reason in get_args(FinishReason), f"{made.finish_reason!r} is no reason")
    ended = tokens[-1] in eos
    require(
        ended == (made.finish_reason == "eos"),
        f"finish_reason is {made.finish_reason!r}, and the last token is {'' if ended else 'not '}"
        "an end token: 'eos' keeps the end token, other reasons have none",
    )
    require(not any(i in eos for i in tokens[:-1]), "sampling went on after an end token")
    full = len(tokens) == params.max_tokens
    require(made.finish_reason != "length" or full, "'length' before max_tokens were sampled")
    require(made.policy_version == policy.version, "policy_version is not the policy's version")
    scored = await policy.score([*ids, *tokens])
    require(len(scored) == len(ids) + len(tokens) - 1, "score(T ids) must give T-1 values")
    far = max(abs(a - b) for a, b in zip(scored[len(ids) - 1 :], made.logprobs, strict=True))
    require(far <= tolerance, f"score differs from the sampled log-probabilities by {far:.2g} nats")
    return made


async def _check_limits(
    policy: Policy, ids: Sequence[int], params: SamplingParams, tolerance: float
) -> None:
    one = await _checked(policy, ids, replace(params, max_tokens=1), tolerance)
    require(len(one.token_ids) == 1, "max_tokens=1 did not sample one token")
    greedy = replace(params, temperature=0.0, seed=None)
    made = await _checked(policy, ids, greedy, tolerance)
    again = await policy.sample(ids, greedy)
    require(made.token_ids == again.token_ids, "temperature 0 gave two different completions")
    await _checked(policy, ids, replace(params, temperature=0.7, top_p=0.9, top_k=20), tolerance)


async def _check_stop(policy: Policy, ids: Sequence[int], params: SamplingParams) -> None:
    greedy = replace(params, temperature=0.0)
    free = await policy.sample(ids, greedy)
    body = [i for i in free.token_ids if i not in policy.tokenizer.eos_ids]
    text = policy.tokenizer.decode(body)
    word = text[len(text) // 2 :][:3]
    if len(text) < 4 or "\ufffd" in word:
        return  # too little text to stop in
    made = await policy.sample(ids, replace(greedy, stop=("\x00never", word)))
    require(made.finish_reason == "stop", f"the stop string {word!r} did not stop the completion")
    require(made.stop == word, f"Completion.stop is {made.stop!r}, not the stop string {word!r}")
    kept = policy.tokenizer.decode(made.token_ids)
    require(word in kept, "the tokens that complete the stop string are not kept")
    before = policy.tokenizer.decode(made.token_ids[:-1])
    require(word not in before, "tokens were kept after the one that completes the stop string")
    require(text.startswith(kept), "a stop string changed what is sampled before it")


async def _check_many(
    policy: Policy, ids: Sequence[int], params: SamplingParams, tolerance: float
) -> None:
    tails = (policy.tokenizer.encode(" more" * i) for i in range(4))
    prompts = [[*ids, *tail] for tail in tails]
    calls = [
        _checked(
            policy, p, replace(params, seed=i, max_tokens=max(params.max_tokens - i, 1)), tolerance
        )
        for i, p in enumerate(prompts)
    ]
    await asyncio.gather(*calls)


async def _check_prompts(policy: Policy, ids: Sequence[int], params: SamplingParams) -> None:
    refuses = await raises(policy.sample([], params), ValueError)
    require(refuses, "an empty prompt must be a ValueError")
    long = [ids[0]] * (policy.max_context + 1)
    refuses = await raises(policy.sample(long, params), ValueError)
    require(refuses, "a prompt longer than max_context must be a ValueError")


async def _check_update(
    policy: Policy, ids: Sequence[int], params: SamplingParams, weights: Mapping[str, Any]
) -> None:
    before = policy.version
    await policy.update(weights)
    require(policy.version > before, "update did not count the version up")
    made = await policy.sample(ids, params)
    require(made.policy_version == policy.version, "a sample after update has the old version")

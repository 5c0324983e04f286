"""Transfer Q*: the values of its specification, and which policy is asked for what."""

from __future__ import annotations

import asyncio
import math

import pytest

torch = pytest.importorskip("torch")

from agentrl import evaluate  # noqa: E402
from agentrl.collect import collect  # noqa: E402
from agentrl.engines.characters import CharTokenizer  # noqa: E402
from agentrl.engines.hf import HFPolicy  # noqa: E402
from agentrl.engines.models import tiny_model  # noqa: E402
from agentrl.engines.scripted import ScriptedPolicy  # noqa: E402
from agentrl.errors import ConfigError  # noqa: E402
from agentrl.interfaces import Ranks  # noqa: E402
from agentrl.rewards.transfer_q import TransferQ, reweighted, transferred  # noqa: E402
from agentrl.rollouts import single_turn  # noqa: E402
from agentrl.testing import check_policy  # noqa: E402
from agentrl.types import SamplingParams  # noqa: E402
from tests.fakes import FakeEnv  # noqa: E402

TOKENIZER = CharTokenizer()
(END,) = TOKENIZER.eos_ids
PRIOR = [math.log(0.6), math.log(0.4)]


def test_the_values_of_the_specification():
    assert reweighted(PRIOR, [0, 1], 1.0) == pytest.approx([0.3556, 0.6444], abs=5e-5)
    assert reweighted(PRIOR, [0, 1], math.inf) == pytest.approx([0.6, 0.4])
    assert reweighted(PRIOR, [0, 1], 0.0) == [0, 1]
    assert reweighted(PRIOR, [0, 1], 1e-9) == pytest.approx([0, 1])
    assert reweighted(PRIOR, [1, 1], 0.0) == pytest.approx([0.6, 0.4])
    assert reweighted(PRIOR, [1e5, -1e5], 1.0) == pytest.approx([1, 0])


def test_reweighting_rollouts():
    rewards = [0.0, 1.0, 2.0]
    assert transferred(rewards, rewards) == pytest.approx(1), "aligned with it: the plain mean"
    assert transferred([0, 1], [0, 0]) == pytest.approx(math.e / (1 + math.e))
    assert transferred([0, 1], [0, 0], math.inf) == pytest.approx(0.5)


class Guided(ScriptedPolicy):
    """Says a or b at each place, a more likely; ends after three."""

    def __init__(self):
        super().__init__(["never"], tokenizer=TOKENIZER, max_context=64)

    async def top(self, ids, k):
        a, b, *_ = TOKENIZER.encode("ab")
        ends = set(ids[-3:]) <= {a, b}
        found = [(END, 0.0)] if ends else [(a, PRIOR[0]), (b, PRIOR[1])]
        return found[:k]


class Baseline(ScriptedPolicy):
    """Goes on with what it is given: b after b, else a. Counts its rollouts."""

    def __init__(self):
        super().__init__(lambda text: text[-1:] * 2, tokenizer=TOKENIZER)
        self.asked = []

    async def sample(self, ids, params):
        self.asked.append((TOKENIZER.decode(ids), params))
        return await super().sample(ids, params)


class Counts:
    """The reward model: how many b."""

    async def reward(self, ids):
        return float(TOKENIZER.decode(ids).count("b"))


def sampled(policy, **params):
    prompt = TOKENIZER.encode("??")
    return asyncio.run(policy.sample(prompt, SamplingParams(16, **params)))


def test_the_baseline_rolls_out_and_the_end_needs_no_rollout():
    baseline = Baseline()
    made = sampled(TransferQ(Guided(), Counts(), baseline, alpha=0.1), temperature=0)
    assert TOKENIZER.decode(made.token_ids) == "bbb<|end|>"
    assert made.finish_reason == "eos"
    assert made.logprobs == pytest.approx([PRIOR[1]] * 3 + [0])
    assert [text for text, _ in baseline.asked] == ["??a", "??b", "??ba", "??bb", "??bba", "??bbb"]
    assert {p.temperature for _, p in baseline.asked} == {0.0}


@pytest.mark.parametrize(("alpha", "first"), [(1.0, 0.4 * math.e**2), (math.inf, 0.4)])
def test_what_is_drawn_has_the_reweighted_probability(alpha, first):
    # after a the baseline says aa (0), after b it says bb (3): Q is 0 or 3 at the first token
    q = TransferQ(Guided(), Counts(), Baseline(), alpha=alpha)
    chance = reweighted(PRIOR, [0, 3], alpha)
    found = [sampled(q, seed=seed) for seed in range(60)]
    b = [m for m in found if TOKENIZER.decode(m.token_ids).startswith("b")]
    assert len(b) / 60 == pytest.approx(chance[1], abs=0.2)
    assert b[0].sampled_logprobs[0] == pytest.approx(math.log(chance[1]))
    assert sampled(q, seed=3) == sampled(q, seed=3)


def test_the_indirect_form_is_the_direct_one_where_the_rewards_are_one():
    rollouts = {"rollouts": 3, "alpha": 1.0}
    direct = TransferQ(Guided(), Counts(), Baseline(), **rollouts)
    indirect = TransferQ(Guided(), Counts(), Baseline(), baseline_reward=Counts(), **rollouts)
    assert sampled(direct, seed=1) == sampled(indirect, seed=1)


def test_limits_and_stops():
    q = TransferQ(Guided(), Counts(), Baseline(), alpha=0.0)
    made = asyncio.run(q.sample(TOKENIZER.encode("?"), SamplingParams(2)))
    assert (TOKENIZER.decode(made.token_ids), made.finish_reason) == ("bb", "length")
    made = sampled(q, stop=("bb",))
    assert (TOKENIZER.decode(made.token_ids), made.stop) == ("bb", "bb")


def test_it_answers_in_rollouts():
    q = TransferQ(Guided(), Counts(), Baseline(), alpha=0.0)
    trees = asyncio.run(collect(FakeEnv(), single_turn(), q, progress=False))
    assert trees[0].attempts[-1].answer == "bbb"
    assert evaluate.summarize(evaluate.final(trees))["accuracy"] == 0


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"policy": ScriptedPolicy([], tokenizer=TOKENIZER)}, "does not tell its likeliest"),
        ({"baseline": ScriptedPolicy([])}, "must have the policy's tokenizer"),
        ({"k": 0}, "k and rollouts are 1 or more"),
        ({"baseline_reward": Counts()}, "2 rollouts or more"),
    ],
)
def test_what_does_not_go_together(change, error):
    with pytest.raises(ConfigError, match=error):
        TransferQ(**{"policy": Guided(), "reward": Counts(), "baseline": Baseline(), **change})


@pytest.mark.parametrize("params", [{"top_p": 0.5}, {"top_k": 1}, {"temperature": 1e-3}])
def test_sampling_parameters_apply_to_the_reweighted(params):
    made = sampled(TransferQ(Guided(), Counts(), Baseline(), alpha=math.inf), seed=1, **params)
    assert TOKENIZER.decode(made.token_ids) == "aaa<|end|>"
    assert made.sampled_logprobs == pytest.approx([0.0] * 4)


def test_models_in_the_engine():
    """The likeliest tokens are those of a plain forward; the whole keeps the policies' contract."""
    models = [
        tiny_model(TOKENIZER.vocab_size, hidden=32, layers=1, init_std=0.2, seed=seed)
        for seed in (0, 1)
    ]
    policy, baseline = (HFPolicy(model, TOKENIZER, max_context=64) for model in models)
    assert isinstance(policy, Ranks)
    ids = TOKENIZER.encode("1+2=")

    async def two():
        return await asyncio.gather(policy.top(ids, 3), policy.top(ids[:2], 1000))

    few, whole = asyncio.run(two())
    with torch.no_grad():
        wanted = models[0](torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(3)
    assert [token for token, _ in few] == wanted.indices.tolist()
    assert [p for _, p in few] == pytest.approx(wanted.values.tolist(), abs=1e-4)
    assert len(whole) == TOKENIZER.vocab_size
    assert math.fsum(math.exp(p) for _, p in whole) == pytest.approx(1, abs=1e-4)
    check_policy(TransferQ(policy, Counts(), baseline, k=2, max_tokens=2), prompt="1", max_tokens=4)

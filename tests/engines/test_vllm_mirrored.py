"""A policy trained here that samples elsewhere: its engine is another model in this process."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("aiohttp")

sys.path.insert(0, str(Path(__file__).parent.parent))
from rl_toys import TOKENIZER, NextLetter, policy  # noqa: E402

from agentrl.config import RunFolder, settings  # noqa: E402
from agentrl.engines.hf import HFPolicy  # noqa: E402
from agentrl.engines.models import tiny_model  # noqa: E402
from agentrl.engines.vllm.inside import vllm_transport as transport  # noqa: E402
from agentrl.engines.vllm.mirrored import MirroredPolicy  # noqa: E402
from agentrl.engines.vllm.policy import VLLMPolicy  # noqa: E402
from agentrl.errors import AgentRLWarning, ConfigError, EngineError  # noqa: E402
from agentrl.recipes import grpo  # noqa: E402
from agentrl.testing import check_policy  # noqa: E402
from agentrl.train import adapt  # noqa: E402
from agentrl.types import SamplingParams  # noqa: E402

IDS = TOKENIZER.encode("what comes next?")
PARAMS = SamplingParams(max_tokens=6, temperature=1.0, seed=3)


class Elsewhere:
    """An engine with a model of its own, which only updates change. `keeps` names a weight that
    they do not reach, as a head that stays packed."""

    def __init__(self, model: Any, keeps: str = "", lora: bool = False) -> None:
        self.hf = HFPolicy(copy.deepcopy(model).eval(), TOKENIZER)
        self.keeps, self.lora, self.kinds = keeps, lora, []

    def facts(self) -> dict[str, Any]:
        size = {"max_context": self.hf.max_context, "vocab_size": TOKENIZER.vocab_size}
        return {**size, "version": self.hf.version, "lora": self.lora}

    async def sample(self, ids: list[int], params: dict[str, Any]) -> dict[str, Any]:
        names = ("max_tokens", "temperature", "top_p", "top_k", "seed")
        stop = tuple(params["stop"])
        made = await self.hf.sample(ids, SamplingParams(**{k: params[k] for k in names}, stop=stop))
        return {
            "ids": list(made.token_ids),
            "logprobs": list(made.logprobs),
            "sampled": made.sampled_logprobs,
            "finish": made.finish_reason,
            "stop": made.stop,
            "version": made.policy_version,
        }

    async def score(self, ids: list[int]) -> list[float]:
        return await self.hf.score(ids)

    async def update(self, source: dict[str, Any], seconds: float) -> int:
        self.kinds.append(source["kind"])
        sent = transport.receive(source, 0, None, seconds) if source["kind"] == "file" else ()
        await self.hf.update({n: w for n, w in sent if n != self.keeps})
        return self.hf.version

    async def close(self) -> None:
        await self.hf.close()


def mirrored(model: Any, **options: Any) -> tuple[MirroredPolicy, Elsewhere]:
    engine = Elsewhere(model, **options)
    return MirroredPolicy(VLLMPolicy(engine, TOKENIZER), lambda: model), engine


def moved(model: Any) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p) * p.std())


def tiny(**options: Any) -> Any:
    return tiny_model(TOKENIZER.vocab_size, init_std=0.2, **options)


def test_it_keeps_the_contract_of_policies():
    check_policy(mirrored(tiny())[0], weights={})
    model = tiny()
    check_policy(mirrored(model)[0], weights=dict(model.state_dict()))


def test_who_only_samples_never_loads_the_model():
    def load() -> Any:
        raise AssertionError("loaded")

    async def go() -> None:
        ours = MirroredPolicy(VLLMPolicy(Elsewhere(tiny()), TOKENIZER), load)
        await ours.sample(IDS, PARAMS)
        await ours.update({})
        assert (await ours.sample(IDS, PARAMS)).policy_version == ours.version == 1
        await ours.close()

    asyncio.run(go())


def test_after_refresh_samples_are_of_the_trained_weights():
    async def go() -> None:
        model = tiny()
        ours, engine = mirrored(model)
        first = await ours.sample(IDS, PARAMS)
        moved(model)
        ours.refresh()
        both = await asyncio.gather(*(ours.sample(IDS, PARAMS) for _ in range(2)))
        assert engine.kinds == ["file"] * 3, "tested the first time, and sent once for both"
        moved(model)
        ours.refresh(version=7)
        last = await ours.sample(IDS, PARAMS)
        assert engine.kinds == ["file"] * 4
        made = (first, *both, last)
        assert [m.policy_version for m in made] == [0, 1, 1, 7]
        scored = (await HFPolicy(model, TOKENIZER).score([*IDS, *last.token_ids]))[len(IDS) - 1 :]
        assert last.logprobs == pytest.approx(scored, abs=1e-4)
        await ours.close()

    asyncio.run(go())


@pytest.mark.parametrize("tie", [True, False])
def test_a_weight_that_does_not_arrive_is_noticed(tie):
    name = "model.embed_tokens.weight" if tie else "lm_head.weight"

    async def go() -> None:
        model = tiny(tie=tie)
        ours, _ = mirrored(model, keeps=name)
        before = {n: w.clone() for n, w in model.state_dict().items()}
        ours.refresh()
        with pytest.raises(EngineError, match="weights do not arrive"):
            await ours.sample(IDS, PARAMS)
        assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
        await ours.close()

    asyncio.run(go())


def test_weights_of_somebody_else_are_noticed():
    async def go() -> None:
        ours, engine = mirrored(tiny())
        await engine.update({"kind": "none"}, 1.0)
        with pytest.raises(EngineError, match="one engine serves one trainer"):
            await ours.sample(IDS, PARAMS)
        await ours.close()

    asyncio.run(go())


def test_an_engine_with_the_weights_of_an_earlier_client_gets_its_own_first():
    async def go() -> None:
        model = tiny()
        engine = Elsewhere(model)
        moved(engine.hf.model)
        await engine.update({"kind": "none"}, 1.0)
        with pytest.warns(AgentRLWarning, match="an earlier client"):
            ours = MirroredPolicy(VLLMPolicy(engine, TOKENIZER), lambda: model)
        made = await ours.sample(IDS, PARAMS)
        scored = (await HFPolicy(model, TOKENIZER).score([*IDS, *made.token_ids]))[len(IDS) - 1 :]
        assert made.logprobs == pytest.approx(scored, abs=1e-4)
        assert made.policy_version == 0
        await ours.close()

    asyncio.run(go())


def test_an_engine_of_another_checkpoint_gets_the_weights_first():
    async def go() -> None:
        model = tiny()
        engine = Elsewhere(model)
        moved(engine.hf.model)
        with pytest.warns(AgentRLWarning, match="has the weights of runs/other: those of"):
            ours = MirroredPolicy(VLLMPolicy(engine, TOKENIZER), lambda: model, "runs/other")
        made = await ours.sample(IDS, PARAMS)
        scored = (await HFPolicy(model, TOKENIZER).score([*IDS, *made.token_ids]))[len(IDS) - 1 :]
        assert made.logprobs == pytest.approx(scored, abs=1e-4)
        await ours.close()

    asyncio.run(go())


def test_an_update_that_failed_is_tried_again_after_refresh():
    async def go() -> None:
        ours, engine = mirrored(tiny())
        ours.refresh()
        await ours.sample(IDS, PARAMS)
        take = engine.update

        refused: list[str] = []

        async def refuse(source: dict[str, Any], seconds: float) -> int:
            refused.append(source["kind"])
            raise RuntimeError("no memory")

        engine.update = refuse
        ours.refresh()
        for call in [asyncio.create_task(ours.sample(IDS, PARAMS)) for _ in range(8)]:
            with pytest.raises(EngineError, match="no memory"):
                await call
        assert refused == ["file"], "one attempt for all who wait"
        engine.update = take
        engine.kinds.clear()
        ours.refresh()
        assert (await ours.sample(IDS, PARAMS)).policy_version == 3
        assert engine.kinds == ["file"] * 3
        await ours.close()

    asyncio.run(go())


def test_an_adapter_is_merged_where_the_engine_takes_none():
    async def go() -> None:
        base = tiny()
        ours, engine = mirrored(base)
        model = adapt(copy.deepcopy(base), {"r": 4, "alpha": 8})
        ours = await ours.over(model)
        assert ours.model is model
        moved(model)
        before = {n: w.clone() for n, w in model.state_dict().items()}
        made = await ours.sample(IDS, PARAMS)
        assert set(engine.kinds) == {"file"}
        scored = (await HFPolicy(model, TOKENIZER).score([*IDS, *made.token_ids]))[len(IDS) - 1 :]
        assert made.logprobs == pytest.approx(scored, abs=1e-3)
        assert all(torch.equal(w, before[n]) for n, w in model.state_dict().items())
        await ours.close()

    asyncio.run(go())


def test_an_adapter_that_the_engine_ignores_is_noticed():
    async def go() -> None:
        base = tiny()
        ours, engine = mirrored(base, lora=True)
        model = adapt(copy.deepcopy(base), {"r": 4, "alpha": 8})
        moved(model)
        ours = await ours.over(model)
        with pytest.raises(EngineError, match="the adapter does not work in the engine as here"):
            await ours.sample(IDS, PARAMS)
        assert engine.kinds == ["adapter"]
        await ours.close()

    asyncio.run(go())


def test_weights_that_the_model_does_not_have_are_refused():
    async def go() -> None:
        ours, _ = mirrored(tiny())
        with pytest.raises(ConfigError, match="unknown weight"):
            await ours.update({"no.such": torch.ones(1)})
        with pytest.raises(ConfigError, match="another shape"):
            await ours.update({"model.norm.weight": torch.ones(1)})
        await ours.close()

    asyncio.run(go())


def learnt(ours: Any, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """The steps of a GRPO run."""
    options = {"n": 4, "prompts": 4, "group": 16, "eval_n": 4, "max_tokens": 4, "lr": 1e-3}
    config = grpo.Config(seed=0, save_every=0, train_dtype="fp32", **(options | changes))
    run = RunFolder(folder, settings(config), resume=False)
    env = NextLetter()
    asyncio.run(grpo.learn(config, ours, env, env, run, progress=False))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("changes", [{}, {"lora": 8, "lr": 1e-2, "mismatch": "token"}])
def test_grpo_learns_through_it_as_without(changes, tmp_path):
    ours, engine = mirrored(policy(0).model)
    rows = learnt(ours, tmp_path / "ours", steps=25, **changes)
    plain = learnt(policy(0), tmp_path / "plain", steps=25, **changes)
    assert len(engine.kinds) >= 25
    assert max(row.get("logprob_diff_max", 0) for row in rows) < 1e-3
    for found in (rows, plain):
        assert sum(r["reward"] for r in found[-5:]) > sum(r["reward"] for r in found[:5]) + 1.0

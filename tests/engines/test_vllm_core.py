"""The engine's side of an update: the real `Core` over a vLLM that only notes what it is told."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

from agentrl.engines.vllm.inside.vllm_core import Core

ASKED = {
    "max_tokens": 3,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "stop": [],
    "seed": 1,
    "eos_ids": [],
}
FILE = {"kind": "file", "path": "/w"}


def prompt_ids(prompt: Any) -> list[int]:
    return prompt["prompt_token_ids"][1:]


class Engine:
    """vLLM's AsyncLLM. `on` maps a method of the workers to what it does."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.on: dict[str, Callable[[], Any]] = {}
        self.hold: asyncio.Event | None = None
        self.model_config = types.SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 300)
        parallel = types.SimpleNamespace(world_size_across_dp=2)
        self.vllm_config = types.SimpleNamespace(lora_config=None, parallel_config=parallel)

    async def generate(self, prompt: Any, params: Any, name: str, lora_request: Any) -> Any:
        self.asked = params
        if self.hold is not None:
            await self.hold.wait()
        row = {7: types.SimpleNamespace(logprob=-0.5)}
        one = types.SimpleNamespace(
            token_ids=[7], logprobs=[row], finish_reason="length", stop_reason=None
        )
        scores = [None] + [{i: types.SimpleNamespace(logprob=-0.75)} for i in prompt_ids(prompt)]
        yield types.SimpleNamespace(outputs=[one], prompt_logprobs=scores)

    async def pause_generation(self, mode: str) -> None:
        self.told.append("pause")

    async def resume_generation(self) -> None:
        self.told.append("resume")

    async def add_lora(self, request: Any) -> None:
        self.told.append(request.name)
        if "add_lora" in self.on:
            await self.on["add_lora"]()

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> None:
        self.told.append(method)
        if method in self.on:
            await self.on[method]()


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    engine = Engine()
    made = types.SimpleNamespace(from_engine_args=lambda arguments: engine)
    modules: dict[str, dict[str, Any]] = {
        "vllm": {
            "__version__": "0",
            "AsyncEngineArgs": lambda model, **options: options,
            "SamplingParams": types.SimpleNamespace,
        },
        "vllm.sampling_params": {
            "RequestOutputKind": types.SimpleNamespace(FINAL_ONLY="final"),
        },
        "vllm.platforms": {"current_platform": types.SimpleNamespace(is_cpu=lambda: True)},
        "vllm.lora": {},
        "vllm.lora.request": {
            "LoRARequest": lambda name, number, path: types.SimpleNamespace(
                name=name, number=number, path=path
            ),
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": made},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("PYTHONPATH", "")  # the core adds to it
    return Core("a model")


async def fails() -> None:
    raise RuntimeError("no layer of that name")


async def hangs() -> None:
    await asyncio.sleep(3600)


def test_an_update_receives_then_loads_while_nothing_is_sampled(core):
    async def go() -> None:
        assert await core.update(FILE, 5) == 1
        assert core.engine.told == ["pause", "agentrl_receive", "agentrl_load", "resume"]
        assert (await core.sample([1], ASKED))["version"] == 1

    asyncio.run(go())
    assert (core.facts()["workers"], core.facts()["broken"]) == (2, "")


@pytest.mark.parametrize("trouble", [fails, hangs])
def test_what_fails_before_all_has_arrived_changes_nothing(core, trouble):
    async def go() -> None:
        core.engine.on["agentrl_receive"] = trouble
        with pytest.raises((RuntimeError, TimeoutError), match=r"no layer|receiving .*0\.1 s"):
            await core.update(FILE, 0.1)
        assert core.engine.told == ["pause", "agentrl_receive", "resume"]
        assert (await core.sample([1], ASKED))["version"] == 0

    asyncio.run(go())


@pytest.mark.parametrize("trouble", [fails, hangs])
def test_half_loaded_weights_are_not_sampled_from(core, trouble):
    """Until whole ones have come."""

    async def go() -> None:
        core.engine.on["agentrl_load"] = trouble
        with pytest.raises((RuntimeError, TimeoutError), match=r"no layer|loading .*0\.1 s"):
            await core.update(FILE, 0.1)
        assert core.engine.told[-1] == "resume"
        says = "part old, part new weights since version 0"
        for refused in (core.sample([1], ASKED), core.score([1, 2])):
            with pytest.raises(RuntimeError, match=says):
                await refused
        assert says in core.facts()["broken"]
        await core.update({"kind": "none"}, 5)
        with pytest.raises(RuntimeError, match=says):
            await core.sample([1], ASKED)
        del core.engine.on["agentrl_load"]
        version = await core.update(FILE, 5)
        assert (await core.sample([1], ASKED))["version"] == version
        assert core.facts()["broken"] == ""

    asyncio.run(go())


@pytest.mark.parametrize(("step", "whole"), [("agentrl_receive", True), ("agentrl_load", False)])
def test_a_trainer_that_is_killed_during_an_update(core, step, whole):
    """The server cancels what it asked for."""

    async def go() -> None:
        core.engine.on[step] = hangs
        update = asyncio.create_task(core.update(FILE, 60))
        while core.engine.told[-1:] != [step]:
            await asyncio.sleep(0)
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update
        if whole:
            assert (await core.sample([1], ASKED))["version"] == 0
        else:
            with pytest.raises(RuntimeError, match="the trainer hung up or the time was over"):
                await core.sample([1], ASKED)

    asyncio.run(go())


def test_requests_in_flight_end_with_what_they_began_with(core):
    async def go() -> None:
        core.engine.hold = asyncio.Event()
        early = asyncio.create_task(core.sample([1], ASKED))
        await asyncio.sleep(0)
        update = asyncio.create_task(core.update(FILE, 5))
        await asyncio.sleep(0)
        late = asyncio.create_task(core.sample([1], ASKED))
        await asyncio.sleep(0.01)
        assert core.engine.told == []
        core.engine.hold.set()
        assert [(await early)["version"], await update, (await late)["version"]] == [0, 1, 1]

    asyncio.run(go())


def test_requests_that_do_not_end_hold_up_an_update_until_its_deadline(core):
    async def go() -> None:
        core.engine.hold = asyncio.Event()
        early = asyncio.create_task(core.sample([1], ASKED))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError, match=r"the requests in flight took over 0\.05 s"):
            await core.update(FILE, 0.05)
        core.engine.hold.set()
        assert (await early)["version"] == 0

    asyncio.run(go())


@pytest.mark.parametrize(
    ("temperature", "logprob", "sampled"),
    [(1.0, -0.5, None), (0.0, -0.5, [0.0]), (0.5, -0.75, [-0.5])],
)
def test_log_probabilities_at_temperature_1_and_of_what_was_drawn_from(
    core, temperature, logprob, sampled
):
    """vLLM's are of what was drawn from, but for greedy ones, which were certain."""
    made = asyncio.run(core.sample([1], ASKED | {"temperature": temperature}))
    assert (made["logprobs"], made["sampled"]) == ([logprob], sampled)


def test_only_the_tokenizers_ends_end_a_completion(core):
    """Not those of the checkpoint's generation config, too, which would look like a limit."""
    asyncio.run(core.sample([1], ASKED | {"eos_ids": [7, 9]}))
    assert (core.engine.asked.ignore_eos, core.engine.asked.stop_token_ids) == (True, [7, 9])
    assert asyncio.run(core.sample([1], ASKED | {"eos_ids": [7]}))["finish"] == "eos"
    assert asyncio.run(core.sample([1], ASKED))["finish"] == "length"


ADAPTER = {"kind": "adapter", "path": "/a"}


def test_an_adapter_waits_for_what_samples_with_the_former_one(core):
    """vLLM holds one, and would read the former one's folder again."""

    async def go() -> None:
        assert await core.update(ADAPTER, 5) == 1
        core.engine.hold = asyncio.Event()
        early = asyncio.create_task(core.sample([1], ASKED))
        await asyncio.sleep(0)
        update = asyncio.create_task(core.update(ADAPTER, 5))
        await asyncio.sleep(0.01)
        assert core.engine.told == ["adapter-1"]
        core.engine.hold.set()
        assert [(await early)["version"], await update] == [1, 2]
        assert core.engine.told == ["adapter-1", "adapter-2"]

    asyncio.run(go())


def test_an_adapters_number_is_never_used_again(core):
    """The engine may hold under it what was given up as too slow."""

    async def go() -> None:
        core.engine.on["add_lora"] = hangs
        with pytest.raises(TimeoutError, match=r"loading the adapter took over 0\.05 s"):
            await core.update(ADAPTER, 0.05)
        del core.engine.on["add_lora"]
        assert await core.update(ADAPTER, 5) == 1
        assert (core.engine.told, core.lora.number) == (["adapter-1", "adapter-2"], 2)
        await core.update(FILE, 5)
        assert core.lora is None

    asyncio.run(go())

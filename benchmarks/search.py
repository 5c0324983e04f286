"""What tree search costs beside re-encoding each path (`python benchmarks/search.py`).

`tokens_computed_per_unique`: tokens that went through the policy, for each token of the trees (what
trees or siblings begin with alike counts once). `trees_per_min`: the same searches against the same
engine without its prefix cache, which computes every path anew, batched or one at a time.
`tree_pairs_train_s`: an optimizer step of DPO on the preference pairs of a searched tree, beside
TRL's on the same pairs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import envs
from agentrl.chat import Chat, HFTokenizer
from agentrl.collect import collect
from agentrl.engines.scripted import ByteTokenizer
from agentrl.interfaces import Tokenizer
from agentrl.rollouts import make
from agentrl.search.evaluators import ByValue
from agentrl.select import pairs
from agentrl.tree import Tree
from agentrl.trie import unique_tokens
from agentrl.types import Pair, SamplingParams, Task
from benchmarks import harness, train
from benchmarks.harness import CPU, Options, Row, alternate, rows

PACKAGES = ("agentrl", "trl", "transformers", "torch")
PARAMS = SamplingParams(max_tokens=96)
SEARCH = {"step_tokens": 16, "iterations": 4, "first": 2, "outcome": False}
ANEW: Mapping[str, Any] = {"prefix_cache": False}
ALIKE = 0.3
"""What the sides' trees may differ by in tokens: rounding may lead a search another way."""


@dataclass(slots=True)
class Work:
    """`trees` searches with one model: how long they take, and what they compute."""

    model: Any
    tokenizer: Tokenizer
    trees: int
    judge: Any
    unique: dict[str, int] = field(default_factory=dict)
    computed: dict[str, float] = field(default_factory=dict)
    grown: list[Tree] = field(default_factory=list)

    def run(self, side: str, **options: Any) -> float:
        """Trees a CPU minute, of the size that the first side's have. Raises RuntimeError if the
        sides' trees are not alike."""
        from agentrl.engines.hf import HFPolicy

        policy = HFPolicy(self.model, self.tokenizer, **options)
        rollout = make("mcts", judge=self.judge, **SEARCH)
        env = envs.make("sorting", split="train", seed=0)
        began = CPU()

        async def search() -> list[Tree]:
            try:
                return await collect(
                    env, rollout, policy, n=self.trees, params=PARAMS, progress=False
                )
            finally:
                await policy.close()

        self.grown = asyncio.run(search())
        took = CPU() - began
        unique = unique_tokens([t.ids(n.id) for t in self.grown for n in t.nodes])
        if any(abs(n - unique) > ALIKE * unique for n in self.unique.values()):
            raise RuntimeError(f"{side}: {unique} tokens, but the other sides: {self.unique}")
        self.unique[side], self.computed[side] = unique, policy.stats.tokens_computed / unique
        return 60 * self.trees / took * unique / next(iter(self.unique.values()))


async def toy_value(task: Task, text: str) -> float:
    """A judgement that costs nothing and tells steps apart."""
    return sum(map(ord, text)) % 101 / 100


def tiny(trees: int, judge: Any) -> Work:
    """Searches with a random model of a million parameters, on bytes."""
    from agentrl.engines.models import tiny_model

    tokenizer = ByteTokenizer()
    model = tiny_model(tokenizer.vocab_size, hidden=128, layers=4, init_std=0.1, max_positions=4096)
    return Work(model, tokenizer, trees, judge)


def smollm2(trees: int, judge: Any) -> Work:
    """Searches with SmolLM2-135M."""
    from agentrl.engines.models import load_tokenizer

    return Work(train.smollm2(), HFTokenizer(load_tokenizer("smollm2")), trees, judge)


def grown(prefix: str, work: Work, rounds: int, what: str, **options: Any) -> list[Row]:
    """Both figures of the same searches; `options` are our engine's."""
    sides = {
        "agentrl": lambda: work.run("agentrl", **options),
        "paths re-encoded": lambda: work.run("paths re-encoded", **ANEW),
        "paths re-encoded one by one": lambda: work.run("one by one", max_batch=1, **ANEW),
    }
    if prefix:
        del sides["paths re-encoded one by one"]
    found = alternate(f"{prefix}search", "trees a CPU minute", sides, rounds, warm_up=rounds > 1)
    own = found.pop("agentrl")
    note = f"{what}, {work.unique['agentrl']} tokens"
    computed = rows(
        f"{prefix}tokens_computed_per_unique",
        "tokens",
        [work.computed["agentrl"]],
        {"paths re-encoded": [work.computed["paths re-encoded"]]},
        goal=None if "self/" in prefix else 1.0,
        note=note,
    )
    per_min = rows(f"{prefix}trees_per_min", "1/min CPU", own, found, better="higher", note=note)
    return [*computed, *per_min]


def search(options: Options) -> list[Row]:
    """Trees a minute and tokens computed: few trees of SmolLM2, many of a tiny model, and those
    that the tiny model judges itself."""
    free, n = ByValue(toy_value), options.scaled(32, 8)
    rounds, slots = options.rounds(3), {"cache_slots": 256}
    what = f"tiny: {n} trees at once, 256 rows kept"
    made = grown("tiny/", tiny(n, free), rounds, what, **slots)
    judged = "tiny: 4 trees at once, each step judged by the policy (its prompts count as computed)"
    made += grown("tiny/self/", tiny(4, "self"), 1, judged)
    if not options.quick:
        made += grown("", smollm2(2, free), 1, "smollm2: 2 trees at once")
    return made


def tree_pairs(work: Work) -> list[Pair]:
    """The pairs of one searched tree, wherever there are siblings: an even number, as TRL takes two
    at a time and a last one alone would count twice there."""
    work.run("agentrl")
    chat, filters = Chat(work.tokenizer), pairs.Filters(cap=None)
    found = pairs.select(work.grown[:1], chat, levels="all", filters=filters).pairs
    return found[: len(found) // 2 * 2]


def trained(options: Options) -> list[Row]:
    """Seconds of an optimizer step on a searched tree's pairs."""
    made: list[Row] = []
    works = [tiny] if options.quick else [tiny, smollm2]
    for make_work in works:
        work = make_work(1, ByValue(toy_value))
        chosen = tree_pairs(work)
        name = make_work.__name__
        case = train.named(name, "tree_pairs_train_s")
        found, losses = train.measured(
            case,
            "s a step",
            train.dpo_sides(work.model, chosen),
            lambda took, n: took / n,
            options,
        )
        paths = [side.token_ids for pair in chosen for side in (pair.chosen, pair.rejected)]
        note = (
            f"{name}: the {len(chosen)} pairs of one searched tree, {sum(map(len, paths))} tokens, "
            f"{unique_tokens(paths)} of them different; {losses}; goal: 4 times TRL"
        )
        own = found.pop("agentrl")
        goal = min(found["TRL"]) / 4
        made += rows(case, "s CPU", own, found, goal=goal, note=note)
    return made


CASES = {"trees_per_min": search, "tree_pairs_train_s": trained}


if __name__ == "__main__":
    sys.exit(harness.main("search", CASES, PACKAGES, needs=("torch", "trl")))

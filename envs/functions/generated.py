"""Tasks made of simulated tools.

One call, one of several tools, calls side by side, calls one after another, and questions that no
offered tool answers.

A task belongs to training or to the test by a hash of what it asks (as in `envs.arithmetic`), so
that no seed makes a training task of a test task. Tools and chains that are not trained stand in
the split `unseen`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from agentrl.errors import ConfigError
from agentrl.types import ToolCall
from envs.functions import catalogue, toy
from envs.functions.catalogue import Chain
from envs.functions.tools import Tool, Workshop

KINDS = ("simple", "multiple", "parallel", "irrelevance", "chain")
OFFERED = 4
"""How many tools a task offers at most (more where it needs more)."""
TEST_SHARE = 5
"""One task in this many belongs to the test."""
TRIES = 2_000


@dataclass(frozen=True, slots=True)
class Shelf:
    """A set of tools and chains from which tasks are made."""

    tools: Mapping[str, Tool]
    chains: Mapping[str, Chain]
    report: str
    """What is put behind a question, to say which part of the result is the answer."""


SHELVES = {
    "generated": Shelf(catalogue.TOOLS, catalogue.CHAINS, " Tell me the {what}."),
    "toy": Shelf(toy.TOOLS, toy.CHAINS, ""),
}


@dataclass(frozen=True, slots=True)
class Draft:
    """A task before it has a name: `calls[i]` are the calls of turn i, `offered` the descriptions
    of the tools, `result` what the last message must state (None: nothing)."""

    kind: str
    question: str
    offered: tuple[Mapping[str, Any], ...]
    calls: tuple[tuple[ToolCall, ...], ...]
    result: Any = None

    @property
    def key(self) -> str:
        """What is asked, whatever its wording."""
        return json.dumps([[(c.name, dict(c.arguments)) for c in turn] for turn in self.calls])


def drafts(source: str, kind: str, split: str, seed: int) -> Iterator[Draft]:
    """Tasks of one kind that belong to the split, none twice, without end.

    Raises ConfigError once there are no further ones.
    """
    rng = Random(f"functions {source} {kind} {split} {seed}")
    make, shelf = MAKERS[kind], SHELVES[source]
    seen: set[str] = set()
    while True:
        for _ in range(TRIES):
            draft = make(rng, shelf, split != "unseen")
            key = draft.key + draft.question if kind == "irrelevance" else draft.key
            mine = split == "unseen" or is_test(kind, key) == (split == "test")
            if mine and key not in seen:
                break
        else:
            raise ConfigError(
                f"functions: kind {kind!r} of source {source!r} has only {len(seen)} tasks in "
                f"split {split!r}; ask for fewer"
            )
        seen.add(key)
        yield draft


def is_test(kind: str, key: str) -> bool:
    """True if the task belongs to the test, whatever the seed."""
    digest = hashlib.blake2b(f"{kind} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % TEST_SHARE == 0


def kinds_of(source: str, split: str) -> list[str]:
    """The kinds that a split has."""
    shelf = SHELVES[source]
    if split != "unseen":
        return list(KINDS)
    alone = [t for t in shelf.tools.values() if not t.trained]
    chains = _chains(shelf, False)
    return [k for k in KINDS if (alone or k == "chain") and (chains or k != "chain")]


def _asked(shelf: Shelf, trained: bool) -> list[Tool]:
    return [t for t in shelf.tools.values() if t.trained == trained and t.questions]


def _chains(shelf: Shelf, trained: bool) -> list[Chain]:
    return [
        chain
        for chain in shelf.chains.values()
        if all(shelf.tools[name].trained for name in chain.tools) == trained
    ]


def _drawn(rng: Random, tool: Tool) -> dict[str, Any]:
    """Arguments of a call; an optional one is left out half of the time."""
    return {
        name: parameter.draw(rng)
        for name, parameter in tool.parameters.items()
        if not parameter.phrase or rng.random() < 0.5
    }


def _phrases(tool: Tool, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How a question says the arguments; an optional one brings its phrase, or nothing."""
    said: dict[str, Any] = {}
    for name, parameter in tool.parameters.items():
        if parameter.phrase:
            phrase = parameter.phrase if name in arguments else ""
            said[name] = phrase.format_map({name: arguments.get(name)})
        elif name in arguments:
            said[name] = _said(arguments[name])
    return said


def _said(value: Any) -> Any:
    if isinstance(value, list):
        head, last = value[:-1], value[-1]
        return f"{', '.join(map(str, head))} and {last}" if head else last
    return value


def _result(shelf: Shelf, call: ToolCall) -> dict[str, Any]:
    """What a tool answers to a call that is right."""
    return shelf.tools[call.name].answer(**call.arguments)


def _offer(
    rng: Random, shelf: Shelf, used: Sequence[str], n: int, trained: bool, *, alike: bool = True
) -> tuple[Mapping[str, Any], ...]:
    """Descriptions of the tools used and of others, shuffled; none of the same group as those used
    unless `alike`."""
    groups = {shelf.tools[name].group for name in used}
    others = [
        t.name
        for t in shelf.tools.values()
        if t.name not in used and (t.trained or not trained) and (alike or t.group not in groups)
    ]
    own = list(dict.fromkeys(used)) if alike else []
    names = own + rng.sample(others, min(max(n - len(own), 0), len(others)))
    rng.shuffle(names)
    return tuple(shelf.tools[name].function() for name in names)


def _one(rng: Random, shelf: Shelf, trained: bool) -> tuple[str, ToolCall, Any]:
    """A question for one call, the call, and the part of its result that is asked for."""
    tool = rng.choice(_asked(shelf, trained))
    call = ToolCall(tool.name, _drawn(rng, tool))
    question = rng.choice(tool.questions).format_map(_phrases(tool, call.arguments))
    report = shelf.report.format(what=tool.asks.replace("_", " "))
    return question + report, call, _result(shelf, call)[tool.asks]


def _simple(rng: Random, shelf: Shelf, trained: bool) -> Draft:
    question, call, result = _one(rng, shelf, trained)
    return Draft("simple", question, (shelf.tools[call.name].function(),), ((call,),), result)


def _multiple(rng: Random, shelf: Shelf, trained: bool) -> Draft:
    question, call, result = _one(rng, shelf, trained)
    offered = _offer(rng, shelf, [call.name], OFFERED, trained)
    return Draft("multiple", question, offered, ((call,),), result)


def _parallel(rng: Random, shelf: Shelf, trained: bool) -> Draft:
    made = [_one(rng, shelf, trained) for _ in range(rng.randint(2, 3))]
    while len({json.dumps([c.name, dict(c.arguments)]) for _, c, _ in made}) < len(made):
        made = [_one(rng, shelf, trained) for _ in made]
    calls = tuple(call for _, call, _ in made)
    offered = _offer(rng, shelf, [c.name for c in calls], OFFERED, trained)
    return Draft("parallel", " ".join(q for q, _, _ in made), offered, (calls,))


def _irrelevance(rng: Random, shelf: Shelf, trained: bool) -> Draft:
    """A question whose tool is not offered, nor any that is like it."""
    question, call, _ = _one(rng, shelf, trained)
    offered = _offer(rng, shelf, [call.name], rng.randint(1, 3), trained, alike=False)
    return Draft("irrelevance", question, offered, ((),))


def _chain(rng: Random, shelf: Shelf, trained: bool) -> Draft:
    chain = rng.choice(_chains(shelf, trained))
    calls: list[ToolCall] = []
    results: list[dict[str, Any]] = []
    said: dict[str, Any] = {}
    for i, name in enumerate(chain.tools):
        tool = shelf.tools[name]
        linked = {a: results[-1][field] for a, field in chain.links[i].items()}
        fixed = dict(chain.fixed[i]) if chain.fixed else {}
        own = {k: v for k, v in _drawn(rng, tool).items() if k not in linked | fixed}
        given = own | fixed | linked
        call = ToolCall(name, {k: given[k] for k in tool.parameters if k in given})
        calls.append(call)
        results.append(_result(shelf, call))
        said |= _phrases(tool, own)
    asked = shelf.tools[chain.tools[-1]].asks
    question = chain.question.format_map(said) + shelf.report.format(what=asked.replace("_", " "))
    offered = _offer(rng, shelf, chain.tools, OFFERED, trained)
    turns = tuple((call,) for call in calls)
    return Draft("chain", question, offered, turns, results[-1][asked])


def history(draft: Draft, source: str, turn: int) -> list[tuple[tuple[ToolCall, ...], list[Any]]]:
    """The calls of the turns before `turn`, each with the results of its tools."""
    made = []
    shop = Workshop(SHELVES[source].tools, draft.offered)
    for calls in draft.calls[:turn]:
        made.append((calls, [shop.run(call) for call in calls]))
    return made


MAKERS: dict[str, Callable[[Random, Shelf, bool], Draft]] = {
    "simple": _simple,
    "multiple": _multiple,
    "parallel": _parallel,
    "irrelevance": _irrelevance,
    "chain": _chain,
}

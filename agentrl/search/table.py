"""A search's side table: what it knows of the places in a token tree at which it may go on.

A place (`State`) is a node of the tree at which a step ends. The table is plain data and stands in
the tree's `meta["search"]` as JSON, so a search goes on from disk where it stopped, and selectors
read afterwards what it found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agentrl.record import message_of
from agentrl.types import Message


@dataclass(frozen=True, slots=True)
class Acted:
    """What a step made the environment do: the `message` that it was given, and its answer.

    `ended` says how the episode ended with it, if it did (`env_terminated`, `max_turns`). `reward`
    is what it gave, `answer` what it read. `turn` is true where the answer opened a new assistant
    turn, and then `branches` are the leaves that a template's rewriting of history left behind.
    `told` is what it says beside, as an attempt's metrics have it. `state` is the id of the state
    that the answer led to.
    """

    message: Message
    observation: tuple[Message, ...]
    statuses: tuple[str, ...] = ()
    reward: float | None = None
    ended: str = ""
    answer: str = ""
    turn: bool = False
    branches: tuple[int, ...] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    state: int = -1

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Acted:
        """What `asdict` wrote."""
        return cls(
            **{
                **data,
                "message": message_of(data["message"]),
                "observation": tuple(map(message_of, data["observation"])),
                "statuses": tuple(data["statuses"]),
                "branches": tuple(data["branches"]),
            }
        )


@dataclass(slots=True)
class State:
    """A place in the tree, and the statistics of the step (action) that leads to it.

    `node` is the tree's node at which it goes on, `said` that at which the step's own tokens end:
    they differ where the environment answered (`acted`). `parent` and `children` are ids of states,
    `depth` counts steps from the prompt, `times` how often the step was drawn; one that is `gold`
    is the reference's. `q` is the step's value and `visits` its count (a fraction where similar
    siblings share), `full` counts whole visits. `value` is that of the place, `confidence` what the
    judge said of it, `outcome` the environment's grade of a finished path; None is "not judged".
    `estimate` is what a judge's word is worth there (of iTool's the step's first value), `reward`
    by how much the step raised it. `logprob` (nats) is the sum over the step's `tokens`.
    """

    id: int
    node: int
    parent: int | None
    depth: int
    tokens: int = 0
    logprob: float | None = None
    prior: float = 1.0
    visits: float = 0.0
    full: int = 0
    q: float = 0.0
    value: float = 0.0
    estimate: float = 0.0
    reward: float = 0.0
    confidence: float | None = None
    outcome: float | None = None
    judged: bool = False
    terminal: bool = False
    truncated: bool = False
    drawn: int = 0
    times: int = 1
    gold: bool = False
    said: int = -1
    acted: Acted | None = None
    children: list[int] = field(default_factory=list)
    under_way: int = 0
    """Iterations that pass here and are not over (virtual loss); never stored."""

    def __post_init__(self) -> None:
        if self.said < 0:
            self.said = self.node


@dataclass(slots=True)
class Table:
    """The states of one search, what it has spent, and where its root stands now.

    `low` and `high` are the extremes of all values so far, for strategies that scale by them; they
    are carried over when the root moves. `here` counts the iterations since it did, of `wanted`.
    `calls` counts what the environment was asked for steps, once a step; `replayed` what it was
    asked again to restore a state, `forked` the copies made instead, `lost` the steps that were
    dropped because their state could not be restored. `refused` counts the states that could not be
    put aside, or not be had again, by the reason given.
    """

    states: list[State] = field(default_factory=list)
    strategy: str = ""
    root: int = 0
    low: float = -1.0
    high: float = 1.0
    iterations: int = 0
    here: int = 0
    wanted: int | None = None
    tokens: int = 0
    seconds: float = 0.0
    calls: int = 0
    replayed: int = 0
    forked: int = 0
    lost: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    chosen: int | None = None

    def add(self, node: int, parent: State | None, **fields: Any) -> State:
        """A new state at the tree's node `node`."""
        depth = 0 if parent is None else parent.depth + 1
        state = State(len(self.states), node, None if parent is None else parent.id, depth)
        for name, value in fields.items():
            setattr(state, name, value)
        if state.acted is not None:
            state.acted = replace(state.acted, state=state.id)
        self.states.append(state)
        if parent is not None:
            parent.children.append(state.id)
        return state

    def children(self, state: State) -> list[State]:
        """The states one step further."""
        return [self.states[i] for i in state.children]

    def parent(self, state: State) -> State:
        """The state one step before (not of the first)."""
        assert state.parent is not None
        return self.states[state.parent]

    def path(self, state: State) -> list[State]:
        """The states from the first to `state`, both included."""
        found = [state]
        while found[-1].parent is not None:
            found.append(self.states[found[-1].parent])
        return found[::-1]

    def acts(self, state: State) -> list[Acted]:
        """What the environment answered on the path to `state`."""
        return [s.acted for s in self.path(state) if s.acted is not None]

    def move(self, state: State) -> None:
        """Make `state` the root. What was found below it stays."""
        self.root, self.here, self.wanted = state.id, 0, None

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal table (nothing under way)."""
        data = asdict(self)
        for state in data["states"]:
            del state["under_way"]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Table:
        """The table that `to_json` wrote. Raises KeyError or TypeError on anything else."""
        states = [State(**{**s, "children": list(s["children"])}) for s in data["states"]]
        for state in states:
            if state.acted is not None:
                state.acted = Acted.from_json(state.acted)  # type: ignore[arg-type]
        return cls(**{**data, "states": states})

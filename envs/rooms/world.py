"""The world of the rooms game: what is where, and what an action does. Pure functions.

A building of rooms with furniture in which things are put away. Every room can be reached from
every other; what a piece of furniture holds shows only when one tries to take it. The player has
one thing in hand at most. Three actions: go, take, put.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Literal

Verb = Literal["go", "take", "put"]
VERBS: tuple[Verb, ...] = ("go", "take", "put")

Fault = Literal[
    "format",  # no action that can be read
    "unknown",  # an action that is not offered
    "parameter",  # a name of nothing, or of something of another kind
    "room",  # the furniture stands in another room
    "absent",  # the thing is not in that furniture
    "hands",  # what is to be put is not held, or the hands are full
    "idle",  # the player is there already
]
"""What can be wrong with an action."""

Rooms = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Each room with its usual furniture, each piece of furniture with what it usually holds."""

HOUSE: Rooms = {
    "kitchen": {"fridge": ("apple", "milk"), "drawer": ("knife", "spoon")},
    "bedroom": {"wardrobe": ("coat", "hat"), "chest": ("blanket", "letter")},
    "bathroom": {"cabinet": ("soap", "towel"), "basket": ("shirt", "sock")},
    "study": {"desk": ("pen", "stamp"), "shelf": ("book", "map")},
}
SHIP: Rooms = {
    "bridge": {"console": ("chart", "compass"), "locker": ("flare", "whistle")},
    "galley": {"stove": ("kettle", "ladle"), "barrel": ("salt", "herring")},
    "hold": {"crate": ("rope", "lantern"), "sack": ("grain", "coal")},
    "cabin": {"bunk": ("pillow", "diary"), "trunk": ("boots", "pistol")},
}
LETTERS: Rooms = {
    "A": {"1": ("a", "e")},
    "B": {"2": ("b", "f")},
    "C": {"3": ("c", "g")},
    "D": {"4": ("d", "h")},
}


@dataclass(frozen=True, slots=True)
class World:
    """What does not change in a game. The player is told all of it but `things`.

    `furniture` is the room of each piece, `things` where each thing is at first, `goal` the thing
    and the piece of furniture that it must come to.
    """

    furniture: Mapping[str, str]
    things: Mapping[str, str]
    start: str
    goal: tuple[str, str]

    @property
    def rooms(self) -> list[str]:
        """The rooms, in the order in which they are told."""
        return list(dict.fromkeys(self.furniture.values()))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> World:
        """The world that `dataclasses.asdict` wrote."""
        thing, place = data["goal"]
        return cls(dict(data["furniture"]), dict(data["things"]), data["start"], (thing, place))


@dataclass(frozen=True, slots=True)
class State:
    """What changes: where the player is, what is in hand, and where the things are."""

    room: str
    things: Mapping[str, str]
    hand: str = ""
    had: bool = False
    """True once the goal's thing was in hand."""


@dataclass(frozen=True, slots=True)
class Action:
    """A verb and the names that it takes: a room to go to, or a thing and a piece of furniture."""

    verb: Verb
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The state after an action. With a `fault` nothing has changed, and `about` names the cause
    (the furniture and the room it stands in, the thing, ...)."""

    state: State
    fault: Fault | None = None
    about: tuple[str, ...] = field(default=())


def begin(world: World) -> State:
    """The state before the first action."""
    return State(world.start, dict(world.things))


def act(world: World, state: State, action: Action) -> Outcome:
    """What `action` does. An action that cannot be done changes nothing."""
    if action.verb == "go":
        (room,) = action.names
        if room not in world.rooms:
            return Outcome(state, "parameter", ("room", room))
        if room == state.room:
            return Outcome(state, "idle", (room,))
        return Outcome(replace(state, room=room))
    thing, place = action.names
    if thing not in world.things:
        return Outcome(state, "parameter", ("thing", thing))
    if place not in world.furniture:
        return Outcome(state, "parameter", ("furniture", place))
    if world.furniture[place] != state.room:
        return Outcome(state, "room", (place, world.furniture[place]))
    if action.verb == "put":
        if state.hand != thing:
            return Outcome(state, "hands", (thing, state.hand))
        return Outcome(replace(state, hand="", things={**state.things, thing: place}))
    if state.hand:
        return Outcome(state, "hands", (thing, state.hand))
    if state.things[thing] != place:
        return Outcome(state, "absent", (thing, place))
    left = {name: at for name, at in state.things.items() if name != thing}
    had = state.had or thing == world.goal[0]
    return Outcome(replace(state, hand=thing, things={**left, thing: ""}, had=had))


def done(world: World, state: State) -> bool:
    """True if the thing is where it must come to."""
    thing, place = world.goal
    return state.things[thing] == place


def progress(world: World, state: State) -> float:
    """The share of sub-goals reached: thing found, brought to the right room, put in its place."""
    thing, place = world.goal
    if done(world, state):
        return 1.0
    there = state.hand == thing and state.room == world.furniture[place]
    return (1 + there) / 3 if state.had else 0.0


def make(rooms: Rooms, rng: Random, *, surprise: float, moved: bool) -> World:
    """A world with the names of `rooms`.

    A thing lies in its usual furniture, but with probability `surprise` elsewhere. `moved`: the
    furniture stands in other rooms than usual, and nothing lies where it usually does.
    """
    usual_room = {place: room for room, places in rooms.items() for place in places}
    usual = usual_places(rooms)
    places = list(usual_room)
    furniture = dict(usual_room)
    if moved:
        shuffled = _deranged(places, usual_room, rng)
        furniture = {place: usual_room[slot] for slot, place in zip(places, shuffled, strict=True)}
    things = {}
    for thing, place in usual.items():
        away = moved or rng.random() < surprise
        things[thing] = rng.choice([p for p in places if p != place]) if away else place
    thing = rng.choice(list(things))
    target = rng.choice([p for p in places if p not in (things[thing], usual[thing])])
    return World(furniture, things, rng.choice(list(rooms)), (thing, target))


def usual_places(rooms: Rooms) -> dict[str, str]:
    """The furniture in which each thing usually lies."""
    return {t: place for places in rooms.values() for place, held in places.items() for t in held}


def _deranged(places: list[str], usual_room: Mapping[str, str], rng: Random) -> list[str]:
    """A shuffle after which no piece of furniture stands in its usual room."""
    while True:
        shuffled = rng.sample(places, len(places))
        pairs = zip(places, shuffled, strict=True)
        if all(usual_room[slot] != usual_room[place] for slot, place in pairs):
            return shuffled

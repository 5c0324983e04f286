"""A player of the rooms game that knows the rules, and errs as often as it is told to.

It sees what a policy sees: it reads the prompt, its own actions and the answers from the text, in
either style. So it can stand for a strong model where there is none (`scripted:envs.rooms.player:
erring`, `scripted:envs.rooms.player:careful`): what it writes is a correct game with mistakes, each
of them answered by the environment and repaired.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from envs.rooms import words
from envs.rooms.words import WORDINGS, Style, Wording
from envs.rooms.world import HOUSE, LETTERS, SHIP, Action, World, usual_places

MISTAKES = 0.35
"""How often `erring` makes a mistake that it could have avoided."""

_USUAL = {t: p for rooms in (HOUSE, SHIP, LETTERS) for t, p in usual_places(rooms).items()}
_TURNS: dict[Style, re.Pattern[str]] = {
    "react": re.compile(r"^Action: ([^<\n]*)|(?:^|>)(Error: )", re.M),
    "compact": re.compile(r"!([a-z][^<\s]*)|(\?)"),
}


@dataclass(slots=True)
class Known:
    """What the player knows: where it is, what it holds, where the thing is not."""

    world: World
    wording: Wording
    room: str
    holds: bool = False
    tried: set[str] = field(default_factory=set)
    lesson: str = ""
    """what was wrong with the last action, if it was answered by an error"""


def player(mistakes: float = MISTAKES, seed: int = 0) -> Callable[[str], str]:
    """A script for `ScriptedPolicy`: from the text so far to the next message.

    With probability `mistakes` it does what it could know to be wrong: it words an action as in
    another game, acts before it goes to the right room, or looks again where it has looked. The
    draw is a function of the text and `seed`, so the same game is played the same way.
    """

    def play(text: str) -> str:
        style: Style = "react" if "Goal: bring the " in text else "compact"
        known = _recall(text, style)
        rng = Random(f"{seed} {text}")
        wording, (action, then) = known.wording, _plan(known)
        if rng.random() < mistakes:
            wording, action = _mistake(known, action, then, style, rng)
        return words.write(action, wording, style, _thought(known, action))

    return play


def careful(text: str) -> str:
    """The next message of a player whose only errors are not to know where the thing is."""
    return player(0.0)(text)


def erring(text: str) -> str:
    """The next message of a player that errs in a third of its turns."""
    return player()(text)


def _recall(text: str, style: Style) -> Known:
    """What the text so far says."""
    world, wording = words.told(text, style)
    known = Known(world, wording, world.start)
    for said, ok in _turns(text, style):
        action = words.read(said, wording, style)
        known.lesson = ""
        if isinstance(action, str):
            known.lesson = "That is not one of the actions I have. "
        elif not ok:
            known.lesson = _lesson(known, action)
        elif action.verb == "go":
            known.room = action.names[0]
        else:
            known.holds = action.verb == "take"
    return known


def _lesson(known: Known, action: Action) -> str:
    """What was wrong with an action; where the thing is not is remembered."""
    name, *rest = action.names
    place = rest[0] if rest else ""
    room = known.world.furniture.get(place, known.room)
    if room != known.room:
        return f"The {place} is in the {room}, and I am not. "
    if action.verb == "take" and not known.holds:
        known.tried.add(place)
        return f"The {name} is not in the {place}. "
    return "That does not work. "


def _turns(text: str, style: Style) -> Iterator[tuple[str, bool]]:
    """The player's messages since the prompt, and whether each was answered without an error."""
    start = words.end_of_prompt(text, style)
    found = list(_TURNS[style].finditer(text, start))
    for i, match in enumerate(found):
        if match[1] is None:
            continue
        error = i + 1 < len(found) and found[i + 1][1] is None
        said = f"Action: {match[1]}" if style == "react" else f"!{match[1]}"
        yield said, not error


def _plan(known: Known) -> tuple[Action, Action]:
    """What to do next, and what that leads to (the same where the player stands in the right room).

    The thing's usual place first, then the others in the order in which they were told.
    """
    thing, target = known.world.goal
    places = list(known.world.furniture)
    if known.holds:
        place, then = target, Action("put", (thing, target))
    else:
        usual = _USUAL.get(thing)
        first = places.index(usual) if usual in places else 0
        order = [*places[first:], *places[:first]]
        left = [p for p in order if p not in known.tried and p != target]
        place = (left or order)[0]
        then = Action("take", (thing, place))
    room = known.world.furniture[place]
    return then if room == known.room else Action("go", (room,)), then


def _mistake(
    known: Known, action: Action, then: Action, style: Style, rng: Random
) -> tuple[Wording, Action]:
    """Something wrong in place of `action`: a wording and an action."""
    here = [p for p in sorted(known.tried) if known.world.furniture[p] == known.room]
    kinds = ["wording"]
    kinds += ["early"] if then != action else []
    kinds += ["again"] if here and not known.holds else []
    match rng.choice(kinds):
        case "early":
            return known.wording, then
        case "again":
            return known.wording, Action("take", (known.world.goal[0], rng.choice(here)))
        case _:
            return rng.choice([w for w in WORDINGS[style] if w != known.wording]), action


def _thought(known: Known, action: Action) -> str:
    """A sentence about what went wrong, if something did, and about what comes next."""
    thing, target = known.world.goal
    if action.verb == "go":
        aim = f"bring the {thing} to the {target}" if known.holds else f"look for the {thing}"
        return f"{known.lesson}I {aim}, so I go to the {action.names[0]}."
    if action.verb == "put":
        return f"{known.lesson}I put the {thing} where it belongs."
    return f"{known.lesson}The {thing} may be in the {action.names[1]}."

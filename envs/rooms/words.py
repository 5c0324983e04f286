"""The rooms game in words: as sentences in ReAct's form, or as a few characters for tiny models.

ReAct (`Style` "react"): the policy writes a line `Thought: ...` and a line `Action: ...`; an error
is answered by a line that begins with `Error: `. Compact: the policy writes `!` and the action,
as in `!gB` (go to B) or `!tc3` (take c from 3); an error is answered by `?` and what it is about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from envs.rooms.world import VERBS, Action, Outcome, State, World

Style = Literal["react", "compact"]

Wording = tuple[str, str, str]
"""How to write go, take and put. Capitals stand for names."""

WORDINGS: dict[Style, tuple[Wording, ...]] = {
    "react": (
        ("go to ROOM", "take THING from FURNITURE", "put THING in FURNITURE"),
        ("walk to ROOM", "get THING out of FURNITURE", "lay THING into FURNITURE"),
        ("move to ROOM", "pick THING from FURNITURE", "set THING in FURNITURE"),
    ),
    "compact": (("g", "t", "p"), ("w", "k", "l"), ("m", "s", "d")),
}
HELD_OUT: dict[Style, tuple[Wording, ...]] = {
    "react": (
        ("enter ROOM", "remove THING from FURNITURE", "store THING in FURNITURE"),
        ("visit ROOM", "grab THING at FURNITURE", "drop THING at FURNITURE"),
    ),
    "compact": (("g", "k", "d"), ("w", "s", "p"), ("m", "t", "l")),
}

_REACT_RULES = """\
You are in a building. Its rooms, and the furniture in them:
{rooms}
Things are put away in the furniture: whether one is there shows when you try to take it. You can \
carry one thing.
Actions:
{actions}
Answer every message with two lines, and only one action:
Thought: what you think
Action: the action
Goal: bring the {thing} to the {place}.
You are in the {room}."""


def prompt(world: World, wording: Wording, style: Style) -> str:
    """What the player is told before the first action."""
    thing, place = world.goal
    of_room = {room: [p for p, at in world.furniture.items() if at == room] for room in world.rooms}
    if style == "compact":
        rooms = " ".join(room + "".join(places) for room, places in of_room.items())
        return f"{rooms} {''.join(wording)} {thing}:{place} @{world.start}"
    return _REACT_RULES.format(
        rooms="\n".join(f"- {room}: {', '.join(places)}" for room, places in of_room.items()),
        actions="\n".join(f"- {form}" for form in wording),
        thing=thing,
        place=place,
        room=world.start,
    )


def told(text: str, style: Style) -> tuple[World, Wording]:
    """The world (without its things) and the wording that a prompt tells. Inverse of `prompt`.

    Raises ValueError for a text that holds no prompt.
    """
    lines, forms, thing, place, room = _find(text, style).groups()
    furniture: dict[str, str] = {}
    if style == "compact":
        for word in lines.split():
            furniture |= dict.fromkeys(word[1:], word[0])
        wording = (forms[0], forms[1], forms[2])
    else:
        for line in lines.splitlines():
            name, _, places = line[2:].partition(": ")
            furniture |= dict.fromkeys(places.split(", "), name)
        go, take, put = (line[2:] for line in forms.splitlines())
        wording = (go, take, put)
    return World(furniture, {}, room, (thing, place)), wording


def end_of_prompt(text: str, style: Style) -> int:
    """Where in the text the prompt ends. Raises ValueError for a text that holds none."""
    return _find(text, style).end()


def _find(text: str, style: Style) -> re.Match[str]:
    found = (_COMPACT_PROMPT if style == "compact" else _REACT_PROMPT).search(text)
    if found is None:
        raise ValueError("this text holds no prompt of the rooms game")
    return found


_COMPACT_PROMPT = re.compile(r"((?:[A-Z]\d* )+)([a-z]{3}) ([a-z]):(\d) @([A-Z])")
_REACT_PROMPT = re.compile(
    r"the furniture in them:\n((?:- .*\n)+).*\nActions:\n((?:- .*\n)+)(?:.*\n)*?"
    r"Goal: bring the (.+) to the (.+)\.\nYou are in the (\w+)\."
)


def write(action: Action, wording: Wording, style: Style, thought: str = "") -> str:
    """An action as the player writes it."""
    form = wording[VERBS.index(action.verb)]
    if style == "compact":
        return "!" + form + "".join(action.names)
    words = iter(action.names)
    filled = re.sub(r"ROOM|THING|FURNITURE", lambda _: next(words), form)
    return f"Thought: {thought}\nAction: {filled}"


def read(text: str, wording: Wording, style: Style) -> Action | Literal["format", "unknown"]:
    """The action in the player's message, or what is wrong with it.

    There must be one action, in the prompt's own form: a line `Action: ...` in ReAct, the whole
    message in compact. Articles, capitals and a full stop do not matter.
    """
    if style == "compact":
        lines = [text.strip()[1:]] if text.strip().startswith("!") else []
    else:
        lines = re.findall(r"^Action:[ \t]*(\S.*?)[ \t]*$", text, re.M)
    if len(lines) != 1:
        return "format"
    line = lines[0]
    if style == "react":
        line = re.sub(r"\b(the|a|an) ", "", line.lower().rstrip("."))
    for verb, form in zip(VERBS, wording, strict=True):
        found = re.fullmatch(_pattern(form, verb, style), line, re.S)
        if found:
            return Action(verb, found.groups())
    return "unknown"


def _pattern(form: str, verb: str, style: Style) -> str:
    if style == "compact":
        return re.escape(form) + ("(.)" if verb == "go" else "(.)(.)")
    return re.sub(r"ROOM|THING|FURNITURE", "(.+)", re.escape(form))


def seen(world: World, action: Action, state: State, style: Style) -> str:
    """What the player sees after an action that went well: what stands in the room, where the thing
    in hand belongs."""
    name, *rest = action.names
    here = [p for p, room in world.furniture.items() if room == state.room]
    belongs = world.goal[1] if name == world.goal[0] else ""
    if style == "compact":
        shown = {"go": f"@{name}{''.join(here)}", "take": f"+{name}{belongs}", "put": f"-{name}"}
        return shown[action.verb]
    if action.verb == "go":
        return f"You are in the {name}. Here: {', '.join(here) or 'nothing'}."
    if action.verb == "take":
        return f"You have the {name}." + (f" It belongs in the {belongs}." if belongs else "")
    return f"You put the {name} in the {rest[0]}."


def complaint(world: World, outcome: Outcome, wording: Wording, style: Style) -> str:
    """What the player is told of an action that cannot be done."""
    assert outcome.fault is not None
    if style == "compact":
        return "?" + _COMPACT[outcome.fault](outcome.about, wording)
    return "Error: " + _sentence(world, outcome, wording)


_COMPACT: Mapping[str, Callable[[Sequence[str], Wording], str]] = {
    "format": lambda about, wording: "!" + "".join(wording),
    "unknown": lambda about, wording: "".join(wording),
    "parameter": lambda about, wording: about[1],
    "room": lambda about, wording: "".join(about),
    "absent": lambda about, wording: "-" + "".join(about),
    "hands": lambda about, wording: "+" + about[1],
    "idle": lambda about, wording: "@" + about[0],
}


def _sentence(world: World, outcome: Outcome, wording: Wording) -> str:
    about = outcome.about
    match outcome.fault:
        case "format":
            return "there must be one line 'Action: ...' in your message."
        case "unknown":
            return f"there is no such action. Actions: {'; '.join(wording)}."
        case "parameter":
            kinds = {"room": world.rooms, "furniture": list(world.furniture)}
            known = f" There are: {', '.join(kinds[about[0]])}." if about[0] in kinds else ""
            return f"there is no {about[0]} called {about[1]!r}.{known}"
        case "room":
            return f"the {about[0]} is not here. It is in the {about[1]}."
        case "absent":
            return f"there is no {about[0]} in the {about[1]}."
        case "hands" if about[1]:
            return f"you have the {about[1]} in your hands."
        case "hands":
            return f"you do not have the {about[0]}."
        case _:
            return f"you are in the {about[0]} already."

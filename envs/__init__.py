"""Environments: families of tasks, and how an attempt at one is run and graded.

    env = envs.make("arithmetic", split="test", seed=0)
    episode = env.open(env.tasks(1)[0], box)

`names()` lists what exists. `make("my_module:MyEnv", ...)` makes one of your own, and `register`
gives it a name; anything with the methods of `agentrl.interfaces.Env` will do. Nothing here imports
torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import Env
from agentrl.options import check, imported

__all__ = ["factory", "make", "names", "register"]

Factory = Callable[..., Env]

EVERY = ("split", "seed")
"""Options that recipes and the command line give to every environment."""

_BUILT_IN = {
    "arithmetic": (
        "envs.arithmetic:Arithmetic",
        "procedural problems with numbers, lists, dates, units and strings; exact answers",
    ),
    "functions": (
        "envs.functions:Functions",
        "function calling with tools that answer, and the Berkeley leaderboard from local files",
    ),
    "chains": (
        "envs.chains:Chains",
        "operations on digits, from short to long: a toy of graded difficulty",
    ),
    "code": (
        "envs.code:Code",
        "programs judged by visible and hidden tests: MBPP, HumanEval, 40 problems of our own",
    ),
    "gsm8k": (
        "envs.gsm8k:GSM8K",
        "grade-school word problems, from local JSONL files or the Hugging Face hub",
    ),
    "rooms": (
        "envs.rooms:Rooms",
        "a text game: find a thing and bring it where it belongs; every action is judged",
    ),
    "scenarios": (
        "envs.scenarios:Scenarios",
        "a strong model makes up environments and games in them, which are verified",
    ),
    "sorting": (
        "envs.sorting:Sorting",
        "strings of digits to be sorted: a toy for models that go on with their own answers",
    ),
    "postfix": (
        "envs.postfix:Postfix",
        "tiny programs from examples, for tiny models; feedback on wrong ones, repair",
    ),
}
_registered: dict[str, tuple[Factory, str]] = {}


def names() -> dict[str, str]:
    """Every environment's name with a line about it."""
    known = {name: line for name, (_, line) in _BUILT_IN.items()}
    known.update({name: line for name, (_, line) in _registered.items()})
    return dict(sorted(known.items()))


def register(name: str, factory: Factory, description: str = "") -> None:
    """Make `factory(**options)` available as `make(name, **options)`.

    `description` is the line that `names` shows; by default the first line of the docstring.
    Raises ConfigError if the name is taken.
    """
    if name in names():
        raise ConfigError(f"an environment named {name!r} exists already; register another name")
    line = description or (inspect.getdoc(factory) or "").partition("\n")[0]
    _registered[name] = (factory, line)


def make(name: str, /, **options: Any) -> Env:
    """The environment `name` with these options; one of your own as `MODULE:NAME`.

    Raises ConfigError for a name, an option or a value of one that does not exist; the message
    lists those that do.
    """
    made_by = factory(name)
    what = f"environment {name!r}"
    takes = inspect.signature(made_by).parameters
    if any(option in options and option not in takes for option in EVERY) and not any(
        p.kind is p.VAR_KEYWORD for p in takes.values()
    ):
        raise ConfigError(f"{what}: every environment takes the options split and seed; add them")
    checked = check(what, made_by, options)
    try:
        return made_by(**checked)
    except TypeError as error:  # a value of another type, compared or looped over
        raise ConfigError(f"{what}: {error}") from error


def factory(name: str) -> Factory:
    """What makes the environment `name`. Raises ConfigError if there is none."""
    if name in _registered:
        return _registered[name][0]
    if ":" not in name and name not in _BUILT_IN:
        raise unknown("environment", name, [*names(), "MODULE:NAME"])
    path = _BUILT_IN[name][0] if name in _BUILT_IN else name
    found: Factory = imported(path, f"environment {name!r}")
    return found

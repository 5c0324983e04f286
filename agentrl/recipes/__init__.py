"""Recipes: each is one method from collecting to the evaluated model, in one flat file.

A recipe module has a `Config` dataclass, `PRESETS` (name to settings) and
`async run(config, folder, progress) -> summary`; its docstring's first line says what it is.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrl.errors import ConfigError, unknown

SAMPLERS = ("hf", "vllm")
"""Engines that sample for a recipe, while it trains their model here."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe by name."""

    name: str
    summary: str
    config: type[Any]
    presets: Mapping[str, Mapping[str, Any]]
    run: Callable[..., Coroutine[Any, Any, dict[str, Any]]]


def names() -> list[str]:
    """The recipes there are."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def get(name: str) -> Recipe:
    """The recipe called `name`. Raises ConfigError, suggesting the nearest, if there is none."""
    if name not in names():
        raise unknown("recipe", name, names())
    module = importlib.import_module(f"{__name__}.{name}")
    return Recipe(name, summary(name), module.Config, module.PRESETS, module.run)


def summary(name: str) -> str:
    """What the recipe is, in a line: read, not imported, as recipes bring torch along."""
    text = (Path(__file__).parent / f"{name}.py").read_text("utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def sampled_by(values: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Settings with `policy=ENGINE` written as part of the model's name, as `load_policy` has it:
    `policy=vllm` with the model `smollm2` is `model=vllm:smollm2`, `policy=vllm@URL` is
    `model=vllm:smollm2@URL`. `model` is the one where the settings name none.

    Raises ConfigError for an engine that recipes cannot sample with, or a second one.
    """
    made = dict(values)
    if "policy" not in made:
        return made
    engine, _, place = str(made.pop("policy")).partition("@")
    if engine not in SAMPLERS:
        raise unknown("policy of a recipe", engine, SAMPLERS)
    name = str(made.get("model", model))
    if ":" in name.split("@")[0] or (place and engine == "hf"):
        raise ConfigError(
            f"policy={values['policy']} with model={name}: give model=MODEL and policy=vllm or "
            "policy=vllm@URL, or the whole as model=vllm:MODEL@URL"
        )
    made["model"] = name if engine == "hf" else f"vllm:{name}" + (f"@{place}" if place else "")
    return made

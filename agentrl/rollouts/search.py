"""Searches as rollouts: an episode, searched instead of sampled.

Every finished path that was graded is an attempt of the tree; the last attempt is the answer that
the search chose. `agentrl.select.pairs` makes preferences of the tree.

With `outcome` finished paths are graded as they are found, and the search is guided by that: like a
judge that sees the reference this is for collecting. `metrics["saw_reference"]` says so, and
evaluation refuses such attempts. `judge` is a judge, a name of `agentrl.search.evaluators.JUDGES`,
or `reward:NAME`, a reward model (`agentrl.rewards.load_reward`).

`tools` says how the policy acts: `none` (a search is one assistant turn), `blocks` (python blocks
in it run, as in `tool_loop`), `native` (tool calls in the template's notation; the search goes on
in the next turn) or `turns` (every turn is an action, as in `refine`). A step that closes a call
ends behind the answer, which really comes from the environment, once; at most `max_calls` times on
a path (6 with blocks, 16 turns). `restore` says how an environment's state comes back for the next
step that is taken in it: `fork` (copied, or saved and begun in again), `replay`, or `auto`, which
forks where the episode can, and saves what would take long to replay.
"""

from __future__ import annotations

from collections.abc import Callable

from agentrl.errors import unknown
from agentrl.interfaces import Rollout
from agentrl.rollouts.searching import at_least_one, searching
from agentrl.search import strategies
from agentrl.search.core import Search
from agentrl.search.evaluators import reference_of
from agentrl.search.parts import Judge
from agentrl.search.rules import NEAR
from agentrl.search.table import State
from agentrl.search.units import UNITS, Units
from agentrl.search.worlds import Restore
from agentrl.types import Task


def _units(unit: str, step_tokens: int) -> Units:
    if unit not in UNITS:
        raise unknown("unit of action", unit, UNITS)
    at_least_one("search", step_tokens=step_tokens)
    return UNITS[unit](step_tokens)


def mcts(
    *,
    unit: str = "line",
    step_tokens: int = 128,
    b1: int = 2,
    b2: int = 2,
    depth: int = 3,
    iterations: int = 8,
    first: int = 4,
    c: float = 1.0,
    near: float = NEAR,
    gold: Callable[[Task], str] | None = None,
    judge: str | Judge | None = "self",
    outcome: bool = True,
    reference: bool = False,
    max_tokens: int | None = None,
    seconds: float | None = None,
    at_once: int = 1,
    folder: str | None = None,
    tools: str = "none",
    max_calls: int | None = None,
    restore: Restore = "auto",
) -> Rollout:
    """MCTS-DPO's search (arXiv 2405.00451); see `agentrl.search.strategies.mcts`.

    `b1` steps are drawn at the prompt, `b2` elsewhere, and an iteration goes `depth` steps down.
    Steps more alike than `near` are one. `gold` gives a task's reference solution, whose steps are
    among those drawn on the path that follows it.
    """
    units = _units(unit, step_tokens)
    at_least_one("mcts", b1=b1, b2=b2, depth=depth, iterations=iterations, first=first)

    async def run(search: Search) -> State:
        return await strategies.mcts(
            search,
            units,
            b1=b1,
            b2=b2,
            depth=depth,
            iterations=iterations,
            first=first,
            c=c,
            near=near,
            gold=None if gold is None else gold(search.cursor.tree.task),
        )

    return searching(
        "mcts",
        run,
        judge=judge,
        outcome=outcome,
        reference=reference,
        shown=gold is not None,
        max_tokens=max_tokens,
        seconds=seconds,
        at_once=at_once,
        folder=folder,
        tools=tools,
        max_calls=max_calls,
        restore=restore,
    )


def itool(
    *,
    iterations: int = 5,
    width: int = 3,
    group: int = 2,
    depth: int = 3,
    judge: str | Judge | None = "grades",
    values: bool = True,
    outcome: bool = False,
    at_once: int = 1,
    folder: str | None = None,
    tools: str = "native",
    max_calls: int | None = None,
    restore: Restore = "auto",
) -> Rollout:
    """iTool's search over fragments of native calls (arXiv 2501.09766), for collecting: it is
    graded with the reference in view, by the policy (`judge="grades"`) or by comparing the calls
    (`judge="calls"`). With `values`, where the judge sees the reference, a new step has a value by
    its overlap with it."""
    at_least_one("itool", iterations=iterations, width=width, group=group, depth=depth)

    async def run(search: Search) -> State:
        shown = values and search.judge is not None and search.judge.reference
        gold = reference_of(search.cursor.tree.task) if shown else None
        return await strategies.itool(
            search, iterations=iterations, width=width, group=group, depth=depth, gold=gold
        )

    return searching(
        "itool",
        run,
        judge=judge,
        outcome=outcome,
        at_once=at_once,
        folder=folder,
        tools=tools,
        max_calls=max_calls,
        restore=restore,
    )


def rain(
    *,
    judge: str | Judge | None = "harmless",
    iterations: int = 50,
    least: int = 15,
    t_min: int = 6,
    v_t: float = 0.8,
    width: int = 10,
    max_tokens: int | None = None,
    seconds: float | None = None,
    at_once: int = 1,
    folder: str | None = None,
    tools: str = "none",
    max_calls: int | None = None,
    restore: Restore = "auto",
) -> Rollout:
    """RAIN's decoding (arXiv 2309.07124): search, judge, rewind; no weight changes."""
    at_least_one("rain", iterations=iterations, least=least, width=width)

    async def run(search: Search) -> State:
        return await strategies.rain(
            search, iterations=iterations, least=least, t_min=t_min, v_t=v_t, width=width
        )

    return searching(
        "rain",
        run,
        judge=judge,
        outcome=False,
        max_tokens=max_tokens,
        seconds=seconds,
        at_once=at_once,
        folder=folder,
        tools=tools,
        max_calls=max_calls,
        restore=restore,
    )


def best_of_n(
    *,
    candidates: int = 8,
    judge: str | Judge | None = "self",
    outcome: bool = False,
    tools: str = "none",
    max_calls: int | None = None,
    restore: Restore = "auto",
) -> Rollout:
    """`candidates` whole answers, the one that the judge finds best; with `outcome` the best by
    the environment's grade, which is for collecting."""
    at_least_one("best_of_n", candidates=candidates)

    async def run(search: Search) -> State:
        return await strategies.best_of_n(search, n=candidates)

    return searching(
        "best_of_n",
        run,
        judge=judge,
        outcome=outcome,
        tools=tools,
        max_calls=max_calls,
        restore=restore,
    )


def beam(
    *,
    beams: int = 4,
    width: int = 4,
    unit: str = "line",
    step_tokens: int = 128,
    judge: str | Judge | None = "self",
    max_tokens: int | None = None,
    folder: str | None = None,
    tools: str = "none",
    max_calls: int | None = None,
    restore: Restore = "auto",
) -> Rollout:
    """Beam search over steps, by what the judge says of each state."""
    units = _units(unit, step_tokens)
    at_least_one("beam", beams=beams, width=width)

    async def run(search: Search) -> State:
        return await strategies.beam(search, units, beams=beams, width=width)

    return searching(
        "beam",
        run,
        judge=judge,
        outcome=False,
        max_tokens=max_tokens,
        folder=folder,
        tools=tools,
        max_calls=max_calls,
        restore=restore,
    )


def best_first(
    *,
    width: int = 4,
    unit: str = "line",
    step_tokens: int = 128,
    judge: str | Judge | None = "self",
    max_iterations: int | None = 32,
    folder: str | None = None,
    tools: str = "none",
    max_calls: int | None = None,
    restore: Restore = "auto",
) -> Rollout:
    """Best-first search over steps: always the state that the judge finds best goes on."""
    units = _units(unit, step_tokens)
    at_least_one("best_first", width=width)

    async def run(search: Search) -> State:
        return await strategies.best_first(search, units, width=width)

    return searching(
        "best_first",
        run,
        judge=judge,
        outcome=False,
        max_iterations=max_iterations,
        folder=folder,
        tools=tools,
        max_calls=max_calls,
        restore=restore,
    )

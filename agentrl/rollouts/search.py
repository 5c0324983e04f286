"""Searches as rollouts: one assistant turn, searched instead of sampled.

Every finished path that was graded is an attempt of the tree; the last attempt is the answer that
the search chose. `agentrl.select.pairs` makes preferences of the tree.

With `outcome` finished paths are graded as they are found, and the search is guided by that: like a
judge that sees the reference this is for collecting. `metrics["saw_reference"]` says so, and
evaluation refuses such attempts. `judge` is a judge, a name of `agentrl.search.evaluators.JUDGES`,
or `reward:NAME`, a reward model (`agentrl.rewards.load_reward`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import OpenEnv, Rollout
from agentrl.rollouts.blocks import graded, invented_output, stop_reason, told
from agentrl.search import strategies
from agentrl.search.core import Budget, Judge, Search
from agentrl.search.evaluators import judge_of
from agentrl.search.table import State
from agentrl.search.units import UNITS, Units
from agentrl.tree import Cursor
from agentrl.types import Message, Step

Run = Callable[[Search], Awaitable[State]]


def searching(
    name: str,
    run: Run,
    *,
    judge: str | Judge | None,
    outcome: bool,
    reference: bool = False,
    max_tokens: int | None = None,
    seconds: float | None = None,
    max_iterations: int | None = None,
    at_once: int = 1,
    folder: str | Path | None = None,
    native: bool = False,
) -> Rollout:
    """The rollout that searches a turn with `run`.

    `native` turns may call tools: these stand in the prompt, and calls are read, but not run here.
    The budget is `max_tokens` sampled, `seconds` and `max_iterations` of one search. `at_once`
    iterations run together. A search that is stopped goes on from `folder`. Raises ConfigError for
    an unknown judge, or a search that could tell nothing apart.
    """
    judging = judge_of(judge, reference)
    if judging is None and not outcome:
        raise ConfigError(f"{name}: give a judge, or outcome=True; nothing tells paths apart")
    _at_least_one(name, at_once=at_once)
    saw = outcome or (judging is not None and judging.reference)
    budget = Budget(max_tokens, seconds, max_iterations)
    where = None if folder is None else Path(folder)

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode = await open_env()
        cursor.begin(await episode.reset(), episode.tools if native else ())
        steps: dict[int, tuple[str, Step]] = {}

        async def grade(at: Cursor) -> float | None:
            steps[at.node] = await (_called if native else graded)(at, open_env)
            return steps[at.node][1].reward

        grading = grade if outcome else None
        search = Search(cursor, judging, grading, budget, at_once, where)
        chosen = await run(search)
        search.table.chosen = chosen.id
        graded_too = [s for s in search.table.states if s.outcome is not None and s is not chosen]
        for state in [*graded_too, chosen]:
            if state.node not in steps:  # chosen without a grade, or graded before a stop
                await grade(search.at(state))
            _record(search, state, *steps[state.node], native, saw)
        search.done()

    rollout.__name__ = name
    rollout.sees_reference = saw  # type: ignore[attr-defined]
    return rollout


async def _called(cursor: Cursor, open_env: OpenEnv) -> tuple[str, Step]:
    """The path's turn, its calls read, and what an episode of its own says of it."""
    episode = await open_env()
    await episode.reset()
    message = _message(cursor)
    step = await episode.step(message)
    await episode.close()
    return message.content, step


def _message(cursor: Cursor) -> Message:
    """The path's turn as a message; a call in a turn that was cut off is none."""
    message = cursor.message()
    if cursor.chat.without_end(cursor.ids[-1:]):
        return Message("assistant", message.content)
    return message


def _record(search: Search, state: State, answer: str, step: Step, native: bool, saw: bool) -> None:
    """The path to `state` as an attempt."""
    cursor = search.at(state)
    cursor.finish(
        stop_reason(cursor, truncated=state.truncated),
        reward=step.reward,
        answer=str(step.info.get("answer", answer)),
        calls=len(_message(cursor).tool_calls) if native else 0,
        hallucinated_output=invented_output(cursor),
        sampled_tokens=search.table.tokens,
        visits=state.visits,
        saw_reference=saw,
        **told(step),
    )


def _at_least_one(name: str, **numbers: int) -> None:
    for option, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name}: {option} is 1 or more, not {value}")


def _units(unit: str, step_tokens: int) -> Units:
    if unit not in UNITS:
        raise unknown("unit of action", unit, UNITS)
    _at_least_one("search", step_tokens=step_tokens)
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
    judge: str | Judge | None = "self",
    outcome: bool = True,
    reference: bool = False,
    max_tokens: int | None = None,
    seconds: float | None = None,
    at_once: int = 1,
    folder: str | None = None,
) -> Rollout:
    """MCTS-DPO's search (arXiv 2405.00451); see `agentrl.search.strategies.mcts`.

    `b1` steps are drawn at the prompt, `b2` elsewhere, and an iteration goes `depth` steps down.
    """
    units = _units(unit, step_tokens)
    _at_least_one("mcts", b1=b1, b2=b2, depth=depth, iterations=iterations, first=first)

    async def run(search: Search) -> State:
        return await strategies.mcts(
            search, units, b1=b1, b2=b2, depth=depth, iterations=iterations, first=first, c=c
        )

    return searching(
        "mcts",
        run,
        judge=judge,
        outcome=outcome,
        reference=reference,
        max_tokens=max_tokens,
        seconds=seconds,
        at_once=at_once,
        folder=folder,
    )


def itool(
    *,
    iterations: int = 5,
    width: int = 3,
    group: int = 2,
    depth: int = 3,
    judge: str | Judge | None = "grades",
    outcome: bool = False,
    at_once: int = 1,
    folder: str | None = None,
) -> Rollout:
    """iTool's search over fragments of native calls (arXiv 2501.09766), for collecting: it is
    graded with the reference in view, by the policy (`judge="grades"`) or by comparing the calls
    (`judge="calls"`)."""
    _at_least_one("itool", iterations=iterations, width=width, group=group, depth=depth)

    async def run(search: Search) -> State:
        return await strategies.itool(
            search, iterations=iterations, width=width, group=group, depth=depth
        )

    return searching(
        "itool", run, judge=judge, outcome=outcome, at_once=at_once, folder=folder, native=True
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
) -> Rollout:
    """RAIN's decoding (arXiv 2309.07124): search, judge, rewind; no weight changes."""
    _at_least_one("rain", iterations=iterations, least=least, width=width)

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
    )


def best_of_n(
    *, candidates: int = 8, judge: str | Judge | None = "self", outcome: bool = False
) -> Rollout:
    """`candidates` whole answers, the one that the judge finds best; with `outcome` the best by
    the environment's grade, which is for collecting."""
    _at_least_one("best_of_n", candidates=candidates)

    async def run(search: Search) -> State:
        return await strategies.best_of_n(search, n=candidates)

    return searching("best_of_n", run, judge=judge, outcome=outcome)


def beam(
    *,
    beams: int = 4,
    width: int = 4,
    unit: str = "line",
    step_tokens: int = 128,
    judge: str | Judge | None = "self",
    max_tokens: int | None = None,
    folder: str | None = None,
) -> Rollout:
    """Beam search over steps, by what the judge says of each state."""
    units = _units(unit, step_tokens)
    _at_least_one("beam", beams=beams, width=width)

    async def run(search: Search) -> State:
        return await strategies.beam(search, units, beams=beams, width=width)

    return searching("beam", run, judge=judge, outcome=False, max_tokens=max_tokens, folder=folder)


def best_first(
    *,
    width: int = 4,
    unit: str = "line",
    step_tokens: int = 128,
    judge: str | Judge | None = "self",
    max_iterations: int | None = 32,
    folder: str | None = None,
) -> Rollout:
    """Best-first search over steps: always the state that the judge finds best goes on."""
    units = _units(unit, step_tokens)
    _at_least_one("best_first", width=width)

    async def run(search: Search) -> State:
        return await strategies.best_first(search, units, width=width)

    return searching(
        "best_first",
        run,
        judge=judge,
        outcome=False,
        max_iterations=max_iterations,
        folder=folder,
    )

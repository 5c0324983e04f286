"""What every search does as a rollout: begin the episode, grade finished paths, record attempts.

Every finished path that was graded is an attempt of the tree; the last attempt is the answer that
the search chose.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from agentrl.errors import ConfigError, unknown
from agentrl.interfaces import OpenEnv, Rollout
from agentrl.rollouts.acting import format_of
from agentrl.rollouts.blocks import invented_output, stop_reason, told
from agentrl.search.core import Search
from agentrl.search.evaluators import judge_of
from agentrl.search.parts import Budget, Judge
from agentrl.search.stage import Stage
from agentrl.search.table import State
from agentrl.search.worlds import Restore, Worlds
from agentrl.tree import Cursor
from agentrl.types import StopReason

Run = Callable[[Search], Awaitable[State]]


def searching(
    name: str,
    run: Run,
    *,
    judge: str | Judge | None,
    outcome: bool,
    reference: bool = False,
    shown: bool = False,
    max_tokens: int | None = None,
    seconds: float | None = None,
    max_iterations: int | None = None,
    at_once: int = 1,
    folder: str | Path | None = None,
    tools: str = "none",
    max_calls: int | None = None,
    restore: Restore = "auto",
) -> Rollout:
    """The rollout that searches with `run`.

    The budget is `max_tokens` sampled, `seconds` and `max_iterations` of one search. `at_once`
    iterations run together. A search that is stopped goes on from `folder`. `shown` says that
    `run` itself sees the reference answer. `tools`, `max_calls` and `restore` are those of
    `agentrl.rollouts.search`. Raises ConfigError for an unknown name, or a search that could tell
    nothing apart.
    """
    judging = judge_of(judge, reference)
    if judging is None and not outcome and not shown:
        raise ConfigError(f"{name}: give a judge, or outcome=True; nothing tells paths apart")
    at_least_one(name, at_once=at_once)
    saw = outcome or shown or (judging is not None and judging.reference)
    budget = Budget(max_tokens, seconds, max_iterations)
    where = None if folder is None else Path(folder)
    acting = format_of(tools, max_calls)
    if restore not in get_args(Restore):
        raise unknown("way to restore", restore, get_args(Restore))

    async def rollout(cursor: Cursor, open_env: OpenEnv) -> None:
        episode = await open_env()
        cursor.begin(await episode.reset(), episode.tools if tools == "native" else ())
        stage = Stage(acting, Worlds(open_env, restore))
        graded = _Graded(stage, saw)
        try:
            grade = graded.grade if outcome else None
            search = Search(cursor, stage, judging, grade, budget, at_once, where)
            graded.search = search
            await stage.worlds.keep(search.table, search.table.states[0], episode)
            chosen = await run(search)
            search.table.chosen = chosen.id
            for state in search.table.states:
                own = not all(s.gold for s in search.table.path(state)[1:])
                if state.outcome is not None and state is not chosen and own:
                    await graded.record(state)
            await graded.record(chosen)
            search.done()
        finally:
            await stage.worlds.close()

    rollout.__name__ = name
    rollout.sees_reference = saw  # type: ignore[attr-defined]
    return rollout


@dataclass(frozen=True, slots=True)
class _Grade:
    """What the environment says of a finished path. `reward` None is "not scored"."""

    answer: str
    reward: float | None
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class _Graded:
    """The grades of one search, each given once, and the attempts made of them."""

    stage: Stage
    saw: bool
    search: Search = field(init=False)
    known: dict[int, _Grade] = field(default_factory=dict)

    async def grade(self, state: State) -> float | None:
        """The environment's reward of the finished path to `state`."""
        if state.id not in self.known:
            self.known[state.id] = await self._graded(state)
        return self.known[state.id].reward

    async def _graded(self, state: State) -> _Grade:
        cursor = self.search.at(state)
        acts, last = self.search.table.acts(state), state.acted
        if last is not None and last.ended:
            return _Grade(last.answer or cursor.turn_text(), last.reward, last.told)
        episode = await self.stage.restored(self.search.table, state)
        if episode is None:
            return _Grade(cursor.turn_text(), None, {"lost": True})
        answer = self.stage.format.answer(cursor, episode)
        if answer is None:  # a game that was cut off is worth what its last action was
            await self.stage.worlds.end(episode)
            return _Grade(cursor.turn_text(), acts[-1].reward if acts else None)
        step = await episode.step(answer)
        await self.stage.worlds.end(episode)
        return _Grade(str(step.info.get("answer", answer.content)), step.reward, told(step))

    async def record(self, state: State) -> None:
        """The path to `state` as an attempt. It is graded, unless that was done."""
        await self.grade(state)
        search, cursor, graded = self.search, self.search.at(state), self.known[state.id]
        acts = search.table.acts(state)
        cursor.finish(
            _reason(state, cursor),
            reward=graded.reward,
            answer=graded.answer,
            calls=sum(len(a.message.tool_calls) for a in acts),
            statuses=[status for a in acts for status in a.statuses],
            hallucinated_output=invented_output(cursor),
            sampled_tokens=search.table.tokens,
            visits=state.visits,
            saw_reference=self.saw,
            **graded.told,
        )


def _reason(state: State, cursor: Cursor) -> StopReason:
    if state.acted is not None and state.acted.ended:
        return "env_terminated" if state.acted.ended == "env_terminated" else "max_turns"
    return stop_reason(cursor, truncated=state.truncated)


def at_least_one(name: str, **numbers: int) -> None:
    """Raises ConfigError for a number below 1."""
    for option, value in numbers.items():
        if value < 1:
            raise ConfigError(f"{name}: {option} is 1 or more, not {value}")

"""Searches: MCTS-DPO's tree search, iTool's, RAIN's, best-first, beam and best-of-n.

The first three are `Strategy`s of one loop (`tree_search`); all use the same expansion, judges and
budget. Each returns the state whose path is the answer.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import combinations

from agentrl.errors import AgentRLWarning
from agentrl.interfaces import Ranks
from agentrl.search import rules
from agentrl.search.core import Search, together, worth
from agentrl.search.parts import Strategy
from agentrl.search.table import State, Table
from agentrl.search.units import Units, fragments, sentences, token_groups, whole

TOP_K = 15
"""Of how many tokens RAIN draws the groups that are not greedy."""


def seen(state: State) -> tuple[float, float]:
    """A step's mean value and visits as a selection sees them: every iteration that passes there
    and is not over counts as a visit of value -1 (virtual loss)."""
    if not state.under_way:
        return state.q, state.visits
    n = max(state.visits, 1.0)
    q = (n * state.q - state.under_way) / (n + state.under_way)
    return q, state.visits + state.under_way


def most_visited(table: Table, state: State) -> State | None:
    """The step most often taken; of several the one of higher q, then value."""
    children = table.children(state)
    return max(children, key=lambda s: (s.visits, s.q, s.value, -s.id), default=None)


def mcts_strategy(
    units: Units,
    *,
    b1: int,
    b2: int,
    depth: int,
    c: float = 1.0,
    gamma: float = 1.0,
    near: float = rules.NEAR,
    similarity: Callable[[str, str], float] = rules.cosine,
    gold: str | None = None,
) -> Strategy:
    """MCTS-DPO (arXiv 2405.00451; constants and back-up of the released code).

    Steps of one state whose `similarity` is above `near` are one (BERTScore's F in the released
    code; of characters here unless you give another). `gold` is a reference solution, whose next
    step is among those drawn where the path follows it; a right path that is not its text is worth
    1.25.
    """

    def score(table: Table, state: State) -> float:
        parent = table.parent(state)
        q, n = seen(state)
        return rules.puct(q, n, state.prior, parent.visits + parent.under_way, c)

    def priors(siblings: Sequence[State]) -> None:
        for s in siblings:
            s.prior = 1.0 if s.logprob is None else rules.length_prior(s.logprob, s.tokens)

    def created(table: Table, state: State) -> None:
        parent = table.parent(state)
        state.estimate = rules.step_value(state.confidence or 0.0, parent.depth, parent.estimate)
        if state.outcome is not None:
            own = gold is not None and not all(s.gold for s in table.path(state)[1:])
            state.estimate += rules.outcome_value(state.outcome, novel=own)
        state.reward = state.estimate - parent.estimate
        state.q = parent.value + state.reward

    def backup(table: Table, path: Sequence[State], value: float | None) -> None:
        for state in reversed(path):
            if state is not path[-1]:
                steps = [(s.visits, s.q) for s in table.children(state)]
                state.value = rules.mean_of_steps(steps)
            state.q = state.reward + gamma * state.value
            state.visits += 1
            state.full += 1

    def width(state: State) -> int:
        return b2 if state.depth else b1

    return Strategy(
        "mcts",
        units,
        width,
        score,
        priors,
        created,
        backup,
        depth=depth,
        alike=lambda a, b: similarity(a, b) > near,
        gold=gold,
    )


def itool_strategy(
    *,
    width: int = 3,
    group: int = 2,
    depth: int = 3,
    w: float = 1.0,
    first_value: Callable[[State], float] = lambda s: 0.0,
) -> Strategy:
    """iTool (arXiv 2501.09766): argument by argument; what a path earns is added along it.

    `first_value` is what a step is worth before its first visit (`rules.fragment_value`).
    """
    units = fragments(group, depth)

    def score(table: Table, state: State) -> float:
        parent = table.parent(state)
        q, n = state.q - state.under_way, state.visits + state.under_way
        return rules.log_score(q, n, state.prior, parent.visits + parent.under_way, w)

    def priors(siblings: Sequence[State]) -> None:
        for s in siblings:
            s.prior = 1.0 if s.logprob is None else rules.mean_prior(s.logprob, s.tokens)

    def created(table: Table, state: State) -> None:
        state.q = state.estimate = first_value(state)

    def backup(table: Table, path: Sequence[State], value: float | None) -> None:
        for state in path:
            state.q += value or 0.0
            state.visits += 1
            state.full += 1

    return Strategy(
        "itool",
        units,
        lambda s: width,
        score,
        priors,
        created,
        backup,
        judge_new=False,
        ahead=units(0),
    )


def rain_strategy(
    *,
    width: int = 10,
    most: int = 20,
    c: float = 2.0,
    top_k: int = TOP_K,
    text: Callable[[State], str] = lambda s: "",
    similarity: Callable[[str, str], float] = rules.cosine,
) -> Strategy:
    """RAIN (arXiv 2309.07124): token groups, judged by the model itself with a look ahead.

    The first tokens are the `width` likeliest, of a policy that tells them (`Ranks`); of others one
    greedy and the rest from the `top_k`, as later groups are. `text` gives a step's text for
    `similarity`, from which similar siblings share a value. Not as
    published: the similarity is of characters unless you give an embedder's; a state is widened
    where its steps are all that similar (the released code measures the spread of embeddings).
    """

    def score(table: Table, state: State) -> float:
        parent = table.parent(state)
        q, n = seen(state)
        prior = state.prior
        if parent.id == table.root:
            prior = rules.root_prior(prior, len(parent.children))
        q = rules.scaled(q, n, table.low, table.high)
        return rules.puct(q, n, prior, parent.visits + parent.under_way, c)

    def priors(siblings: Sequence[State]) -> None:
        raw = [1.0 if s.logprob is None else math.exp(s.logprob) for s in siblings]
        for s, prior in zip(siblings, rules.group_priors(raw), strict=True):
            s.prior = prior

    def backup(table: Table, path: Sequence[State], value: float | None) -> None:
        for state in path:
            state.visits += 1
            state.full += 1
            if value is not None:
                state.q += (value - state.q) / state.visits
                table.low, table.high = min(table.low, state.q), max(table.high, state.q)
                if state is not path[0]:
                    _share(table, state, value, text, similarity)

    def widen(table: Table, state: State) -> bool:
        children = table.children(state)
        if len(children) >= most or state.drawn >= most or max(s.q for s in children) >= 0:
            return False
        pairs = combinations([text(s) for s in children], 2)
        return all(similarity(a, b) >= rules.SIMILAR for a, b in pairs)

    return Strategy(
        "rain",
        token_groups,
        lambda s: width,
        score,
        priors,
        _nothing,
        backup,
        judge_new=False,
        ahead=sentences(64)(0),
        widen=widen,
        greedy=True,
        top_k=top_k,
        likeliest=True,
    )


def _share(
    table: Table,
    state: State,
    value: float,
    text: Callable[[State], str],
    similarity: Callable[[str, str], float],
) -> None:
    for other in table.children(table.parent(state)):
        if other is not state:
            alike = similarity(text(state), text(other))
            other.q, other.visits = rules.shared(other.q, other.visits, alike, value)


def _nothing(table: Table, state: State) -> None:
    """Without first statistics."""


async def tree_search(
    search: Search,
    strategy: Strategy,
    *,
    wanted: Callable[[State], int],
    settled: Callable[[Table], bool] = lambda table: False,
) -> State:
    """Search at the root, move it to the step most often taken, and again, until the path is
    finished. The root's new subtree keeps what was found.

    `wanted` says how many iterations a new root gets, `settled` when fewer are enough. When the
    budget is spent the path follows what was found, and the rest of the turn is sampled at once.
    """
    table = search.table
    table.strategy = strategy.name
    while not search.root.terminal:
        if table.wanted is None:
            table.wanted = wanted(search.root)
        while table.here < table.wanted and not settled(table) and search.budget.left(table):
            await search.wave(strategy, table.wanted - table.here)
        best = most_visited(table, search.root)
        if best is None:
            break
        table.move(best)
    return await search.complete(search.root)


async def mcts(
    search: Search,
    units: Units,
    *,
    b1: int = 2,
    b2: int = 2,
    depth: int = 3,
    iterations: int = 8,
    first: int = 4,
    c: float = 1.0,
    near: float = rules.NEAR,
    gold: str | None = None,
) -> State:
    """MCTS-DPO: `iterations` for each step of the answer, `first` times as many for the first one
    (64 and 4 in the released scripts)."""
    strategy = mcts_strategy(units, b1=b1, b2=b2, depth=depth, c=c, near=near, gold=gold)
    return await tree_search(
        search, strategy, wanted=lambda s: iterations if s.depth else iterations * first
    )


async def itool(
    search: Search,
    *,
    iterations: int = 5,
    width: int = 3,
    group: int = 2,
    depth: int = 3,
    gold: str | None = None,
) -> State:
    """iTool: `iterations` from the prompt; the answer is the visited path of the highest values.

    With the reference answer `gold`, a new step has a first value by its overlap with it.
    """

    def first_value(state: State) -> float:
        return 0.0 if gold is None else rules.fragment_value(search.text(state), gold)

    strategy = itool_strategy(width=width, group=group, depth=depth, first_value=first_value)
    search.table.strategy = strategy.name
    while search.table.here < iterations and search.budget.left(search.table):
        await search.wave(strategy, iterations - search.table.here)
    state = search.root
    while state.children:
        state = max(search.table.children(state), key=lambda s: (s.full > 0, s.q, s.full, -s.id))
    return await search.complete(state)


async def rain(
    search: Search,
    *,
    iterations: int = 50,
    least: int = 15,
    t_min: int = 6,
    v_t: float = 0.8,
    width: int = 10,
    similarity: Callable[[str, str], float] = rules.cosine,
) -> State:
    """RAIN: a group of tokens is kept when it was visited more than `t_min` times at a value above
    `v_t`, or after `iterations` less the visits that the root had (at least `least`).

    Warns where the policy does not tell its likeliest tokens (`Ranks`).
    """
    if not isinstance(search.cursor.policy, Ranks):
        warnings.warn(
            f"rain: policy {search.cursor.policy.name!r} does not tell its likeliest tokens, so "
            f"the first token is drawn (one greedily, the others from the top {TOP_K}); a model "
            f"that runs in transformers here tells the {width} likeliest, as published",
            category=AgentRLWarning,
            stacklevel=2,
        )

    def settled(table: Table) -> bool:
        best = most_visited(table, table.states[table.root])
        return best is not None and best.full > t_min and best.q > v_t

    strategy = rain_strategy(width=width, text=search.text, similarity=similarity)
    return await tree_search(
        search, strategy, wanted=lambda s: max(iterations - s.full, least), settled=settled
    )


def _best(states: Sequence[State]) -> State:
    """The state worth most; one of which nothing is known comes last."""
    return max(states, key=_rank)


def _rank(state: State) -> tuple[bool, float, int]:
    known = worth(state)
    return known is not None, known or 0.0, -state.id


async def best_first(search: Search, units: Units, *, width: int = 4) -> State:
    """Expand the state worth most, wherever it stands, until a finished path is worth most."""
    search.table.strategy = "best_first"
    open_states = [s for s in search.table.states if not s.children]
    while not _best(open_states).terminal and search.budget.left(search.table):
        await search.grow([_best(open_states)], width, units)
        open_states = [s for s in search.table.states if not s.children]
    return await search.complete(_best(open_states))


async def beam(search: Search, units: Units, *, beams: int = 4, width: int = 4) -> State:
    """Keep the `beams` best states of each length, finished ones included; expand the others."""
    search.table.strategy = "beam"
    kept = [search.root]
    while any(not s.terminal for s in kept) and search.budget.left(search.table):
        going = [s for s in kept if not s.terminal]
        made = await search.grow(going, width, units)
        kept = sorted({s.id: s for s in [*kept, *made] if not s.children}.values(), key=_rank)
        kept = kept[::-1][:beams]
    return await search.complete(_best(kept))


async def best_of_n(search: Search, *, n: int = 8) -> State:
    """`n` whole answers; the one worth most. Where several begin with the same call, that ran
    once, and is worth the mean of what followed."""
    search.table.strategy = "best_of_n"
    started = time.perf_counter()
    ends = await _ends(search, search.root, n)
    await together(search.look(s) for s in ends)
    for end in ends:
        for state in search.table.path(end):
            state.full += end.times
            state.visits += end.times
            state.q += ((worth(end) or 0.0) - state.q) * end.times / state.visits
    search.table.iterations += 1
    search.table.seconds += time.perf_counter() - started
    return _best(ends)


async def _ends(search: Search, state: State, n: int) -> list[State]:
    """The ends of `n` answers that go on from `state`."""
    if state.terminal:
        return [state]
    await search.expand(state, n, whole)
    steps = search.table.children(state)
    found = await together(_ends(search, s, s.times) for s in steps)
    return [end for ends in found for end in ends] or [state]

"""Credit schemes: values of the specifications, and biases shown exactly on a policy that stops."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrl.credit import (
    SCHEMES,
    Episode,
    Site,
    anchor_groups,
    assign,
    discounted,
    fine_grained,
    gae,
    gae_tokens,
    gae_turns,
    group_relative,
    kl_rewards,
    leave_one_out,
    returns_to_go,
    score_shaping,
    segment_sites,
    separate_sites,
    shaped,
    standardised,
    whitened,
)
from agentrl.credit.separate_sites import explanation_reward, refinement_reward
from agentrl.errors import ConfigError, DataError


def turns(*rewards: float, tokens: int = 1, **options) -> Episode:
    """A prompt, then turns of `tokens` tokens with tool output between; a reward a turn."""
    numbers, sites = [-1], []
    for k, reward in enumerate(rewards):
        numbers += [k] * tokens
        sites.append(Site(len(numbers) - 1, reward))
        numbers.append(-1)
    return Episode(numbers, sites, **options)


def of_turns(episode: Episode, advantages: list[float]) -> list[float]:
    """The advantage of each turn; asserts that it is the same at all its tokens, 0 elsewhere."""
    found = []
    for k in range(episode.n_turns):
        own = {a for a, turn in zip(advantages, episode.turns, strict=True) if turn == k}
        assert len(own) == 1
        found.append(own.pop())
    assert all(a == 0 for a, t in zip(advantages, episode.turns, strict=True) if t < 0)
    return found


def test_group_relative_and_leave_one_out() -> None:
    group = [turns(r, tokens=2) for r in (1.0, 0.0, 0.0, 1.0)]
    std = math.sqrt(4 * 0.25 / 3)
    found = [of_turns(e, a)[0] for e, a in zip(group, group_relative(group), strict=True)]
    assert found == pytest.approx([0.5 / (std + 1e-4) * s for s in (1, -1, -1, 1)])
    plain = [
        of_turns(e, a)[0] for e, a in zip(group, group_relative(group, std=False), strict=True)
    ]
    assert plain == [0.5, -0.5, -0.5, 0.5]
    loo = [of_turns(e, a)[0] for e, a in zip(group, leave_one_out(group), strict=True)]
    assert loo == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_leave_one_out_is_the_centred_reward_scaled(rewards) -> None:
    group = [turns(r) for r in rewards]
    n = len(group)
    for a, b in zip(group_relative(group, std=False), leave_one_out(group), strict=True):
        assert b[1] == pytest.approx(a[1] * n / (n - 1), abs=1e-9)


def test_score_shaping() -> None:
    """Section 6, tests 1 and 2."""
    for r1, r2, expected in ((0, 1, [0, 11]), (1, 1, [1, 1]), (0, 0, [0, 0]), (1, 0, [1, -10])):
        assert shaped([r1, r2]) == expected
        assert shaped([r1, r2], alpha=0.0) == [r1, r2]
        assert shaped([r1, r2], stage=1) == [0, r2]
    assert shaped([0, 1, 1], alpha=10.0) == [0, 11, 1]
    group = [turns(a, b, tokens=3) for a, b in zip((0, 1, 0, 1), (1, 1, 0, 0), strict=True)]
    found = [of_turns(e, a) for e, a in zip(group, score_shaping(group), strict=True)]
    assert [f[0] for f in found] == pytest.approx([-2 / 3, 2 / 3, -2 / 3, 2 / 3])
    assert [f[1] for f in found] == pytest.approx([14, 2 / 3, -2 / 3, -14])
    first = [of_turns(e, a)[0] for e, a in zip(group, score_shaping(group, stage=1), strict=True)]
    assert first == [0, 0, 0, 0]


@given(st.lists(st.tuples(*[st.integers(0, 1)] * 2), min_size=2, max_size=6))
def test_score_the_second_reward_leaves_the_first_turn_alone(rewards) -> None:
    """Test 6: gamma is 0."""
    group = [turns(*r) for r in rewards]
    other = [turns(r1, 1 - r2) for r1, r2 in rewards]
    for e, a, b in zip(group, score_shaping(group), score_shaping(other), strict=True):
        assert of_turns(e, a)[0] == of_turns(e, b)[0]


def test_score_adds_the_kl_after_shaping() -> None:
    group = [turns(0, 1), turns(1, 1)]
    lists = [-1.0] * 5, [-1.5] * 5
    penalised = [kl_rewards(group[0], *lists, coef=[0.1, 0.01]), group[1]]
    assert penalised[0].turn_rewards() == pytest.approx([-0.05, 1 - 0.005])
    plain, found = (of_turns(group[0], score_shaping(g)[0]) for g in (group, penalised))
    assert [f - p for f, p in zip(found, plain, strict=True)] == pytest.approx([-0.05, -0.005])


def test_gae_reft() -> None:
    """Three tokens, V = 0, a terminal reward of 1, gamma 1, lambda 0.95."""
    assert gae([0, 0, 1], [0, 0, 0]) == pytest.approx([0.9025, 0.95, 1.0])
    episode = Episode([-1, 0, -1, 0, 0, -1], [Site(5, 1.0)])  # tool output inside and after
    assert gae_tokens([episode])[0] == pytest.approx([0, 0.9025, 0, 0.95, 1.0, 0])


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6),
    st.floats(0, 1),
    st.floats(-2, 2),
)
def test_gae_at_its_ends(steps, gamma, bootstrap) -> None:
    """lambda 0 is the temporal difference, lambda 1 the return less the value."""
    rewards, values = [s[0] for s in steps], [s[1] for s in steps]
    after = [*values[1:], bootstrap]
    td = [r + gamma * v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
    options = {"gamma": gamma, "bootstrap": bootstrap}
    assert gae(rewards, values, lam=0.0, **options) == pytest.approx(td, abs=1e-9)
    full = discounted([*rewards, bootstrap], gamma)[:-1]
    expected = [g - v for g, v in zip(full, values, strict=True)]
    assert gae(rewards, values, lam=1.0, **options) == pytest.approx(expected, abs=1e-9)


def test_gae_over_turns_reads_values_where_turns_begin() -> None:
    episode = Episode(
        [-1, 0, 0, -1, 1, 1], [Site(2, 1.0), Site(5, 2.0)], values=[9, 0.5, 9, 9, 0.25, 9]
    )
    found = of_turns(episode, gae_turns([episode], gamma=0.9, lam=0.5)[0])
    last = 2.0 - 0.25
    assert found == pytest.approx([1 + 0.9 * 0.25 - 0.5 + 0.45 * last, last])
    with pytest.raises(ValueError, match="1 values for 2 tokens"):
        Episode([0, 0], [], values=[1.0])
    with pytest.raises(ValueError, match="there is no 1"):
        Episode([0, -1, 2], [])


def test_fine_grained() -> None:
    ends = segment_sites([3, 7], [-0.5, 0.5], "facts")
    episode = Episode([-1] + [0] * 7, ends)
    assert episode.token_rewards() == [0, 0, 0, -0.5, 0, 0, 0, 0.5]
    score = 0.3 * standardised(7.8544, -0.4468, 8.3012)
    assert score == pytest.approx(0.3, abs=1e-4)
    whole = segment_sites([7], [score], "complete")
    both = Episode([-1] + [0] * 7, [*ends, *whole])
    on = fine_grained([both], weights={"facts": 1.0, "complete": 1.0}, lam=1.0)[0]
    off = fine_grained([both], weights={"facts": 0.0, "complete": 1.0}, lam=1.0)[0]
    assert [a - b for a, b in zip(on, off, strict=True)] == pytest.approx(
        [0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5]
    )
    assert off == pytest.approx([0] + [score] * 7)


def test_separate_sites_ledex() -> None:
    episode = Episode([0, 0, 0, 0], [Site(1, 4.0, "explanation"), Site(3, -2.0, "code")])
    summed = separate_sites([episode], mode="summed")[0]
    assert summed == pytest.approx([2.019402, 2.0398, -1.98, -2.0])
    assert separate_sites([episode])[0] == pytest.approx([3.96, 4.0, -1.98, -2.0])
    # an explanation worth exactly 0 still ends there
    zero = Episode([0, 0, 0, 0], [Site(1, 0.0), Site(3, -2.0)])
    assert separate_sites([zero])[0][:2] == [0.0, 0.0]
    with_kl = kl_rewards(episode, [-1.0] * 4, [-2.0] * 4, 0.5)
    assert separate_sites([with_kl])[0][:2] == pytest.approx([-0.5 + 0.99 * 3.5, 3.5])
    assert refinement_reward(0.6, 0.5) == pytest.approx(0.5)
    assert (refinement_reward(0, 0), refinement_reward(1, 1)) == (-5, 5)
    assert [explanation_reward(s) for s in (0.4, 0.7, 1.0)] == pytest.approx([-5, 0, 5])
    with pytest.raises(ConfigError, match="separate_sites"):
        separate_sites([episode], mode="both")


def test_anchor_groups() -> None:
    """Two attempts meet in state `b`: one goes on to the reward faster."""
    one = turns(0, 0, 1, states=("a", "b", "c"))
    other = turns(0, 0, states=("a", "b"))
    found = anchor_groups([one, other], gamma=0.5, std=False)
    first, second = of_turns(one, found[0]), of_turns(other, found[1])
    assert first == pytest.approx([0.5 + 0.125, 0.5 + 0.25, 0.5])  # `c` was seen once
    assert second == pytest.approx([-0.5 - 0.125, -0.5 - 0.25])
    alone = anchor_groups([one, other], omega=0.0)
    assert alone == group_relative([one, other])
    with pytest.raises(DataError, match="needs one for each"):
        anchor_groups([turns(1.0), turns(0.0)])


def test_returns_to_go() -> None:
    group = [turns(1, 0, 4), turns(0, 2), turns(3)]
    assert discounted([1, 0, 4], 0.5) == [2.0, 2.0, 4.0]
    found = [of_turns(e, a) for e, a in zip(group, returns_to_go(group), strict=True)]
    assert found[0] == pytest.approx([5 - 2.5, 4 - 2, 4.0])  # nobody else reached turn 3
    assert found[1] == pytest.approx([2 - 4, 2 - 4])
    assert found[2] == pytest.approx([3 - 3.5])
    shrunk = [
        of_turns(e, a) for e, a in zip(group, returns_to_go(group, baseline="group"), strict=True)
    ]
    assert shrunk[0] == pytest.approx([5 - 10 / 3, 4 - 3, 0.0])  # its only witness is itself
    none = returns_to_go(group, baseline="none", gamma=0.5)
    assert of_turns(group[0], none[0]) == [2.0, 2.0, 4.0]
    with pytest.raises(ConfigError, match="unknown baseline"):
        returns_to_go(group, baseline="mean")


def expected_gradient(scheme, stop: float, right: float, n: int = 2) -> list[float]:
    """The exact expected policy gradient of a policy that chooses when to stop.

    Turn 1: stop (reward 0.3) with probability `stop`, or go on to turn 2, which is right (reward 1)
    with probability `right`. All groups of n attempts are enumerated; the gradient is with respect
    to the logits of the two choices.
    """
    outcomes = [
        (stop, turns(0.3), ((1 - stop), None)),
        ((1 - stop) * right, turns(0, 1), (-stop, 1 - right)),
        ((1 - stop) * (1 - right), turns(0, 0), (-stop, -right)),
    ]
    gradient = [0.0, 0.0]
    for group in itertools.product(outcomes, repeat=n):
        p = math.prod(o[0] for o in group)
        made = scheme([o[1] for o in group])
        for (_, episode, scores), a in zip(group, made, strict=True):
            for k, advantage in enumerate(of_turns(episode, a)):
                gradient[k] += p * advantage * scores[k] / n
    return gradient


def true_gradient(stop: float, right: float) -> list[float]:
    """Of J = stop * 0.3 + (1 - stop) * right, by the logits of both choices."""
    return [stop * (1 - stop) * (0.3 - right), (1 - stop) * right * (1 - right)]


@pytest.mark.parametrize(("stop", "right"), [(0.5, 0.5), (0.8, 0.3), (0.1, 0.9)])
@pytest.mark.parametrize("n", [2, 3])
def test_bias_when_the_policy_chooses_when_to_stop(stop, right, n) -> None:
    """What the docstrings say, exactly: unbiased baselines, and by how much the others are off."""
    true = true_gradient(stop, right)
    for scheme in (leave_one_out, returns_to_go, partial(returns_to_go, baseline="none")):
        assert expected_gradient(scheme, stop, right, n) == pytest.approx(true, abs=1e-12)
    centred = expected_gradient(partial(group_relative, std=False), stop, right, n)
    assert centred == pytest.approx([x * (1 - 1 / n) for x in true], abs=1e-12)
    by_turn = expected_gradient(partial(returns_to_go, baseline="group"), stop, right, n)
    assert by_turn[0] == pytest.approx(true[0] * (1 - 1 / n), abs=1e-12)
    assert by_turn[1] < true[1] * (1 - 1 / n) - 1e-4  # the later turn is learnt more slowly
    assert expected_gradient(gae_tokens, stop, right, 1) != pytest.approx(true)  # lambda 0.95
    full = partial(gae_tokens, lam=1.0)
    assert expected_gradient(full, stop, right, 1) == pytest.approx(true, abs=1e-12)


def test_dividing_by_the_deviation_weighs_tasks() -> None:
    """Two tasks: the one that is nearly always solved counts more than its gradient says."""

    def gradient(scheme, right: float, n: int = 6) -> float:
        total = 0.0
        for wins in itertools.product((0, 1), repeat=n):
            p = math.prod(right if w else 1 - right for w in wins)
            made = scheme([turns(w) for w in wins])
            total += p * sum(a[1] * (w - right) for a, w in zip(made, wins, strict=True)) / n
        return total

    def ratio(scheme) -> float:
        return gradient(scheme, 0.95) / gradient(scheme, 0.5)

    exact = 0.95 * 0.05 / 0.25
    assert ratio(leave_one_out) == pytest.approx(exact)
    assert ratio(partial(group_relative, std=False)) == pytest.approx(exact)
    assert ratio(group_relative) > 1.15 * exact


def test_failed_attempts_enter_no_baseline() -> None:
    ok = [turns(1.0), turns(0.0)]
    failed = turns(0.0, valid=False)
    found = assign([[*ok, failed]], leave_one_out)
    assert found.advantages[0][:2] == leave_one_out(ok)
    assert found.advantages[0][2] is None
    assert found.dropped == {"failed or not scored": 1}
    assert not found.refill


def test_groups_without_a_signal_are_dropped_and_counted() -> None:
    groups = [
        [turns(1.0), turns(1.0)],
        [turns(0.1), turns(0.1), turns(0.1)],  # rounding is not a signal
        [turns(1.0), turns(0.0)],
        [turns(1.0), turns(0.0, valid=False)],
        [Episode([-1, -1], []), turns(1.0)],
        [],
    ]
    found = assign(groups, group_relative)
    assert found.refill == [0, 1, 3, 4, 5]
    assert [[a is None for a in g] for g in found.advantages] == [
        [True] * 2,
        [True] * 3,
        [False] * 2,
        [True] * 2,
        [True] * 2,
        [],
    ]
    assert found.dropped == {
        "no signal in the group": 5,
        "group too small": 2,
        "failed or not scored": 1,
        "nothing sampled": 1,
    }
    alone = assign([[turns(1.0)]], gae_tokens, smallest=1)
    assert alone.advantages[0][0] is not None


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("keep", [0.0, -1.5, 1.5]),
        ("zero", [1.0, -0.5, -0.5]),
        ("mask", [0.0, -1.5, None]),
        ("drop", [1.0, -1.0, None]),
    ],
)
def test_truncated_attempts_are_treated_as_told(way, expected) -> None:
    group = [turns(1.0), turns(0.0), turns(2.0, truncated=True)]
    found = assign([group], leave_one_out, truncated=way)
    assert [a and a[1] for a in found.advantages[0]] == expected
    assert found.dropped == ({"truncated": 1} if way in ("mask", "drop") else {})
    with pytest.raises(ConfigError, match="truncated attempts"):
        assign([group], leave_one_out, truncated="skip")


def test_rewards_belong_to_what_was_sampled() -> None:
    episode = Episode([-1, 0, -1, -1, 1], [Site(3, 1.0), Site(4, 2.0)])
    assert episode.token_rewards() == [0, 1.0, 0, 0, 2.0]
    assert episode.turn_rewards() == [1.0, 2.0]
    assert episode.total == 3.0
    with pytest.raises(DataError, match="before any sampled token"):
        Episode([-1, 0], [Site(0, 1.0)]).token_rewards()
    with pytest.raises(DataError, match="at token 2 of 2"):
        Episode([-1, 0], [Site(2, 1.0)]).token_rewards()


def test_whitened() -> None:
    episodes = [turns(1.0, tokens=2), turns(3.0)]
    found = whitened([[9.0, 1.0, 1.0, 9.0], [9.0, 4.0, 9.0]], episodes)
    assert found[0] == pytest.approx([0, -1 / math.sqrt(3), -1 / math.sqrt(3), 0])
    assert found[1] == pytest.approx([0, 2 / math.sqrt(3), 0])


@given(st.permutations(range(4)), st.sampled_from(sorted(SCHEMES)))
def test_the_order_of_attempts_does_not_matter(order, name) -> None:
    group = [turns(*r, states=range(len(r))) for r in ((1, 0, 2), (0, 1), (3,), (0.5, 0.5, 0))]
    options = {"fine_grained": {"weights": {}}}
    scheme = partial(SCHEMES[name], **options.get(name, {}))
    made = scheme(group)
    for i, a in zip(order, scheme([group[i] for i in order]), strict=True):
        assert a == pytest.approx(made[i])


@given(
    st.sampled_from([leave_one_out, group_relative, anchor_groups, returns_to_go]),
    st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=2, max_size=5),
    st.integers(-4, 4),
)
def test_a_constant_added_to_every_reward_changes_nothing(scheme, rewards, constant) -> None:
    """Where all attempts have as many turns."""
    plain, moved = (
        [turns(*(r + c for r in row), states=(0, 1)) for row in rewards] for c in (0, constant)
    )
    for a, b in zip(scheme(plain), scheme(moved), strict=True):
        assert a == pytest.approx(b, abs=1e-9)


def test_every_scheme_says_its_bias() -> None:
    for scheme in SCHEMES.values():
        assert "Bias" in (scheme.__doc__ or "")
        assert "stop" in (scheme.__doc__ or "") or scheme is gae_turns

"""RLOO: the baseline of an attempt is the mean of the others."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.credit.base import Advantages, Episode, others_mean, over_turns


def leave_one_out(group: Sequence[Episode]) -> Advantages:
    """`R - mean of the other attempts' R`, the same for every sampled token.

    Kool et al. 2019; Ahmadian et al., arXiv 2402.14740. Equal to the group-relative advantage
    without its deviation times n / (n - 1).

    Bias: none, for independent attempts at one task, also when the policy chooses when to stop: the
    baseline is made of other attempts alone.
    """
    totals = [e.total for e in group]
    return [
        over_turns(e, [r - b] * e.n_turns)
        for e, r, b in zip(group, totals, others_mean(totals), strict=True)
    ]

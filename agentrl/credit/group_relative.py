"""GRPO: an attempt is as good as it is better than its group's mean."""

from __future__ import annotations

from collections.abc import Sequence

from agentrl.credit.base import Advantages, Episode, mean_and_std, over_turns


def group_relative(group: Sequence[Episode], *, std: bool = True, eps: float = 1e-4) -> Advantages:
    """`(R - mean) / (std + eps)` of the summed rewards, the same for every sampled token.

    DeepSeekMath, arXiv 2402.03300, section 4.1.2; `std` is the sample's (n - 1), and `eps` TRL's.
    `std=False` leaves the division out (Dr. GRPO, arXiv 2503.20783).

    Bias: the mean has the attempt's own reward in it, which scales the gradient by 1 - 1/n, the
    same for all attempts of a group: harmless. Dividing by the group's deviation is not: it weighs
    tasks by how far they are from being always or never solved, so what is maximised is no longer
    the mean reward. When the policy chooses when to stop, neither changes: one number for the whole
    attempt compares whole attempts. But then a long attempt spreads that number over more tokens;
    whether each counts less is the loss's choice (see `agentrl.losses.policy_gradient`).
    """
    totals = [e.total for e in group]
    mean, deviation = mean_and_std(totals)
    scale = 1 / (deviation + eps) if std else 1.0
    return [
        over_turns(e, [(r - mean) * scale] * e.n_turns) for e, r in zip(group, totals, strict=True)
    ]

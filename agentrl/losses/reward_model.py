"""The loss of a reward model: of two answers, or of many that are right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from agentrl.batch import Batch
from agentrl.errors import DataError
from agentrl.losses.base import LossOutput
from agentrl.losses.sequences import check_denominator, sample_sums


def reward_model_loss(scores_K: Tensor, right_K: Tensor, margin: float = 0.0) -> Tensor | None:
    """The mean of `-log sigmoid(s_right - s_wrong - margin)` over all pairs of answers to a prompt.

    `scores_K` are the model's scores (with gradient) of the K answers, `right_K` (bool) which are
    right: 6 a prompt in Qwen2.5-Math (arXiv 2409.12122), whose factor 1 / (k (6 - k)) this is. Of
    two answers it is Bradley and Terry's loss, with Llama 2's margin (arXiv 2307.09288).
    None where all answers are right or all wrong: there is no pair, and such a prompt is left out.
    """
    gaps_RW = _gaps(scores_K, right_K)
    return None if gaps_RW.numel() == 0 else -F.logsigmoid(gaps_RW - margin).mean()


def ranking(
    scores_BT: Tensor,
    batch: Batch,
    denominator: float,
    *,
    units: Sequence[int],
    right: Sequence[bool],
    margins: Sequence[float],
) -> LossOutput:
    """`reward_model_loss` as a mean over the units (prompts, or pairs) of a step.

    `scores_BT` holds the score of each sample where its only weight is. `units`, `right` and
    `margins` have an entry for each of the step's samples; those of one unit are in one
    micro-batch. Metrics, as means over units: `accuracy` (the share of pairs in the right order),
    `margin` (how far they are apart) and `score`. Raises DataError for a unit without a pair.
    """
    check_denominator(denominator, "number of prompts")
    scores_S = sample_sums(torch.where(batch.weights_BT > 0, scores_BT, 0.0), batch)
    places: dict[int, list[int]] = {}
    for place, sample in enumerate(batch.samples):
        places.setdefault(units[sample], []).append(place)
    loss = scores_S.new_zeros(())
    found = {name: scores_S.new_zeros(()) for name in ("accuracy", "margin", "score")}
    for at in places.values():
        first = batch.samples[at[0]]
        right_K = torch.tensor([right[batch.samples[p]] for p in at], device=scores_S.device)
        own = reward_model_loss(scores_S[at], right_K, margins[first])
        if own is None:
            raise DataError("all answers to a prompt are right, or all wrong: leave it out")
        loss = loss + own
        scores_K = scores_S[at].detach()
        gaps_RW = _gaps(scores_K, right_K)
        found["accuracy"] += (gaps_RW > 0).float().mean()
        found["margin"] += gaps_RW.mean()
        found["score"] += scores_K.mean()
    return LossOutput(loss / denominator, {n: value / denominator for n, value in found.items()})


def _gaps(scores_K: Tensor, right_K: Tensor) -> Tensor:
    """[right, wrong]: by how much each right answer is above each wrong one."""
    return scores_K[right_K][:, None] - scores_K[~right_K][None, :]

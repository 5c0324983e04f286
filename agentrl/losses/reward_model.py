"""The loss of a reward model on answers that are right or wrong."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def reward_model_loss(scores_K: Tensor, right_K: Tensor) -> Tensor | None:
    """The mean of `-log sigmoid(s_right - s_wrong)` over all pairs of answers to one prompt.

    `scores_K` are the model's scores (with gradient) of the K answers, `right_K` (bool) which are
    right: 6 a prompt in Qwen2.5-Math (arXiv 2409.12122), whose factor 1 / (k (6 - k)) this is.
    None where all answers are right or all wrong: there is no pair, and such a prompt is left out.
    """
    gaps_RW = scores_K[right_K][:, None] - scores_K[~right_K][None, :]
    return None if gaps_RW.numel() == 0 else -F.logsigmoid(gaps_RW).mean()

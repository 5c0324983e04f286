"""Reward models: of outcomes, of steps, of pairs; batched, and loaded by name.

`SequenceClassifier` (`classifier`, needs torch) scores token ids, `PairwiseJudge` (`preference`)
says which of two answers is better. Searches use one as a judge (`agentrl.search.evaluators`), the
recipe `online_dpo` to make pairs, `agentrl eval --reward` for RM@k and weighted votes. They are
trained by `agentrl.train.reward`.
"""

from __future__ import annotations

from typing import Any

from agentrl.chat import Chat, HFTokenizer
from agentrl.errors import missing_extra
from agentrl.rewards.answers import check_tokenizer, heard, scored
from agentrl.rewards.base import PairModel, ProcessModel, RewardModel
from agentrl.rewards.preference import PairwiseJudge

PAIRWISE = "pairwise:"
"""What stands before the name of a policy that judges pairs."""


def load_reward(name: str, **options: Any) -> Any:
    """The reward model called `name`: a `SequenceClassifier`, or a `PairwiseJudge`.

    `name` is a folder or a hub id of a sequence or token classifier, or `pairwise:POLICY` with a
    policy as `agentrl.engines.load_policy` names it. `options` are `dtype` and `device`. Raises
    ConfigError if it cannot be loaded or has no tokenizer, MissingExtraError without torch.
    """
    if name.startswith(PAIRWISE):
        from agentrl.engines import load_policy

        return PairwiseJudge(load_policy(name.removeprefix(PAIRWISE), **options))
    try:
        import torch  # noqa: F401
    except ImportError:
        raise missing_extra("torch", "train") from None
    from agentrl.engines.models import load_classifier, load_tokenizer
    from agentrl.rewards.classifier import SequenceClassifier

    chat = Chat(HFTokenizer(load_tokenizer(name)))
    return SequenceClassifier(load_classifier(name, **options), chat=chat)


__all__ = [
    "PairModel",
    "PairwiseJudge",
    "ProcessModel",
    "RewardModel",
    "check_tokenizer",
    "heard",
    "load_reward",
    "scored",
]

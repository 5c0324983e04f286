"""The same losses and gradients as TRL's own code, on the same tiny model and batch.

TRL's loss methods are called on trainers that were never initialised (no data set, no optimizer),
with the attributes that these methods read. They are private and of TRL 1.16: a newer TRL may need
changes here.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from agentrl import losses
from agentrl.batch import Batch, collate
from agentrl.losses import Extras
from agentrl.losses.pairs import length_desensitised
from agentrl.train import Scorer
from agentrl.types import Pair, Sample

pytest.importorskip("trl", reason="TRL is not installed: pip install 'agentrl[bench]'")

from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer, SFTTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.tpo import TPOTrainer
from trl.trainer.utils import add_fused_lm_head

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

VOCAB = 61
SHAPES = [(3, 4), (3, 6), (5, 2), (5, 3)]
"""Prompt and answer tokens of chosen, rejected, chosen, rejected."""


def tiny(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config)
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    return model.train()


POLICY, REF, OLD = tiny(0), tiny(1), tiny(0)
with torch.no_grad():  # the policy that sampled: the trained one, a little earlier
    torch.manual_seed(5)
    for p in OLD.parameters():
        p.add_(0.02 * torch.randn_like(p))


def rows(shapes=SHAPES, seed: int = 0) -> list[Sample]:
    draw = random.Random(seed)
    made, prompts = [], {}
    for i, (prompt, answer) in enumerate(shapes):
        head = prompts.setdefault(i // 2, [draw.randrange(VOCAB) for _ in range(prompt)])
        ids = head + [draw.randrange(VOCAB) for _ in range(answer)]
        made.append(Sample(ids, [0.0] * prompt + [1.0] * answer))
    return made


def batch_of(samples) -> Batch:
    return collate(samples, [[i] for i in range(len(samples))])


def ours(samples, **lists) -> tuple[torch.Tensor, Batch]:
    """The policy's log-probabilities, and the batch with those of the other models in it."""
    batch = batch_of(samples)
    with torch.no_grad():
        batch = replace(batch, ref_logprobs_BT=Scorer(REF)(batch).logprobs_BT, **lists)
    return Scorer(POLICY)(batch).logprobs_BT, batch


def theirs(samples, order=None) -> dict[str, torch.Tensor]:
    """The tensors that TRL's collators make, with rows in the given order."""
    order = range(len(samples)) if order is None else order
    width = max(len(s.token_ids) for s in samples)
    made = {k: torch.zeros(len(samples), width, dtype=torch.long) for k in ("ids", "seen", "mask")}
    for b, i in enumerate(order):
        s = samples[i]
        n = len(s.token_ids)
        made["ids"][b, :n] = torch.tensor(s.token_ids)
        made["seen"][b, :n] = 1
        made["mask"][b, :n] = torch.tensor(s.weights).long()
    return {
        "input_ids": made["ids"],
        "attention_mask": made["seen"],
        "completion_mask": made["mask"],
    }


def bare(cls, **attributes):
    """A trainer without its constructor, in a world of one process."""
    trainer = object.__new__(cls)
    alone = SimpleNamespace(
        device=torch.device("cpu"),
        num_processes=1,
        is_main_process=True,
        parallelism_config=None,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )
    common = {
        "model": POLICY,
        "ref_model": REF,
        "accelerator": alone,
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list), "eval": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
        "beta": 0.1,
        "label_smoothing": 0.0,
        "precompute_ref_logps": False,
        "current_gradient_accumulation_steps": 1,
        "compute_loss_func": None,
        "label_smoother": None,
        "is_encoder_decoder": False,
    }
    for name, value in {**common, **attributes}.items():
        setattr(trainer, name, value)
    return trainer


def gradients() -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in POLICY.named_parameters()}
    POLICY.zero_grad(set_to_none=True)
    return found


def same(our_loss: torch.Tensor, trl_loss: torch.Tensor) -> None:
    """Equal to 1e-5, gradients of all parameters as well, and neither is trivially zero."""
    assert our_loss.item() == pytest.approx(trl_loss.item(), rel=1e-5, abs=1e-5)
    POLICY.zero_grad(set_to_none=True)
    our_loss.backward()
    mine = gradients()
    trl_loss.backward()
    for name, grad in gradients().items():
        torch.testing.assert_close(mine[name], grad, rtol=1e-4, atol=1e-5)
    assert max(g.abs().max() for g in mine.values()) > 1e-3


@pytest.mark.parametrize("name", ["sft", "dft"])
def test_sft(name) -> None:
    samples = rows()
    inputs = theirs(samples)
    labels = inputs["input_ids"].masked_fill(inputs.pop("completion_mask") == 0, -100)
    trainer = bare(
        SFTTrainer,
        args=SimpleNamespace(
            loss_type={"sft": "nll", "dft": "dft"}[name], average_tokens_across_devices=False
        ),
    )
    trl = trainer.compute_loss(POLICY, {**inputs, "labels": labels})
    out = losses.get(name)(*ours(samples), losses.denominator(name, samples))
    same(out.loss, trl)


def dpo_trainer(loss_type="sigmoid", weights=None, **attributes):
    plain = {"ld_alpha": None, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5}
    return bare(
        DPOTrainer,
        use_weighting=False,
        loss_types=[loss_type] if isinstance(loss_type, str) else loss_type,
        loss_weights=weights or [1.0],
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        **{**plain, **attributes},
    )


def dpo_loss(loss_type="sigmoid", weights=None, **attributes):
    trainer = dpo_trainer(loss_type, weights, **attributes)
    return trainer._compute_loss(POLICY, theirs(rows(), [0, 2, 1, 3]), return_outputs=False)


@pytest.mark.parametrize(
    ("name", "loss_type", "options"),
    [
        ("dpo", "sigmoid", {}),
        ("dpo", "sigmoid", {"beta": 0.7}),
        ("dpo_norm", "sigmoid_norm", {"beta": 5.0}),
        ("ipo", "ipo", {}),
        ("hinge", "hinge", {}),
        ("robust_dpo", "robust", {"label_smoothing": 0.1}),
        ("exo", "exo_pair", {"label_smoothing": 1e-3}),
        ("nca", "nca_pair", {}),
        ("bco", "bco_pair", {}),
        ("sppo", "sppo_hard", {}),
        ("apo_zero", "apo_zero", {}),
        ("apo_down", "apo_down", {}),
        ("discopop", "discopop", {}),
    ],
)
def test_dpo_family(name, loss_type, options) -> None:
    out = losses.make(name, **options)(*ours(rows()), 2)
    same(out.loss, dpo_loss(loss_type, **options))


@pytest.mark.parametrize(
    ("name", "trl_name"),
    [("forward_kl", "forward_kl"), ("js", "js_divergence"), ("alpha", "alpha_divergence")],
)
@pytest.mark.parametrize(("loss", "loss_type"), [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_divergences(name, trl_name, loss, loss_type) -> None:
    out = losses.make(loss, divergence=name)(*ours(rows()), 2)
    same(out.loss, dpo_loss(loss_type, f_divergence_type=trl_name))


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_length_desensitised(alpha) -> None:
    samples = rows()
    pairs = [Pair(samples[i], samples[i + 1]) for i in (0, 2)]
    damped = losses.samples_of([length_desensitised(p, alpha) for p in pairs])
    same(losses.get("dpo")(*ours(damped), 2).loss, dpo_loss(ld_alpha=alpha))


def test_rpo_as_trl_mixes_it() -> None:
    """`["sigmoid", "sft"]` with weights 1 and c: our eta = c on the mean over chosen tokens."""
    out = losses.make("rpo", beta=0.1, eta=0.7, chosen_tokens=6.0)(*ours(rows()), 2)
    same(out.loss, dpo_loss(["sigmoid", "sft"], [1.0, 0.7]))


def test_dpo_metrics() -> None:
    out = losses.get("dpo")(*ours(rows()), 2)
    trainer = dpo_trainer()
    trainer._compute_loss(POLICY, theirs(rows(), [0, 2, 1, 3]), return_outputs=False)
    (logged,) = trainer._metrics["train"]["rewards/margins"]
    assert out.metrics["margin"].item() * 0.1 == pytest.approx(logged, abs=1e-5)
    (logged,) = trainer._metrics["train"]["rewards/accuracies"]
    assert out.metrics["accuracy"].item() == logged


def contrast(loss_type, **attributes):
    """TRL's CPO loss of the pairs, given our sums or means."""
    trainer = bare(CPOTrainer, loss_type=loss_type, alpha=0.0, simpo_gamma=0.5, **attributes)
    scores = losses.pair_scores(*ours(rows()))
    chosen, rejected = scores.chosen_P, scores.rejected_P
    if loss_type == "simpo":
        chosen, rejected = scores.chosen_mean_P, scores.rejected_mean_P
    return trainer.cpo_loss(chosen, rejected)[0].mean()


def test_simpo_and_cpo() -> None:
    for smoothing in (0.0, 0.2):
        out = losses.make("simpo", beta=2.5, gamma=0.5, label_smoothing=smoothing)(*ours(rows()), 2)
        same(out.loss, contrast("simpo", beta=2.5, label_smoothing=smoothing))
        out = losses.make("cpo", alpha=0.0, label_smoothing=smoothing)(*ours(rows()), 2)
        same(out.loss, contrast("sigmoid", label_smoothing=smoothing))


def test_cdpo_through_trl_s_cpo_on_log_ratios() -> None:
    """TRL's DPO has no cDPO any more, but its CPO smooths labels the same way."""
    scores = losses.pair_scores(*ours(rows()))
    trl = bare(CPOTrainer, loss_type="sigmoid", alpha=0.0, label_smoothing=0.3)
    expected = trl.cpo_loss(*scores.log_ratios())[0].mean()
    out = losses.make("dpo", label_smoothing=0.3)(*ours(rows()), 2)
    same(out.loss, expected)


def answers_apart(samples) -> dict[str, torch.Tensor]:
    """The inputs of TRL's older trainers, chosen and rejected apart."""
    made = {}
    for name, order in (("chosen", [0, 2]), ("rejected", [1, 3])):
        rows_ = theirs([samples[i] for i in order])
        mask = rows_.pop("completion_mask")
        made |= {f"{name}_{key}": value for key, value in rows_.items()}
        made[f"{name}_labels"] = rows_["input_ids"].masked_fill(mask == 0, -100)
    return made


OLDER = {"padding_value": 0, "pad_token_id": 0}


def test_cpo_from_the_batch_on() -> None:
    """With its NLL, which TRL averages over the tokens of all chosen answers of the batch."""
    trainer = bare(
        CPOTrainer, loss_type="sigmoid", alpha=0.0, cpo_alpha=0.8, simpo_gamma=0.5, **OLDER
    )
    trl, _ = trainer.get_batch_loss_metrics(POLICY, answers_apart(rows()))
    same(losses.make("cpo", alpha=0.8, nll_tokens=6.0)(*ours(rows()), 2).loss, trl)


def test_orpo_from_the_batch_on() -> None:
    """TRL's NLL is over prompt and answer. The paper's, and ours, is over the answer: the losses
    differ by that alone."""
    samples = rows()
    trainer = bare(ORPOTrainer, beta=0.1, **OLDER)
    trl, _ = trainer.get_batch_loss_metrics(POLICY, answers_apart(samples))
    out = losses.make("orpo", beta=0.1, nll_tokens=6.0)(*ours(samples), 2)
    assert out.loss.item() != pytest.approx(trl.item(), abs=1e-3)
    whole = [Sample(samples[i].token_ids, [1.0] * len(samples[i].token_ids)) for i in (0, 2)]
    with_prompt = losses.get("sft")(*ours(whole), losses.denominator("sft", whole)).loss
    without = losses.get("sft")(*ours([samples[0], samples[2]]), 6.0).loss
    same(out.loss + with_prompt - without, trl)


@pytest.mark.parametrize(
    ("name", "loss_type", "options"),
    [("tpo", "sigmoid", {"beta": 0.01}), ("tpo_l", "tpo-l", {"beta": 2.0, "gamma": 0.5})],
)
@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_tpo(name, loss_type, options, alpha) -> None:
    samples = rows([(3, 4), (3, 6), (4, 2), (4, 3), (5, 4), (5, 5)])
    members = 2 if alpha == 0 else 3
    if members == 2:
        samples = samples[:4]
        order, gold = [0, 2, 1, 3], None
    else:
        order = [0, 3, 1, 4, 2, 5]
        gold = sum(sum(samples[i].weights) for i in (2, 5))
    trainer = bare(
        TPOTrainer,
        tpo_alpha=alpha,
        loss_type=loss_type,
        beta=options["beta"],
        tpo_l_gamma=options.get("gamma"),
    )
    trl = trainer._compute_loss(POLICY, theirs(samples, order), return_outputs=False)
    loss = losses.make(name, alpha=alpha, nll_tokens=gold, members=members, **options)
    same(loss(*ours(samples), 2).loss, trl)


def test_kto() -> None:
    samples, desirable = rows(), [True, False, False, True]
    # the mismatched answers, from which TRL estimates the KL: each prompt with the next answer
    mismatched = [
        Sample(
            [*s.token_ids[: s.weights.index(1.0)], *o.token_ids[o.weights.index(1.0) :]],
            [0.0] * s.weights.index(1.0) + [w for w in o.weights if w],
        )
        for s, o in zip(samples, [*samples[1:], samples[0]], strict=True)
    ]
    inputs = theirs(samples)
    kl_inputs = {f"KL_{k}": v for k, v in theirs(mismatched).items()}
    trainer = bare(
        KTOTrainer,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=1.0,
        undesirable_weight=1.3,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    trl = trainer._compute_loss(
        POLICY, {**inputs, **kl_inputs, "label": torch.tensor(desirable)}, return_outputs=False
    )
    with torch.no_grad():
        lp_BT, batch = ours(mismatched)
    log_ratios = (batch.weights_BT * (lp_BT - batch.ref_logprobs_BT)).sum(-1).tolist()
    kl = losses.kto_kl(log_ratios)
    assert trainer._metrics["train"]["kl"] == [pytest.approx(kl, abs=1e-5)]
    loss = losses.make("kto", desirable=desirable, kl=kl, undesirable_weight=1.3)
    same(loss(*ours(samples), 4).loss, trl)


def test_unpaired_apo_is_kto_without_a_reference_point() -> None:
    desirable = [True, False, False, True]
    trainer = bare(
        KTOTrainer,
        loss_type="apo_zero_unpaired",
        calculate_KL=False,
        desirable_weight=1.0,
        undesirable_weight=1.0,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
    )
    inputs = {**theirs(rows()), "label": torch.tensor(desirable)}
    trl = trainer._compute_loss(POLICY, inputs, return_outputs=False)
    same(losses.make("kto", desirable=desirable, kl=0.0)(*ours(rows()), 4).loss, trl)


ADVANTAGES = [1.2, -0.4, -1.1, 0.6]


def rollouts(old: bool, tool: bool = False):
    """Our batch of completions, and TRL's inputs: prompts padded left, completions right."""
    samples = rows([(3, 4), (3, 6), (5, 2), (5, 3)], seed=4)
    if tool:
        samples = [replace(s, weights=[*s.weights[:-2], 0.0, 1.0]) for s in samples]
    samples = [
        replace(s, advantages=[a] * len(s.token_ids))
        for s, a in zip(samples, ADVANTAGES, strict=True)
    ]
    made = {}
    for part, left in (("prompt", True), ("completion", False)):
        cut = [s.weights.index(1.0) for s in samples]
        ids = [
            list(s.token_ids[:n] if left else s.token_ids[n:])
            for s, n in zip(samples, cut, strict=True)
        ]
        width = max(map(len, ids))
        for key, rows_ in (("ids", ids), ("mask", [[1] * len(r) for r in ids])):
            fill = [[0] * (width - len(r)) for r in rows_]
            joined = [f + r if left else r + f for r, f in zip(rows_, fill, strict=True)]
            made[f"{part}_{key}"] = torch.tensor(joined)
    width = made["completion_ids"].shape[1]

    def right(values_BT):
        out = torch.zeros(len(samples), width)
        for b, s in enumerate(samples):
            n = s.weights.index(1.0)
            out[b, : len(s.token_ids) - n] = values_BT[b, n : len(s.token_ids)]
        return out

    batch = batch_of(
        [
            replace(s, weights=[float(i >= s.weights.index(1.0)) for i in range(len(s.weights))])
            for s in samples
        ]
    )
    with torch.no_grad():
        old_BT, ref_BT = (Scorer(m)(batch).logprobs_BT for m in (OLD, REF))
    made["advantages"] = torch.tensor(ADVANTAGES)
    made["ref_per_token_logps"] = right(ref_BT)
    made["num_items_in_batch"] = torch.tensor(sum(sum(s.weights) for s in samples))
    if old:
        made["old_per_token_logps"] = right(old_BT)
    if tool:
        mask = torch.zeros(len(samples), width, dtype=torch.long)
        for b, s in enumerate(samples):
            n = s.weights.index(1.0)
            mask[b, : len(s.token_ids) - n] = torch.tensor(s.weights[n:]).long()
        made["tool_mask"] = mask
    lists = {"logprobs_BT": old_BT} if old else {}
    return samples, made, lists


@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("tool", [False, True], ids=["one turn", "tool output"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "loss_type", "level"),
    [
        ("grpo", "grpo", "token"),
        ("dr_grpo", "dr_grpo", "token"),
        ("dapo", "dapo", "token"),
        ("cispo", "cispo", "token"),
        ("gspo", "grpo", "sequence"),
    ],
)
def test_grpo_family(name, loss_type, level, beta, tool, old) -> None:
    samples, inputs, lists = rollouts(old, tool)
    low, high = (3e-4, 4e-4) if name == "gspo" else (0.05, 0.08)
    trainer = bare(
        GRPOTrainer,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=low,
        epsilon_high=1.05 if name == "cispo" else high,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        max_completion_length=9,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
    )
    trl = trainer._compute_loss(POLICY, inputs)
    clip = {"cap": 1.05} if name == "cispo" else {"clip_low": low, "clip_high": high}
    more = {"max_tokens": 9.0} if name == "dr_grpo" else {}
    loss = losses.make(name, extras=Extras(kl_coef=beta, kl="k3"), **clip, **more)
    out = loss(*ours(samples, **lists), losses.denominator(name, samples))
    if old:  # the bounds really bind, on one side at least
        assert out.metrics["clip_high"] + out.metrics.get("clip_low", 0.0) > 0
    same(out.loss, trl)


def test_grpo_s_weighted_kl() -> None:
    """TRL's `use_bias_correction_kl` is our `k3_weighted`."""
    samples, inputs, lists = rollouts(old=True)
    trainer = bare(
        GRPOTrainer,
        loss_type="dapo",
        importance_sampling_level="token",
        beta=0.3,
        epsilon_low=0.2,
        epsilon_high=0.28,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        args=SimpleNamespace(use_bias_correction_kl=True, delta=1.01, steps_per_generation=1),
    )
    trl = trainer._compute_loss(POLICY, inputs)
    extras = Extras(kl_coef=0.3, kl="k3_weighted")
    loss = losses.make("dapo", extras=extras, dual_clip=1.01)
    same(loss(*ours(samples, **lists), losses.denominator("dapo", samples)).loss, trl)


@pytest.mark.parametrize("old", [False, True], ids=["on-policy", "off-policy"])
def test_rloo(old) -> None:
    samples, inputs, lists = rollouts(old)
    if old:
        inputs["old_logps"] = inputs["old_per_token_logps"].sum(1)
    else:
        with torch.no_grad():
            inputs["old_logps"] = Scorer(POLICY)(batch_of(samples)).logprobs_BT.sum(1)
    trainer = bare(RLOOTrainer, epsilon_low=0.2, epsilon_high=0.2)
    trl = trainer._compute_loss(POLICY, inputs)
    out = losses.get("rloo")(*ours(samples, **lists), len(samples))
    same(out.loss, trl)
    logged = trainer._metrics["train"]["clip_ratio/high_mean"]
    assert out.metrics["clip_high"].item() == pytest.approx(logged[0], abs=1e-6)

"""Adapters of peft, by name and options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from agentrl.batch import TASK, Batch, collate, plan
from agentrl.errors import ConfigError, DataError, missing_extra, unknown
from agentrl.logprob import read_head
from agentrl.types import Sample

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "QLORA": ("LORA", {}),  # arXiv 2305.14314
    "DORA": ("LORA", {"use_dora": True}),  # arXiv 2402.09353
    "PISSA": ("LORA", {"init_lora_weights": "pissa"}),  # arXiv 2404.02948
    "EVA": ("LORA", {"init_lora_weights": "eva"}),  # arXiv 2410.07170
    "CORDA": ("LORA", {"init_lora_weights": "corda"}),  # arXiv 2406.05223
    "BONE": ("MISS", {}),  # arXiv 2409.15371, whose later versions call it MiSS
    "MHR": ("POLY", {"n_splits": 4}),  # arXiv 2211.03831
}
"""Names from papers: the peft method that each is, and the options that make it so."""

MOVED = ("pissa", "corda", "olora")
"""Initialisations that take a part of the base's weights out of it and into the adapter. An adapted
model then has `initial_adapter`, what was taken, so that `export` can write the difference."""

CALIBRATION = 256
"""How many samples EVA and CorDA look at to place their adapters."""
CALIBRATION_TOKENS = 2048
"""Tokens of these a forward pass."""


def adapt(
    model: nn.Module, options: Mapping[str, Any], samples: Sequence[Sample] = ()
) -> nn.Module:
    """The model with a new adapter of peft in it, the only thing then trained.

    `options` are those of the method's peft configuration, with `alpha` and `dropout` for
    `lora_alpha` and `lora_dropout`; `method` (default `lora`) names the method as peft does or as
    its paper (`METHODS`), and `target_modules` is all linear layers but the head unless given.
    `model` itself is changed. EVA and CorDA read the activations of `samples`; Poly and MHR their
    tasks (`agentrl.batch.TASK`). QLoRA needs a model that was loaded in 4 bits.

    Raises ConfigError for an unknown method or option, a method that adds to the prompt instead of
    the weights, or a model that has an adapter or does not suit; DataError for samples that do not;
    MissingExtraError without peft, or without bitsandbytes for QLoRA.
    """
    if hasattr(model, "peft_config"):
        raise ConfigError("the model has an adapter already; leave lora out to train that one")
    try:
        import peft
    except ImportError as error:
        raise missing_extra("peft", "train") from error
    named = str(options.get("method", "lora")).upper()
    kind, given = METHODS.get(named, (named, {}))
    config_class = _config_class(kind)
    options = given | {k: v for k, v in options.items() if k != "method"}
    config = config_class(task_type="CAUSAL_LM", **_spelt_out(options, kind, config_class))
    if named == "QLORA":
        _prepare_4bit(model)
    if kind == "POLY":
        config.n_tasks = _tasks(samples, options.get("n_tasks"))
    placed_by = getattr(config, "init_lora_weights", None)
    if placed_by == "corda":
        _place_corda(model, config, samples)
    adapted: Any = peft.get_peft_model(model, config)
    if placed_by == "eva":
        _place_eva(adapted, config, samples)
    if kind == "POLY":
        for layer in _routed(adapted):
            layer.register_forward_pre_hook(_route, with_kwargs=True)
    if isinstance(placed_by, str) and placed_by.startswith(MOVED):
        state = peft.get_peft_model_state_dict(adapted)
        adapted.initial_adapter = {name: t.detach().clone() for name, t in state.items()}
    trained: nn.Module = adapted
    return trained


def _config_class(kind: str) -> type:
    """The configuration of a method of peft that changes weights."""
    import peft
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known: dict[str, type] = {
        str(name.value): config
        for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if not issubclass(config, peft.PromptLearningConfig)
    }
    if kind not in known:
        raise unknown("peft method", kind, known.keys() | METHODS.keys())
    return known[kind]


def _spelt_out(options: Mapping[str, Any], kind: str, config_class: type) -> dict[str, Any]:
    """The options under peft's names, checked."""
    found, names = dict(options), {f.name for f in fields(config_class)}
    for short, long in (("alpha", "lora_alpha"), ("dropout", "lora_dropout")):
        if short in found and long in names and short not in names:
            found[long] = found.pop(short)
    for name in found:
        if name not in names:
            raise unknown(f"option of {kind}", name, names)
    if found.get("init_lora_weights") == "corda" and found.get("corda_config") is None:
        from peft.tuners.lora.config import CordaConfig

        found["corda_config"] = CordaConfig(corda_method="kpm")
    if "target_modules" in names:
        found.setdefault("target_modules", "all-linear")
    return found


def _linear_names(model: Any) -> set[str]:
    """The last names of all linear layers but the head, as peft matches them."""
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def _prepare_4bit(model: Any) -> None:
    """Check that the model's weights are in 4 bits; its other parameters become float32."""
    import peft

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise missing_extra("bitsandbytes", "quant") from error
    if not getattr(model, "is_loaded_in_4bit", False):
        raise ConfigError(
            "method='qlora' needs a model that was loaded in 4 bits: load_model(name, bits=4), or "
            "from_pretrained with transformers' BitsAndBytesConfig(load_in_4bit=True)"
        )
    for module in model.modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ConfigError(
                "bitsandbytes has packed this model's weights for inference on a CPU, through "
                "which no gradient flows: load it again, and put the adapter on before it is used"
            )
        # bitsandbytes 0.50 packs them at the first use in evaluation mode, for good
        module.support_avx512bf16_for_cpu = False
    peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _place_eva(adapted: Any, config: Any, samples: Sequence[Sample]) -> None:
    """EVA: the adapter's input side is made of the activations' main directions."""
    import peft

    needed = round(config.r * config.eva_config.rho)
    device = read_head(adapted).weight_VD.device
    inputs = []
    for rows in plan(samples[:CALIBRATION], CALIBRATION_TOKENS, "padded"):
        batch = collate(samples, rows).to(device)
        seen_BT = batch.segment_ids_BT >= 0
        labels_BT = batch.input_ids_BT.masked_fill(batch.weights_BT == 0, -100)
        if int((seen_BT & (labels_BT != -100)).sum()) > needed:
            inputs.append(
                {"input_ids": batch.input_ids_BT, "attention_mask": seen_BT, "labels": labels_BT}
            )
    if not inputs:  # peft would go round for ever
        raise DataError(
            f"EVA with rank {config.r} needs more than {needed} trained tokens a forward pass to "
            f"place its adapter, and the first {CALIBRATION} samples have not as many. Give more "
            "samples, or lower r or eva_config's rho"
        )
    adapted.eval()
    peft.initialize_lora_eva_weights(
        adapted,
        inputs,
        forward_fn=lambda model, given: model(given["input_ids"], use_cache=False),
        show_progress_bar=False,
        gather_distributed_inputs=False,  # every process has the same samples
    )


@torch.no_grad()
def _place_corda(model: Any, config: Any, samples: Sequence[Sample]) -> None:
    """CorDA: the adapter is made of the weights' part that the activations use most (or least)."""
    from peft.tuners.lora.corda import preprocess_corda

    if not samples:
        raise DataError("CorDA needs samples, to see which part of the weights they use")
    if config.target_modules == "all-linear":  # not known to what counts activations
        config.target_modules = _linear_names(model)
    device = read_head(model).weight_VD.device

    def run() -> None:
        for i in range(min(len(samples), CALIBRATION)):
            model(**collate(samples, [[i]]).to(device).model_inputs())

    training = model.training
    preprocess_corda(model, config, run_model=run)
    model.train(training)


def _tasks(samples: Sequence[Sample], n_tasks: int | None) -> int:
    """How many tasks Poly has: as asked for, or as the samples say."""
    if n_tasks == 1 or (n_tasks is None and not any(TASK in s.meta for s in samples)):
        return 1
    ids = [s.meta.get(TASK) for s in samples]
    most = n_tasks if n_tasks is not None else 1 + max(i for i in ids if isinstance(i, int))
    wrong = [n for n, i in enumerate(ids) if not (isinstance(i, int) and 0 <= i < most)]
    if wrong:
        raise DataError(
            f"Poly has {most} tasks, and Sample.meta[{TASK!r}] of sample {wrong[0]} is "
            f"{ids[wrong[0]]!r}: give each sample an int from 0 to {most - 1}"
        )
    return most


def _routed(model: nn.Module) -> Iterator[Any]:
    """The layers of Poly, which mix their skills by the task of each row."""
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.poly.layer import PolyLayer

    yield from (m for m in model.modules() if isinstance(m, PolyLayer))


def routes_rows(model: nn.Module) -> bool:
    """True if the adapter needs a task for every row, so that a row can hold one sample only."""
    return any(True for _ in _routed(model))


def set_tasks(model: nn.Module, batch: Batch) -> None:
    """Tell the adapter, if it asks, the task of each of the batch's rows."""
    for layer in _routed(model):
        layer.task_ids = batch.tasks_B


def _route(layer: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Gives a layer of Poly the tasks of the batch: also when activations are computed again."""
    kwargs.setdefault("task_ids", getattr(layer, "task_ids", None))
    return args, kwargs

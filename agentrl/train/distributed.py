"""Training in several processes: DDP, or FSDP2 where the model is sharded.

Every process is given the same model, data and settings and plans the same steps. Of each step's
micro-batches it computes its share; gradients are added up over processes. A step's denominator is
counted over the whole step, so the sum is the loss of one process doing it all.
"""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from agentrl.batch import Layout, Rows, collate, cost, plan
from agentrl.errors import ConfigError
from agentrl.logprob import bare_model
from agentrl.ranks import Ranks
from agentrl.trie import unique_tokens
from agentrl.types import Sample


def share(
    ranks: Ranks,
    samples: Sequence[Sample],
    budget: int,
    layout: Layout,
    groups: Sequence[Sequence[int]] | None = None,
) -> list[Rows]:
    """This process's micro-batches of a step (see `agentrl.batch.plan`): as many as the others
    have, empty ones where there are too few.

    They are dealt out in rounds of similar cost. Where a round would not be full a smaller budget
    is tried, and taken if the step is over sooner.
    """
    micros = plan(samples, budget, layout, groups)
    if ranks.size == 1:
        return micros
    rounds = _deal(samples, micros, layout, ranks.size)
    if len(micros) % ranks.size:
        tokens = sum(_tokens(samples, micro, layout) for micro in micros)
        smaller = min(budget, max(1, -(-tokens // (len(rounds) * ranks.size))))
        again = _deal(samples, plan(samples, smaller, layout, groups), layout, ranks.size)
        rounds = min(rounds, again, key=lambda found: _time(samples, found, layout))
    return [dealt[ranks.rank] for dealt in rounds]


def _deal(
    samples: Sequence[Sample], micros: Sequence[Rows], layout: Layout, size: int
) -> list[list[Rows]]:
    """Rounds of one micro-batch for each process, dearest first, from either side in turns."""
    order = sorted(micros, key=lambda micro: -_cost(samples, micro, layout))
    order += [[]] * (-len(order) % size)
    rounds = [order[at : at + size] for at in range(0, len(order), size)]
    return [dealt if n % 2 == 0 else dealt[::-1] for n, dealt in enumerate(rounds)]


def _tokens(samples: Sequence[Sample], micro: Rows, layout: Layout) -> int:
    """What a micro-batch has the model compute."""
    if layout == "tree":
        return unique_tokens([samples[i].token_ids for row in micro for i in row])
    return len(micro) * max(sum(len(samples[i].token_ids) for i in row) for row in micro)


def _cost(samples: Sequence[Sample], micro: Rows, layout: Layout) -> float:
    return cost(samples, [micro], layout) if micro else 0.0


def _time(samples: Sequence[Sample], rounds: Sequence[Sequence[Rows]], layout: Layout) -> float:
    """What a step takes: in each round all wait for the dearest."""
    return sum(max(_cost(samples, micro, layout) for micro in r) for r in rounds)


def join() -> Ranks:
    """The processes that `torchrun` or `accelerate launch` started, or this one alone.

    Connects them if nobody has yet. Raises ConfigError if they cannot find each other.
    """
    if not dist.is_available():
        return Ranks()
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState()  # chooses the backend and this process's device
        if not dist.is_initialized():
            raise ConfigError(
                "WORLD_SIZE is set, but not what processes need to find each other: start them "
                "with torchrun or accelerate launch, or unset WORLD_SIZE"
            )
    return Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """`join`, and the connection closed when the block ends (if it was made here)."""
    before = dist.is_available() and dist.is_initialized()
    ranks = join()
    try:
        yield ranks
    finally:
        if ranks.size > 1 and not before:
            dist.destroy_process_group()


def wrap(scorer: nn.Module, model: nn.Module, ranks: Ranks, shard: bool) -> nn.Module:
    """`scorer`, whose gradients are averaged over processes in the backward pass.

    With `shard` each process holds its part of every parameter (FSDP2), and of gradients and
    optimizer state with it: layers are put together for their own forward and backward only. The
    model is then changed in place, so make the optimizer afterwards.
    """
    if ranks.size == 1:
        if shard:
            raise ConfigError(
                "shard=True needs several processes: start with torchrun or accelerate launch"
            )
        return scorer
    if not shard:
        # buffers are the same everywhere; to send them would wait for others in every forward pass
        known = inspect.signature(DistributedDataParallel).parameters
        sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {sync: False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(scorer, **options)
    from torch.distributed.fsdp import fully_shard

    for tensor in (*scorer.parameters(), *scorer.buffers()):  # as DDP does
        dist.broadcast(tensor.detach(), 0)
    apart = set(getattr(bare_model(model), "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in apart:
            fully_shard(module)
    fully_shard(scorer)
    return scorer


def not_yet(wrapped: nn.Module, last: bool) -> Any:
    """A context for a micro-batch: DDP sends gradients after the `last` one only.

    FSDP2 sends them every time, since whole gradients are what sharding has no memory for.
    """
    if isinstance(wrapped, DistributedDataParallel) and not last:
        return wrapped.no_sync()
    return nullcontext()


def idle(score: Callable[..., Any], samples: Sequence[Sample], device: torch.device) -> None:
    """Take part in a micro-batch without one: a forward and backward pass that adds nothing.

    The others wait for this process's gradients, and under FSDP2 for its parts of the layers.
    """
    shortest = min(range(len(samples)), key=lambda i: len(samples[i].token_ids))
    batch = collate(samples, [[shortest]]).to(device)
    scores = score(replace(batch, weights_BT=torch.zeros_like(batch.weights_BT)))
    total = sum(scores_BT.sum() for scores_BT in scores if scores_BT is not None)
    (0.0 * total).backward()


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` without memory for its parameters, to be filled by `assemble`."""
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def assemble(bones: nn.Module, sharded: nn.Module, ranks: Ranks) -> nn.Module:
    """The trained model in one piece, on the CPU of the main process; without memory elsewhere.

    All processes must call this.
    """
    places: dict[str, tuple[nn.Module, str]] = {}
    for prefix, module in bones.named_modules(remove_duplicate=False):
        for name in module._parameters:
            places[f"{prefix}.{name}".lstrip(".")] = (module, name)
    made: dict[int, nn.Parameter] = {}
    for name, p in sharded.named_parameters(remove_duplicate=False):
        if id(p) not in made:
            full: Any = p.full_tensor() if hasattr(p, "full_tensor") else p
            value = full.detach().cpu() if ranks.main else torch.empty_like(full, device="meta")
            made[id(p)] = nn.Parameter(value, p.requires_grad)
        module, leaf = places[name]
        module._parameters[leaf] = made[id(p)]
    return bones


def norm_of(total: Tensor) -> float:
    """A gradient norm as a number, also where its parts are spread over processes."""
    whole: Any = total.full_tensor() if hasattr(total, "full_tensor") else total
    return float(whole.item())

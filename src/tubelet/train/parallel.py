"""Several processes that train one model: joined by what torchrun tells them, wrapped in DDP or FSDP2, ended together.

Alone, everything here does nothing and costs nothing.
"""

import contextlib
import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from tubelet import models, share
from tubelet.errors import ConfigError, TrainingError
from tubelet.models._conv3d import BatchNorm
from tubelet.models._model import Model
from tubelet.records import Batch, ClipSpec

T = TypeVar("T")

# Others wait this long for one that decodes, validates or draws the report. One that has died is noticed at once.
PATIENCE = timedelta(hours=2)
STATE_BYTES = 20  # of training a parameter in float32: weight, gradient, two moments, moving average


# Joining and leaving -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """Joins the processes that torchrun started, for the block. Alone, or where they are joined already, it does nothing.

    An error on one process ends them all, and only the one that had it first raises it: the others leave with exit code 2.
    KeyboardInterrupt is raised on rank 0 alone, the others leave with 130.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    store = _join()
    try:
        yield
        wait()
    except KeyboardInterrupt:
        if rank():
            raise SystemExit(130) from None
        raise
    except Exception as error:
        if not _is_first(store):
            raise SystemExit(2) from None
        if _is_lost_connection(error):
            raise TrainingError(
                "another process of this run has ended, so this one ends too: see what was said before; the same command continues"
            ) from error
        raise
    dist.destroy_process_group()


def rank() -> int:
    """The number of this process, 0 where it is alone. Rank 0 writes and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world() -> int:
    """How many of them are on this machine and share its memory and cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if dist.is_initialized() else 1


def check_device(device: torch.device) -> None:
    """ConfigError for a device that several processes cannot train on."""
    if world() > 1 and (device.type not in ("cpu", "cuda") or device.index is not None):
        raise ConfigError(f"run.device is {str(device)!r}, but each of {world()} processes has its own: use auto, cpu or cuda")
    if world() > 1 and device.type == "cuda" and local_world() > torch.cuda.device_count():
        raise ConfigError(
            f"{local_world()} processes on a machine with {torch.cuda.device_count()} GPUs: start one for each GPU"
        )


def _join() -> Any:
    """Start the process group; gives the store that the processes share."""
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)
    try:
        store, rank, world = next(rendezvous("env://", timeout=PATIENCE))
        # What the processes tell each other lies on the CPU, so that nobody waits for a GPU to hear it.
        backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"cannot join the other processes ({' '.join(str(error).split())[:200]}): start them with torchrun or `tubelet launch`"
        ) from error
    return store


def _is_first(store: Any) -> bool:
    """Whether no other process has failed before; True where that cannot be known any more."""
    try:
        return bool(store.add("failed", 1) == 1)
    except RuntimeError:
        return True


def _is_lost_connection(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


# Talking -----------------------------------------------------------------------------------------------------------------


def exchange(numbers: Sequence[int]) -> list[list[int]]:
    """What every process said, in order of rank; all say equally many."""
    mine = torch.tensor(numbers, dtype=torch.int64)
    if world() == 1:
        return [mine.tolist()]
    said = [torch.empty_like(mine) for _ in range(world())]
    dist.all_gather(said, mine)
    return [one.tolist() for one in said]


def gather(thing: T) -> list[T]:
    """What every process has, in order of rank; for things that are seldom said."""
    things: list[Any] = [thing] * world()
    if world() > 1:
        dist.all_gather_object(things, thing)
    return things


def agree(thing: T) -> T:
    """What rank 0 has."""
    things = [thing]
    if world() > 1:
        dist.broadcast_object_list(things, src=0, device=torch.device("cpu"))
    return things[0]


def wait() -> None:
    """Until all processes are here."""
    exchange([0])


def total(numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sums over all processes of numbers that every one has under the same names."""
    if world() == 1 or not numbers:
        return dict(numbers)
    stacked = torch.stack(list(numbers.values()))
    dist.all_reduce(stacked)
    return dict(zip(numbers, stacked.unbind(), strict=True))


def gather_clips(mine: Tensor) -> Tensor:
    """The rows of all processes in the order of `share`, without a blank one's. Gradients go back to the process that a row came
    from, summed over all."""
    held = share.current(len(mine))
    return mine if len(held.counts) == 1 else _Gathered.apply(mine, held)


class _Gathered(torch.autograd.Function):
    """All processes must go through both passes together."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor, held: share.Share) -> Tensor:
        ctx.held, ctx.shape = held, mine.shape
        padded = mine.new_zeros(max(held.counts), *mine.shape[1:])
        own = held.counts[held.rank]
        padded[:own] = mine[:own]
        said = [torch.empty_like(padded) for _ in held.counts]
        dist.all_gather(said, padded)
        return torch.cat([one[:count] for one, count in zip(said, held.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        mine = total.new_zeros(ctx.shape)
        own = ctx.held.counts[ctx.held.rank]
        mine[:own] = total[ctx.held.rows][:own]
        return mine, None


def blank(spec: ClipSpec) -> Batch:
    """A batch for a process that has no clip in this step: it computes with the others, and what comes of it counts nothing."""
    frames = torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8)
    return Batch(
        frames, torch.zeros(1, spec.frames, dtype=torch.float64), [], torch.zeros(1, dtype=torch.int64), texts=["blank"]
    )


# The model ---------------------------------------------------------------------------------------------------------------


class Replicated(DistributedDataParallel):
    """DDP that can be asked what its model can: grid, class_names, ..."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


def choose_kind(kind: str, model: Model, device: torch.device) -> str:
    """ "ddp" or "fsdp"; "auto" is "fsdp" on GPUs of which the training state of the whole model would take over a quarter."""
    if kind != "auto":
        return kind
    if device.type != "cuda":
        return "ddp"
    state = STATE_BYTES * sum(p.numel() for p in model.parameters())
    return "fsdp" if state > torch.cuda.get_device_properties(device).total_memory / 4 else "ddp"


def spread(model: Model, kind: str, device: torch.device, compiled: bool | str, untaught: bool = False) -> nn.Module:
    """What is called to train `model`: the model itself (compiled or not), or the wrapper that sums up gradients.

    compiled: true, or a mode of torch.compile. untaught: some parameters get no gradient, for which DDP would wait.

    With "fsdp" the parameters of `model` become DTensors, of which every process holds a part: whoever wants all of one asks
    `whole`. A unit of them is a block: what stands in a ModuleList.
    """
    mode = compiled if isinstance(compiled, str) else None
    if world() == 1 or choose_kind(kind, model, device) == "ddp":
        net: Any = torch.compile(model, mode=mode) if compiled else model
        return net if world() == 1 else Replicated(net, gradient_as_bucket_view=True, find_unused_parameters=untaught)
    # No output of a model is changed in place (house rule), which is what it warns of.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world(),))
    for block in blocks(model):
        if compiled:
            block.compile(mode=mode)
        fully_shard(block, mesh=mesh)
    # Nothing stays whole after a forward pass: validation writes the moving average into the parts, and back.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """What stands in a ModuleList, inner ones first."""
    return [block for module in reversed(list(model.modules())) if isinstance(module, nn.ModuleList) for block in module]


def recompute(model: Model) -> None:
    """Keep nothing but the inputs of blocks for the backward pass, and compute the rest again: slower, in less memory.
    ConfigError for a model that has no blocks."""
    found = blocks(model)
    if not found:
        raise ConfigError(f"run.recompute is true, but {model.name} has no blocks to compute again: leave it out")
    for block in found:
        norms = [module for module in block.modules() if isinstance(module, BatchNorm)]
        again: dict[str, Any] = {"context_fn": functools.partial(_twice, norms)} if norms else {}
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, **again)


def _twice(norms: Sequence[BatchNorm]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What the first pass and the second one run in: only the first moves running means and variances."""
    return contextlib.nullcontext(), _unmoved(norms)


@contextlib.contextmanager
def _unmoved(norms: Sequence[BatchNorm]) -> Iterator[None]:
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # Not "no statistics at all": fewer tensors would be saved than in the first pass, which torch refuses.
        norm.momentum = 0.0
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, seen) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, seen


@contextlib.contextmanager
def synchronised(net: nn.Module, now: bool) -> Iterator[None]:
    """Gradients of the block are summed up over the processes only where `now`, together with those that were kept back."""
    if isinstance(net, FSDPModule):
        net.set_requires_gradient_sync(now)
        yield
    elif isinstance(net, Replicated) and not now:
        with net.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which each process may hold a part. All processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor, like: Tensor | None) -> Tensor:
    """The part of a whole tensor that this process holds of `like`; the tensor itself where `like` is not divided."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gradient_squares(model: Model) -> dict[str, Tensor]:
    """The squared norm of every parameter's gradient, averaged over the processes. All of them must ask."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if world() > 1 and not isinstance(model, FSDPModule):  # which has averaged them already
        flat = torch.cat([gradient.flatten() for gradient in found.values()])
        dist.all_reduce(flat)
        pieces = (flat / world()).split([gradient.numel() for gradient in found.values()])
        found = dict(zip(found, pieces, strict=True))
    return {name: whole(gradient.square().sum()) for name, gradient in found.items()}


def whole_model(model: Model) -> Model:
    """The model itself where it is not divided, else a copy with whole weights (of use on rank 0). All processes must ask."""
    if not isinstance(model, FSDPModule):
        return model
    state = {name: whole(value).detach() for name, value in model.state_dict().items()}
    if rank():
        return model
    with torch.random.fork_rng(devices=[]):
        copy = models.build_like(model)
    copy.load_state_dict(state)
    return copy.to(next(iter(state.values())).device)

"""What a run will do and cost, said before it starts."""

import time
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tubelet.models._conv3d import BatchNorm
from tubelet.records import Batch
from tubelet.seeds import generator_for
from tubelet.train import parallel
from tubelet.train.device import autocast
from tubelet.train.log import duration

if TYPE_CHECKING:
    from tubelet.train.loop import Run

PROBE_SECONDS = 0.2
EFFICIENCY = 0.5  # of the speed of a large matrix product that a training step reaches


def describe(run: "Run") -> str:
    """The plan as a few lines of text."""
    config, model, spec = run.config, run.model, run.config.clip
    world = parallel.world()
    gmacs, kept_bytes = cost_of_a_clip(run)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    every = sum(p.numel() for p in model.parameters())
    clips = run.steps * config.clips_per_step
    seconds = clips * 3 * 2 * gmacs * 1e9 / (probe(run.device, run.precision) * EFFICIENCY * world)
    # float32: weights, gradients, two moments, moving average
    weights = 4 * (every + trained * (3 + bool(config.optim.ema)))
    memory = weights + kept_bytes * config.loader.batch_size / world
    cache = f"decoded videos in memory, about {size(run.loader.cache_bytes)}" if run.loader.cache_bytes else "decoded as needed"
    cache += "" if config.loader.decoding == "exact" else f", {config.loader.decoding}"
    slots, rows, columns = getattr(model, "grid", (0, 0, 0))
    tokens = f" = {slots}x{rows}x{columns} tokens" if slots else ""
    val = f", {len(run.val_set.examples)} held out" if run.val_set else ""
    lines = {
        "run": f"{config.out} ({config.objective}"
        + (f", starting from {config.init})" if config.init else ", from random weights)"),
        "data": f"{len(run.train_set.examples):,} videos{val}"
        + (f", {len(model.class_names)} classes" if model.class_names else "")
        + f"; {config.loader.repeats} clips per decode; {cache}; {run.loader.workers} workers",
        "clip": f"{spec.frames} frames at stride {spec.stride_frames}, {spec.size}x{spec.size} pixels{tokens}",
        "model": f"{model.name}, {every / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained, {gmacs:.2f} GMAC forward per clip",
        "steps": f"{run.steps:,} of {config.clips_per_step} clips ({run.steps / run.steps_per_epoch:.4g} epochs, {clips:,} clips), "
        f"learning rate {run.peak:.3g} after {run.warmup} steps",
        "on": (f"{world} processes, on each " if world > 1 else "")
        + f"{run.device}, {run.precision}, {torch.get_num_threads()} threads; about {size(memory)} of memory, "
        f"{duration(seconds)}",
    }
    return "\n".join(f"{name:>6}  {text}" for name, text in lines.items())


def cost_of_a_clip(run: "Run") -> tuple[float, int]:
    """(10^9 multiply-adds, bytes kept for the backward pass) of one clip's forward pass under the objective, counted by running it.

    The global generator is left as it was, and so are the running statistics of batch norms: black frames are no data.
    """
    spec = run.config.clip
    norms = [module for module in run.model.modules() if isinstance(module, BatchNorm) and module.training]
    for norm in norms:
        norm.eval()
    frames = torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8)
    seconds, label = torch.zeros(1, spec.frames, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    batch = Batch(frames, seconds, ["probe"], label, texts=["a sentence of about eight words or so"])
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    with torch.random.fork_rng(devices=[]), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), \
            autocast(run.device, run.precision):  # fmt: skip
        run.objective.loss(run.model, batch.to(run.device), run.settings, generator_for("plan"))
    with torch.random.fork_rng(devices=[]), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), \
            autocast(run.device, run.precision):  # fmt: skip
        loss, _ = run.objective.loss(run.model, batch.to(run.device), run.settings, generator_for("plan"))
        del loss
    for norm in norms:
        norm.train()
    return counter.get_total_flops() / 2e9, sum(bytes for place, bytes in seen.items() if place not in own)


def probe(device: torch.device, precision: str) -> float:
    """Floating-point operations per second of a large matrix product on the device, measured for a moment."""
    side = 4096 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.ones(side, side, device=device, dtype=dtype)
    (a @ a).sum().item()
    rounds, began = 0, time.monotonic()
    while time.monotonic() - began < PROBE_SECONDS:
        (a @ a)[0, 0].item()  # waits for the device
        rounds += 1
    return rounds * 2 * side**3 / (time.monotonic() - began)


def size(count: float) -> str:
    """ "340 MB", "1.2 GB"."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"

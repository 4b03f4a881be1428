"""A step of pretraining on a GPU: clips a second, share of the card's own matrix products, time in attention, memory, from files.

    python benchmarks/gpu.py [--sizes small base large] [--batch 32] [--rounds 5] [--quick] [--device cuda] [--json FILE]

ViT-S/B/L at 16x224x224 with a tube mask of 90 %, in bf16: ours eager and as `run.compile` true and "max-autotune" compile it,
beside transformers' model (sdpa, fused AdamW), in turn, by the clock once the GPU is done. "MFU %" is three times the operations of
a forward pass of our model, which leaves nothing out and counts nothing twice, over what the card does of one large product in the
same time, measured before; transformers' is of the same operations. Shares are of the GPU's time in torch.profiler. "From files" is
our loader and step together (e2e.py). Without a GPU it says what has not been measured; `--device cpu --quick` tries the code out.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import e2e
import measure
import step
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tubelet import ClipSpec, models
from tubelet.ahead import cores
from tubelet.objectives import masked
from tubelet.records import Batch
from tubelet.train import parallel, plan

SIZES = {"tiny": 0.0, "small": 0.0, "base": 40.0, "large": 50.0}  # and the MFU that is aimed at, where there is an aim
OURS: dict[str, bool | str] = {"ours, eager": False, "ours, compiled": True, "ours, max-autotune": "max-autotune"}
UNMEASURED = (
    "not run: no GPU. So these are not measured: clips a second, MFU (aims: 40 % for ViT-B, 50 % for ViT-L), our time beside "
    "transformers' on one card (aim: half), shares of attention and products, memory, and clips a second from files"
)
# what a kernel or an operation does, by parts of its name; the first that fits
KINDS = {
    "attention": ("attention", "flash", "fmha", "sdpa"),
    "products": ("gemm", "mm", "cutlass", "nvjet", "linear", "matmul"),
}


def main() -> None:
    options = parse()
    if options.device == "cpu" and not options.tried:
        measure.write(options.json, "gpu", [{"model": f"ViT {size}", "note": UNMEASURED} for size in options.sizes])
        return
    device, spec = torch.device(options.device), ClipSpec(frames=options.frames, size=options.pixels)
    ceiling = plan.probe(device, "bf16")
    rows = [row for size in options.sizes for row in compare(size, spec, options.batch, device, ceiling, options)]
    rows += from_files(options, device)
    measure.write(options.json, "gpu", rows)


def compare(
    size: str, spec: ClipSpec, batch: int, device: torch.device, ceiling: float, options: argparse.Namespace
) -> list[measure.Row]:
    """One row for each way of training a model; ceiling is in operations a second."""
    model = models.build(f"videomae_{size}", spec)
    operations = 3 * 2e9 * models.cost(model, step.tube(model, 1, torch.device("cpu")))["gmacs"]  # a clip, there and back
    made: dict[str, Callable[[], step.Step]] = {
        way: partial(ours, size, spec, batch, device, OURS[way]) for way in options.ways
    }
    if not (reason := measure.missing(*step.PEER)):
        made["transformers"] = lambda: step.pretraining(size, spec, batch, device, "bf16")["transformers"]()
    steps, facts = {}, {}
    for way, make in made.items():
        held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        steps[way] = make()
        steps[way](), steps[way]()  # compiles, and makes the optimiser's moments
        peak = {"peak GB": (torch.cuda.max_memory_allocated() - held) / 1e9} if device.type == "cuda" else {}
        facts[way] = peak | shares(steps[way], device)
    seconds = measure.interleaved(steps, options.rounds, partial(step.clock, device))
    rows: list[measure.Row] = []
    for way, taken in seconds.items():
        speed = batch / statistics.median(taken)
        rows.append({
            "model": f"ViT {size} {spec.frames}x{spec.size}", "way": way, "clips": f"batch {batch}", "clips/s": speed,
            "MFU %": 100 * speed * operations / ceiling, "aim %": SIZES[size] or None, **facts[way],
        })  # fmt: skip
        if not reason and way != "transformers":
            faster = measure.ratios(seconds["transformers"], taken)
            rows[-1] |= {"times transformers": statistics.median(faster), "range": measure.spread(faster)}
    if reason:
        rows.append({"model": rows[0]["model"], "way": "transformers", "note": reason})
    return rows


def ours(size: str, spec: ClipSpec, batch: int, device: torch.device, compiled: bool | str) -> step.Step:
    """The step that `tubelet pretrain` takes, masks drawn anew each time."""
    net: Any = parallel.spread(step.pretrainer(size, spec, device), "ddp", device, compiled)
    clips = Batch(step.clips(spec, batch, device), torch.empty(0), [])
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        return masked.loss(net, clips, masked.MaskedConfig(), generator)[0]

    return step.training(net, loss, device, "bf16", fused=True)


def shares(of: step.Step, device: torch.device) -> dict[str, float]:
    """Percent of the device's time in one step that goes into attention, other matrix products, and all else."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        of()
    spent = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in seen.key_averages():
        if event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU) and not event.is_user_annotation:
            kind = next((kind for kind, parts in KINDS.items() if any(part in event.key.lower() for part in parts)), "other")
            spent[kind] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    return {f"{kind} %": 100 * each / sum(spent.values()) for kind, each in spent.items()}


def from_files(options: argparse.Namespace, device: torch.device) -> list[measure.Row]:
    """One row for each size: our loader, with all cores or as many as `--workers`, and step."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = [
            measure.make_video(Path(folder) / f"{i}.mp4", 120, 240, 320, seed=i) for i in range(1 if options.quick else 16)
        ]
        for size in options.sizes:
            spec = ClipSpec(frames=options.frames, size=options.pixels, sampling="stride")
            steps = 2 if options.quick else 40
            case = e2e.Case(f"videomae_{size}", spec, {}, (240, 320), options.batch, steps)
            found = e2e.ours(case, [str(file) for file in files], steps, options.workers, "off", device)()
            rows.append({
                "model": f"ViT {size} {spec.frames}x{spec.size}", "way": f"from files, {options.workers} workers",
                "clips": f"batch {options.batch}", "clips/s": found.clips_second, "waiting %": 100 * found.waiting,
            })  # fmt: skip
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "base", "large"], choices=list(SIZES))
    parser.add_argument("--ways", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--batch", type=int, default=32, help="clips a step")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--workers", type=int, default=cores(), help="of the loader")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is timed")
    parser.add_argument("--quick", action="store_true", help="one round of a tiny model and small clips, not compiled")
    parser.add_argument("--device", help="cuda where there is one; cpu only on demand")
    parser.add_argument("--json", type=Path, help="where to keep the rows")
    options = parser.parse_args()
    options.tried = options.device is not None
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if options.quick:
        options.sizes, options.ways, options.rounds, options.batch = ["tiny"], ["ours, eager"], 1, 2
        options.frames, options.pixels, options.workers = 4, 64, 1
    return options


if __name__ == "__main__":
    main()

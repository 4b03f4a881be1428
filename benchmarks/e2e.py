"""Pretraining steps from files, loader and model together: clips a second, processor time, share of time waiting for data.

    python benchmarks/e2e.py [--rounds 5] [--quick] [--json FILE]

Ours: TrainLoader, VideoMAE, masked loss, gradient clipping, AdamW, as `tubelet pretrain` puts them together. Theirs: a
DataLoader around the research recipe (see peers.py), transformers' VideoMAEForPreTraining with attn_implementation="sdpa",
the same clipping and torch's fused AdamW. Same videos, model sizes, mask ratio, batch and workers, one process, in turn.
float32 on one thread (on a GPU: bf16 autocast). The share of waiting is that of the second half of the steps.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import measure
import peers
import torch
from torch import Tensor, nn

from tubelet import ClipSpec, masking, models
from tubelet.allocator import keep_freed
from tubelet.loading import LoaderConfig, TrainLoader
from tubelet.objectives import masked
from tubelet.records import Batch, Dataset, Example
from tubelet.train import optim
from tubelet.train.config import OptimConfig
from tubelet.video.augment import AugmentConfig

MASK = masked.MaskedConfig()  # tube mask of 90 %, normalised pixels
Steps = Callable[[], "Pass"]


@dataclass(frozen=True)
class Case:
    """A model, its clips and the videos they are cut from."""

    model: str
    spec: ClipSpec
    options: dict[str, Any]
    video_size: tuple[int, int]
    batch: int
    steps: int


CASES = {
    "small clips, 16x64x64": Case(
        "videomae_tiny", ClipSpec(sampling="stride", size=64),
        dict(width=192, depth=4, heads=3, decoder_width=96, decoder_depth=2, decoder_heads=3, patch=8), (240, 320), 16, 10,
    ),
    "ViT-S, 16x224x224": Case("videomae_small", ClipSpec(sampling="stride"), {}, (240, 320), 2, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Pass:
    """What some steps cost, a clip."""

    clips_second: float
    cpu_clip: float
    waiting: float


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    keep_freed()
    device = torch.device(options.device)
    rows: list[measure.Row] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name in options.cases:
            height, width = size = CASES[name].video_size
            if size not in paths:
                frames, count = (100, 2) if options.quick else (300, 4)
                files = [Path(folder) / f"{height}-{i}.mp4" for i in range(count)]
                paths[size] = [str(measure.make_video(file, frames, height, width, seed=i)) for i, file in enumerate(files)]
            rows += compare(name, CASES[name], paths[size], options, device)
    measure.write(options.json, "e2e", rows)


def compare(name: str, case: Case, paths: list[str], options: argparse.Namespace, device: torch.device) -> list[measure.Row]:
    """One row for each way of training one model."""
    steps = 2 if options.quick else case.steps
    reason = measure.missing("transformers", "pip install 'tubelet[hf]'")
    ways: dict[str, Steps] = {}
    if not reason:
        ways["transformers, DataLoader"] = theirs(case, paths, steps, options.workers, device)
    for way, cache in {"ours": "off", "ours, videos kept in memory": "ram"}.items():
        ways[way] = ours(case, paths, steps, options.workers, cache, device)
    passes = measure.in_turn(ways, options.rounds)
    rows: list[measure.Row] = []
    if reason:
        rows.append({"model": name, "way": "transformers, DataLoader", "note": reason})
    for way, found in passes.items():
        row = {
            "model": name,
            "way": way,
            "clips/s": statistics.median(one.clips_second for one in found),
            "CPU ms a clip": 1000 * statistics.median(one.cpu_clip for one in found),
            "waiting %": 100 * statistics.median(one.waiting for one in found),
        }
        if not reason:
            base = [one.cpu_clip for one in passes["transformers, DataLoader"]]
            faster = measure.ratios(base, [one.cpu_clip for one in found])
            row |= {"times theirs": statistics.median(faster), "range": measure.spread(faster)}
        rows.append(row)
    return rows


def ours(case: Case, paths: list[str], steps: int, workers: int, cache: Any, device: torch.device) -> Steps:
    dataset = Dataset(tuple(Example(path, path) for path in paths))
    config = LoaderConfig(batch_size=case.batch, workers=workers, cache=cache)
    loader = TrainLoader(dataset, case.spec, AugmentConfig(), config, seed=0)
    model = models.build(case.model, case.spec, **case.options).to(device)
    optimizer = optim.adamw(model, OptimConfig(lr=1e-4))
    generator = torch.Generator().manual_seed(0)

    def loss(batch: Batch) -> Tensor:
        return masked.loss(model, batch.to(device), MASK, generator)[0]

    return partial(run, lambda: loader.batches(0, steps), loss, model, optimizer, case.batch, device)


def theirs(case: Case, paths: list[str], steps: int, workers: int, device: torch.device) -> Steps:
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    shape = models.build(case.model, case.spec, **case.options)
    sizes = shape.options
    config = VideoMAEConfig(
        image_size=case.spec.size, patch_size=sizes["patch"], tubelet_size=sizes["tubelet"], num_frames=case.spec.frames,
        hidden_size=sizes["width"], num_hidden_layers=sizes["depth"], num_attention_heads=sizes["heads"],
        intermediate_size=4 * sizes["width"], decoder_hidden_size=sizes["decoder_width"],
        decoder_num_hidden_layers=sizes["decoder_depth"], decoder_num_attention_heads=sizes["decoder_heads"],
        decoder_intermediate_size=4 * sizes["decoder_width"], use_mean_pooling=False, norm_pix_loss=True,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = VideoMAEForPreTraining(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(0)

    def loss(frames: Tensor) -> Tensor:
        mask = masking.make(MASK.mask, shape.grid, MASK.ratio, len(frames), generator).to(device)
        return model(frames.to(device, non_blocking=True), bool_masked_pos=mask).loss

    def batches() -> Iterator[Tensor]:
        return iter(peers.loader(paths, case.spec, peers.recipe_cut, case.batch, steps, workers))

    return partial(run, batches, loss, model, optimizer, case.batch, device)


def run(
    batches: Callable[[], Iterator[Any]], loss_of: Callable[[Any], Tensor], model: nn.Module,
    optimizer: torch.optim.Optimizer, clips: int, device: torch.device,
) -> Pass:  # fmt: skip
    """All steps of one pass."""
    model.train()
    cpu, turns = measure.cpu_seconds(), measure.Turns()
    for batch in turns.of(batches()):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
    done = len(turns.came) * clips
    return Pass(done / turns.seconds, (measure.cpu_seconds() - cpu) / done, turns.waiting_share)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each way is run")
    parser.add_argument("--quick", action="store_true", help="one round of small clips and two steps, to see that it works")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="where to keep the rows")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.cases = 1, list(CASES)[:1]
    return options


if __name__ == "__main__":
    main()

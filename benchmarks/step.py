"""Our step against transformers': pretraining, fine-tuning and inference of VideoMAE, as ratios.

    python benchmarks/step.py --sizes small base --batch 1

Both run in this process on the same weights and the same uint8 clips, in turn, and the median of each is compared: a busy
machine slows both alike. A step is everything from uint8 clips on the device to updated weights. transformers runs with
attn_implementation="sdpa" and torch's fused AdamW; it gets its clips normalised, inside the time, as its processor would.
Equal mathematics is checked first: the losses or logits of both must agree.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from tubelet import ClipSpec, masking, models
from tubelet.models import videomae
from tubelet.objectives import masked
from tubelet.video.normalize import normalize

CLASSES = 400
Step = Callable[[], Tensor]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    device, spec = torch.device(options.device), ClipSpec(frames=options.frames, size=options.pixels)
    print(
        f"{date.today()}  {processor(device)}, {torch.get_num_threads()} threads, Python {platform.python_version()}, ", end=""
    )
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {options.precision}")
    print(f"{options.rounds} rounds, batch {options.batch}, clips of {spec.frames}x{spec.size}x{spec.size}\n")
    print("| step | ours ms | transformers ms | ratio | range of ratios | difference |\n|---|---|---|---|---|---|")
    for size in options.sizes:
        for kind in options.steps:
            torch.manual_seed(0)
            ours, theirs = KINDS[kind](size, spec, options.batch, device, options.precision)
            compare(f"{kind} {size}", ours, theirs, options.rounds, device)


def compare(name: str, ours: Step, theirs: Step, rounds: int, device: torch.device) -> None:
    """Print one row of the table. Both steps start from the same weights, so the first outcome must be equal."""
    a, b = ours(), theirs()
    difference = float((a - b).abs().max() / b.abs().max())
    mine, other = [], []
    for _ in range(rounds):
        mine.append(timed(ours, device))
        other.append(timed(theirs, device))
    ratios = sorted(y / x for x, y in zip(mine, other, strict=True))
    print(
        f"| {name} | {statistics.median(mine):.1f} | {statistics.median(other):.1f} | {statistics.median(ratios):.2f} "
        f"| {ratios[0]:.2f}-{ratios[-1]:.2f} | {difference:.0e} |",
        flush=True,
    )


def pretraining(size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str) -> tuple[Step, Step]:
    """Tube mask of 90 %, normalised pixel target, backward, AdamW."""
    model = models.build(f"videomae_{size}", spec, eps=1e-12, norm_eps=1e-12, decoder_norm_eps=1e-5).to(device)
    other = VideoMAEForPreTraining(their_config(model, norm_pix_loss=True)).to(device)
    give_weights(model, other)
    frames = clips(spec, batch, device)
    mask = masking.make("tube", model.grid, 0.9, batch, torch.Generator().manual_seed(0)).to(device)
    config = masked.MaskedConfig()

    def our_loss() -> Tensor:
        out = model(frames, mask=mask)
        wanted = masked.target(frames, out["predicted"], model.tubelet, normalize=True)
        return masked.distances(out["prediction"], wanted, config).mean()

    def their_loss() -> Tensor:
        return other(normalize(frames, spec.mean, spec.std, colour_dim=2), bool_masked_pos=mask).loss

    return training(model, our_loss, device, precision), training(other, their_loss, device, precision)


def finetuning(size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str) -> tuple[Step, Step]:
    """Cross-entropy over 400 classes with nothing masked, backward, AdamW."""
    model, other = classifiers(size, spec, device)
    frames = clips(spec, batch, device)
    labels = torch.arange(batch, device=device) % CLASSES

    def our_loss() -> Tensor:
        return nn.functional.cross_entropy(model(frames)["logits"].float(), labels)

    def their_loss() -> Tensor:
        return nn.functional.cross_entropy(other(normalize(frames, spec.mean, spec.std, colour_dim=2)).logits.float(), labels)

    return training(model, our_loss, device, precision), training(other, their_loss, device, precision)


def inference(size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str) -> tuple[Step, Step]:
    """uint8 clips to logits."""
    model, other = classifiers(size, spec, device)
    model.eval(), other.eval()
    frames = clips(spec, batch, device)

    @torch.inference_mode()
    def our_logits() -> Tensor:
        with autocast(device, precision):
            return model(frames)["logits"].float()

    @torch.inference_mode()
    def their_logits() -> Tensor:
        with autocast(device, precision):
            return other(normalize(frames, spec.mean, spec.std, colour_dim=2)).logits.float()

    return our_logits, their_logits


KINDS = {"pretraining": pretraining, "finetuning": finetuning, "inference": inference}


def training(model: nn.Module, loss_of: Callable[[], Tensor], device: torch.device, precision: str) -> Step:
    """A whole step of a model; gives its loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=True)
    model.train()

    def step() -> Tensor:
        with autocast(device, precision):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def classifiers(size: str, spec: ClipSpec, device: torch.device) -> tuple[nn.Module, nn.Module]:
    names = [str(i) for i in range(CLASSES)]
    model = models.build(f"videomae_{size}", spec, names, eps=1e-12, norm_eps=1e-5).to(device)
    nn.init.trunc_normal_(model.head.weight, std=0.02)  # a head at its first values answers zero, which compares nothing
    other = VideoMAEForVideoClassification(their_config(model, num_labels=CLASSES, use_mean_pooling=True)).to(device)
    give_weights(model, other)
    return model, other


def their_config(model: nn.Module, **more: object) -> VideoMAEConfig:
    sizes = model.options
    config = VideoMAEConfig(
        image_size=model.spec.size, num_frames=model.spec.frames, hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"], num_attention_heads=sizes["heads"], intermediate_size=4 * sizes["width"],
        decoder_hidden_size=sizes["decoder_width"], decoder_num_hidden_layers=sizes["decoder_depth"],
        decoder_num_attention_heads=sizes["decoder_heads"], decoder_intermediate_size=4 * sizes["decoder_width"],
        **{"use_mean_pooling": False, **more},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return config


def give_weights(model: nn.Module, other: nn.Module) -> None:
    """Copy ours into theirs, leaving only what they have and we compute: position tables and the key bias, which is zero."""
    state = videomae.to_huggingface(model.state_dict(), model.tubelet)
    theirs = other.state_dict()
    for ours, name in (("q_bias", "query.bias"), ("v_bias", "value.bias")):  # as transformers names them in memory
        state = {key.replace(ours, name) if key.replace(ours, name) in theirs else key: value for key, value in state.items()}
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    left = [key for key in missing if "position_embeddings" not in key and not key.endswith("key.bias")]
    assert not left, left


def clips(spec: ClipSpec, batch: int, device: torch.device) -> Tensor:
    shape = (batch, spec.frames, 3, spec.size, spec.size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def timed(step: Step, device: torch.device) -> float:
    """Milliseconds of one step: of this process's CPU time, which other processes hardly disturb, or on a GPU of wall time."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    begun = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (clock() - begun)


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=["tiny", "small", "base", "large", "huge"])
    parser.add_argument("--steps", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--batch", type=int, default=1, help="clips per step")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    return parser.parse_args()


if __name__ == "__main__":
    main()

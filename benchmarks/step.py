"""Our step against transformers': pretraining, fine-tuning and inference of VideoMAE, as ratios.

    python benchmarks/step.py [--sizes small base] [--batch 1 2] [--precision fp32 bf16] [--compile] [--json FILE]

All run in this process on the same weights and the same clips, in turn, and the median of each round's ratio is given: a busy
machine slows all alike. The process uses again what was freed, as every `tubelet` command does: the others gain by it as much. In
the rows "a process each" all still take turns, but each has a process of its own, where only ours does so, as each would by
itself. A step is everything from a batch of uint8 clips, as our loader delivers it, to updated weights. The
others, whose models take normalised pixels, get them by our `normalize` inside their time (their image processor takes longer,
which is measured with loading):

transformers  its model with attn_implementation="sdpa" and torch's fused AdamW
recipe        a stand-in for original research code, which cannot be installed: transformers' model with "eager" attention
              and AdamW without fusing, one tensor after the other, always in float32

Inference in bf16 has two rows of transformers: its model under autocast, and "transformers, bf16 weights", which is
its `.bfloat16()` with pixels of that type.

With --compile the first two are there a second time, compiled by torch.compile: "transformers, compiled" stands beside our
compiled step. Compiling takes minutes on a small machine and is not timed.

`exported` is eager PyTorch beside the graphs that `tubelet export` makes of the same model (the first size, one clip at a time, in
float32), with log-probabilities as their outcome; here "ours" is the graph.

`dual masking` is our own pretraining step with VideoMAE V2's running cell beside the one without it: other mathematics, so no
difference is given. Otherwise equal mathematics is checked first: the losses or logits of all must agree ("difference", the
largest relative one). Memory is the most that a process of its own holds during two steps, above what it held after importing.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import torch
from torch import Tensor, nn

from tubelet import ClipSpec, masking, models
from tubelet.allocator import keep_freed
from tubelet.models import videomae
from tubelet.objectives import masked
from tubelet.video.normalize import normalize
from tubelet.weights.export import export
from tubelet.weights.load import load_model

CLASSES = 400
PEER = ("transformers.models.videomae.modeling_videomae", "pip install 'tubelet[hf]'")
# what is exported -> (format, in 8 bits, the package that runs it and how it is installed)
ENGINES = {
    "torch.export": ("torch", False, ("torch", "")),
    "onnxruntime": ("onnx", False, ("onnxruntime", "pip install 'tubelet[export]'")),
    "onnxruntime int8": ("onnx", True, ("onnxruntime", "pip install 'tubelet[export]'")),
    "openvino": ("openvino", False, ("openvino", "pip install 'tubelet[openvino]'")),
}
Step = Callable[[], Tensor]
Case = tuple[str, str, ClipSpec, int, torch.device, str]  # kind, size, clips, batch, device, precision
Way = Callable[[], Step]  # makes a model and gives its step


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    device, spec = torch.device(options.device), ClipSpec(frames=options.frames, size=options.pixels)
    kinds = [kind for kind in options.steps if kind != "exported"]
    cases = list(itertools.product(kinds, options.sizes, [spec], options.batch, [device], options.precision))
    measure.missing(*PEER)  # imported first: it is no part of a step's memory
    # Before this process computes anything: a copy would use again what was freed, and seem to need less.
    memory = {case: peak_memory(case) for case in cases if options.memory and device.type == "cpu"}
    alone = {case: each_alone(case, options.rounds) for case in cases if options.processes and device.type == "cpu"}
    rows = []
    for case in cases:
        rows += compare(case, options.rounds, memory.get(case, {}), options.compile) + alone.get(case, [])
    if "exported" in options.steps:
        rows += exported(options.sizes[0], spec, options.rounds)
    measure.write(options.json, ", ".join(options.steps), rows)


def compare(case: Case, rounds: int, memory: dict[str, float], compiled: bool = False) -> list[measure.Row]:
    """One row for each of the others. All steps start from the same weights, so the first outcome must be equal."""
    kind, device, what = case[0], case[4], described(case)
    able, reason = ways(case, compiled)
    steps = {name: way() for name, way in able.items()}
    first = {name: step() for name, step in steps.items()}
    seconds = measure.interleaved(steps, rounds, partial(clock, device))
    rows = [what | {"beside": "transformers", "note": reason}] if reason else []
    for name in [name for name in steps if not name.startswith("ours")]:
        ours = "ours, compiled" if name.endswith("compiled") else "ours"
        row = what | {"beside": name} | timings(seconds[ours], seconds[name])
        if name in memory:
            row |= {"ours, peak MB": memory[ours], "other, peak MB": memory[name]}
        if kind != "dual masking":
            row["difference"] = f"{apart(first[ours], first[name]):.0e}"
        rows.append(row)
    return rows


def each_alone(case: Case, rounds: int) -> list[measure.Row]:
    """The rows of the others in processes of their own."""
    able = {name: way for name, way in ways(case)[0].items() if name in ("ours", "transformers", "recipe")}
    seconds = measure.in_processes(able, rounds) if len(able) > 1 else {}
    return [
        described(case) | {"beside": f"{name}, a process each"} | timings(seconds["ours"], seconds[name])
        for name in seconds
        if name != "ours"
    ]


def described(case: Case) -> measure.Row:
    kind, size, spec, batch, _, precision = case
    return {"step": kind, "model": f"{size} {spec.frames}x{spec.size}", "clips": f"batch {batch}", "precision": precision}


def timings(ours: list[float], other: list[float]) -> measure.Row:
    """From seconds, round by round."""
    faster = measure.ratios(other, ours)
    return {
        "ours, ms": 1000 * statistics.median(ours), "other, ms": 1000 * statistics.median(other),
        "ratio": statistics.median(faster), "range": measure.spread(faster),
    }  # fmt: skip


def exported(size: str, spec: ClipSpec, rounds: int) -> list[measure.Row]:
    """One row for each engine, beside eager PyTorch on the CPU."""
    keep_freed()
    device = torch.device("cpu")
    model, frames = classifier(size, spec, device).eval(), clips(spec, 1, device)
    logits: dict[str, Step] = {"eager": lambda: model(frames)["logits"]}
    notes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (to, int8, needs) in ENGINES.items():
            notes[name] = measure.missing(*needs)
            if not notes[name]:
                export(model, f"{folder}/{name}", to, int8, clips=[frames[0]])
                graph = load_model(f"{folder}/{name}")
                logits[name] = lambda graph=graph: graph(frames)["logits"]
        steps = {name: answering(lambda of=of: of().log_softmax(-1), device, "fp32") for name, of in logits.items()}
        first = {name: step() for name, step in steps.items()}
        seconds = measure.interleaved(steps, rounds, partial(clock, device))
    rows: list[measure.Row] = []
    for name, (_, int8, _) in ENGINES.items():
        rows.append({
            "step": "exported", "model": f"{size} {spec.frames}x{spec.size}", "clips": "batch 1",
            "precision": "int8" if int8 else "fp32", "beside": f"PyTorch, graph by {name.split()[0]}",
        })  # fmt: skip
        if notes[name]:
            rows[-1]["note"] = notes[name]
            continue
        rows[-1] |= timings(seconds[name], seconds["eager"])
        rows[-1] |= {"difference": f"{apart(first[name], first['eager']):.0e}"}
    return rows


def apart(ours: Tensor, other: Tensor) -> float:
    return float((ours - other).abs().max() / other.abs().max())


def clock(device: torch.device) -> float:
    """Seconds: of this process's CPU time, which other processes hardly disturb, or on a GPU of wall time once it is done."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory(case: Case) -> dict[str, float]:
    """MB (10^6 bytes) by which two steps of each raise the most that a copy of this process holds."""
    return {name: measure.alone(partial(twice, way))[1] / 1e6 for name, way in ways(case)[0].items()}


def ways(case: Case, compiled: bool = False) -> tuple[dict[str, Way], str]:
    """The ways that can be run here, and why the others cannot."""
    every = {name: way for name, way in KINDS[case[0]](*case[1:]).items() if compiled or not name.endswith("compiled")}
    every["ours"] = partial(as_a_command, every["ours"])
    reason = "" if "transformers" not in every else measure.missing(*PEER)
    return ({name: way for name, way in every.items() if name.startswith("ours")} if reason else every), reason


def as_a_command(way: Way) -> Step:
    keep_freed()
    return way()


def twice(way: Way) -> float:
    step = way()
    step()
    return float(step().sum())


def pretraining(size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str) -> dict[str, Way]:
    """Tube mask of 90 %, normalised pixel target, backward, AdamW."""

    def theirs(attention: str, precision: str, fused: bool, compiled: bool = False) -> Step:
        from transformers import VideoMAEForPreTraining

        model = pretrainer(size, spec, device)
        other = VideoMAEForPreTraining(their_config(model, attention, norm_pix_loss=True)).to(device)
        give_weights(model, other)
        frames, mask = clips(spec, batch, device), tube(model, batch, device)
        net = torch.compile(other) if compiled else other
        cost = lambda: net(pixels(frames, spec), bool_masked_pos=mask).loss  # noqa: E731
        return training(other, cost, device, precision, fused)

    return {
        "ours": lambda: our_pretraining(size, spec, batch, device, precision),
        "transformers": lambda: theirs("sdpa", precision, fused=True),
        "recipe": lambda: theirs("eager", "fp32", fused=False),
        "ours, compiled": lambda: our_pretraining(size, spec, batch, device, precision, compiled=True),
        "transformers, compiled": lambda: theirs("sdpa", precision, fused=True, compiled=True),
    }


def dual_masking(size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str) -> dict[str, Way]:
    """Half of the tokens are not reconstructed (VideoMAE V2), beside reconstructing all that are hidden."""
    return {
        "ours": lambda: our_pretraining(size, spec, batch, device, precision, decoder_mask="running_cell"),
        "all reconstructed": lambda: our_pretraining(size, spec, batch, device, precision),
    }


def our_pretraining(
    size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str, decoder_mask: str | None = None,
    compiled: bool = False,
) -> Step:  # fmt: skip
    model = pretrainer(size, spec, device)
    net = torch.compile(model) if compiled else model
    frames, mask = clips(spec, batch, device), tube(model, batch, device)
    left_out = None if decoder_mask is None else masking.make(decoder_mask, model.grid, 0.5, batch).to(device)
    config = masked.MaskedConfig()

    def loss() -> Tensor:
        out = net(frames, mask=mask, decoder_mask=left_out)
        wanted = masked.target(frames, out["predicted"], model.tubelet, normalize=True)
        return masked.distances(out["prediction"], wanted, config).mean()

    return training(model, loss, device, precision, fused=True)


def finetuning(size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str) -> dict[str, Way]:
    """Cross-entropy over 400 classes with nothing masked, backward, AdamW."""
    labels = torch.arange(batch, device=device) % CLASSES

    def ours(compiled: bool = False) -> Step:
        model, frames = classifier(size, spec, device), clips(spec, batch, device)
        net = torch.compile(model) if compiled else model
        cost = lambda: nn.functional.cross_entropy(net(frames)["logits"].float(), labels)  # noqa: E731
        return training(model, cost, device, precision, fused=True)

    def theirs(attention: str, precision: str, fused: bool, compiled: bool = False) -> Step:
        other, frames = their_classifier(size, spec, device, attention), clips(spec, batch, device)
        net = torch.compile(other) if compiled else other
        cost = lambda: nn.functional.cross_entropy(net(pixels(frames, spec)).logits.float(), labels)  # noqa: E731
        return training(other, cost, device, precision, fused)

    return {
        "ours": ours,
        "transformers": lambda: theirs("sdpa", precision, fused=True),
        "recipe": lambda: theirs("eager", "fp32", fused=False),
        "ours, compiled": lambda: ours(compiled=True),
        "transformers, compiled": lambda: theirs("sdpa", precision, fused=True, compiled=True),
    }


def inference(size: str, spec: ClipSpec, batch: int, device: torch.device, precision: str) -> dict[str, Way]:
    """Clips to logits. Ours in bf16 is the model as `tubelet.load(..., precision="bf16")` gives it."""

    def ours(compiled: bool = False) -> Step:
        model, frames = classifier(size, spec, device).eval(), clips(spec, batch, device)
        if precision == "bf16":
            model = model.bfloat16()
        net = torch.compile(model) if compiled else model
        return answering(lambda: net(frames)["logits"], device, "fp32")

    def theirs(attention: str, precision: str, compiled: bool = False) -> Step:
        other, frames = their_classifier(size, spec, device, attention).eval(), clips(spec, batch, device)
        net = torch.compile(other) if compiled else other
        return answering(lambda: net(pixels(frames, spec)).logits, device, precision)

    def their_weights_in_bf16() -> Step:
        other, frames = their_classifier(size, spec, device, "sdpa").eval().bfloat16(), clips(spec, batch, device)
        return answering(lambda: other(pixels(frames, spec).bfloat16()).logits, device, "fp32")

    return {
        "ours": ours,
        "transformers": lambda: theirs("sdpa", precision),
        **({"transformers, bf16 weights": their_weights_in_bf16} if precision == "bf16" else {}),
        "recipe": lambda: theirs("eager", "fp32"),
        "ours, compiled": lambda: ours(compiled=True),
        "transformers, compiled": lambda: theirs("sdpa", precision, compiled=True),
    }


KINDS = {"pretraining": pretraining, "dual masking": dual_masking, "finetuning": finetuning, "inference": inference}


def training(model: nn.Module, loss_of: Step, device: torch.device, precision: str, fused: bool) -> Step:
    """A whole step of a model; gives its loss."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, weight_decay=0.05, betas=(0.9, 0.95), fused=fused, foreach=False if not fused else None
    )
    model.train()

    def step() -> Tensor:
        with autocast(device, precision):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def answering(logits_of: Step, device: torch.device, precision: str) -> Step:
    @torch.inference_mode()
    def step() -> Tensor:
        with autocast(device, precision):
            return logits_of().float()

    return step


def pretrainer(size: str, spec: ClipSpec, device: torch.device) -> videomae.VideoMAE:
    """Ours with transformers' eps. The same values at every call."""
    torch.manual_seed(0)
    return models.build(f"videomae_{size}", spec, eps=1e-12, norm_eps=1e-12, decoder_norm_eps=1e-5).to(device)


def classifier(size: str, spec: ClipSpec, device: torch.device) -> videomae.VideoMAE:
    torch.manual_seed(0)
    names = [str(i) for i in range(CLASSES)]
    model = models.build(f"videomae_{size}", spec, names, eps=1e-12, norm_eps=1e-5)
    nn.init.trunc_normal_(model.head.weight, std=0.02)  # a head at its first values answers zero, which compares nothing
    return model.to(device)


def their_classifier(size: str, spec: ClipSpec, device: torch.device, attention: str) -> nn.Module:
    model = classifier(size, spec, device)
    from transformers import VideoMAEForVideoClassification

    config = their_config(model, attention, num_labels=CLASSES, use_mean_pooling=True)
    other = VideoMAEForVideoClassification(config).to(device)
    give_weights(model, other)
    return other


def their_config(model: nn.Module, attention: str, **more: object) -> Any:
    from transformers import VideoMAEConfig

    sizes = model.options
    config = VideoMAEConfig(
        image_size=model.spec.size, num_frames=model.spec.frames, hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"], num_attention_heads=sizes["heads"], intermediate_size=4 * sizes["width"],
        decoder_hidden_size=sizes["decoder_width"], decoder_num_hidden_layers=sizes["decoder_depth"],
        decoder_num_attention_heads=sizes["decoder_heads"], decoder_intermediate_size=4 * sizes["decoder_width"],
        **{"use_mean_pooling": False, **more},
    )  # fmt: skip
    config._attn_implementation = attention
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
    """(B,T,C,H,W) with colour last in memory, as the loader delivers them."""
    shape = (batch, spec.frames, spec.size, spec.size, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return frames.permute(0, 1, 4, 2, 3).to(device)


def pixels(frames: Tensor, spec: ClipSpec) -> Tensor:
    """float32, normalised, in the order that a Conv3d reads."""
    return normalize(frames.contiguous(), spec.mean, spec.std, colour_dim=2)


def tube(model: nn.Module, batch: int, device: torch.device) -> Tensor:
    return masking.make("tube", model.grid, 0.9, batch, torch.Generator().manual_seed(0)).to(device)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["small"], choices=["tiny", "small", "base", "large", "huge"])
    parser.add_argument("--steps", nargs="+", default=list(KINDS), choices=[*KINDS, "exported"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="clips per step")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32"], choices=["fp32", "bf16"])
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory (Linux, CPU)"
    )
    parser.add_argument("--processes", action="store_true", help="also with a process each (Linux, CPU)")
    parser.add_argument("--compile", action="store_true", help="also beside transformers with both compiled (torch.compile)")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()

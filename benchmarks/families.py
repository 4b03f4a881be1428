"""Every family's inference and training step in clips a second, beside transformers where it has the model.

    python benchmarks/families.py [--only videomae c3d] [--quick] [--json FILE]

A variant of each family as a classifier, of the size and on the clips that CASES names; of a family that it does not name the
first variant, on at most 16 frames of 112 pixels. In float32; seconds are of processor time from uint8 clips to logits, or to
updated weights (AdamW, fused for all). Where transformers has the model ("sdpa" where it offers that), it takes turns with
ours in this process on the same clips and the same values, which our key map takes over from it; the losses or logits must
agree ("difference", the largest relative one), and the ratio is the median of the rounds'. Memory is the most that a process
of its own holds during two steps, above what it held after importing.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import measure
import step
import torch
from torch import Tensor, nn

from tubelet import ClipSpec, models
from tubelet.allocator import keep_freed
from tubelet.errors import ConfigError
from tubelet.models._model import Model

LARGEST = ClipSpec(frames=16, size=112)
STEPS = ("inference", "training")

# variant -> its clips, and options that make it as large as the others. Several of a family may stand here.
CASES: dict[str, tuple[ClipSpec, dict[str, Any]]] = {
    "single_frame": (LARGEST, {}),
    "videomae_small": (LARGEST, {"eps": 1e-12, "norm_eps": 1e-5}),  # the eps of transformers
    "videomae_base": (LARGEST, {"eps": 1e-12, "norm_eps": 1e-5}),
    "timesformer_base": (ClipSpec(frames=8, size=112), {}),
    "vivit_base": (LARGEST, {}),
    "vjepa2_large": (LARGEST, {"width": 768, "depth": 12, "heads": 12}),
    "frame_vit_base_32": (ClipSpec(frames=12, size=128), {}),  # 112 pixels are not whole patches of 32
}


class Case(NamedTuple):
    kind: str
    variant: str
    spec: ClipSpec
    options: dict[str, Any]
    batch: int


class Way(NamedTuple):
    """A model and its step, which gives logits or the loss."""

    model: nn.Module
    step: Callable[[], Tensor]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    keep_freed()
    chosen = cases(options.only, options.quick)
    rows: list[measure.Row] = []
    peers = {variant: peer_of(variant)[1] for variant in chosen}  # imported first: that is no part of a step's memory
    for kind in STEPS:
        for variant, (spec, sizes) in chosen.items():
            case = Case(kind, variant, spec, sizes, options.batch)
            row = compare(case, options.rounds, options.memory, peers[variant])
            print(measure.table([row]), flush=True)
            rows.append(row)
    measure.write(options.json, "families", rows)


def cases(only: Iterable[str] = (), quick: bool = False) -> dict[str, tuple[ClipSpec, dict[str, Any]]]:
    """What is measured: CASES as far as there are such variants, then the first variant of every other family.

    only: families or variants. quick: 4 frames of 64 pixels.
    """
    known = models.variants()
    found = {variant: case for variant, case in CASES.items() if variant in known}
    families = {known[variant] for variant in found}
    for variant, family in known.items():
        if family not in families:
            families.add(family)
            clip = models.clip_of(variant)
            small = replace(clip, frames=min(clip.frames, LARGEST.frames), size=min(clip.size, LARGEST.size))
            found[variant] = (small, {})
    wanted = set(only)
    if wanted:
        found = {variant: case for variant, case in found.items() if wanted & {variant, family_of(variant)}}
    if quick:
        found = {name: (replace(clip, frames=min(4, clip.frames), size=64), sizes) for name, (clip, sizes) in found.items()}
    return found


def compare(case: Case, rounds: int, memory: bool, why_not: str) -> measure.Row:
    """One row: ours alone where there is no peer or it cannot be imported, or a note that says why ours cannot be run."""
    kind, variant, spec, _, batch = case
    row: measure.Row = {
        "step": kind,
        "model": variant,
        "clips": f"{batch} of {spec.frames}x{spec.size}",
        "precision": "fp32",
    }
    makers: dict[str, Callable[[], Way]] = {"ours": partial(ours, case)}
    if peer_of(variant)[0] and not why_not:
        makers["transformers"] = partial(theirs, case)
    try:
        # Before this process computes anything of the case: a copy would use again what was freed, and seem to need less.
        peaks = {name: measure.alone(partial(twice, make))[1] / 1e6 for name, make in makers.items()} if memory else {}
        ways = {name: make() for name, make in makers.items()}
    except (ConfigError, RuntimeError) as error:
        return row | {"note": f"not run: {error}"}
    if "transformers" in ways:
        state = models.variants()[variant].from_huggingface(ways["transformers"].model.state_dict())  # type: ignore[attr-defined]
        ways["ours"].model.load_state_dict(state)
    first = {name: way.step() for name, way in ways.items()}
    seconds = measure.interleaved({name: way.step for name, way in ways.items()}, rounds, time.process_time)
    for name in ways:
        row[f"{name}, clips/s"] = batch / statistics.median(seconds[name])
    if "transformers" in ways:
        faster = measure.ratios(seconds["transformers"], seconds["ours"])
        row |= {"ratio": statistics.median(faster), "range": measure.spread(faster)}
        row["difference"] = f"{step.apart(first['ours'], first['transformers']):.0e}"
    row |= {f"{name}, peak MB": peak for name, peak in peaks.items()}
    return row | ({"note": why_not} if why_not else {})


def ours(case: Case) -> Way:
    torch.manual_seed(0)
    names = [str(i) for i in range(step.CLASSES)]
    model = models.build(case.variant, case.spec, names, **case.options)
    if case.kind == "training" and not model.head_parameters():
        raise ConfigError(f"{case.variant} tells no classes")
    frames = step.clips(case.spec, case.batch, torch.device("cpu"))
    return way(case, model, lambda: (out := model(frames))["logits" if "logits" in out else "embedding"])


def theirs(case: Case) -> Way:
    """transformers' model; it gets pixels normalised by us inside its time."""
    with torch.device("meta"):
        like = models.build(case.variant, case.spec, [str(i) for i in range(step.CLASSES)], **case.options)
    torch.manual_seed(0)
    other = PEERS[family_of(case.variant)](like)
    frames = step.clips(case.spec, case.batch, torch.device("cpu"))
    return way(case, other, lambda: other(step.pixels(frames, case.spec)).logits)


def way(case: Case, model: nn.Module, logits: Callable[[], Tensor]) -> Way:
    device = torch.device("cpu")
    if case.kind == "inference":
        model.eval()
        return Way(model, step.answering(logits, device, "fp32"))
    labels = torch.arange(case.batch) % step.CLASSES
    loss = lambda: nn.functional.cross_entropy(logits().float(), labels)  # noqa: E731
    return Way(model, step.training(model, loss, device, "fp32", fused=True))


def twice(make: Callable[[], Way]) -> float:
    _, run = make()
    run()
    return float(run().sum())


def family_of(variant: str) -> str:
    return models.variants()[variant].__name__.rpartition(".")[2]


def peer_of(variant: str) -> tuple[bool, str]:
    """(whether transformers has it, why it cannot be run here)."""
    family = family_of(variant)
    if family not in PEERS:
        return False, ""
    return True, measure.missing(f"transformers.models.{family}.modeling_{family}", "pip install 'tubelet[hf]'")


# Peers: our model, which nobody runs -> transformers' with the same sizes ---------------------------------------------


def videomae(like: Model) -> nn.Module:
    from transformers import VideoMAEForVideoClassification

    config = step.their_config(like, "sdpa", num_labels=step.CLASSES, use_mean_pooling=True)
    return VideoMAEForVideoClassification(config)


def timesformer(like: Model) -> nn.Module:
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    return TimesformerForVideoClassification(
        TimesformerConfig(
            image_size=like.spec.size, patch_size=like.tubelet[1], num_frames=like.spec.frames, num_labels=step.CLASSES,
            **sizes_of(like),
        )
    )  # fmt: skip


def vivit(like: Model) -> nn.Module:
    from transformers import VivitConfig, VivitForVideoClassification

    config = VivitConfig(
        image_size=like.spec.size, num_frames=like.spec.frames, tubelet_size=list(like.tubelet), num_labels=step.CLASSES,
        **sizes_of(like),
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return VivitForVideoClassification(config)


def vjepa2(like: Model) -> nn.Module:
    """Its predictor, which classification does not run, is made small."""
    from transformers import VJEPA2Config, VJEPA2ForVideoClassification

    sizes = sizes_of(like)
    ratio = sizes.pop("intermediate_size") / sizes["hidden_size"]
    config = VJEPA2Config(
        crop_size=like.spec.size, frames_per_clip=like.spec.frames, patch_size=like.tubelet[1], tubelet_size=like.tubelet[0],
        mlp_ratio=ratio, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1, num_labels=step.CLASSES,
        **sizes,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    return VJEPA2ForVideoClassification(config)


def sizes_of(like: Model) -> dict[str, int]:
    options = like.options
    return {
        "hidden_size": options["width"],
        "num_hidden_layers": options["depth"],
        "num_attention_heads": options["heads"],
        "intermediate_size": int(options["width"] * options["mlp_ratio"]),
    }


PEERS: dict[str, Callable[[Model], nn.Module]] = {
    "videomae": videomae, "timesformer": timesformer, "vivit": vivit, "vjepa2": vjepa2,
}  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="families or variants")
    parser.add_argument("--batch", type=int, default=2, help="clips per step")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--quick", action="store_true", help="4 frames of 64 pixels")
    parser.add_argument(
        "--memory", action=argparse.BooleanOptionalAction, default=True, help="measure peak memory (Linux, CPU)"
    )
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()

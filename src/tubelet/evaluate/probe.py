"""The whole job of `tubelet probe`: model and data in, "is it really video?" answered in numbers and in the report.

M videos, T frames.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from tubelet import models
from tubelet.errors import CheckpointError, ConfigError, DataError, TubeletError
from tubelet.evaluate import protocol, report, temporal_order
from tubelet.evaluate.linear_probe import fitted, footage
from tubelet.evaluate.multiview import Looks, label_numbers, look
from tubelet.evaluate.run import known
from tubelet.evaluate.sides import met, run_of, sides
from tubelet.evaluate.temporal_order import ORDERS, Pair, arrange, fill, gap_of, pair_rows, right, share_of
from tubelet.models._model import Model
from tubelet.records import ClipSpec, Example
from tubelet.show._sheet import pick
from tubelet.show.contact_sheet import contact_sheet
from tubelet.show.saturation import saturation
from tubelet.train.config import TrainConfig
from tubelet.views import load_views
from tubelet.weights.fill import fill as fill_weights
from tubelet.weights.load import load_model

Say = Callable[[str], None]
Answers = Callable[[Looks], Tensor]  # what a model made of videos -> probabilities (M,K)


@dataclass(frozen=True)
class Settings:
    """How to probe.

    split            name of the split to judge on; "all" for every video; "" for the data's own, or what the run held out
    pairs            classes that are each other's reversal, as "A:B" or "A:B,C:D"; without any they are looked for
    single_frame     a model that sees single frames, to compare with; "" for none
    clips, crops     views per video, in time and in space, whose probabilities are averaged
    frames, strides  what to try; () for 1, 2, 4, ... up to the frames of the model, and 1, 2 and 4 times its stride. Where both
                     are left open nothing is tried that spans more than the clips of the model
    limit            judge on this many videos, spread evenly over the set; 0 for all
    seed             what shuffles and intervals are drawn from
    """

    split: str = ""
    pairs: tuple[str, ...] = ()
    single_frame: str = ""
    clips: int = 1
    crops: int = 1
    frames: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    limit: int = 0
    seed: int = 0
    batch_size: int = 8
    workers: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = {"limit": (0, self.limit), "clips": (1, self.clips), "crops": (1, self.crops)}
        least |= {"frames": (1, min(self.frames, default=1)), "strides": (1, min(self.strides, default=1))}
        for name, (wanted, got) in least.items():
            if got < wanted:
                raise ConfigError(f"{name} is {got}: it must be {wanted} or more")


def probe(
    model_path: str | Path,
    data: Sequence[str],
    out: str | Path | None = None,
    settings: Settings = Settings(),
    say: Say = lambda message: None,
) -> tuple[dict[str, Any], Path]:
    """(what was found, path of report.html): the section `probe` of the report in `out` (default: the model's run folder).

    A model without classes is given some: a linear probe is fitted on frozen features of the training part. DataError where
    that cannot be done, or where there is nothing to compare with; ConfigError for impossible settings.
    """
    model = load_model(model_path, settings.device)
    run = run_of(model_path)
    folder = Path(out) if out else run or Path("runs") / f"probe_{Path(model_path).resolve().name}"
    config = TrainConfig.from_yaml(run / "config.yaml") if run else None
    cut = sides(data, settings.split, config, bool(model.class_names), say)
    class_names = model.class_names or cut.train.classes or cut.asked.classes
    labelled = protocol.labelled(cut.asked.examples)
    if not labelled:
        raise DataError(
            f"none of the {len(cut.asked.examples)} videos to judge on has a label: there is nothing to compare with"
        )
    label_numbers(labelled, class_names)  # an unknown label is an error now, not after the pass
    examples = [labelled[index] for index in pick(len(labelled), settings.limit or len(labelled))]
    pairs = temporal_order.parse_pairs(settings.pairs, class_names)
    cells = grid(model.spec, settings.frames, settings.strides)
    single = _single_frame(settings, class_names)
    report.claim(folder)
    part = cut.part + (f", {len(examples)} of them" if len(examples) < len(labelled) else "")
    say(f"probing on {part}")

    answers, judged_by = _answers(model, known(cut.train.examples, class_names, say), class_names, settings)
    looks = {order: _look(model, examples, settings, order, order=order) for order in ORDERS}
    same = {looked.examples for looked in looks.values()}
    if len(same) > 1:
        raise DataError("not every pass could read the same videos: are files being written or removed? run it again")
    seen, said = looks["as given"], {order: answers(looked) for order, looked in looks.items()}
    found = measure(said, label_numbers(seen.examples, class_names), class_names, pairs, settings.seed)
    if single is not None:
        found["single_frame_model"] = _beside(single, examples, seen, said["as given"], class_names, settings)
    found["saturation"] = [_cell(model, cell, examples, seen, answers, class_names, settings) for cell in cells]
    before = met(run, seen.examples, say)
    found |= {
        "part": part, "asked": len(examples), "clips": settings.clips, "crops": settings.crops, "seed": settings.seed,
        "missing": [{"id": id, "reason": reason} for id, reason in seen.missing], "note": before.note, "judged_by": judged_by,
        "pairs_given": bool(pairs), "trained_frames": model.spec.frames, "trained_stride_frames": _stride(model.spec),
        "classes": len(class_names), "subtracted": model.spec.background == "subtract",
    }  # fmt: skip
    pictures = {
        f"saturation.{theme}.png": saturation(found["saturation"], 1 / len(class_names), dark=theme == "dark")
        for theme in ("light", "dark")
    }
    pictures["orders.png"] = _orders_picture(model.spec, seen.examples, said, class_names, settings.seed)
    sections = {"name": folder.resolve().name, "model": protocol.model_section(model), "probe": found}
    return found, report.update(folder, pictures, **sections)


def measure(
    said: dict[str, Tensor], labels: Tensor, class_names: Sequence[str], pairs: Sequence[Pair] = (), seed: int = 0
) -> dict[str, Any]:
    """What follows from the probabilities (M,K) that were said of M videos in each of ORDERS.

    verdict; order_invariant and largest_change (of a log-probability); orders: accuracy of each and its drop; direction: forward
    over reversed; pairs: see `pair_rows`, of the pairs given or else found; single_frame_gap: as given less one frame repeated.
    """
    given, backward = said["as given"], said["reversed"]
    correct = {order: right(said[order], labels) for order in ORDERS}
    drops = {order: gap_of(correct["as given"], correct[order], seed) for order in ORDERS}
    rows = [{"order": order} | asdict(share_of(correct[order])) | {"drop": asdict(drops[order])} for order in ORDERS]
    change = max(temporal_order.largest_change(given, said[order]) for order in ("reversed", "shuffled"))
    direction = share_of(temporal_order.forward_over_reversed(given, backward, labels))
    pairs = pairs or temporal_order.find_pairs(backward, labels, class_names)
    invariant = change <= temporal_order.TIE
    return {
        "verdict": temporal_order.verdict(invariant, drops["one frame"], drops["shuffled"], direction),
        "order_invariant": invariant,
        "largest_change": change,
        "direction": asdict(direction),
        "pairs": pair_rows(given, backward, labels, class_names, pairs),
        "orders": rows,
        "single_frame_gap": asdict(drops["one frame"]),
    }


def grid(spec: ClipSpec, frames: Sequence[int] = (), strides: Sequence[int] = ()) -> list[tuple[int, int]]:
    """(frames, stride) of every cut to try, see Settings; a single frame has one stride, and so have segments."""
    if strides and spec.sampling == "segments":
        raise ConfigError("strides were given, but this model's clips are frames of equal segments, which have no stride")
    powers = [2**power for power in range(spec.frames.bit_length()) if 2**power < spec.frames]
    counts = sorted(set(frames)) or [*powers, spec.frames]
    one = spec.sampling == "segments"
    steps = sorted(set(strides)) or [spec.stride_frames * factor for factor in ((1,) if one else (1, 2, 4))]
    longest = None if frames or strides else spec.window_frames
    cells = [(count, step) for step in steps for count in counts if count > 1 or step == steps[0]]
    return [(count, step) for count, step in cells if longest is None or one or count * step <= longest]


def _stride(spec: ClipSpec) -> int | None:
    """None where clips have one frame of each part of the video, however far apart those are."""
    return None if spec.sampling == "segments" else spec.stride_frames


def resized(model: Model, spec: ClipSpec) -> Model | None:
    """The model with the same weights for clips of another number of frames, or None where it cannot take them."""
    try:
        twin = models.build_like(model, spec=spec)
        fill_weights(twin, model.state_dict(), "the model")
        twin = twin.eval().to(next(model.parameters()).device)
        with torch.no_grad():
            twin(torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8, device=next(twin.parameters()).device))
    except (ConfigError, CheckpointError):
        return None
    return twin


def _cell(
    model: Model, cell: tuple[int, int], examples: Sequence[Example], seen: Looks, answers: Answers,
    class_names: Sequence[str], settings: Settings,
) -> dict[str, Any]:  # fmt: skip
    """One row of the saturation table: accuracy from so many frames at that stride, and how the model was shown them."""
    frames, stride = cell
    row: dict[str, Any] = {"frames": frames, "stride_frames": stride if _stride(model.spec) else None}
    nothing = dict.fromkeys(("share", "low", "high")) | {"videos": 0, "padded": 0, "filled": False}
    try:
        spec = replace(model.spec, frames=frames, stride_frames=stride)
        twin = model if frames == model.spec.frames else resized(model, spec)
        if twin is None and frames > model.spec.frames:
            raise ConfigError(f"the model takes {model.spec.frames} frames and no more")
        count = model.spec.frames if twin is None else frames
        if cell == (model.spec.frames, model.spec.stride_frames):
            looked = seen
        else:
            what = f"{frames} frames at stride {stride}" if row["stride_frames"] else f"a frame of each of {frames} parts"
            looked = _look(twin or model, examples, settings, what, spec=spec, count=count)
    except TubeletError as error:
        return row | nothing | {"why": str(error)}
    correct = right(answers(looked), label_numbers(looked.examples, class_names))
    # A clip that is longer than its video shows the same moments twice.
    padded = sum(bool((seconds.diff(dim=-1) <= 0).any()) for seconds in looked.seconds)
    return row | asdict(share_of(correct)) | {"padded": padded, "filled": count > frames}


def _answers(model: Model, train: Sequence[Example], class_names: Sequence[str], settings: Settings) -> tuple[Answers, str]:
    """How probabilities come from what the model made of a video: its own, or those of a linear probe on frozen features."""
    if model.class_names:

        def own(looked: Looks) -> Tensor:
            assert looked.probabilities is not None
            return looked.probabilities

        return own, "the model's own classes"
    if not train:
        raise DataError("the model has no classes, and a linear probe on its features needs labelled training videos")
    stored = _look(model, train, settings, "training features")
    groups = footage(stored.examples)
    fit = fitted(stored.embeddings, label_numbers(stored.examples, class_names), len(class_names), groups=groups)
    of = f" of {len(train)}" if stored.missing else ""
    return lambda looked: fit(
        looked.embeddings
    ), f"a linear probe on frozen features of {len(stored.examples)}{of} training videos"


def _single_frame(settings: Settings, class_names: Sequence[str]) -> Model | None:
    """The model to compare with; ConfigError where its answers could not be compared."""
    if not settings.single_frame:
        return None
    single = load_model(settings.single_frame, settings.device)
    if set(single.class_names) != set(class_names):
        names = ", ".join(single.class_names[:5]) or "none"
        raise ConfigError(
            f"the single-frame model {settings.single_frame} tells other classes ({names}): teach it the same ones"
        )
    return single


def _beside(
    single: Model, examples: Sequence[Example], seen: Looks, given: Tensor, class_names: Sequence[str], settings: Settings
) -> dict[str, Any]:
    """Accuracy of the single-frame model and the gap to it, on the videos that both could read."""
    looked = _look(single, examples, settings, "single-frame model")
    assert looked.probabilities is not None

    def by_id(looked: Looks, said: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        scores = right(said, label_numbers(looked.examples, names))
        return {example.id: score for example, score in zip(looked.examples, scores, strict=True)}

    ours, theirs = by_id(seen, given, class_names), by_id(looked, looked.probabilities, single.class_names)
    both = [id for id in ours if id in theirs]
    if not both:
        raise DataError("the model and the single-frame model could read no video in common")
    more, less = (torch.stack([scores[id] for id in both]) for scores in (ours, theirs))
    about = {"path": settings.single_frame, "name": single.name, "missing": len(examples) - len(looked.examples)}
    return about | asdict(share_of(less)) | {"gap": asdict(gap_of(more, less, settings.seed))}


def _look(
    model: Model, examples: Sequence[Example], settings: Settings, what: str, order: str = "as given",
    spec: ClipSpec | None = None, count: int | None = None,
) -> Looks:  # fmt: skip
    """What a model makes of videos whose frames come in an order, cut as `spec` says and held to fill `count`."""

    def shown(frames: Tensor, ids: Sequence[str]) -> Tensor:
        return fill(arrange(frames, ids, order, settings.seed), count or frames.shape[1])

    with tqdm(total=len(examples), desc=what, unit="video", file=sys.stderr, disable=None, leave=False) as bar:
        return look(
            model, examples, settings.clips, settings.crops, settings.batch_size, settings.workers,
            lambda done: bar.update(1), spec, shown,
        )  # fmt: skip


def _orders_picture(
    spec: ClipSpec, examples: Sequence[Example], said: dict[str, Tensor], class_names: Sequence[str], seed: int
) -> bytes:
    """The first video in every order, and what the model said of it: pictures explain what numbers count."""
    example = examples[0]
    frames, _ = load_views(example, spec, 1, 1)
    rows = []
    for order in ORDERS:
        sure, guess = said[order][0].max(dim=0)
        answer = f"taken for {class_names[int(guess)]}, {float(sure):.0%} sure"
        rows.append((arrange(frames, [example.id], order, seed)[0], order, f"{answer}  ·  {example.label}, {example.id}"))
    return contact_sheet(rows)

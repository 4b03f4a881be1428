"""What a run has shown, gathered in its folder: report.json (the data), pictures/ and report.html (one page, drawn from
them).

A run's report grows: training writes curves, masks and reconstructions, `tubelet evaluate` adds numbers, mistakes
and baselines, another program may add the result of another model. Each calls `update` with what it knows; the page
is drawn anew from everything that is there. Curves, settings and environment are read from the run's own log.jsonl,
config.yaml and environment.json, where they already are.
"""

import contextlib
import datetime
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tubelet.errors import CheckpointError, utf8

# Results are shown in this order of their `weights`; anything else (another model) comes between the two lines.
FIRST = ("pretrained", "this model", "random initialisation")
LAST = ("majority class", "chance")
METHODS = ("fine-tuned", "linear probe", "k-NN")


def load(folder: str | Path) -> dict[str, Any]:
    """The sections of report.json in a folder, {} when there is none; CheckpointError when it is damaged."""
    path = Path(folder) / "report.json"
    try:
        sections: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}): delete it, and evaluate again to have it rewritten") from error
    return sections


def update(folder: str | Path, pictures: Mapping[str, bytes] | None = None, **sections: Any) -> Path:
    """Add to the report in `folder` and draw the page again; gives the path of report.html.

    A section replaces the one of that name, except `results`: its rows join those about the same videos (equal `data`;
    rows about others go), a row with the same `name` and `weights` replaces the old one. `pictures` {file name: bytes},
    e.g. "confusion.dark.png". Sections: see `SECTIONS`.
    """
    folder = Path(folder)
    unknown = set(sections) - set(SECTIONS)
    assert not unknown, f"unknown report sections {sorted(unknown)}"
    whole = load(folder)
    new = sections.get("results", [])
    about = {row.get("data") for row in new}
    old = [row for row in whole.get("results", []) if not new or row.get("data") in about]
    rows = {(row["name"], row["weights"]): row for row in [*old, *new]}
    whole |= {**sections, "updated": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    if rows:
        whole["results"] = sorted(rows.values(), key=_place)
    for name, content in (pictures or {}).items():
        write_atomically(folder / "pictures" / name, content)
    text = json.dumps(without_nan(whole), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / "report.json", utf8(text).encode())
    return render(folder)


def claim(folder: str | Path) -> None:
    """Make the folder of a report; CheckpointError, before any work, where it or its report.json cannot be used."""
    folder = Path(folder)
    load(folder)
    probe = folder / f".writable.{os.getpid()}"
    write_atomically(probe, b"")
    probe.unlink()


SECTIONS = {
    "name": "heading of the page",
    "model": "name, params, gmacs, classes and ClipSpec of the model",
    "results": "rows: name, weights, top1, top5, mean_class_accuracy, top1_low, top1_high, videos, clips, crops, precision, note, "
    "data (fingerprint of the videos judged)",
    "retrieval": "rows of tubelet.evaluate.retrieval: query, weights, recall_at_1, _5, _10, median_rank, mean_rank, queries, "
    "candidates",
    "ladder": "of several models: budget, clip, rows of `tubelet.compare.Comparison`",
    "data": "what was evaluated: part, asked, evaluated, clips, crops, precision, trained_on, pretrained_on",
    "classes": "class names in order",
    "confusion": "counts, row = true class",
    "per_class": "rows: class, videos, correct, accuracy, mistaken_for, mistaken_times",
    "mistakes": "rows: id, true, said, probability, true_probability",
    "missing": "rows: id, reason",
    "reconstructions": "rows: id, mask, ratio, psnr {target_normalized, honest, neighbours} in dB on masked pixels",
    "probe": "is it really video: what tubelet.evaluate.probe gives back",
    "timing": "{what: seconds, or clips per second}",
    "environment": "versions and hardware, where the folder has no environment.json",
}


def render(folder: str | Path) -> Path:
    """Draw report.html from what the folder holds; gives its path."""
    from tubelet.evaluate._page import page

    folder = Path(folder)
    path = folder / "report.html"
    write_atomically(path, utf8(page(folder, load(folder), read_log(folder))).encode())
    return path


def write_run_report(
    run_folder: str | Path,
    model: Any,
    *,
    examples: Sequence[Any] = (),
    train_examples: Sequence[Any] = (),
    normalize_target: bool = True,
    mask: str = "tube",
    ratio: float = 0.9,
    seed: int = 0,
    batch_size: int = 8,
    weights: str = "this model",
) -> Path:
    """The report at the end of a training run, in one call; gives the path of report.html.

    Always: curves, masks. With a decoder: reconstructions of the first readable `examples` (normalize_target, mask
    and ratio as trained). With classes: the labelled `examples` are classified, one view each, and set beside
    majority class (of `train_examples` where given) and chance. weights says in the table where the model started:
    "pretrained" or "random initialisation".
    """
    from tubelet.evaluate import protocol, retrieval
    from tubelet.evaluate.multiview import look
    from tubelet.evaluate.sides import met, part_of, run_of

    folder = Path(run_folder)
    pictures, sections = protocol.pretraining_sections(
        model, list(examples or train_examples), normalize_target, mask, ratio, seed
    )
    asked = protocol.labelled(examples)
    if model.class_names and asked:
        looks = look(model, asked, batch_size=batch_size)
        more_pictures, more = protocol.classification_sections(looks, model.class_names, model)
        pictures, sections = pictures | more_pictures, sections | more
        before = met(run_of(folder), looks.examples)
        sections["data"] |= protocol.data_section(part_of(asked), before)
        own = protocol.classification_row(looks, model.class_names, weights, note=before.note)
        sections["results"] = [own, *protocol.floor_rows(train_examples, looks.examples, model.class_names)]
    found = retrieval.captioned(examples) if model.reads_text else []
    if found:
        looks = look(model, found, batch_size=batch_size)
        sections["retrieval"] = retrieval.rows(model, looks)
        about = {"asked": len(found), "evaluated": len(looks.examples)} | protocol.views(looks)
        sections["data"] = about | protocol.data_section(part_of(found), met(run_of(folder), looks.examples))
    sections |= {"name": folder.resolve().name, "model": protocol.model_section(model)}
    return update(folder, pictures, **sections)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl, [] when there is none; a last line cut off by a crash is left out."""
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a half; CheckpointError where it cannot
    be written."""
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting.write_bytes(content)
        os.replace(waiting, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            waiting.unlink()
        raise CheckpointError(
            f"cannot write {path}: {error.strerror or error}; choose a folder with room, that you may write to"
        ) from error


def without_nan(value: Any) -> Any:
    """The same JSON value with NaN and infinities as None: JSON has no other word for them."""
    if isinstance(value, Mapping):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _place(row: Mapping[str, Any]) -> tuple[int, int, float]:
    """Sort key of a result: where its weights come from, then the method, then best first."""
    name, weights = row["name"], row["weights"]
    places = (*FIRST, weights, *LAST) if weights not in (*FIRST, *LAST) else (*FIRST, "", *LAST)
    order = places.index(weights)
    method = METHODS.index(name) if name in METHODS else len(METHODS)
    return order, method, -(row["top1"] if row["top1"] is not None else -1.0)

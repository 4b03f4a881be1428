"""Which videos are evaluated, which the frozen methods are fitted on, and which the model has met before."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tubelet import datasets, find
from tubelet.errors import DataError, TubeletError
from tubelet.records import Dataset, Example
from tubelet.train import data as training_data
from tubelet.train.config import DataConfig, TrainConfig
from tubelet.weights.checkpoint import PATTERN


@dataclass(frozen=True)
class Sides:
    """Data cut in two: what may be fitted on, and what is evaluated. part says which that is, and its share."""

    train: Dataset
    asked: Dataset
    part: str


@dataclass(frozen=True)
class Met:
    """How many of `of` evaluated videos lie in files that a model was trained on: with labels or captions, and without
    (pretraining).

    None where that cannot be told. `decoding` is how their frames were decoded, where not exactly (see LoaderConfig).
    """

    of: int
    labelled: int | None
    unlabelled: int | None
    decoding: str = ""

    @property
    def note(self) -> str:
        """What a reader must know of it, "" where there is nothing."""
        known = []
        if self.labelled:
            known.append(f"trained on {self.labelled} of the {self.of} evaluated videos")
        if self.unlabelled:
            known.append(f"pretraining saw {self.unlabelled} of the {self.of}, without labels")
        if self.decoding:
            known.append(f"trained on videos decoded {self.decoding}, evaluated on exact frames")
        return "; ".join(known)


def run_of(model_path: str | Path) -> Path | None:
    """The run folder (it has a config.yaml) that a run, its model/ or one of its checkpoints/ belongs to, or None."""
    path = Path(model_path).resolve()
    folders = [path]
    if path.name == "model":
        folders.append(path.parent)
    elif path.parent.name == "checkpoints" and path.match(PATTERN):
        folders.append(path.parent.parent)
    return next((folder for folder in folders if (folder / "config.yaml").is_file()), None)


def data_of(model_path: str | Path) -> tuple[str, ...]:
    """The data the run at `model_path` was trained on; DataError where that is not known."""
    run = run_of(model_path)
    if run is None:
        raise DataError(f"no data given, and {model_path} is no run that could tell: name a folder or table of videos")
    return TrainConfig.from_yaml(run / "config.yaml").data.train


def sides(
    data: Sequence[str],
    split: str,
    config: TrainConfig | None,
    classifier: bool,
    say: Callable[[str], None],
    texts: bool = False,
) -> Sides:
    """The data a run was trained on is cut exactly as the run cut it, other data by their own splits.

    A classifier is judged on all of a data set without splits, and so is with `texts` what finds videos by their captions, for
    which labels do not matter.
    """
    mine = config.data if config is not None and _same(data, config.data.train) else None
    whole = datasets.read_many(data, mine.format if mine else "auto")
    count = sum(bool(example.text) if texts else example.label is not None for example in whole.examples)
    kind = "captioned" if texts else "labelled"
    everything = Sides(replace(whole, examples=()), whole, f"all {count} {kind} videos")
    if split == "all":
        return everything
    if mine is None and not split and (classifier or texts) and not any(example.split for example in whole.examples):
        say(f"this data has no splits: all {len(whole.examples)} videos are evaluated (was the model trained on some of them?)")
        return everything
    wanted = mine or DataConfig(train=tuple(data))
    if config is not None and mine and not texts and not _needs(config)[0]:
        wanted = replace(wanted, train_split=None, limit=None)  # they chose among unlabelled videos
    if split:
        wanted = replace(wanted, val=(), val_split=split)
    train, asked = training_data.load(wanted, needs_labels=not texts, needs_text=texts)
    assert asked is not None, "with labels or captions something is always held out"
    share = "" if wanted.val else f": {len(asked.examples)} of {count} {kind} videos"
    return Sides(train, asked, part_of(asked.examples) + share)


def part_of(examples: Sequence[Example]) -> str:
    """ "split fold0", or "held-out videos" where no split has a name."""
    names = sorted({example.split for example in examples if example.split})
    return f"split{'s' * (len(names) > 1)} {', '.join(names)}" if names else "held-out videos"


def met(run: Path | None, examples: Sequence[Example], say: Callable[[str], None] = lambda message: None) -> Met:
    """What a run, and the runs it started from, have met of `examples`, compared file by file.

    Weights that no run made are not known to have met anything.
    """
    if run is None:
        return Met(len(examples), None, None)
    paths, configs = [os.path.realpath(example.path) for example in examples], list(lineage(run))

    def count(taught: bool) -> int | None:
        asked = [(config.data, _needs(config)) for config in configs if any(_needs(config)) == taught]
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # what load has to say was said when the run began
                read = [training_data.load(part, *needs)[0] for part, needs in asked]
        except TubeletError as error:
            say(f"cannot tell which of the evaluated videos the model was trained on: {error}")
            return None
        files = {os.path.realpath(one.path) for part in read for one in part.examples}
        return sum(path in files for path in paths)

    decoding = next((config.loader.decoding for config in configs if config.loader.approximate), "")
    return Met(len(paths), count(True), count(False), decoding)


def lineage(run: Path | None) -> Iterator[TrainConfig]:
    """The settings of a run, of the run it started from, and so on."""
    done: set[Path] = set()
    while run is not None and run not in done:
        done.add(run)
        config = TrainConfig.from_yaml(run / "config.yaml")
        yield config
        run = run_of(config.init) if config.init else None


def _needs(config: TrainConfig) -> tuple[bool, bool]:
    """(labels, captions): what a run cannot learn without."""
    objective = find.module("tubelet.objectives", config.objective)
    return objective.NEEDS_LABELS, getattr(objective, "NEEDS_TEXT", False)


def _same(data: Sequence[str], trained_on: Sequence[str]) -> bool:
    return {Path(path).resolve() for path in data} == {Path(path).resolve() for path in trained_on}

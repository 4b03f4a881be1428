"""A library of any folder of videos, to be searched by words, by a video or by a picture: vectors of windows, minutes and whole
videos with their seconds, paths and labels, in a LanceDB table at a path or an address such as s3://bucket/library.

What is known of a video comes and goes in one commit, so that a reader never sees half of it and a writer may be killed at any
time. Windows of a video that takes long wait in a second table until it is whole; an interrupted one goes on after them.

D width of the vectors.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet import storage
from tubelet.errors import CheckpointError, ConfigError, DataError, utf8
from tubelet.feature_store import Stored
from tubelet.features import Embedded, embed_windows, fingerprint, unit
from tubelet.models._model import Model
from tubelet.records import Example
from tubelet.search import lance
from tubelet.search.answers import LEVELS, Filter, Hit, Level, folder, nearest
from tubelet.search.lance import About
from tubelet.search.lease import StillOurs, writing
from tubelet.search.rows import as_rows, as_table, item, pooled, row_of, state_of
from tubelet.video.guard import forking
from tubelet.video.stream import SLIDING, Windows

COMMIT_SECONDS = 15.0  # from one commit of finished videos to the next
COMMIT_ROWS = 4096
STAGED_ROWS = 512  # of an unfinished video that may be lost


@dataclass
class Added:
    """What `Index.add` did: numbers of videos new, changed since they were indexed, and unchanged; (id, reason) of those that
    cannot be read; windows embedded now."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    windows: int = 0
    missing: list[tuple[str, str]] = field(default_factory=list)


class Index:
    """A library at a path or an address. `Index.create`, `Index.open`; `add` and `prune` write, one process at a time; any number
    of processes may `search` meanwhile."""

    def __init__(self, uri: str, database: Any, about: About) -> None:
        self.uri, self.about, self._database = uri, about, database

    @classmethod
    def create(cls, uri: str | Path, model: Model, model_path: str | Path, windows: Windows = SLIDING) -> "Index":
        """The library at `uri`, made where there is none. ConfigError where it is there and holds vectors of another model or
        of other windows."""
        uri = str(uri)
        place = _place(model_path)
        made_by = (model.name, fingerprint(model), place)
        asked = About(*made_by, model.width, model.spec, windows, _settings(model), model.precision)
        database = lance.connect(uri)
        if "windows" not in lance.tables(database):
            columns = lance.schema(asked)
            with writing(uri, database):
                database.create_table("pending", schema=columns, exist_ok=True)
                database.create_table("windows", schema=columns, exist_ok=True)
        index = cls.open(uri)
        index.check(model)
        if index.about.windows != windows:
            raise ConfigError(
                f"{uri} was made with {_flags(index.about.windows)}, not {_flags(windows)}: ask for the same, or choose another "
                "--out"
            )
        return index

    @classmethod
    def open(cls, uri: str | Path) -> "Index":
        """The library at `uri`; DataError where there is none."""
        uri = str(uri)
        if not storage.is_remote(uri) and not Path(uri).is_dir():
            raise DataError(f"no library at {uri}: make one with `tubelet index DIR --model MODEL --out {uri}`")
        database = lance.connect(uri)
        if "windows" not in lance.tables(database):
            raise DataError(f"{uri} holds no library: make one with `tubelet index DIR --model MODEL --out {uri}`")
        with lance.reading(uri):
            metadata = database.open_table("windows").schema.metadata or {}
            if b"tubelet.search" not in metadata:
                raise DataError(f"{uri} was not written by `tubelet index`: choose another --out")
            return cls(uri, database, About.from_json(metadata[b"tubelet.search"].decode()))

    def model(self, device: torch.device | str = "cpu", precision: str | None = None) -> Model:
        """The model that the library was made with, in its precision unless another is named. CheckpointError where it no longer is
        where it was."""
        from tubelet.weights.load import load_model

        try:
            return load_model(self.about.model_path, torch.device(device), precision or self.about.precision)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.uri} was made with it: if it has moved, name it with --model") from error

    def check(self, model: Model) -> None:
        """ConfigError unless the vectors of `model` may be compared with those of the library."""
        if model.width != self.about.width:
            raise ConfigError(
                f"{self.uri} holds vectors of {self.about.width} values from {self.about.model}, and {model.name} gives "
                f"{model.width}: ask with the model it was made with, {self.about.model_path}"
            )
        if model.precision != self.about.precision:
            raise ConfigError(
                f"{self.uri} was made in {self.about.precision}, and {model.name} is here in {model.precision}: their "
                f"vectors must not be mixed; ask for --precision {self.about.precision}, or choose another --out"
            )
        other = fingerprint(model)
        if other != self.about.fingerprint:
            raise ConfigError(
                f"{self.uri} holds vectors of {self.about.model} {self.about.fingerprint}, and this is {model.name} {other}, whose "
                f"vectors lie in another space: ask with {self.about.model_path}, or index the videos again"
            )
        if model.spec != self.about.clip:
            ours, theirs = self.about.clip.to_dict(), model.spec.to_dict()
            other = ", ".join(f"{name} {theirs[name]}, not {value}" for name, value in ours.items() if theirs[name] != value)
            raise ConfigError(
                f"{self.uri} holds vectors of other clips than {model.name} takes here (clip.{other}): ask with the model as it "
                f"was, {self.about.model_path}, or index the videos again"
            )
        if self.about.settings and self.about.settings != _settings(model):
            raise ConfigError(
                f"{self.uri} holds vectors of {self.about.model} with other options than {model.name} has here, although the "
                f"weights are the same: ask with the model as it was, {self.about.model_path}, or index the videos again"
            )

    def __len__(self) -> int:
        """Windows in the library."""
        with lance.reading(self.uri):
            count: int = self._rows().count_rows("per = 'window'")
        return count

    def files(self) -> dict[str, str]:
        """Path of every indexed video, or part of one, by its name in the library."""
        with lance.reading(self.uri):
            return lance.paths(self._rows(), "per = 'video'")

    def _waiting(self) -> dict[str, str]:
        """The same of those that were not finished."""
        with lance.reading(self.uri):
            return lance.paths(self._database.open_table("pending"), "per = 'window'")

    def add(
        self,
        model: Model,
        examples: Iterable[Example],
        batch_size: int = 8,
        workers: int | None = None,
        on_window: Callable[[Embedded], object] | None = None,
        on_video: Callable[[Example, str], object] | None = None,
    ) -> Added:
        """Embed the videos that are new or changed (size, time, label or text) and put them into the library.

        on_window(Embedded) is called for every window and on_video(example, problem) for every video that is done, also for
        those that are unchanged. What is known of a changed video that can no longer be read is taken out. ConfigError as `check`;
        CheckpointError where the library cannot be written.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: it must be 1 or more")
        self.check(model)
        added = Added()
        with writing(self.uri, self._database) as still_ours:
            try:
                self._add(added, still_ours, model, examples, batch_size, workers, on_window, on_video)
            finally:
                still_ours()
                self._tidy()
        return added

    def _add(
        self,
        added: Added,
        still_ours: StillOurs,
        model: Model,
        examples: Iterable[Example],
        batch_size: int,
        workers: int | None,
        on_window: Callable[[Embedded], object] | None,
        on_video: Callable[[Example, str], object] | None,
    ) -> None:
        with forking:
            table, pending = self._rows(), self._database.open_table("pending")
            known = lance.states(table, "per = 'video'")
            begun = lance.counts(pending)
        states, todo = _new_or_changed(examples, known, added, on_video)
        stale = [
            name for name, (state, _) in begun.items() if name in states and (states[name] != state or known.get(name) == state)
        ]
        stale += [name for name, path in self._waiting().items() if name not in states and not _there(path)]
        if stale:
            with forking:
                still_ours()
                pending.delete(lance.one_of(stale))
        left = {name: count for name, (_, count) in begun.items() if name not in stale}
        held: dict[str, list[dict[str, Any]]] = {item(example): [] for example in todo}
        ready: list[dict[str, Any]] = []
        last = time.monotonic()

        def commit() -> None:
            nonlocal ready, last
            if ready:
                names = sorted({row["item"] for row in ready})
                staged = [name for name in names if name in left]
                with forking:
                    still_ours()
                    lance.replace(table, names, as_table(ready, self.about))
                    if staged:
                        pending.delete(lance.one_of(staged))
            ready, last = [], time.monotonic()

        try:
            for event in embed_windows(
                model, todo, self.about.windows, batch_size, workers, lambda example: left.get(item(example), 0)
            ):
                name = item(event.example)
                if isinstance(event, Embedded):
                    held[name].append(row_of(event, states[name]))
                    added.windows += 1
                    if on_window:
                        on_window(event)
                    if len(held[name]) >= STAGED_ROWS:
                        with forking:
                            still_ours()
                            pending.add(as_table(held[name], self.about))
                        left[name] = left.get(name, 0) + len(held[name])
                        held[name] = []
                    continue
                rows, problem = held.pop(name), event.problem
                if problem:
                    with forking:
                        still_ours()
                        if name in left:
                            pending.delete(lance.one_of([name]))
                        if name in known:
                            table.delete(lance.one_of([name]))
                    if name in known:
                        problem += "; it has changed, so what was known of it was taken out of the library"
                    added.missing.append((event.example.id, problem))
                else:
                    if name in left:
                        with forking:
                            found = pending.search().where(lance.one_of([name])).limit(None).to_arrow()
                        rows = sorted(as_rows(found) + rows, key=lambda row: (row["end_seconds"], row["start_seconds"]))
                    ready += rows + pooled(rows)
                    added.changed += name in known
                    added.new += name not in known
                if on_video:
                    on_video(event.example, problem)
                if len(ready) >= COMMIT_ROWS or time.monotonic() - last > COMMIT_SECONDS:
                    commit()
        finally:  # also what was done when Ctrl-C came
            commit()

    def version(self) -> int:
        """A number that changes with what is in the library."""
        with lance.reading(self.uri):
            return int(self._rows().version)

    def windows(self) -> tuple[Stored, Tensor]:
        """(the vectors of every window, for `tubelet.classify`; float64 (N,2), the seconds each is from and to)."""
        columns = ["id", "path", "start_seconds", "end_seconds", "vector"]
        with lance.reading(self.uri):
            found = self._rows().search().where("per = 'window'").select(columns).limit(None).to_arrow()
        flat = found["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = torch.from_numpy(flat.copy()).view(-1, self.about.width)
        seconds = torch.from_numpy(np.stack([found[name].to_numpy() for name in columns[2:4]], axis=1))
        ids, paths = (tuple(found[name].to_pylist()) for name in columns[:2])
        return Stored(ids, paths, vectors, self.about.fingerprint, self.about.model, seconds), seconds

    def gone(self, below: Sequence[str | Path] | None = None) -> list[str]:
        """Names of the videos, indexed or begun, whose files are no longer there; only of those that are, or lie in, `below`."""
        known = {**self._waiting(), **self.files()}
        places = None if below is None else {utf8(folder(place)) for place in below}
        inside = {name: path for name, path in known.items() if places is None or _lies_in(path, places)}
        return sorted(name for name, path in inside.items() if not _there(path))

    def remove(self, names: Sequence[str]) -> None:
        """Take videos out of the library, by their names there."""
        with writing(self.uri, self._database) as still_ours:
            for at in range(0, len(names), 500):
                with forking:
                    still_ours()
                    self._rows().delete(lance.one_of(names[at : at + 500]))
                    self._database.open_table("pending").delete(lance.one_of(names[at : at + 500]))
            self._tidy()

    def search(
        self, vector: Tensor, top: int = 5, per: Level = "window", only: Filter | None = None, exact: bool = False
    ) -> list[Hit]:
        """The `top` stretches nearest to a vector (D,), the best first; of those that overlap in one file only the best.

        per: windows, minutes or whole videos. exact: look at all of them whatever their number. DataError for a library, or a
        filter, that leaves nothing; ConfigError for a vector of another width.
        """
        if per not in LEVELS:
            raise ConfigError(f"search per {per!r}: it must be {', '.join(map(repr, LEVELS[:-1]))} or {LEVELS[-1]!r}")
        if top < 1:
            raise ConfigError(f"top is {top}: it must be 1 or more")
        if vector.shape != (self.about.width,):
            raise ConfigError(
                f"the question is a vector of {tuple(vector.shape)}, the library holds vectors of {self.about.width}"
            )
        with lance.reading(self.uri):
            hits = nearest(self._rows(), unit(vector).numpy(), top, per, only, exact)
        if not hits:
            if not len(self):
                raise DataError(f"{self.uri} is empty: no video has been indexed yet")
            raise DataError(f"nothing in {self.uri} is of the kind asked for: leave out --path, --label, --since or --until")
        return hits

    def _rows(self) -> Any:
        """The table as it is now."""
        return self._database.open_table("windows")

    def _tidy(self) -> None:
        lance.tidy(self._rows(), self._database.open_table("pending"))


def _new_or_changed(
    examples: Iterable[Example], known: dict[str, str], added: Added, on_video: Callable[[Example, str], object] | None
) -> tuple[dict[str, str], list[Example]]:
    """(by name the state of every Example, "" where there is no file; those whose state is not the known one). What is unchanged,
    or not there, is counted in `added`."""
    states: dict[str, str] = {}
    todo: list[Example] = []
    for example in examples:
        name, problem = item(example), ""
        if name in states:
            raise DataError(f"{name} is there twice: give each video, or part of one, only once")
        try:
            states[name] = state_of(example)
        except OSError as error:
            states[name], problem = "", f"{example.path}: {error.strerror or error}"
            added.missing.append((example.id, problem))
        if not problem and known.get(name) != states[name]:
            todo.append(example)
            continue
        added.unchanged += not problem
        if on_video:
            on_video(example, problem)
    return states, todo


def _there(path: str) -> bool:
    """Whether there still is a file at a path of the library."""
    return storage.exists(storage.from_utf8(path))


def _lies_in(path: str, places: set[str]) -> bool:
    """Whether the path, or a folder that it lies in, is one of the places."""
    while path not in places:
        path, before = os.path.dirname(path), path
        if path == before:
            return False
    return True


def _place(path: str | Path) -> str:
    """An absolute path where there is one; a hub id stays."""
    return storage.absolute(path) if Path(path).exists() else str(path)


def _settings(model: Model) -> str:
    """Hash of what else than weights and clips makes a model's function: its name and options."""
    return hashlib.blake2b(
        json.dumps([model.name, model.options], sort_keys=True, default=str).encode(), digest_size=8
    ).hexdigest()


def _flags(windows: Windows) -> str:
    """The Windows as `tubelet index` is asked for them."""
    values = {"window-seconds": windows.window_seconds, "step-seconds": windows.step_seconds}
    values["count"] = windows.count if windows.kind == "uniform" else None
    return " ".join(
        [f"--windows {windows.kind}", *(f"--{name} {value:g}" for name, value in values.items() if value is not None)]
    )

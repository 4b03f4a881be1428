"""A library of any folder of videos, to be searched by words, by a video or by a picture: vectors of windows, minutes and whole
videos with their seconds, paths and labels, in a LanceDB table at a path or an address such as s3://bucket/library.

What is known of a video comes and goes in one commit, so that a reader never sees half of it and a writer may be killed at any
time. Windows of a video that takes long wait in a second table until it is whole; an interrupted one goes on after them. Up to
EXACT_ROWS vectors every query looks at all of them, beyond that at the cells of an approximate index (see docs/search.md for what
was measured).

D width of the vectors.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from tubelet import storage
from tubelet.datasets._files import is_video
from tubelet.errors import CheckpointError, ConfigError, DataError, MissingExtraError, VideoError, printable
from tubelet.features import Embedded, Stored, embed_windows, fingerprint, pool, unit, utf8
from tubelet.models._model import Model
from tubelet.records import ClipSpec, Example
from tubelet.video.decode import decode
from tubelet.video.guard import run
from tubelet.video.stream import SLIDING, Stream, Windows

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "tubelet-search-1"
Level = Literal["window", "minute", "video"]
LEVELS = ("window", "minute", "video")
EXACT_ROWS = 50_000  # up to here a look at every vector takes no longer than a person notices
CELL_ROWS = 1000  # of a cell of the approximate index, about
PROBES = 160  # cells that a query looks at: of a million vectors 16 %, which found .953 of the nearest ten in clustered ones
ALL_CELLS = 1_000_000
PIECES = 100  # of a large table, written one after another, that are joined and indexed anew although their rows are few
REFINE = 5  # times as many candidates as are asked for are compared by their whole vectors
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
COMMIT_SECONDS = 15.0  # from one commit of finished videos to the next
COMMIT_ROWS = 4096
STAGED_ROWS = 512  # of an unfinished video that may be lost
KEPT = datetime.timedelta(hours=1)  # how long readers may hold on to what has been replaced


@dataclass(frozen=True)
class About:
    """What the vectors of a library are: made by which model (name, fingerprint of its weights, where it lay), of which clips
    and windows, of which width; settings: hash of the model's name and options, "" in libraries of before it was kept. Vectors of
    another space cannot be compared with them."""

    model: str
    fingerprint: str
    model_path: str
    width: int
    clip: ClipSpec
    windows: Windows
    settings: str = ""

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self), "clip": self.clip.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> "About":
        values = json.loads(text)
        if values.pop("format", None) != FORMAT:
            raise DataError("the library was written by another version of tubelet: index the folder again")
        return cls(**{**values, "clip": ClipSpec.from_dict(values["clip"]), "windows": Windows(**values["windows"])})


@dataclass(frozen=True)
class Hit:
    """One answer: a stretch of a file and how near it is, the cosine of its vector and the question's, -1 to 1.

    windows: how many of the stretches that were looked at overlap it in the same file, itself among them. gone: the file is no
    longer there.
    """

    path: str
    start_seconds: float
    end_seconds: float
    score: float
    label: str | None
    text: str | None
    date: str | None
    shot: int
    windows: int
    gone: bool


@dataclass
class Added:
    """What `Index.add` did: numbers of videos new, changed since they were indexed, and unchanged; (id, reason) of those that
    cannot be read; windows embedded now."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    windows: int = 0
    missing: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Filter:
    """Which stretches are looked at. path: a file, a folder, or a pattern with * and ?. label: exactly so. since, until: dates of
    the files in any form of ISO 8601, such as 2026-11-21, 2026-W47 or 2026-11-21T18:30Z, both included as far as they are given: a
    day to its end, a minute to its end. Without a zone they are by this machine's clock."""

    path: str = ""
    label: str = ""
    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            value = getattr(self, name)
            try:
                _ = value and _times(value)
            except (ValueError, OverflowError) as error:
                raise ConfigError(f"{name} is {value!r}: a date such as 2026-11-21 or 2026-11-21T18:30 is wanted") from error

    def sql(self) -> list[str]:
        """Conditions on the columns of the table."""
        found = []
        if self.path:
            place = self.path if self.path.startswith("*") else _folder(self.path)
            if any(letter in place for letter in "*?"):
                pattern = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in place)
                found.append(f"regexp_like(path, {_quoted(f'^(?s:{pattern})$')})")
            else:
                inside = [f"starts_with(path, {_quoted(place.rstrip('/') + more)})" for more in ("/", "::")]  # :: in a tar
                found.append(f"(path = {_quoted(place)} OR {' OR '.join(inside)})")
        if self.label:
            found.append(f"label = {_quoted(self.label)}")
        if self.since:
            found.append(f"date >= {_quoted(_times(self.since)[0].isoformat())}")
        if self.until:
            found.append(f"date < {_quoted(_times(self.until)[1].isoformat())}")
        return found


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
        asked = About(model.name, fingerprint(model), place, model.width, model.spec, windows, _settings(model))
        database = _connect(uri)
        if "windows" not in _tables(database):
            columns = _schema(asked)
            with _writing(uri):
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
        database = _connect(uri)
        if "windows" not in _tables(database):
            raise DataError(f"{uri} holds no library: make one with `tubelet index DIR --model MODEL --out {uri}`")
        with _reading(uri):
            metadata = database.open_table("windows").schema.metadata or {}
            if b"tubelet.search" not in metadata:
                raise DataError(f"{uri} was not written by `tubelet index`: choose another --out")
            return cls(uri, database, About.from_json(metadata[b"tubelet.search"].decode()))

    def model(self, device: torch.device | str = "cpu") -> Model:
        """The model that the library was made with. CheckpointError where it no longer is where it was."""
        from tubelet.weights.load import load_model

        try:
            return load_model(self.about.model_path, torch.device(device))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.uri} was made with it: if it has moved, name it with --model") from error

    def check(self, model: Model) -> None:
        """ConfigError unless the vectors of `model` may be compared with those of the library."""
        if model.width != self.about.width:
            raise ConfigError(
                f"{self.uri} holds vectors of {self.about.width} values from {self.about.model}, and {model.name} gives "
                f"{model.width}: ask with the model it was made with, {self.about.model_path}"
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
        with _reading(self.uri):
            count: int = self._rows().count_rows("per = 'window'")
        return count

    def files(self) -> dict[str, str]:
        """Path of every indexed video, or part of one, by its name in the library."""
        with _reading(self.uri):
            found = self._rows().search().where("per = 'video'").select(["item", "path"]).limit(None).to_arrow()
        return dict(zip(found["item"].to_pylist(), found["path"].to_pylist(), strict=True))

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
        with _writing(self.uri):
            try:
                self._add(added, model, examples, batch_size, workers, on_window, on_video)
            finally:
                self._tidy()
        return added

    def _add(
        self,
        added: Added,
        model: Model,
        examples: Iterable[Example],
        batch_size: int,
        workers: int | None,
        on_window: Callable[[Embedded], object] | None,
        on_video: Callable[[Example, str], object] | None,
    ) -> None:
        table, pending = self._rows(), self._database.open_table("pending")
        known = _states(table, "per = 'video'")
        begun = _counts(pending)
        states: dict[str, str] = {}
        todo: list[Example] = []
        for example in examples:
            name = item(example)
            if name in states:
                raise DataError(f"{name} is there twice: give each video, or part of one, only once")
            try:
                states[name] = _state(example)
            except OSError as error:
                states[name] = ""
                added.missing.append((example.id, f"{example.path}: {error.strerror or error}"))
                if on_video:
                    on_video(example, added.missing[-1][1])
                continue
            if known.get(name) == states[name]:
                added.unchanged += 1
                if on_video:
                    on_video(example, "")
            else:
                todo.append(example)
        stale = [
            name for name, (state, _) in begun.items() if name in states and (states[name] != state or known.get(name) == state)
        ]
        if stale:
            pending.delete(_one_of(stale))
        left = {name: count for name, (_, count) in begun.items() if name not in stale}
        held: dict[str, list[dict[str, Any]]] = {item(example): [] for example in todo}
        ready: list[dict[str, Any]] = []
        last = time.monotonic()

        def commit() -> None:
            nonlocal ready, last
            if ready:
                names = sorted({row["item"] for row in ready})
                _replace(table, names, _as_table(ready, self.about))
                staged = [name for name in names if name in left]
                if staged:
                    pending.delete(_one_of(staged))
            ready, last = [], time.monotonic()

        try:
            for event in embed_windows(
                model, todo, self.about.windows, batch_size, workers, lambda example: left.get(item(example), 0)
            ):
                name = item(event.example)
                if isinstance(event, Embedded):
                    held[name].append(_row(event, states[name]))
                    added.windows += 1
                    if on_window:
                        on_window(event)
                    if len(held[name]) >= STAGED_ROWS:
                        pending.add(_as_table(held[name], self.about))
                        left[name] = left.get(name, 0) + len(held[name])
                        held[name] = []
                    continue
                rows, problem = held.pop(name), event.problem
                if problem:
                    if name in left:
                        pending.delete(_one_of([name]))
                    if name in known:
                        table.delete(_one_of([name]))
                        problem += "; it has changed, so what was known of it was taken out of the library"
                    added.missing.append((event.example.id, problem))
                else:
                    if name in left:
                        found = pending.search().where(_one_of([name])).limit(None).to_arrow()
                        rows = sorted(_as_rows(found) + rows, key=lambda row: (row["end_seconds"], row["start_seconds"]))
                    ready += rows + _pooled(rows)
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
        return int(self._rows().version)

    def windows(self) -> tuple[Stored, Tensor]:
        """(the vectors of every window, for `tubelet.classify`; float64 (N,2), the seconds each is from and to)."""
        columns = ["id", "path", "start_seconds", "end_seconds", "vector"]
        with _reading(self.uri):
            found = self._rows().search().where("per = 'window'").select(columns).limit(None).to_arrow()
        flat = found["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        vectors = torch.from_numpy(flat.copy()).view(-1, self.about.width)
        seconds = torch.from_numpy(np.stack([found[name].to_numpy() for name in columns[2:4]], axis=1))
        ids, paths = (tuple(found[name].to_pylist()) for name in columns[:2])
        return Stored(ids, paths, vectors, self.about.fingerprint, self.about.model, seconds), seconds

    def gone(self, below: Sequence[str | Path] | None = None) -> list[str]:
        """Names of the indexed videos whose files are no longer there; only those that are, or lie in folders, `below`."""
        places = None if below is None else {_folder(place) for place in below}
        inside = {name: path for name, path in self.files().items() if places is None or _lies_in(path, places)}
        return sorted(name for name, path in inside.items() if not _exists(path))

    def remove(self, names: Sequence[str]) -> None:
        """Take videos out of the library, by their names there."""
        with _writing(self.uri):
            for at in range(0, len(names), 500):
                self._rows().delete(_one_of(names[at : at + 500]))
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
        with _reading(self.uri):
            table = self._rows()
        where = " AND ".join([f"per = '{per}'", *(only.sql() if only else ())])
        query = unit(vector).numpy()
        asked = 4 * top + 20
        while True:
            found = self._nearest(table, query, where, asked, exact or per != "window")
            hits = _distinct(found, top)
            if len(hits) == top or len(found) < asked:
                break
            asked *= 4
        if not hits:
            if not len(self):
                raise DataError(f"{self.uri} is empty: no video has been indexed yet")
            raise DataError(f"nothing in {self.uri} is of the kind asked for: leave out --path, --label, --since or --until")
        return hits

    def _nearest(self, table: Any, query: np.ndarray, where: str, count: int, exact: bool) -> list[dict[str, Any]]:
        columns = ["path", "start_seconds", "end_seconds", "shot", "label", "text", "date", "_distance"]

        def ask(cells: int) -> list[dict[str, Any]]:
            asked = table.search(query, vector_column_name="vector").distance_type("cosine").where(where, prefilter=True)
            near = asked.nprobes(cells).refine_factor(REFINE) if cells else asked.bypass_vector_index()
            with _reading(self.uri):
                rows: list[dict[str, Any]] = near.limit(count).select(columns).to_list()
            return rows

        rows = ask(0 if exact else PROBES)
        # A filter may leave too few answers in the nearest cells, as a rare label does: then all are looked at.
        return rows if exact or len(rows) == count or not table.list_indices() else ask(ALL_CELLS)

    def _rows(self) -> Any:
        """The table as it is now."""
        return self._database.open_table("windows")

    def _tidy(self) -> None:
        """Join small pieces, and make the approximate index, anew when too many rows have come since: until then they are
        looked at one by one."""
        table = self._rows()
        rows = table.count_rows()
        many = rows > EXACT_ROWS
        if many and any(one.name == "vector_idx" for one in table.list_indices()):
            many = table.index_stats("vector_idx").num_unindexed_rows > min(EXACT_ROWS // 2, rows // 10)
            many = many or table.stats()["fragment_stats"]["num_fragments"] > PIECES
            if not many:
                return
        table.optimize(cleanup_older_than=KEPT)
        if many:  # afterwards: `optimize` joins cells until four are left of a hundred
            _make_cells(table, rows)
        self._database.open_table("pending").optimize(cleanup_older_than=KEPT)


def _make_cells(table: Any, rows: int) -> None:
    """The approximate index of the vectors, and one of the levels."""
    from lancedb.index import Bitmap, IvfSq

    config = IvfSq(distance_type="cosine", num_partitions=max(1, rows // CELL_ROWS))
    table.create_index("vector", config=config, name="vector_idx", replace=True)
    table.create_index("per", config=Bitmap(), name="per_idx", replace=True)


def item(example: Example) -> str:
    """What an Example is called in the library: the absolute path, and which part of it."""
    start, end = example.start_seconds, example.end_seconds
    part = "" if start is None and end is None else f"@{start or 0:g}-{'' if end is None else format(end, 'g')}"
    return storage.absolute(example.path) + part


def question(model: Model, query: str, start: float | None = None, end: float | None = None) -> Tensor:
    """float32 (D,) of words, of a video file (or its part between two seconds) or of a picture file, whichever it is. What is no
    file is words, also where a folder has that name.

    ConfigError for an empty question, words to a model that reads none, and a part of what is no video; DataError for the name of
    a file that is not there; VideoError for one that cannot be read.
    """
    suffix = os.path.splitext(query)[1].lower()
    picture = suffix in PICTURES
    if not (_is_file(query) if query.strip() and "\0" not in query else False):
        if picture or is_video(query):
            raise DataError(f"{query} does not exist: give words, or a video or picture that is there")
        if start is not None or end is not None:
            raise ConfigError("--start and --end are for a video as the question, and this is none")
        return text_vector(model, query)
    if picture:
        if start is not None or end is not None:
            raise ConfigError("--start and --end are for a video as the question, and this is a picture")
        return picture_vector(model, query)
    return video_vector(model, query, start, end)


def contact_sheet(hits: Sequence[Hit], shown: int = 8) -> bytes:
    """PNG with one row for each hit: `shown` frames of its seconds, its rank, score, file and times. Grey where a file is gone."""
    from tubelet.show.contact_sheet import contact_sheet as sheet

    rows = []
    for number, hit in enumerate(hits, 1):
        remark = f"{hit.start_seconds:.2f}-{hit.end_seconds:.2f} s" + (f", {hit.label}" if hit.label else "")
        try:
            seconds = np.linspace(hit.start_seconds, hit.end_seconds, shown)
            clip = run(hit.path, decode, hit.path, seconds=seconds, short_side=96)
            frames = clip.frames
        except VideoError:
            frames = torch.full((shown, 3, 96, 128), 64, dtype=torch.uint8)
            remark += ", the file is gone" if hit.gone else ", the file cannot be read"
        rows.append((frames, f"{number}  {hit.score:.3f}  {printable(os.path.basename(hit.path))}", remark))
    return sheet(rows, shown)


def text_vector(model: Model, words: str) -> Tensor:
    """float32 (D,) of a question in words. ConfigError where there are none, or the model reads no text."""
    if not words.strip():
        raise ConfigError("the question is empty: give words, a video or a picture")
    return model.embed_text([words])[0].float().cpu()


@torch.no_grad()
def video_vector(
    model: Model,
    path: str | Path,
    start: float | None = None,
    end: float | None = None,
    on_window: Callable[[int, int], object] | None = None,
) -> Tensor:
    """float32 (D,) of a video, or of the part between two seconds: the mean of its windows' unit vectors, of unit length.
    on_window(done, all) after each of them."""
    example = Example(str(path), str(path), start_seconds=start, end_seconds=end)
    vectors = []
    for event in embed_windows(model, [example], workers=1):
        if isinstance(event, Embedded):
            vectors.append(event.vector)
            if on_window is not None:
                on_window(len(vectors), event.count)
        elif event.problem:
            raise VideoError(event.problem)
    return unit(torch.stack(vectors).double().mean(dim=0))


@torch.no_grad()
def picture_vector(model: Model, path: str | Path) -> Tensor:
    """float32 (D,) of a picture (JPEG, PNG, WebP ...): of a clip that shows it in every frame."""
    [(_, clip)] = Stream(path, model.spec, Windows("uniform", count=1))
    device = next(model.parameters()).device
    return unit(model(clip.frames[None].to(device))["embedding"][0].cpu())


def _connect(uri: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError("a library needs LanceDB: pip install 'tubelet[search]'") from error
    try:
        return lancedb.connect(uri, storage_options=_storage_options() if storage.is_remote(uri) else None)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{uri} cannot be opened: {_first_line(error)}") from error


def _storage_options() -> dict[str, str]:
    """What the usual AWS_... variables of the environment say, as LanceDB calls it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return {}
    return {"endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}


def _tables(database: Any) -> list[str]:
    with _reading(database.uri):
        return list(database.list_tables().tables)


@contextlib.contextmanager
def _reading(uri: str) -> Iterator[None]:
    """What LanceDB raises for a damaged library, or one out of reach, becomes a CheckpointError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{uri} cannot be read: {_first_line(error)}") from error


@contextlib.contextmanager
def _writing(uri: str) -> Iterator[None]:
    """Keep other writers on this machine out; what LanceDB raises becomes a CheckpointError."""
    handle = None
    try:
        if not storage.is_remote(uri):
            Path(uri).mkdir(parents=True, exist_ok=True)
            handle = os.open(Path(uri) / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            with contextlib.suppress(ImportError):  # Windows has no flock
                import fcntl

                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise CheckpointError(f"another process is writing to {uri}: wait until it is done") from error
        yield
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{uri} cannot be written: {_first_line(error)}") from error
    finally:
        if handle is not None:
            os.close(handle)


def _schema(about: About) -> "pa.Schema":
    import pyarrow as pa

    texts = ("id", "item", "state", "per", "path", "label", "text", "date")
    columns = [(name, pa.string()) for name in texts]
    columns += [("start_seconds", pa.float64()), ("end_seconds", pa.float64()), ("shot", pa.int32())]
    columns += [("vector", pa.list_(pa.float32(), about.width))]
    return pa.schema(columns, metadata={"tubelet.search": about.to_json()})


def _row(event: Embedded, state: str) -> dict[str, Any]:
    example, window, name = event.example, event.window, item(event.example)
    return {
        "id": f"{name}@{window.start_seconds:.3f}-{window.end_seconds:.3f}#{window.first}",
        "item": name,
        "state": state,
        "per": "window",
        "path": storage.absolute(example.path),
        "label": example.label,
        "text": example.text,
        "date": _date(example.path),
        "start_seconds": window.start_seconds,
        "end_seconds": window.end_seconds,
        "shot": window.shot,
        "vector": event.vector.numpy(),
    }


def _pooled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for the minutes and for all of one video, from those of its windows."""
    starts, ends = [row["start_seconds"] for row in rows], [row["end_seconds"] for row in rows]
    vectors = torch.from_numpy(np.stack([row["vector"] for row in rows]))
    found = []
    for level, seconds in (("minute", 60.0), ("video", None)):
        for number, (start, end, vector) in enumerate(pool(starts, ends, vectors, seconds)):
            name = f"{rows[0]['item']}@{level}{number}"
            found.append(
                {
                    **rows[0],
                    "id": name,
                    "per": level,
                    "start_seconds": start,
                    "end_seconds": end,
                    "shot": 0,
                    "vector": vector.numpy(),
                }
            )
    return found


def _as_table(rows: list[dict[str, Any]], about: About) -> "pa.Table":
    import pyarrow as pa

    schema = _schema(about)
    plain = list(schema)[:-1]
    columns = [pa.array([utf8(row[column.name]) for row in rows], column.type) for column in plain]
    flat = pa.array(np.concatenate([row["vector"] for row in rows]))
    return pa.table([*columns, pa.FixedSizeListArray.from_arrays(flat, about.width)], schema=schema)


def _as_rows(table: "pa.Table") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.drop_columns(["vector"]).to_pylist()
    vectors = np.stack(table["vector"].to_numpy()).astype(np.float32)
    return [{**row, "vector": vector} for row, vector in zip(rows, vectors, strict=True)]


def _replace(table: Any, names: list[str], rows: "pa.Table") -> None:
    """All that is known of the videos `names` becomes `rows`, in one commit."""
    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    merge.when_not_matched_by_source_delete(_one_of(names)).execute(rows)


def _states(table: Any, where: str) -> dict[str, str]:
    found = table.search().where(where).select(["item", "state"]).limit(None).to_arrow()
    return dict(zip(found["item"].to_pylist(), found["state"].to_pylist(), strict=True))


def _counts(pending: Any) -> dict[str, tuple[str, int]]:
    """By name: the state and the number of windows of the videos that were not finished."""
    found: dict[str, tuple[str, int]] = {}
    rows = pending.search().select(["item", "state"]).limit(None).to_arrow()
    for name, state in zip(rows["item"].to_pylist(), rows["state"].to_pylist(), strict=True):
        found[name] = (state, found.get(name, ("", 0))[1] + 1)
    return found


def _state(example: Example) -> str:
    """Changes when the file, or what is said about it, does. OSError where there is no file."""
    size, version = storage.stat(example.path)
    said = hashlib.blake2b(repr((example.label, example.text)).encode(), digest_size=4).hexdigest()
    return f"{size} {version} {said}"


def _date(path: str) -> str | None:
    """When the file was changed last, by this machine's clock; None for what has no time."""
    try:
        return datetime.datetime.fromtimestamp(os.stat(path).st_mtime).isoformat(timespec="seconds")
    except (OSError, ValueError):
        return None


def _times(value: str) -> tuple[datetime.datetime, datetime.datetime]:
    """(first moment, first moment after it) of a date in ISO 8601 with or without a time, by this machine's clock and without a
    zone, as dates are stored. ValueError or OverflowError where it is none."""
    start = datetime.datetime.fromisoformat(value.strip())
    parts = re.fullmatch(r"(\d{4}-?\d\d-?\d\d|\d{4}-?W\d\d(?:-?\d)?)(?:.(.*))?", value.strip(), re.DOTALL)
    if parts is None:
        raise ValueError(f"{value!r} is no date")
    if parts[2]:
        digits = sum(letter.isdigit() for letter in re.split("[Z+-]", parts[2])[0])
        lasts = datetime.timedelta(seconds={2: 3600, 4: 60}.get(digits, 1))
    else:
        lasts = datetime.timedelta(days=7 if re.fullmatch(r"\d{4}-?W\d\d", parts[1]) else 1)
    if start.tzinfo is not None:
        start = start.astimezone().replace(tzinfo=None)
    whole = start.replace(microsecond=0)
    return start, whole + lasts if whole < datetime.datetime.max - lasts else datetime.datetime.max


def _folder(place: str | Path) -> str:
    """The absolute path or address without a slash at its end."""
    return storage.absolute(place).rstrip("/") or "/"


def _lies_in(path: str, places: set[str]) -> bool:
    """Whether the path, or a folder that it lies in, is one of the places."""
    while path not in places:
        path, before = os.path.dirname(path), path
        if path == before:
            return False
    return True


def _is_file(path: str) -> bool:
    return os.path.isfile(path) if storage.is_plain(path) else _exists(path)


def _exists(path: str) -> bool:
    try:
        storage.stat(path)
    except OSError:
        return False
    return True


def _distinct(rows: list[dict[str, Any]], top: int) -> list[Hit]:
    """The best of the rows, nearest first, of those that overlap in one file only the best."""
    best: list[dict[str, Any]] = []
    overlapping: list[int] = []
    for row in rows:
        for number, other in enumerate(best):
            apart = row["start_seconds"] >= other["end_seconds"] or row["end_seconds"] <= other["start_seconds"]
            if row["path"] == other["path"] and (not apart or row["start_seconds"] == other["start_seconds"]):
                overlapping[number] += 1
                break
        else:
            if len(best) < top:
                best.append(row)
                overlapping.append(1)
    exists = {path: _exists(path) for path in {row["path"] for row in best}}
    return [
        Hit(
            path=row["path"],
            start_seconds=row["start_seconds"],
            end_seconds=row["end_seconds"],
            score=1 - row["_distance"],
            label=row["label"],
            text=row["text"],
            date=row["date"],
            shot=row["shot"],
            windows=count,
            gone=not exists[row["path"]],
        )
        for row, count in zip(best, overlapping, strict=True)
    ]


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


def _one_of(names: Sequence[str]) -> str:
    return f"item IN ({', '.join(_quoted(name) for name in names)})"


def _quoted(text: str) -> str:
    return "'" + str(utf8(text)).replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]

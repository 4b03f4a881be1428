"""How a library lies in LanceDB: its columns, how they are reached and written, and the approximate index beside them.

Two tables of the same columns: "windows" is what is searched, in "pending" the windows of a video that takes long wait until it
is whole. Up to EXACT_ROWS vectors every query looks at all of them, beyond that at the cells of an approximate index (see
docs/search.md for what was measured).
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tubelet import storage
from tubelet.errors import CheckpointError, DataError, MissingExtraError, utf8
from tubelet.records import ClipSpec
from tubelet.video.guard import forking
from tubelet.video.stream import Windows

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = "tubelet-search-1"
EXACT_ROWS = 50_000  # up to here a look at every vector takes no longer than a person notices
CELL_ROWS = 1000  # of a cell of the approximate index, about
PIECES = 100  # of a large table, written one after another, that are joined and indexed anew although their rows are few
KEPT = datetime.timedelta(hours=1)  # how long readers may hold on to what has been replaced


@dataclass(frozen=True)
class About:
    """What the vectors of a library are: made by which model (name, fingerprint of its weights, where it lay, in which
    precision), of which clips and windows, of which width; settings: hash of the model's name and options, "" in libraries of
    before it was kept. Vectors of another space cannot be compared with them."""

    model: str
    fingerprint: str
    model_path: str
    width: int
    clip: ClipSpec
    windows: Windows
    settings: str = ""
    precision: str = "fp32"

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self), "clip": self.clip.to_dict()})

    @classmethod
    def from_json(cls, text: str) -> "About":
        values = json.loads(text)
        if values.pop("format", None) != FORMAT:
            raise DataError("the library was written by another version of tubelet: index the folder again")
        return cls(**{**values, "clip": ClipSpec.from_dict(values["clip"]), "windows": Windows(**values["windows"])})


def connect(uri: str) -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise MissingExtraError("a library needs LanceDB: pip install 'tubelet[search]'") from error
    if utf8(uri) != uri:
        raise CheckpointError(f"{uri} is not UTF-8, and LanceDB takes no other name: choose another")
    try:
        with forking:
            return lancedb.connect(uri, storage_options=_storage_options() if storage.is_remote(uri) else None)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{uri} cannot be opened: {first_line(error)}") from error


def _storage_options() -> dict[str, str]:
    """What the usual AWS_... variables of the environment say, as LanceDB calls it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return {}
    return {"endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}


def tables(database: Any) -> list[str]:
    with reading(database.uri):
        return list(database.list_tables().tables)


@contextlib.contextmanager
def reading(uri: str) -> Iterator[None]:
    """For calls of LanceDB: no worker is made meanwhile, and what it raises for a damaged library, or one out of reach, becomes a
    CheckpointError."""
    try:
        with forking:
            yield
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{uri} cannot be read: {first_line(error)}") from error


def schema(about: About) -> "pa.Schema":
    import pyarrow as pa

    texts = ("id", "item", "state", "per", "path", "label", "text", "date")
    columns = [(name, pa.string()) for name in texts]
    columns += [("start_seconds", pa.float64()), ("end_seconds", pa.float64()), ("shot", pa.int32())]
    columns += [("vector", pa.list_(pa.float32(), about.width))]
    return pa.schema(columns, metadata={"tubelet.search": about.to_json()})


def replace(table: Any, names: list[str], rows: "pa.Table") -> None:
    """All that is known of the videos `names` becomes `rows`, in one commit."""
    merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
    merge.when_not_matched_by_source_delete(one_of(names)).execute(rows)


def states(table: Any, where: str) -> dict[str, str]:
    found = table.search().where(where).select(["item", "state"]).limit(None).to_arrow()
    return dict(zip(found["item"].to_pylist(), found["state"].to_pylist(), strict=True))


def paths(table: Any, where: str) -> dict[str, str]:
    found = table.search().where(where).select(["item", "path"]).limit(None).to_arrow()
    return dict(zip(found["item"].to_pylist(), found["path"].to_pylist(), strict=True))


def counts(pending: Any) -> dict[str, tuple[str, int]]:
    """By name: the state and the number of windows of the videos that were not finished."""
    found: dict[str, tuple[str, int]] = {}
    rows = pending.search().select(["item", "state"]).limit(None).to_arrow()
    for name, state in zip(rows["item"].to_pylist(), rows["state"].to_pylist(), strict=True):
        found[name] = (state, found.get(name, ("", 0))[1] + 1)
    return found


def tidy(table: Any, pending: Any) -> None:
    """Join small pieces, and make the approximate index, anew when too many rows have come since: until then they are
    looked at one by one."""
    rows = table.count_rows()
    many = rows > EXACT_ROWS
    if many and any(one.name == "vector_idx" for one in table.list_indices()):
        many = table.index_stats("vector_idx").num_unindexed_rows > min(EXACT_ROWS // 2, rows // 10)
        many = many or table.stats()["fragment_stats"]["num_fragments"] > PIECES
        if not many:
            return
    table.optimize(cleanup_older_than=KEPT)
    if many:  # afterwards: `optimize` joins cells until four are left of a hundred
        make_cells(table, rows)
    pending.optimize(cleanup_older_than=KEPT)


def make_cells(table: Any, rows: int) -> None:
    """The approximate index of the vectors, and one of the levels."""
    from lancedb.index import Bitmap, IvfSq

    config = IvfSq(distance_type="cosine", num_partitions=max(1, rows // CELL_ROWS))
    table.create_index("vector", config=config, name="vector_idx", replace=True)
    table.create_index("per", config=Bitmap(), name="per_idx", replace=True)


def one_of(names: Sequence[str]) -> str:
    return f"item IN ({', '.join(quoted(name) for name in names)})"


def quoted(text: str) -> str:
    return "'" + str(utf8(text)).replace("'", "''") + "'"


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]

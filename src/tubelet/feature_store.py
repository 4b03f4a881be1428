"""Vectors of videos in Parquet files that say which model made them: written as they come, read back to be compared."""

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tubelet import storage
from tubelet.datasets._files import check_target
from tubelet.errors import CheckpointError, DataError, utf8
from tubelet.features import Feature, Per, embed, fingerprint
from tubelet.models._model import Model
from tubelet.records import Example

if TYPE_CHECKING:
    import pyarrow as pa


def schema(model: Model, per: Per = "video") -> "pa.Schema":
    """Columns id, path, start_seconds, end_seconds, vector (fixed-size list of float32).

    Its metadata holds the model's name, fingerprint and precision, its ClipSpec and `per`.
    """
    import pyarrow as pa

    about = {
        "model": model.name,
        "fingerprint": fingerprint(model),
        "precision": model.precision,
        "per": per,
        "clip": json.dumps(model.spec.to_dict()),
    }
    columns = [
        ("id", pa.string()),
        ("path", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("vector", pa.list_(pa.float32(), model.width)),
    ]
    return pa.schema(columns, metadata={f"tubelet.{k}": v for k, v in about.items()})


def embed_table(model: Model, examples: Sequence[Example], per: Per = "video", **settings: Any) -> "pa.Table":
    """What `embed` gives with the same `settings`, even nothing, as one table (see `schema`)."""
    return as_table(list(embed(model, examples, per, **settings)), schema(model, per))


def as_table(features: Sequence[Feature], schema: "pa.Schema") -> "pa.Table":
    """Features, even none, as rows of the table that `schema` describes."""
    import pyarrow as pa

    *plain, last = schema
    columns = [pa.array([utf8(getattr(row, field.name)) for row in features], field.type) for field in plain]
    flat = torch.stack([row.vector for row in features]).flatten() if features else torch.empty(0)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat.numpy()), last.type.list_size)
    return pa.table([*columns, vectors], schema=schema)


def write_parquet(path: str | Path, features: Iterable[Feature], model: Model, per: Per = "video", rows: int = 1024) -> int:
    """Write features to a Parquet file (see `schema`) as they come, `rows` to a group; gives the number of rows.

    The file appears whole or not at all. DataError when there is no feature, CheckpointError where nothing can be written.
    """
    import pyarrow.parquet as pq

    path, columns = Path(path), schema(model, per)
    check_target(path)
    waiting = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count, held = 0, []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(waiting, "wb") as file, pq.ParquetWriter(file, columns) as writer:  # Arrow takes no name that is not UTF-8
            for row in features:
                held.append(row)
                count += 1
                if len(held) == rows:
                    writer.write_table(as_table(held, columns))
                    held = []
            if held:
                writer.write_table(as_table(held, columns))
        if count == 0:
            raise DataError("no video could be read, so there is no feature to write")
        os.replace(waiting, path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; choose a folder with room, that you may write to") from error
    finally:
        with contextlib.suppress(OSError):
            waiting.unlink()
    return count


@dataclass(frozen=True)
class Stored:
    """Features that were written: row i is vectors[i], float32 (N,D), of the video ids[i] at paths[i].

    fingerprint and model say what made them. Several rows have one id where there is one for each clip. seconds float64 (N,2): of
    the windows of a library, from when to when each is.
    """

    ids: tuple[str, ...]
    paths: tuple[str, ...]
    vectors: Tensor
    fingerprint: str
    model: str
    seconds: Tensor | None = None


def read(path: str | Path) -> Stored:
    """What `write_parquet` wrote, a folder of partitions that `tubelet embed --engine` filled, or the windows of a library that
    `tubelet index` made.

    DataError where there are no features, an unfinished folder or values that are not finite; CheckpointError where parts of a
    folder are of different models.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if is_library(path):
        from tubelet.search import Index

        stored = Index.open(path).windows()[0]
        if not stored.ids:
            raise DataError(f"{path} is empty: no video has been indexed yet")
        return stored
    place = Path(path)
    if not place.exists():
        raise DataError(
            f"{place} does not exist: give what `tubelet embed` wrote, a Parquet file or a folder of them, or a library of "
            "`tubelet index`"
        )
    files = [place]
    if place.is_dir():
        files = sorted((place / "results").glob("part-*.parquet"))
        done = _partitions(place)
        if not files or len(files) < (done or 0):
            raise DataError(f"{place} holds {len(files)} of {done or 'no'} partitions: repeat its `tubelet embed` command")
    tables, about = [], set()
    for part in files:
        try:
            with open(part, "rb") as file:
                table = pq.read_table(file)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{part} cannot be read as Parquet: {error}") from error
        known = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if "tubelet.fingerprint" not in known or "vector" not in table.column_names:
            raise DataError(
                f"{part} holds no features: wanted what `tubelet embed` writes, with the columns id, path and vector"
            )
        about.add((known["tubelet.fingerprint"], known["tubelet.model"]))
        tables.append(table)
    if len(about) > 1:
        raise CheckpointError(
            f"{place} mixes features of different models ({', '.join(sorted(f for f, _ in about))}): embed anew"
        )
    ((made_by, model),) = about
    table = pa.concat_tables(tables)
    width = table.schema.field("vector").type.list_size
    vectors = torch.from_numpy(table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).copy()).view(-1, width)
    if not torch.isfinite(vectors).all():
        raise DataError(f"{place} holds features that are not finite: the model that made them is broken")
    return Stored(tuple(table["id"].to_pylist()), tuple(table["path"].to_pylist()), vectors, made_by, model)


def is_library(path: str | Path) -> bool:
    """Whether a path looks like a library of `tubelet index`: an address, or a folder with its table."""
    return storage.is_remote(path) or (Path(path) / "windows.lance").is_dir()


def _partitions(folder: Path) -> int | None:
    """How many partitions a folder has when it is complete; None where its manifest does not say."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return -(-int(manifest["videos"]) // int(manifest["partition_size"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Files of vectors: whole or not at all, read back as they were with the model that made them, by whatever name."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tubelet import datasets, feature_store, features, models
from tubelet.errors import CheckpointError, DataError
from tubelet.models._model import Model
from tubelet.records import ClipSpec, Example
from tubelet.timeline import check_suffix
from tubelet.train import folder

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(1)
    return models.build("videomae_tiny", SPEC, depth=2, patch=8).eval()


@pytest.fixture(scope="module")
def examples(motion_folder: Path) -> tuple[Example, ...]:
    return tuple(e for e in datasets.read(motion_folder).examples if e.split == "val")


def test_what_is_written_is_read_back_with_the_model_and_clip_it_came_from(
    model: Model, examples: tuple[Example, ...], tmp_path: Path
) -> None:
    path = tmp_path / "new" / "features.parquet"
    rows = list(features.embed(model, examples, "clip", clips=2))
    assert feature_store.write_parquet(path, iter(rows), model, "clip", rows=3) == len(rows)
    table = pq.read_table(path)
    assert table.column_names == ["id", "path", "start_seconds", "end_seconds", "vector"]
    assert table["id"].to_pylist() == [row.id for row in rows]
    np.testing.assert_array_equal(np.stack(table["vector"].to_pylist()), torch.stack([row.vector for row in rows]))
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert about["tubelet.model"] == "videomae_tiny" and about["tubelet.per"] == "clip"
    assert about["tubelet.fingerprint"] == features.fingerprint(model)
    assert ClipSpec.from_dict(json.loads(about["tubelet.clip"])) == SPEC
    assert [p.name for p in path.parent.iterdir()] == ["features.parquet"], "nothing temporary is left"


@pytest.mark.parametrize("name", [b"not utf-8 \xff", b"s3:not an address", b"step=10", "füße".encode()])
def test_a_file_may_have_any_name(model: Model, examples: tuple[Example, ...], tmp_path: Path, name: bytes) -> None:
    rows = list(features.embed(model, examples[:2], clips=1))
    path = tmp_path / os.fsdecode(name) / os.fsdecode(name + b".parquet")
    feature_store.write_parquet(path, rows, model)
    stored = feature_store.read(path)
    assert stored.ids == tuple(row.id for row in rows) and stored.paths == tuple(row.path for row in rows)
    assert torch.equal(stored.vectors, torch.stack([row.vector for row in rows]))
    assert (stored.model, stored.fingerprint) == ("videomae_tiny", features.fingerprint(model))


def test_an_old_file_survives_a_failed_write(model: Model, examples: tuple[Example, ...], tmp_path: Path) -> None:
    path = tmp_path / "features.parquet"
    feature_store.write_parquet(path, features.embed(model, examples), model)
    before = path.read_bytes()

    def breaks():
        yield from features.embed(model, examples[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feature_store.write_parquet(path, breaks(), model)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_is_said(model: Model, examples: tuple[Example, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "bad.mp4").write_text("not a video")
    with pytest.raises(CheckpointError, match="cannot write"):
        feature_store.write_parquet(tmp_path / "file" / "x.parquet", features.embed(model, examples), model)
    with pytest.raises(DataError, match="no video could be read"):
        feature_store.write_parquet(
            tmp_path / "x.parquet", features.embed(model, [Example(str(tmp_path / "bad.mp4"), "bad")]), model
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.mp4", "file"]


def test_what_holds_no_features_is_said(tmp_path: Path) -> None:
    (tmp_path / "some.parquet").write_text("x")
    with pytest.raises(DataError, match="some.parquet cannot be read as Parquet"):
        feature_store.read(tmp_path / "some.parquet")
    with pytest.raises(DataError, match="give what `tubelet embed` wrote"):
        feature_store.read(tmp_path / "nothing")


def test_partitions_are_read_when_they_are_complete(model: Model, examples: tuple[Example, ...], tmp_path: Path) -> None:
    folder, whole = tmp_path / "parts", tmp_path / "features.parquet"
    count = feature_store.write_parquet(whole, features.embed(model, examples, clips=1), model)
    (folder / "results").mkdir(parents=True)
    shutil.copy(whole, folder / "results" / "part-00000.parquet")
    (folder / "manifest.json").write_text(json.dumps({"videos": 8, "partition_size": 4}))
    with pytest.raises(DataError, match="holds 1 of 2 partitions: repeat its `tubelet embed` command"):
        feature_store.read(folder)
    shutil.copy(whole, folder / "results" / "part-00001.parquet")
    assert len(feature_store.read(folder).ids) == 2 * count


@pytest.mark.parametrize("kind", ["pipe", "stream", "video"])
def test_what_is_no_file_of_features_keeps_its_place(model: Model, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.mp4" if kind == "video" else "out")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "stream":
        path.symlink_to("/proc/self/fd/1")  # as /dev/stdout is
    else:
        path.write_bytes(b"of a year ago")
    before = path.lstat()
    for write in (
        lambda: feature_store.write_parquet(path, [], model),
        lambda: folder.write(path, ""),
        lambda: check_suffix(path),
    ):
        with pytest.raises(CheckpointError, match="is a video, and it is not overwritten|is a device or a pipe: name a file"):
            write()
    assert path.lstat() == before and list(tmp_path.iterdir()) == [path]

"""Packed videos: the same Examples, clips and batches as the folder, in tars that everybody reads."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet import datasets, storage
from tubelet.cli import main
from tubelet.datasets import shards
from tubelet.errors import ConfigError, DataError, VideoError
from tubelet.inspect_data import inspect
from tubelet.loading import LoaderConfig, TrainLoader
from tubelet.pack import pack, pack_many
from tubelet.records import ClipSpec
from tubelet.video.augment import AugmentConfig
from tubelet.video.decode import decode, probe
from tubelet.video.write import write_video
from tubelet.views import load_views

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)


@pytest.fixture(scope="module")
def packed(motion_folder, tmp_path_factory) -> Path:
    """The 16 videos of the motion set, about three to a shard."""
    out = tmp_path_factory.mktemp("packed") / "out"
    sizes = [path.stat().st_size for path in motion_folder.rglob("*.mp4")]
    done = pack(motion_folder, out, sum(sizes) // 5, workers=2)
    assert (done.videos, done.examples, done.bytes, done.left_out) == (16, 16, sum(sizes), ())
    assert done.shards == done.new == len(list(out.glob("shard-*.tar"))) >= 5
    return out


def described(example):
    return replace(example, path="")


def test_shards_are_the_data_set_they_were_made_from(packed, motion_folder):
    before, after = datasets.read(motion_folder), datasets.read(packed)
    assert [described(e) for e in after.examples] == [described(e) for e in before.examples]
    assert replace(after, examples=()) == replace(before, examples=())
    for ours, theirs in zip(after.examples, before.examples, strict=True):
        with storage.open_bytes(ours.path) as file:
            assert file.read() == Path(theirs.path).read_bytes()
        assert replace(probe(ours.path), path="") == replace(probe(theirs.path), path="")
    assert sorted(p.name for p in packed.iterdir() if p.suffix != ".tar") == [".lock", "pack.json", "shards.parquet"]


def test_tar_reads_them_in_the_form_of_webdataset(packed, motion_folder, tmp_path):
    names, labels, sums = [], {}, {}
    for shard in sorted(packed.glob("*.tar")):
        listed = subprocess.run(["tar", "-tf", shard], capture_output=True, text=True, check=True).stdout.split()
        subprocess.run(["tar", "-xf", shard, "-C", tmp_path], check=True)
        assert all(a.removesuffix(".mp4") == b.removesuffix(".json") for a, b in zip(listed[::2], listed[1::2], strict=True))
        names += listed[::2]
    assert names == [f"{number:08d}.mp4" for number in range(16)]
    for name in names:
        facts = json.loads((tmp_path / name).with_suffix(".json").read_text())
        labels[facts["id"]] = facts.get("label")
        sums[facts["id"]] = facts["checksum"]
        data = (tmp_path / name).read_bytes()
        assert data == (motion_folder / facts["id"]).read_bytes()
        assert facts["checksum"] == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert labels == {example.id: example.label for example in datasets.read(motion_folder).examples}


@pytest.mark.parametrize("cache", ["ram", "off"])
def test_training_batches_are_those_of_the_folder(packed, motion_folder, cache):
    """Of both ranks, over an epoch's end, and begun in the middle."""
    augment = AugmentConfig(flip=False)

    def batches(path, rank, start, workers):
        config = LoaderConfig(batch_size=3, workers=workers, cache=cache)
        return list(TrainLoader(datasets.read(path), SPEC, augment, config, 7, rank, 2).batches(start, 5))

    for rank in (0, 1):
        ours, theirs = batches(packed, rank, 0, 2), batches(motion_folder, rank, 0, 0)
        assert [batch.ids for batch in ours] == [batch.ids for batch in theirs]
        assert all(torch.equal(a.frames, b.frames) for a, b in zip(ours, theirs, strict=True))
        later = batches(packed, rank, 3, 0)
        assert all(torch.equal(a.frames, b.frames) for a, b in zip(later, theirs[3:], strict=True))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".mov"])
def test_every_container_is_decoded_in_a_tar(suffix, tmp_path):
    """Those whose packets are read from the file, and those that are demuxed or decoded from their beginning."""
    (tmp_path / "videos").mkdir()
    frames = torch.randint(0, 256, (12, 3, 16, 24), dtype=torch.uint8)
    write_video(tmp_path / "first.mp4", frames, fps=10)
    path = tmp_path / "videos" / f"b{suffix}"
    remux(tmp_path / "first.mp4", path)
    shutil.copy(tmp_path / "first.mp4", tmp_path / "videos" / "a.mp4")
    pack(tmp_path / "videos", tmp_path / "out")
    example = datasets.read(tmp_path / "out").examples[1]
    assert example.id == f"b{suffix}"
    ours, theirs = decode(example.path, [9, 2, 2]), decode(path, [9, 2, 2])
    assert torch.equal(ours.frames, theirs.frames) and torch.equal(ours.seconds, theirs.seconds)
    assert torch.equal(load_views(example, SPEC, 2)[0], load_views(path, SPEC, 2)[0])


def remux(source: Path, target: Path) -> None:
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)


def test_a_table_keeps_its_parts_texts_and_groups(motion_folder, tmp_path):
    names = sorted(path.relative_to(motion_folder).as_posix() for path in motion_folder.rglob("*.mp4"))
    rows = [
        f"{names[0]},a left,x,0,0.5,train,g",
        f"{names[1]},b,,,,val,",
        f"{names[0]},b,y,0.5,,train,g",
        "gone.mp4,a left,,,,,",
    ]
    table = motion_folder.parent / f"{tmp_path.name}.csv"
    table.write_text("path,label,text,start,end,split,group\n" + "\n".join(f"{motion_folder.name}/{r}" for r in rows) + "\n")
    done = pack(table, tmp_path / "out")
    assert (done.videos, done.examples) == (2, 3) and [reason for _, reason in done.left_out] == ["no such file or directory"]
    before, after = datasets.read(table), datasets.read(tmp_path / "out")
    assert [described(e) for e in after.examples] == [described(e) for e in before.examples[:3]]
    assert after.classes == before.classes and after.may_flip is before.may_flip is False
    (tmp_path / "out" / shards.INDEX).unlink()
    (tmp_path / "out" / shards.JOB).unlink()
    scanned = {e.id: described(e) for e in datasets.read(tmp_path / "out").examples}
    assert scanned == {e.id: described(e) for e in before.examples[:3]}


def test_tars_of_others_are_gone_through(motion_folder, tmp_path):
    videos = sorted(motion_folder.rglob("*.mp4"))[:3]
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name, members in {
        "a.tar": {
            "x/1.mp4": videos[0],
            "x/1.cls": b"4",
            "x/1.txt": b"a caption",
            "2.mp4": videos[1],
            "2.json": b'{"label": "run"}',
        },
        "b.tar": {"1.thumb.jpg": b"123", "1.mp4": videos[2]},
    }.items():
        with tarfile.open(folder / name, "w") as tar:
            for member, content in members.items():
                source = tmp_path / "member"
                source.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
                tar.add(source, member)
    dataset = datasets.read(folder)
    found = [(example.id, example.label, example.text) for example in dataset.examples]
    assert found == [("a/x/1.mp4", "4", "a caption"), ("a/2.mp4", "run", None), ("b/1.mp4", None, None)]
    assert dataset.classes == ("4", "run")
    assert [example.id for example in datasets.read(folder / "a.tar").examples] == ["x/1.mp4", "2.mp4"]
    for example, video in zip(dataset.examples, videos, strict=True):
        np.testing.assert_array_equal(decode(example.path).frames, decode(video).frames)


def test_packing_goes_on_where_it_was_stopped(motion_folder, packed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(packed, out)
    size = json.loads((out / shards.JOB).read_text())["shard_bytes"]
    expected = {path.name: path.read_bytes() for path in out.glob("shard-*.tar")}
    index = datasets.read(out)
    (out / shards.INDEX).unlink()
    with pytest.raises(DataError, match=r"out is not finished: repeat `tubelet prepare .* --pack`"):
        datasets.read(out)
    (out / "shard-00001.tar").unlink()
    damaged = bytearray(expected["shard-00002.tar"])
    damaged[700] ^= 1
    (out / "shard-00002.tar").write_bytes(damaged)
    (out / "shard-00003.tar").write_bytes(expected["shard-00003.tar"][:2000])
    (out / ".shard-00001.tar.tmp").write_bytes(b"half")
    kept = (out / "shard-00000.tar").stat().st_mtime_ns
    assert pack(motion_folder, out, size).new == 3
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == expected
    assert (out / "shard-00000.tar").stat().st_mtime_ns == kept and datasets.read(out) == index
    assert not list(out.glob(".*.tmp"))


def test_what_does_not_fit_is_refused(motion_folder, tmp_path, capsys):
    videos = tmp_path / "videos"
    shutil.copytree(motion_folder / "unlabelled", videos)
    out = tmp_path / "out"
    assert main(["prepare", str(videos), str(out), "--pack", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["shards"] == 1
    with pytest.raises(ConfigError, match="packed from another shard size"):
        pack(videos, out, 1000)
    os.utime(sorted(videos.iterdir())[0], ns=(1, 1))
    with pytest.raises(ConfigError, match="packed from videos that have changed since"):
        pack_many([videos], out, 512_000_000)
    with pytest.raises(DataError, match="did not write: choose a new folder"):
        pack(videos, videos)
    assert main(["prepare", str(videos), str(tmp_path / "new"), "--pack", "--crf", "20"]) == 2
    assert "--pack copies videos as they are" in capsys.readouterr().err
    tar = out / "shard-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-20_000])
    with pytest.raises(DataError, match=r"shard-00000.tar is cut off .* copy it again"):
        datasets.read(out)
    tar.unlink()
    with pytest.raises(DataError, match=r"shard-00000.tar is missing: copy it again"):
        datasets.read(out)
    (tmp_path / "text.tar").write_text("not a tar, but long enough to be looked at\n" * 100)
    with pytest.raises(DataError, match="cannot be read as a tar"):
        datasets.read(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    with pytest.raises(DataError, match="holds no video: wanted members"):
        datasets.read(tmp_path / "empty.tar")


@pytest.mark.parametrize("content", ["{", "[1]", "", "[" * 100_000, b"\xff"])
def test_a_damaged_job_is_one_line(content, motion_folder, tmp_path, capsys):
    out = tmp_path / "out"
    pack(motion_folder / "unlabelled", out)
    (out / shards.INDEX).unlink()
    (out / shards.JOB).write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (["inspect", str(out)], ["prepare", str(motion_folder / "unlabelled"), str(out), "--pack"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {out / shards.JOB} is damaged (") and error.count("\n") == 1
        assert f"remove {out}, and repeat `tubelet prepare --pack`" in error


def test_names_that_are_not_utf8_are_packed_under_escaped_ids(motion_folder, tmp_path, capsys):
    videos, out = tmp_path / "videos", tmp_path / os.fsdecode(b"out\xff")
    videos.mkdir()
    content = {
        os.fsdecode(b"%d\xff.mp4" % n): path.read_bytes() for n, path in enumerate(sorted(motion_folder.rglob("*.mp4"))[:3])
    }
    for name, data in content.items():
        (videos / name).write_bytes(data)
    os.mkfifo(videos / "pipe.mp4")  # opening it would wait for ever
    (videos / os.fsdecode(b"gone\xff.mp4")).symlink_to("nowhere.mp4")
    for _ in range(2):  # the second finds all of it done
        assert main(["prepare", str(videos), str(out), "--pack"]) == 2
        said = capsys.readouterr()
        assert "pipe.mp4: is a pipe" in said.err and "gone\\udcff.mp4: no such file" in said.err
        assert "3 videos (3 examples" in said.out
    assert ", 0 of them new" in said.out
    indexed = datasets.read(out)
    assert [example.id for example in indexed.examples] == ["0\\udcff.mp4", "1\\udcff.mp4", "2\\udcff.mp4"]
    for example, data in zip(indexed.examples, content.values(), strict=True):
        with storage.open_bytes(example.path) as file:
            assert file.read() == data
    (out / shards.INDEX).unlink()
    (out / shards.JOB).unlink()
    assert datasets.read(out).examples == indexed.examples  # the tar alone names them the same


def test_a_video_whose_bytes_have_changed_since_is_said_to_have(motion_folder, tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(motion_folder / "unlabelled", videos)
    (videos / "broken.mp4").write_text("not a video, but packed like this")
    pack(videos, out)
    example = datasets.read(out).examples[0]
    assert example.id == "00000.mp4"
    place = re.fullmatch(r"(?P<tar>.*)::.*@(?P<offset>\d+)[+](?P<size>\d+)", example.path)
    tar, offset, size = Path(place["tar"]), int(place["offset"]), int(place["size"])
    data = bytearray(tar.read_bytes())
    data[offset : offset + size] = bytes(255 - byte for byte in data[offset : offset + size])
    tar.write_bytes(data)
    reasons = dict(inspect(out, SPEC).unreadable)
    assert list(reasons) == ["00000.mp4", "broken.mp4"]
    assert "its bytes are not those that were packed: copy the shard again, or repeat" in reasons["00000.mp4"]
    assert "packed" not in reasons["broken.mp4"]
    assert pack(videos, out).new == 1  # which mends it
    assert list(dict(inspect(out, SPEC).unreadable)) == ["broken.mp4"]


def test_a_broken_video_in_a_tar_is_named_like_any_other(motion_folder, tmp_path):
    (tmp_path / "videos").mkdir()
    whole = sorted(motion_folder.rglob("*.mp4"))[0].read_bytes()
    for name, data in {"cut.mp4": whole[: len(whole) // 2], "empty.mp4": b"", "good.mp4": whole, "same.mp4": whole}.items():
        (tmp_path / "videos" / name).write_bytes(data)
    pack(tmp_path / "videos", tmp_path / "out")
    dataset = datasets.read(tmp_path / "out")
    found = inspect(dataset, SPEC, "out")
    reasons = dict(found.unreadable)
    assert list(reasons) == ["cut.mp4", "empty.mp4"] and found.duplicates == [["good.mp4", "same.mp4"]]
    assert "the file is cut off" in reasons["cut.mp4"] and "the file is empty" in reasons["empty.mp4"]
    with pytest.raises(VideoError, match=r"shard-00000.tar::00000000.mp4@\d+\+\d+: the file is cut off"):
        probe(dataset.examples[0].path)
    gone = storage.part_of(str(tmp_path / "none.tar"), "a.mp4", 512, 10)
    with pytest.raises(VideoError, match="no such file"):
        probe(gone)
    with pytest.raises(VideoError, match="the tar is cut off"):
        probe(storage.part_of(str(tmp_path / "out" / "shard-00000.tar"), "a.mp4", 512, 10**9))

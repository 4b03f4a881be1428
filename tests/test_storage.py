"""Tables, videos and shards behind addresses: a real S3 server on this machine, in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tubelet import datasets, models, storage
from tubelet.cli import main
from tubelet.errors import ConfigError, DataError, MissingExtraError, VideoError
from tubelet.pack import pack
from tubelet.records import ClipSpec
from tubelet.video import guard
from tubelet.video.decode import decode, probe
from tubelet.weights.save import save

SPEC = ClipSpec(frames=4, stride_frames=2, size=32)
SIZES = {"depth": 1, "patch": 8, "width": 48, "heads": 2, "decoder_width": 24, "decoder_heads": 2, "decoder_depth": 1}

SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""


@pytest.fixture(scope="module")
def bucket(motion_folder, tmp_path_factory) -> Iterator[str]:
    """s3://videos with the training half of the motion set as shards/, a table.csv beside single videos, and a broken one."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'tubelet[s3]'")
    pytest.importorskip("moto", reason="moto, an S3 server for tests, is not installed: pip install 'moto[server]'")
    pytest.importorskip("flask", reason="moto's server is not installed: pip install 'moto[server]'")
    with pytest.MonkeyPatch.context() as patch:
        process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        try:
            patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{int(process.stdout.readline())}")
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "test")
            patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
            out = tmp_path_factory.mktemp("packed") / "shards"
            pack(motion_folder / "train", out, 20_000)
            system = s3fs.S3FileSystem()
            system.mkdir("videos")
            system.put(str(out), "videos/shards", recursive=True)
            for number, path in enumerate(sorted((motion_folder / "val").rglob("*.mp4"))[:2]):
                system.put(str(path), f"videos/plain/{number}.mp4")
            system.pipe("videos/plain/broken.mp4", b"not a video")
            system.pipe("videos/table.csv", b"path,label\nplain/0.mp4,a\nplain/1.mp4,b\nplain/broken.mp4,b\nplain/gone.mp4,a\n")
            yield "s3://videos"
        finally:
            process.communicate("stop\n")


def tubelet(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tubelet", *map(str, words)], capture_output=True, text=True, timeout=250)


def test_clips_of_a_bucket_are_those_of_the_files(bucket, motion_folder):
    remote, local = datasets.read(f"{bucket}/shards"), datasets.read(motion_folder / "train")
    assert [e.id for e in remote.examples] == [e.id for e in local.examples] and remote.classes == local.classes
    for ours, theirs in zip(remote.examples[:3], local.examples[:3], strict=True):
        assert torch.equal(decode(ours.path, [7, 1]).frames, decode(theirs.path, [7, 1]).frames)
    rows = datasets.read(f"{bucket}/table.csv").examples
    assert [row.path for row in rows[:2]] == [f"{bucket}/plain/0.mp4", f"{bucket}/plain/1.mp4"]
    plain = sorted((motion_folder / "val").rglob("*.mp4"))
    assert torch.equal(decode(rows[0].path).frames, decode(plain[0]).frames)
    with pytest.raises(VideoError, match=r"s3://videos/plain/gone.mp4: s3://videos/plain/gone.mp4 does not exist"):
        probe(rows[3].path)
    with pytest.raises(DataError, match="s3://videos/nowhere holds no shards.parquet"):
        datasets.read(f"{bucket}/nowhere")


def test_a_run_and_its_embeddings_from_a_bucket(bucket, tmp_path):
    small = [f"--model.options.{name}={value}" for name, value in SIZES.items()]
    clip = ["--clip.frames", "4", "--clip.stride-frames", "2", "--clip.size", "32"]
    run = ["--optim.epochs", "1", "--loader.batch-size", "4", "--loader.repeats", "1", "--loader.workers", "1"]
    done = tubelet(
        "pretrain", f"{bucket}/shards", "--out", tmp_path / "run", *clip, *run, "--model.name", "videomae_tiny", *small
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 2
    words = ["--engine", "local", "--clips", "1", "--out", tmp_path / "out", "--workers", "1"]
    done = tubelet("embed", tmp_path / "run", f"{bucket}/table.csv", *words)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(tmp_path / "out" / "results")["path"].to_pylist() == [f"{bucket}/plain/{i}.mp4" for i in (0, 1)]
    errors = pq.read_table(tmp_path / "out" / "errors").to_pylist()
    assert [row["id"] for row in errors] == ["plain/broken.mp4", "plain/gone.mp4"]


def test_only_what_is_asked_for_is_read(bucket):
    """Of a large object a range, not the whole."""
    import s3fs

    s3fs.S3FileSystem().pipe("videos/large.bin", bytes(range(256)) * (1 << 16))
    with storage.open_bytes(f"{bucket}/large.bin") as file:
        file.seek(10_000_000)
        assert file.read(3) == bytes([128, 129, 130])
        read = file.file.cache.total_requested_bytes  # type: ignore[attr-defined]
    assert read < 3 * storage.BLOCK_BYTES


def test_every_file_system_of_fsspec_can_be_read(motion_folder, tmp_path):
    """One that lives in memory: needs no package and no server."""
    import fsspec

    pack(motion_folder / "val", tmp_path / "shards")
    guard.end_idle()  # the processes that read files are copies of this one: those made before know nothing of what is put here
    fsspec.filesystem("memory").put(str(tmp_path / "shards"), "/packed", recursive=True)
    remote, local = datasets.read("memory://packed").examples, datasets.read(motion_folder / "val").examples
    assert [e.id for e in remote] == [e.id for e in local]
    assert torch.equal(decode(remote[2].path, [3]).frames, decode(local[2].path, [3]).frames)
    save(models.build("videomae_tiny", SPEC, **SIZES), tmp_path / "model")
    assert main(["embed", str(tmp_path / "model"), "memory://packed", "--engine", "local", "--out", str(tmp_path / "out")]) == 0
    assert pq.read_table(tmp_path / "out" / "results")["id"].to_pylist() == [e.id for e in local]


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(ConfigError, match="addresses begin with s3://"):
        storage.stat("nosuch://a/b")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtraError, match=r"gs://bucket/x.mp4 needs a package: pip install gcsfs"):
        storage.stat("gs://bucket/x.mp4")

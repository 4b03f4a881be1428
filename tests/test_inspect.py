"""What `tubelet inspect` finds, on sets made to hold each fault, through the library and as a real command."""

import json
import subprocess
import sys
from pathlib import Path

import av
import pytest
import torch

from tubelet.cli import main
from tubelet.errors import DataError
from tubelet.inspect_data import inspect
from tubelet.records import ClipSpec
from tubelet.video.write import write_video

SPEC = ClipSpec(frames=4, stride_frames=2, size=16)


def video(path: Path, frames: int = 12, seed: int = 0, size: int = 16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    write_video(path, pixels, fps=10)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with one unreadable file, one too short, one twice on both sides of the split, one group on both
    sides."""
    folder = tmp_path_factory.mktemp("faulty")
    for i in range(6):
        video(folder / f"{i}.mp4", frames=4 if i == 3 else 12, seed=i, size=32 if i == 4 else 16)
    (folder / "broken.mp4").write_text("no video")
    (folder / "copy.mp4").write_bytes((folder / "0.mp4").read_bytes())
    (folder / "labels.csv").write_text(
        "path,label,group,split\n0.mp4,a,g0,train\n1.mp4,b,g1,train\n2.mp4,a,g1,val\n3.mp4,b,g3,train\n4.mp4,a,g4,train\n"
        "5.mp4,b,g5,val\nbroken.mp4,a,g6,train\ncopy.mp4,b,g7,val\n"
    )
    return folder


def test_every_fault_is_found(faulty):
    found = inspect(faulty, SPEC)
    assert (found.examples, found.readable, found.groups) == (8, 7, 7)
    assert found.classes == {"a": 4, "b": 4}
    assert found.splits == {"train": {"a": 3, "b": 2}, "val": {"a": 1, "b": 2}}
    assert [id for id, _ in found.unreadable] == ["broken.mp4"]
    assert found.too_short == [("3.mp4", 4)]
    assert found.duplicates == [["0.mp4", "copy.mp4"]]
    assert found.straddling == [
        ("file", str(faulty / "0.mp4"), ["train", "val"]),
        ("group", "g1", ["train", "val"]),
    ]
    assert found.sizes == {"16x16": 6, "32x32": 1} and found.codecs == {"h264": 7}
    assert found.frame_count is not None and (found.frame_count.least, found.frame_count.most) == (4, 12)
    assert found.fps is not None and found.fps.median == 10
    assert found.hours == pytest.approx((6 * 1.2 + 0.4) / 3600, abs=2e-4)
    said = " ".join(found.warnings)
    for part in ("1 video cannot be read", "1 video shorter than 8 frames", "more than one split", "different labels"):
        assert part in said
    assert found.problems == []


def test_text_and_json_say_it(faulty):
    found = inspect(faulty, SPEC)
    text = found.to_text()
    for part in ("8 videos, 7 readable", "broken.mp4: ", "3.mp4: 4 frames", "0.mp4 = copy.mp4", "group g1: train, val"):
        assert part in text
    assert "No problem found" in text
    assert json.loads(json.dumps(found.to_json()))["duplicates"] == [["0.mp4", "copy.mp4"]]


def test_the_short_policy_decides_whether_short_is_a_problem(faulty):
    strict = ClipSpec(frames=4, stride_frames=2, size=16, short="error")
    assert any("short policy is 'error'" in text for text in inspect(faulty, strict).problems)
    segments = ClipSpec(frames=4, sampling="segments")
    assert inspect(faulty, segments).too_short == []


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        (("a/0.mp4", "a/1.mp4"), "only one class, 'a'"),
        (("train/a/0.mp4", "train/b/1.mp4", "val/c/2.mp4"), "validation has the label 'c', which training never saw"),
    ],
)
def test_what_would_stop_training_is_a_problem(tmp_path, layout, problem):
    for i, name in enumerate(layout):
        video(tmp_path / name, seed=i)
    found = inspect(tmp_path, SPEC)
    assert any(problem in text for text in found.problems) and f"problem: {found.problems[0]}" in found.to_text()


def test_unreadable_through_and_through(tmp_path):
    (tmp_path / "a.mp4").touch()
    found = inspect(tmp_path, SPEC)
    assert found.problems == ["no video can be read"] and found.duration_seconds is None and found.to_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        inspect(tmp_path / "empty")


def test_unlabelled_videos_are_fine(tmp_path):
    for i in range(3):
        video(tmp_path / f"{i}.mp4", seed=i)
    found = inspect(tmp_path, SPEC)
    assert found.problems == [] and "no labels: for pretraining only" in found.to_text()


def test_uneven_classes_are_a_warning(tmp_path):
    for i in range(10):
        video(tmp_path / "many" / f"{i}.mp4", seed=i)
    video(tmp_path / "few" / "x.mp4", seed=99)
    assert any("classes are uneven (1 to 10 videos)" in text for text in inspect(tmp_path, SPEC).warnings)


def test_unlabelled_strays_are_named(tmp_path):
    for name in ("a/0.mp4", "a/1.mp4", "b/0.mp4", "b/1.mp4", "stray.mp4"):
        video(tmp_path / name, seed=len(name))
    assert any(text.startswith("1 video without a label (stray.mp4)") for text in inspect(tmp_path, SPEC).warnings)


def test_only_what_can_be_read_counts_for_the_split(tmp_path):
    for i, name in enumerate(("train/a/0.mp4", "train/b/1.mp4", "val/a/2.mp4")):
        video(tmp_path / name, seed=i)
    assert inspect(tmp_path, SPEC).sides == {"": {"train": 2, "val": 1}}
    (tmp_path / "train/b/1.mp4").write_text("no video")
    assert any("validation has the label" in text or "only one class" in text for text in inspect(tmp_path, SPEC).problems)
    (tmp_path / "val/a/2.mp4").write_text("no video")
    assert any("val side of the split is empty" in text for text in inspect(tmp_path, SPEC).problems)


def test_damage_in_the_middle_is_seen_when_all_is_decoded(tmp_path):
    video(tmp_path / "a.mp4", frames=60, size=64)
    with av.open(str(tmp_path / "a.mp4")) as container:
        packet = list(container.demux(video=0))[30]
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    data[packet.pos + packet.size // 3 : packet.pos + packet.size] = b"\xff" * (packet.size - packet.size // 3)
    (tmp_path / "a.mp4").write_bytes(data)
    assert inspect(tmp_path, SPEC).readable == 1
    assert inspect(tmp_path, SPEC, decode_all=True).readable == 0


def test_the_command_looks_with_the_settings_of_training(tmp_path, capsys):
    for i in range(8):
        video(tmp_path / "videos" / f"{i}.mp4", frames=24, seed=i)
    rows = "".join(f"videos/{i}.mp4,{'ab'[i % 2]},{'one' if i < 6 else 'two'}\n" for i in range(8))
    (tmp_path / "labels.csv").write_text("path,label,split\n" + rows)
    assert main(["inspect", str(tmp_path), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["window_frames"] == 16 and not found["too_short"], "the stride is not the one that training would choose"
    assert "--data.val-split" in found["problems"][0]
    assert main(["inspect", str(tmp_path), "--data.val-split", "two", "--decode"]) == 0
    assert "fine-tuning would train on 6 and hold out 2" in capsys.readouterr().out


def test_the_command_prints_and_exits(faulty, tmp_path, capsys):
    arguments = [sys.executable, "-m", "tubelet", "inspect", str(faulty), "--clip.frames", "4", "--clip.stride-frames", "2"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0 and "8 videos, 7 readable" in done.stdout and done.stderr == ""
    assert main(["inspect", str(faulty), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 8
    video(tmp_path / "a" / "0.mp4")
    assert main(["inspect", str(tmp_path)]) == 2
    assert "problem: only one class" in capsys.readouterr().out
    for wrong in ([str(tmp_path / "nowhere")], []):
        assert main(["inspect", *wrong]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1


def test_real_sets(shared):
    found = inspect(shared / "data" / "egogestar")
    assert found.readable == 158 and found.problems == [] and not found.straddling
    assert set(found.splits) == {"train", "val"}
    found = inspect(shared / "data" / "ucf101_20c")
    assert found.readable == 198 and any("'CleanAndJerk', which training never saw" in text for text in found.problems)

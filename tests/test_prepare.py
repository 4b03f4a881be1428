"""A prepared folder is the data set it was made from, only smaller; it is never half made without saying so."""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tubelet import datasets
from tubelet.cli import main
from tubelet.errors import ConfigError, DataError
from tubelet.loading import LoaderConfig, TrainLoader
from tubelet.prepare import PrepareConfig, prepare, prepare_many
from tubelet.records import ClipSpec, Example
from tubelet.video import guard, reencode
from tubelet.video.augment import AugmentConfig
from tubelet.video.decode import decode, frame_times
from tubelet.video.write import write_video
from tubelet.views import view_batches


def video(path: Path, frames: int = 6, seed: int = 0, size: tuple[int, int] = (16, 24)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = torch.randint(0, 256, (frames, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    write_video(path, pixels, fps=10)
    return path


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder that is not hidden."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def described(example: Example) -> tuple[object, ...]:
    return example.id, example.label, example.text, example.start_seconds, example.end_seconds, example.group, example.split


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    for i, name in enumerate(("train/wave/a.mp4", "train/clap/b.mov", "val/wave/deep er/c.mp4", "val/clap/d.mp4")):
        video(folder / name, 6 + i, seed=i)
    return folder


def test_a_folder_stays_the_same_data_set(videos: Path, tmp_path: Path) -> None:
    done = prepare(videos, tmp_path / "out")
    before, after = datasets.read(videos), datasets.read(tmp_path / "out")
    assert [described(example) for example in after.examples] == [described(example) for example in before.examples]
    assert after.classes == before.classes and after.may_flip == before.may_flip
    assert (len(done.made), done.new, done.removed, done.left_out) == (4, 4, 0, [])
    for old, new, made in zip(before.examples, after.examples, done.made, strict=True):
        assert torch.equal(frame_times(new.path), frame_times(old.path))
        assert made.frames == len(decode(new.path).frames) and made.bytes == os.path.getsize(new.path)
    assert sorted(files(tmp_path / "out")) == sorted([*files(videos), "prepared.jsonl"])


def test_names_of_other_containers_get_mp4_behind_them(tmp_path: Path) -> None:
    for name in ("a.mkv", "a.mp4", "b.avi"):
        video(tmp_path / "videos" / name)
    prepare(tmp_path / "videos", tmp_path / "out")
    assert list(files(tmp_path / "out")) == ["a.mkv.mp4", "a.mp4", "b.avi.mp4", "prepared.jsonl"]
    video(tmp_path / "videos" / "b.avi.mp4")
    with pytest.raises(DataError, match=r"b.avi and .*b.avi.mp4 would both become b.avi.mp4: rename one"):
        prepare(tmp_path / "videos", tmp_path / "other")


def test_a_table_keeps_rows_columns_and_parts(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    for i, name in enumerate(("x/a.mp4", "x/b, two.avi", "c.mp4")):
        video(folder / name, seed=i)
    text = (
        "file;label;note;split;start;end;group\nx/a.mp4;wave;first; train;0.1;0.3;anna\nx/a.mp4;clap;;val;0.3;;anna\n"
        'x/b, two.avi;wave;"a; b";test;;;ben\nc;clap;no suffix;train;;;\ngone.mp4;clap;no file;train;;;cem\n'
    )
    (folder / "labels.csv").write_text(text)
    done = prepare(folder, tmp_path / "out")
    assert [made.path for made in done.left_out] == ["gone.mp4"] and "no such file" in done.left_out[0].error
    assert (tmp_path / "out" / "labels.csv").read_text() == (
        "file,label,note,split,start,end,group\nx/a.mp4,wave,first,train,0.1,0.3,anna\nx/a.mp4,clap,,val,0.3,,anna\n"
        '"x/b, two.avi.mp4",wave,a; b,test,,,ben\nc,clap,no suffix,train,,,\ngone.mp4,clap,no file,train,,,cem\n'
    )
    before, after = datasets.read(folder), datasets.read(tmp_path / "out")
    assert [described(example)[1:] for example in after.examples] == [described(example)[1:] for example in before.examples]
    changed = [(old.id, new.id) for old, new in zip(before.examples, after.examples, strict=True) if old.id != new.id]
    assert changed == [("x/b, two.avi", "x/b, two.avi.mp4")]
    for example in after.examples[:4]:
        assert len(decode(example.path).frames) == 6


def test_trimmed_parts_are_files_of_their_own_with_the_frames_of_the_parts(tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    video(folder / "x/a.mp4", 40, size=(32, 48))
    video(folder / "b.avi", 12, seed=1)
    (folder / "labels.csv").write_text(
        "file,label,start,end,split\nx/a.mp4,wave,1.25,2.5,train\nx/a.mp4,clap,2.5,,val\nx/a.mp4,jump,1.25,2.5,val\nb,clap,,,train\n"
    )
    done = prepare(folder, out, PrepareConfig(trim=True, crf=0))
    assert (out / "labels.csv").read_text() == (
        "file,label,split,group\nx/a@1.25-2.5.mp4,wave,train,x/a.mp4\nx/a@2.5-.mp4,clap,val,x/a.mp4\n"
        "x/a@1.25-2.5.mp4,jump,val,x/a.mp4\nb.avi.mp4,clap,train,b\n"
    )
    names = ["b.avi.mp4", "labels.csv", "prepared.jsonl", "x/a@1.25-2.5.mp4", "x/a@2.5-.mp4"]
    assert sorted(files(out)) == names and [made.frames for made in done.made] == [12, 15, 12]
    whole, times = decode(folder / "x/a.mp4").frames.float(), frame_times(folder / "x/a.mp4")
    for name, start, end in (("x/a@1.25-2.5.mp4", 1.25, 2.5), ("x/a@2.5-.mp4", 2.5, 4.0)):
        part = decode(out / name)
        numbers = ((times >= start) & (times < end)).nonzero().ravel()
        assert len(part.frames) == len(numbers) and torch.allclose(part.seconds, times[numbers] - times[numbers[0]])
        # colours are stored at half the size, so they are not the source's to the last bit; those of a frame away are far off
        error = [(part.frames.float() - whole[numbers + shift]).abs().mean() for shift in (0, -1)]
        assert error[0] < 0.1 * error[1]
    assert prepare(folder, out, PrepareConfig(trim=True, crf=0)).new == 0
    with pytest.raises(ConfigError, match="prepared with trim True, not False"):
        prepare(folder, out, PrepareConfig(crf=0))


def test_a_part_begins_between_key_frames_of_a_long_file(tmp_path: Path) -> None:
    """Of which only what the part needs is decoded: the frames are those of the file from its start."""
    pixels = torch.randint(0, 256, (90, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    write_video(tmp_path / "long.mp4", pixels, fps=30, gop_frames=20)
    reencode.reencode(str(tmp_path / "long.mp4"), tmp_path / "part.mp4", crf=0, part=(1.5, 2.0))
    assert decode(tmp_path / "part.mp4").frames.shape[0] == 15
    reencode.reencode(str(tmp_path / "long.mp4"), tmp_path / "whole.mp4", crf=0)
    assert torch.equal(decode(tmp_path / "part.mp4").frames, decode(tmp_path / "whole.mp4").frames[45:60])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "has no parts of videos to trim to: wanted a table with a start and an end, or no --trim"),
        ("path,label\na.mp4,wave\n", "has no parts of videos to trim to"),
    ],
)
def test_nothing_to_trim_is_said(table: str | None, message: str, tmp_path: Path) -> None:
    video(tmp_path / "videos" / "a.mp4")
    if table:
        (tmp_path / "videos" / "labels.csv").write_text(table)
    with pytest.raises(ConfigError, match=message):
        prepare(tmp_path / "videos", tmp_path / "out", PrepareConfig(trim=True))
    assert not (tmp_path / "out").exists()


def test_a_part_beyond_the_end_is_left_out_with_its_reason(tmp_path: Path) -> None:
    video(tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "labels.csv").write_text("path,label,start,end\na.mp4,wave,0,0.3\na.mp4,clap,7,9\n")
    done = prepare(tmp_path / "videos", tmp_path / "out", PrepareConfig(trim=True))
    assert [(one.path, one.error) for one in done.left_out] == [
        ("a@7-9.mp4", "no frame lies in the part 7 s to 9 s; the video lasts 0.5 s")
    ]


@pytest.mark.parametrize("rows", ["a b.mp4 1\nc.mp4 0\n", "a b.mp4\nc.mp4\n", "a b.mp4 wave 0 0.2\nc.mp4 clap 0.1 0.4\n"])
def test_a_list_without_a_header_stays_one(rows: str, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    for name in ("a b.mp4", "c.mp4"):
        video(folder / name)
    (folder / "list.txt").write_text(rows)
    prepare(folder / "list.txt", tmp_path / "out")
    before, after = datasets.read(folder / "list.txt"), datasets.read(tmp_path / "out")
    assert [described(example) for example in after.examples] == [described(example) for example in before.examples]


def test_a_table_elsewhere(tmp_path: Path) -> None:
    first, second = video(tmp_path / "store" / "x" / "a.mp4"), video(tmp_path / "store" / "y" / "a.mp4", seed=1)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "mine.csv").write_text(f"path,label\n../store/x/a.mp4,wave\n{second},clap\n{first},wave\n")
    done = prepare(tmp_path / "lists" / "mine.csv", tmp_path / "out")
    assert sorted(made.path for made in done.made) == ["x/a.mp4", "y/a.mp4"]
    assert (tmp_path / "out" / "labels.csv").read_text() == "path,label\nx/a.mp4,wave\ny/a.mp4,clap\nx/a.mp4,wave\n"
    assert [example.label for example in datasets.read(tmp_path / "out").examples] == ["wave", "clap", "wave"]


def test_several_data_sets_get_a_folder_each(videos: Path, tmp_path: Path) -> None:
    video(tmp_path / "more" / "e.mp4")
    prepare_many([videos, tmp_path / "more"], tmp_path / "out")
    together = datasets.read_many([videos, tmp_path / "more"])
    again = datasets.read_many([tmp_path / "out" / "videos", tmp_path / "out" / "more"])
    assert [described(example) for example in again.examples] == [described(example) for example in together.examples]


def test_training_reads_a_prepared_folder(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(videos), str(tmp_path / "out")]) == 0
    small = "--clip.size 16 --clip.frames 2 --loader.batch-size 2 --loader.repeats 1 --optim.steps 2 --run.device cpu"
    small += " --run.report false --loader.workers 0 --optim.epochs null --model.options.patch 8"
    code = main(["pretrain", str(tmp_path / "out"), "--out", str(tmp_path / "run"), "--json", *small.split()])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_the_same_command_does_only_what_is_missing_or_changed(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(videos, out)
    whole, ages = files(out), {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")}
    assert prepare(videos, out).new == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.mp4")} == ages and files(out) == whole
    (out / "train/wave/a.mp4").unlink()
    (out / "val/clap/d.mp4").write_bytes(whole["val/clap/d.mp4"][:-1])
    rotten = bytearray(whole["val/wave/deep er/c.mp4"])
    rotten[-1] ^= 1
    (out / "val/wave/deep er/c.mp4").write_bytes(rotten)
    assert prepare(videos, out).new == 3 and files(out) == whole
    video(videos / "train/clap/b.mov", 9, seed=7)
    (videos / "val/clap/d.mp4").unlink()
    video(videos / "val/clap/e.mp4", 7)
    done = prepare(videos, out)
    assert (done.new, done.removed) == (2, 1)
    assert len(decode(out / "train/clap/b.mov").frames) == 9
    assert sorted(files(out)) == sorted([*files(videos), "prepared.jsonl"])


def test_an_archive_taken_away_is_not_missed(tmp_path: Path) -> None:
    source = video(tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "labels.csv").write_text("path,label\na.mp4,wave\nb.mp4,wave\n")
    video(tmp_path / "videos" / "b.mp4", seed=1)
    prepare(tmp_path / "videos", tmp_path / "out")
    source.unlink()
    assert len(datasets.read(tmp_path / "out").examples) == 2
    again = prepare(tmp_path / "videos", tmp_path / "out")
    assert (again.new, again.left_out) == (0, []) and (tmp_path / "out" / "a.mp4").exists()
    shutil.rmtree(tmp_path / "videos")
    assert len(datasets.read(tmp_path / "out").examples) == 2


def test_a_stale_folder_is_refused_where_it_is_read(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["prepare", str(videos), str(out), "--short-side", "160"]) == 0
    repeat = f"repeat `tubelet prepare {videos} {out} --short-side 160`"
    whole = (out / "train/wave/a.mp4").read_bytes()

    def refused(words: str) -> None:
        with pytest.raises(DataError) as raised:
            datasets.read_many([out])
        assert words in str(raised.value) and str(raised.value).endswith(repeat), str(raised.value)

    (out / "train/wave/a.mp4").unlink()
    refused(f"{out} is out of date: train/wave/a.mp4 is missing: ")
    (out / "train/wave/a.mp4").write_bytes(whole[:100])
    (out / "val/clap/d.mp4").unlink()
    refused(f"train/wave/a.mp4 has 100 of {len(whole)} bytes, and 1 more like it: ")
    prepare(videos, out, PrepareConfig(160), command=f"tubelet prepare {videos} {out} --short-side 160")
    os.utime(videos / "train/wave/a.mp4", ns=(1, 1))
    refused("train/wave/a.mp4 has changed since train/wave/a.mp4 was made: ")
    lines = (out / "prepared.jsonl").read_text().splitlines(keepends=True)
    (out / "prepared.jsonl").write_text(lines[0].replace('"finished": true', '"finished": false') + lines[1] + lines[2][:40])
    refused(f"{out} is not finished (1 of 4 videos are prepared): ")
    (out / "prepared.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"prepared.jsonl is damaged: remove .* and repeat `tubelet prepare`"):
        datasets.read(out)


def test_a_table_named_by_itself_is_checked_too(tmp_path: Path) -> None:
    video(tmp_path / "videos" / "a.mp4")
    (tmp_path / "videos" / "labels.csv").write_text("path,label\na.mp4,wave\n")
    prepare(tmp_path / "videos", tmp_path / "out")
    os.utime(tmp_path / "videos" / "a.mp4", ns=(1, 1))
    with pytest.raises(DataError, match="is out of date"):
        datasets.read(tmp_path / "out" / "labels.csv")


def test_a_table_that_changed_or_went_makes_the_copy_stale(tmp_path: Path) -> None:
    source, out = tmp_path / "videos" / "labels.csv", tmp_path / "out"
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / "videos" / name)
    source.write_text("path,label\na.mp4,wave\nb.mp4,clap\n")
    command = f"tubelet prepare {tmp_path / 'videos'} {out}"
    prepare(tmp_path / "videos", out)
    written = (out / "labels.csv").read_text()

    def refused(words: str) -> None:
        for path in (out, out / "labels.csv"):
            if path.exists():
                with pytest.raises(DataError) as raised:
                    datasets.read(path)
                assert str(raised.value) == f"{out} is out of date: {words}: repeat `{command}`"

    (out / "labels.csv").write_text(written[:20])
    refused("labels.csv is not what was written; correct the table it was made from")
    (out / "labels.csv").unlink()
    refused("labels.csv is missing")
    prepare(tmp_path / "videos", out)
    assert (out / "labels.csv").read_text() == written and datasets.read(out).classes == ("clap", "wave")
    source.write_text("path,label\na.mp4,clap\nb.mp4,jump\n")
    refused(f"{source} has changed")
    assert prepare(tmp_path / "videos", out).new == 0
    assert datasets.read(out).classes == ("clap", "jump")
    source.unlink()  # taken away: not missed
    assert datasets.read(out).classes == ("clap", "jump")


def test_a_video_that_is_new_in_the_source_makes_the_copy_stale(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(videos, out)
    video(videos / "train" / "wave" / "new.mp4", seed=7)
    with pytest.raises(DataError, match=rf"out is out of date: {videos}/train/wave/new.mp4 is new: repeat `tubelet prepare"):
        datasets.read(out)
    assert prepare(videos, out).new == 1
    assert len(datasets.read(out).examples) == 5


def test_a_table_elsewhere_that_names_prepared_videos_is_checked_too(videos: Path, tmp_path: Path) -> None:
    """However deep they lie; videos that nobody prepared stand beside them, and one prepared video may be named alone."""
    out, table = tmp_path / "out", tmp_path / "elsewhere" / "table.csv"
    prepare(videos, out)
    table.parent.mkdir()
    table.write_text(f"path,label\n{out}/train/wave/a.mp4,wave\n{videos}/val/clap/d.mp4,clap\n")
    assert len(datasets.read(table).examples) == 2
    record = (out / "prepared.jsonl").read_text()
    os.utime(videos / "train/wave/a.mp4", ns=(1, 1))
    for path in (table, out / "train/wave/a.mp4"):
        for form in ("auto", "table" if path == table else "folder"):
            with pytest.raises(DataError, match=rf"{out} is out of date: .*: repeat `tubelet prepare"):
                datasets.read(path, form)
    (out / "prepared.jsonl").write_text(record.replace('"finished": true', '"finished": false'))
    with pytest.raises(DataError, match="is not finished"):
        datasets.read(table)
    table.write_text(f"path,label\n{videos}/val/clap/d.mp4,clap\n")
    assert len(datasets.read(table).examples) == 1


def test_a_prepared_video_that_cannot_be_read_says_what_makes_it_anew(videos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    words = ["prepare", str(videos), str(out), "--short-side", "160"]
    assert main(words) == 0
    broken = out / "train/wave/a.mp4"
    good = broken.read_bytes()
    broken.write_bytes(bytes(len(good)))
    dataset = datasets.read(out)  # the size is right
    spec = ClipSpec(frames=4, size=32, sampling="stride", stride_frames=1)
    loader = TrainLoader(dataset, spec, AugmentConfig(), LoaderConfig(4, workers=0, cache="off"), seed=0)
    ((_, reason),) = next(iter(loader.batches(0, 1))).skipped
    ((_, said),) = [pair for batch in view_batches(dataset.examples, (), spec, workers=0) for pair in batch.skipped]
    for text in (reason, said):
        assert text.endswith(f"; it was prepared, and `tubelet {' '.join(words)}` makes it anew"), text
    assert main(words) == 0 and broken.read_bytes() == good


def test_broken_videos_are_named_and_the_rest_is_kept(videos: Path, tmp_path: Path, capsys) -> None:
    (videos / "train/wave/text.mp4").write_text("not a video")
    (videos / "val/clap/cut.mp4").write_bytes((videos / "val/clap/d.mp4").read_bytes()[:-200])
    assert main(["prepare", str(videos), str(tmp_path / "out"), "--json"]) == 2
    printed = capsys.readouterr()
    (answer,) = json.loads(printed.out)
    reasons = {one["path"]: one["reason"] for one in answer["left_out"]}
    assert reasons.keys() == {"train/wave/text.mp4", "val/clap/cut.mp4"} and "cut off" in reasons["val/clap/cut.mp4"]
    assert all(f"left out: {name}: {reason}" in printed.err for name, reason in reasons.items())
    assert (answer["videos"], answer["prepared"], answer["new"]) == (6, 4, 4)
    sizes = [os.path.getsize(path) for path in (tmp_path / "out").rglob("*.m*") if path.suffix != ".jsonl"]
    assert answer["bytes"] == sum(sizes) and answer["psnr_worst_db"] <= answer["psnr_mean_db"]
    assert len(datasets.read(tmp_path / "out").examples) == 4
    shutil.copy(videos / "train/wave/a.mp4", videos / "train/wave/text.mp4")  # mended
    with pytest.raises(DataError, match="text.mp4 has changed since"):
        datasets.read(tmp_path / "out")
    assert main(["prepare", str(videos), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().out
    assert (
        f"{tmp_path / 'out'}: 5 of 6 videos, 1 of them new\n" in shown and "% of the source's" in shown and "dB, worst" in shown
    )


def test_what_ends_its_reader_costs_that_video(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """A decoder that crashes, never ends or swallows memory: in the processes that read, which are copies of this one."""
    decoded = reencode.all_frames

    def all_frames(path: str, *settings: object, **more: object) -> object:
        if path.endswith("crash.mp4"):
            ctypes.string_at(0)
        if path.endswith("bomb.mp4"):
            bytearray(2**40)
        while path.endswith("hang.mp4"):
            pass
        return decoded(path, *settings, **more)

    guard.end_idle()  # those made now see this decoder
    monkeypatch.setattr(reencode, "all_frames", all_frames)
    monkeypatch.setenv("TUBELET_SECONDS_PER_FILE", "1")
    for name in ("crash", "hang", "bomb"):
        shutil.copy(videos / "val/clap/d.mp4", videos / f"val/clap/{name}.mp4")
    assert main(["prepare", str(videos), str(tmp_path / "out"), "--json"]) == 2
    (answer,) = json.loads(capsys.readouterr().out)
    reasons = {one["path"].removeprefix("val/clap/"): one["reason"] for one in answer["left_out"]}
    assert reasons.keys() == {"crash.mp4", "hang.mp4", "bomb.mp4"} and answer["prepared"] == 4
    assert "reading it ended 2 processes (SIGSEGV)" in reasons["crash.mp4"]
    assert "s of processor time" in reasons["hang.mp4"] and "GB of memory" in reasons["bomb.mp4"]
    assert not [path for path in (tmp_path / "out").rglob(".*") if path.name != ".lock"], "drafts were left"
    assert len(datasets.read(tmp_path / "out").examples) == 4
    guard.end_idle()
    monkeypatch.undo()
    guard._refused.clear()
    assert prepare(videos, tmp_path / "out").new == 3


def test_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    """In the middle of a video, of which nothing is left."""
    video(tmp_path / "videos" / "a.mp4", 300, size=(320, 320))
    words = [sys.executable, "-m", "tubelet", "prepare", str(tmp_path / "videos"), str(tmp_path / "out"), "--crf", "0"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore Ctrl-C, and so would it
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not list((tmp_path / "out").glob(".*.tmp.mp4")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    assert process.communicate()[1].endswith(b"stopped\n") and process.returncode == 130
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", "prepared.jsonl"]


def test_other_settings_other_data_and_other_folders_are_refused(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare_many([videos], out, PrepareConfig(gop_frames=8))
    before = files(out)
    with pytest.raises(ConfigError) as raised:
        prepare(videos, out)
    assert str(raised.value) == (
        f"{out} was prepared with gop_frames 8, not 16: choose another folder, or repeat `tubelet prepare {videos} {out} "
        "--gop-frames 8`"
    )
    video(tmp_path / "more" / "e.mp4")
    with pytest.raises(ConfigError, match=r"was prepared from .*/videos, not .*/more: choose another folder"):
        prepare(tmp_path / "more", out, PrepareConfig(gop_frames=8))
    assert files(out) == before
    with pytest.raises(
        DataError,
        match="more holds something, and no prepared.jsonl that says `tubelet prepare` wrote it: remove",
    ):
        prepare(videos, tmp_path / "more")
    with pytest.raises(DataError, match="whose videos would then be read twice: choose a folder beside it"):
        prepare(videos, videos / "small")
    with pytest.raises(DataError, match="choose a folder beside it"):
        prepare(videos, videos)
    assert not (videos / "small").exists()
    for settings, message in (
        ({"short_side": 100}, "short_side is 100: it must be 160 to 320"),
        ({"gop_frames": 0}, "gop_frames is 0: it must be 1 to 300"),
        ({"crf": 41}, "crf is 41: it must be 0 to 40"),
    ):
        with pytest.raises(ConfigError, match=message):
            PrepareConfig(**settings)


def test_one_argument_is_not_enough(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", str(videos)]) == 2
    assert "give the videos and, last, the folder to write: tubelet prepare DIR... OUT" in capsys.readouterr().err


def test_two_processes_do_not_share_a_folder(videos: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    with open(tmp_path / "out" / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is writing .*out: wait for it"):
            prepare(videos, tmp_path / "out")
    assert prepare(videos, tmp_path / "out").new == 4


def test_no_room_is_one_clear_line_and_leaves_no_half_file(videos: Path, tmp_path: Path) -> None:
    """Files of this process may not grow beyond a limit that holds the records and the first of the videos."""
    video(videos / "val/wave/z.mp4", 60, seed=9, size=(160, 160))
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); from tubelet.cli import main; "
        f"sys.exit(main(['prepare', {str(videos)!r}, {str(tmp_path / 'out')!r}, '--workers', '1']))"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert f"{tmp_path / 'out'} cannot be written (File too large): make room" in done.stderr
    assert sorted(files(tmp_path / "out")) == sorted({*files(videos), "prepared.jsonl"} - {"val/wave/z.mp4"})
    assert not [name for name in os.listdir(tmp_path / "out" / "val" / "wave") if name.startswith(".")]
    with pytest.raises(DataError, match="is not finished \\(4 of 5 videos are prepared\\): repeat `tubelet prepare"):
        datasets.read(tmp_path / "out")
    assert prepare(videos, tmp_path / "out").new == 1


def test_a_killed_process_is_continued_to_the_same_bytes(tmp_path: Path) -> None:
    for i in range(6):
        video(tmp_path / "videos" / f"{i}.mp4", 60, seed=i, size=(96, 96))
    words = [sys.executable, "-m", "tubelet", "prepare", str(tmp_path / "videos"), str(tmp_path / "out"), "--workers", "2"]
    record = tmp_path / "out" / "prepared.jsonl"
    for _ in range(5):  # on a busy machine it may be over before it is killed
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not (record.exists() and record.read_text().count("\n") > 2):
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            break
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    made = sorted((tmp_path / "out").glob("[0-9].mp4"))
    assert len(made) >= 2 and all(len(decode(path).frames) == 60 for path in made)
    with pytest.raises(DataError, match="is not finished"):
        datasets.read(tmp_path / "out")
    kept = {path: path.stat().st_mtime_ns for path in made}
    assert main(words[3:-2]) == 0
    assert sum(path.stat().st_mtime_ns == age for path, age in kept.items()) >= 2
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp.mp4")]
    again = prepare_many([tmp_path / "videos"], tmp_path / "whole")
    assert again[0].new == 6
    first, second = files(tmp_path / "out"), files(tmp_path / "whole")
    record_of = [first.pop("prepared.jsonl").decode(), second.pop("prepared.jsonl").decode()]
    assert first == second and record_of[0].replace(str(tmp_path / "out"), str(tmp_path / "whole")) == record_of[1]

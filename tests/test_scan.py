"""Windows of long videos: an interrupted pass goes on where it was, and its answer is that of a pass in one go."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tubelet import models, scan
from tubelet.cli import main
from tubelet.records import ClipSpec
from tubelet.scan import Kept
from tubelet.video.stream import Windows
from tubelet.video.write import write_video
from tubelet.weights.load import load_model
from tubelet.weights.save import save

# The handler is set because a shell's background jobs, and what they start, ignore Ctrl-C.
CODE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from tubelet import cli, scan
scan.KEEP_SECONDS = 0.0
sys.exit(cli.main(sys.argv[1:]))
"""
SPEC = ClipSpec(frames=4, stride_frames=1, size=16)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier, a video of 300 s, of which a pass takes some seconds, and one of a minute."""
    folder = tmp_path_factory.mktemp("scan")
    save(models.build("slow_fusion_toy", SPEC, ("wave", "clap")), folder / "model")
    pixels = torch.randint(256, (2400, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(folder / "v.mp4", pixels, fps=8)
    write_video(folder / "minute.mp4", pixels[:480], fps=8)
    return folder


@pytest.mark.parametrize(("command", "how"), [("timeline", signal.SIGKILL), ("ground", signal.SIGINT)])
def test_a_stopped_command_goes_on(place, tmp_path, monkeypatch, capsys, command, how):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = [command, str(place / "v.mp4"), "--model", str(place / "model"), "--windows", "1", "--json"]
    asked[2:2] = ["wave"] if command == "ground" else []
    files = [str(tmp_path / "t.csv"), str(tmp_path / "t.srt")]
    out = [] if command == "ground" else ["--out", files[0], "--out", files[1]]
    room = Kept.in_cache(print).folder
    process = subprocess.Popen([sys.executable, "-c", CODE, *asked, *out], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    end = time.monotonic() + 280
    while process.poll() is None and len(list(room.glob("*/*/*.safetensors"))) < 5 and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(how)
    printed = process.communicate(timeout=280)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL), printed
    assert printed[0] == b"" and not any(map(os.path.exists, files)) and list(room.glob("*/*/*.safetensors"))

    assert main([*asked, *out]) == 0
    again = capsys.readouterr()
    assert "v.mp4: goes on after " in again.err and not list(room.iterdir())
    written = [Path(file).read_bytes() for file in files if out]
    assert main([*asked, *out]) == 0
    whole = capsys.readouterr()
    assert whole.out == again.out and whole.err == ""
    assert [Path(file).read_bytes() for file in files if out] == written


def test_what_was_done_is_not_done_again_and_the_answer_is_the_same(place, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEEP_SECONDS", 0.0)
    model, video, windows = load_model(place / "model"), place / "v.mp4", [Windows(window_seconds=1), Windows(window_seconds=2)]
    said: list[str] = []
    kept = Kept(tmp_path / "kept", said.append)

    def stop(after):
        def on_window(done, of):
            if done >= after:
                raise KeyboardInterrupt

        return on_window

    whole = scan.scan(model, video, windows)
    for after in (1, 100, 101):  # twice within the same pass
        with pytest.raises(KeyboardInterrupt):
            scan.scan(model, video, windows, on_window=stop(after), kept=kept)
    counts: list[int] = []
    found = scan.scan(model, video, windows, on_window=lambda done, of: counts.append(done), kept=kept)
    assert said[-1].endswith(f"goes on after {counts[0] - 8} of {len(whole.seconds)} windows") and counts[0] - 8 >= 100
    for name in ("seconds", "embeddings", "probabilities"):
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert found.duration == whole.duration and not list(kept.folder.iterdir())


def interrupted(model, video, windows, kept, after=24):
    """A pass that is stopped after so many windows; gives the files that wait."""

    def stop(done, of):
        if done >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan.scan(model, video, windows, on_window=stop, kept=kept)
    return sorted(kept.folder.glob("*/*/*.safetensors"))


def test_every_pass_waits_for_itself_until_the_file_changes(place, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEEP_SECONDS", 0.0)
    model, video = load_model(place / "model"), place / "minute.mp4"
    said: list[str] = []
    kept, windows = Kept(tmp_path / "kept", said.append), [Windows(window_seconds=4, step_seconds=1)]
    whole = scan.scan(model, video, windows)
    waiting = interrupted(model, video, windows, kept)

    other = load_model(place / "model")
    torch.nn.init.ones_(next(other.parameters()))
    clips = load_model(place / "model")
    clips.spec = replace(clips.spec, mean=(0.0, 0.0, 0.0))
    for network, asked in ((other, windows), (clips, windows), (model, [Windows(window_seconds=2, step_seconds=1)])):
        found = scan.scan(network, video, asked, kept=kept)
        assert torch.equal(found.embeddings, scan.scan(network, video, asked).embeddings)
        assert said == [] and sorted(kept.folder.glob("*/*/*.safetensors")) == waiting
    assert len(interrupted(other, video, windows, kept)) == 2 * len(waiting)
    assert torch.equal(scan.scan(model, video, windows, kept=kept).embeddings, whole.embeddings) and "goes on" in said.pop()
    assert len(list(kept.folder.glob("*/*"))) == 1  # that of the other model
    os.utime(video, ns=(1, 1))
    assert torch.equal(scan.scan(model, video, windows, kept=kept).embeddings, whole.embeddings)
    assert said == [f"{video}: has changed since a pass was interrupted: begun anew"] and not list(kept.folder.iterdir())


def test_what_is_damaged_is_made_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEEP_SECONDS", 0.0)
    model, video, windows = load_model(place / "model"), place / "minute.mp4", [Windows(window_seconds=4, step_seconds=1)]
    said: list[str] = []
    kept = Kept(tmp_path / "kept", said.append)
    whole = scan.scan(model, video, windows)
    *_, last = interrupted(model, video, windows, kept)
    last.write_bytes(last.read_bytes()[:-5])
    assert torch.equal(scan.scan(model, video, windows, kept=kept).embeddings, whole.embeddings) and "goes on" in said.pop()
    first, *_ = interrupted(model, video, windows, kept)
    first.unlink()  # without the first windows nothing follows on anything
    assert torch.equal(scan.scan(model, video, windows, kept=kept).embeddings, whole.embeddings) and said == []


def test_a_second_process_at_the_same_pass_leaves_it_alone(place, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEEP_SECONDS", 0.0)
    model, video, windows = load_model(place / "model"), place / "minute.mp4", [Windows(window_seconds=4, step_seconds=1)]
    said: list[str] = []
    kept = Kept(tmp_path / "kept", said.append)
    waiting = interrupted(model, video, windows, kept)
    code = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); input()"
    asked = [sys.executable, "-c", code, str(waiting[0].parent / ".lock")]
    with subprocess.Popen(asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        scan.scan(model, video, windows, kept=kept)
        assert len(said) == 1 and "another process is at the same pass" in said.pop()
        assert sorted(kept.folder.glob("*/*/*.safetensors")) == waiting
        process.kill()
    scan.scan(model, video, windows, kept=kept)
    assert "goes on after" in said.pop() and not list(kept.folder.iterdir())


def test_what_waits_goes_after_a_month_and_also_where_the_disk_became_full(place, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEEP_SECONDS", 0.0)
    model, video, windows = load_model(place / "model"), place / "minute.mp4", [Windows(window_seconds=4, step_seconds=1)]
    said: list[str] = []
    kept = Kept(tmp_path / "kept", said.append)
    (tmp_path / "kept" / "mine" / "1-2").mkdir(parents=True)  # nothing of ours
    os.utime(tmp_path / "kept" / "mine" / "1-2", (1, 1))
    [old, *_] = interrupted(model, video, windows, kept)
    os.utime(old.parent, (time.time() - 29 * 86400,) * 2)
    scan.scan(model, video, [Windows(window_seconds=60)], kept=kept)
    assert old.exists()
    os.utime(old.parent, (time.time() - 31 * 86400,) * 2)

    def fill(done, of):
        [folder] = kept.folder.glob("*/*-*/.lock")
        for number in range(done, of):  # in the way of what comes next
            (folder.parent / f"{done:09d}-{number:09d}.safetensors").mkdir(exist_ok=True)

    scan.scan(model, video, windows, on_window=lambda done, of: done == 16 and fill(done, of), kept=kept)
    assert len(said) == 1 and said[0].startswith("what is done cannot be kept")
    assert [path.name for path in kept.folder.iterdir()] == ["mine"]


def test_a_cache_that_cannot_be_written_stops_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEEP_SECONDS", 0.0)
    (tmp_path / "file").touch()
    said: list[str] = []
    scan.scan(
        load_model(place / "model"),
        place / "minute.mp4",
        [Windows(window_seconds=60)],
        kept=Kept(tmp_path / "file" / "x", said.append),
    )
    assert len(said) == 1 and said[0].startswith("what is done cannot be kept")
